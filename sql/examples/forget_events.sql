-- Deletes old events that no message still needs. The relay never deletes events: they may be what the application lives
-- on. Where they are not, run this from time to time, again and again until it deletes none.
--
-- An event stays as long as a pending or dead message refers to it, because its payload is their body. Delivered messages
-- do not need theirs. Do not make new messages of events this old (a replay) while this runs: they would die without one.
-- A chunk keeps the transaction short; the lowest positions are the oldest.
DELETE FROM outbox.events AS e
WHERE e.position = ANY (ARRAY(
    SELECT old.position
    FROM outbox.events AS old
    WHERE old.recorded_at < now() - interval '90 days'
        AND NOT EXISTS (
            SELECT FROM outbox.messages AS m
            WHERE m.status IN ('pending', 'dead') AND m.event_position = old.position
        )
    ORDER BY old.position
    LIMIT 10000
));
