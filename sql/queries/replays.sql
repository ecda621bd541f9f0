-- The unfinished replays.
--
-- No parameters. Guarantees: in the order in which they began. "idle" is the time in seconds since a replay last moved.
SELECT
    r.id, r.source, r.destination, r.actor, r.start_position, r.position, r.last_position, r.messages,
    greatest(extract(epoch FROM clock_timestamp() - r.moved_at), 0)::float8 AS idle
FROM outbox.replays AS r
WHERE r.ended_at IS NULL
ORDER BY r.id
