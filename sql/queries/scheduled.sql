-- How many messages of a destination are scheduled, and when the next one falls due.
--
-- $1 destination, $2 the count at which to stop. Guarantees: one row; "next" in seconds since 1970, null when there is none.
-- Index: messages_scheduled_due, walked up to $2 entries.
SELECT
    (
        SELECT count(*) FROM (SELECT FROM outbox.messages_scheduled AS m WHERE m.destination = $1 LIMIT $2) AS scheduled
    ) AS scheduled,
    (
        SELECT extract(epoch FROM m.deliver_at)::float8
        FROM outbox.messages_scheduled AS m
        WHERE m.destination = $1
        ORDER BY m.deliver_at
        LIMIT 1
    ) AS next
