-- Destinations that a relay has served or that have pending, scheduled or dead messages, ordered by name, and whether a relay has
-- served them since the server's last crash.
--
-- No parameters. Guarantees: at most a thousand that no relay has served, in case an application uses a new name for
-- each message. Index: the primary key of each partition, one row per destination.
WITH RECURSIVE waiting (destination, count) AS (
    (
        SELECT m.destination, 1 FROM outbox.messages AS m
        WHERE m.status IN ('pending', 'scheduled', 'dead')
        ORDER BY m.destination
        LIMIT 1
    )
    UNION ALL
    SELECT
        (
            SELECT m.destination FROM outbox.messages AS m
            WHERE m.status IN ('pending', 'scheduled', 'dead') AND m.destination > w.destination
            ORDER BY m.destination
            LIMIT 1
        ),
        w.count + 1
    FROM waiting AS w
    WHERE w.destination IS NOT NULL AND w.count < 1000
)
SELECT d.destination, EXISTS (SELECT FROM outbox.lanes AS l WHERE l.destination = d.destination) AS is_served
FROM (
    SELECT l.destination FROM outbox.lanes AS l
    UNION
    SELECT w.destination FROM waiting AS w
) AS d
WHERE d.destination IS NOT NULL
ORDER BY d.destination
