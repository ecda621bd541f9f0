-- Reads single messages that a sweep found below the cursor.
--
-- $1 destination, $2 lanes, $3 ids. Guarantees: only what is still pending comes back, in the order of ids.
-- Index: messages_pending_pkey once a message, events_pkey once a message.
SELECT
    s.xmax, s.now, m.lane, m.id, m.attempts, m.enqueued_at, m.group_id,
    e.event_id::text, e.event_type, e.stream_id, e.stream_version, e.payload::text, e.metadata::text
FROM (
    SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS xmax, clock_timestamp() AS now OFFSET 0
) AS s
CROSS JOIN unnest($2::smallint[], $3::bigint[]) AS f (lane, id)
CROSS JOIN LATERAL (
    SELECT p.lane, p.id, p.attempts, p.enqueued_at, p.group_id, p.event_position
    FROM outbox.messages AS p
    WHERE p.status = 'pending' AND p.destination = $1 AND p.lane = f.lane AND p.id = f.id
    LIMIT 1
) AS m
LEFT JOIN outbox.events AS e ON e.position = m.event_position
ORDER BY m.id
