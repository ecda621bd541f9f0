-- Destinations with messages that are pending or due and that no running relay serves. What has fallen due becomes pending
-- only by a relay that serves it.
--
-- $1 destinations that the asking relay serves, $2 the age in seconds at which a relay's word counts no more, $3 the count at
-- which to stop. Guarantees: at most a hundred rows ordered by name, found among the first thousand names with pending
-- messages and the first thousand with scheduled ones; "messages" counts up to $3 of each kind.
-- Index: the primary key of messages_pending and messages_scheduled_due, one row per destination, and up to $3 rows of those
-- that nobody serves.
WITH RECURSIVE waiting (destination, count) AS (
    (SELECT m.destination, 1 FROM outbox.messages_pending AS m ORDER BY m.destination LIMIT 1)
    UNION ALL
    SELECT
        (
            SELECT m.destination FROM outbox.messages_pending AS m
            WHERE m.destination > w.destination
            ORDER BY m.destination
            LIMIT 1
        ),
        w.count + 1
    FROM waiting AS w
    WHERE w.destination IS NOT NULL AND w.count < 1000
), scheduled (destination, count) AS (
    (SELECT m.destination, 1 FROM outbox.messages_scheduled AS m WHERE m.destination > '' ORDER BY m.destination LIMIT 1)
    UNION ALL
    SELECT
        (
            SELECT m.destination FROM outbox.messages_scheduled AS m
            WHERE m.destination > s.destination
            ORDER BY m.destination
            LIMIT 1
        ),
        s.count + 1
    FROM scheduled AS s
    WHERE s.destination IS NOT NULL AND s.count < 1000
), named (destination) AS (
    SELECT w.destination FROM waiting AS w
    UNION
    SELECT s.destination FROM scheduled AS s
    -- Not EXISTS: it may become a join that reads all that are due.
    WHERE (
        SELECT true FROM outbox.messages_scheduled AS m
        WHERE m.destination = s.destination AND m.deliver_at <= now()
        ORDER BY m.deliver_at
        LIMIT 1
    )
)
SELECT u.destination, counted.messages
FROM (
    SELECT w.destination
    FROM named AS w
    WHERE w.destination IS NOT NULL AND w.destination <> ALL ($1::text[])
        AND NOT EXISTS (
            SELECT FROM outbox.served AS s
            WHERE s.destination = w.destination AND s.seen_at > clock_timestamp() - make_interval(secs => $2)
        )
    ORDER BY w.destination
    LIMIT 100
) AS u
CROSS JOIN LATERAL (
    SELECT count(*) AS messages
    FROM (
        (SELECT FROM outbox.messages_pending AS m WHERE m.destination = u.destination LIMIT $3)
        UNION ALL
        (
            SELECT FROM outbox.messages_scheduled AS m
            WHERE m.destination = u.destination AND m.deliver_at <= now()
            ORDER BY m.deliver_at
            LIMIT $3
        )
    ) AS waits
) AS counted
ORDER BY u.destination
