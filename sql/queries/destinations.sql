-- Destinations that a relay has served or that anything is pending or dead for, in the order of their names, and whether a relay
-- has served them since the server's last crash.
--
-- No parameters. Guarantees: at most a thousand that no relay has served; a name that an application makes anew for each message
-- stops nobody. Index: messages_pending_pkey and messages_dead_pkey, one row of each destination.
WITH RECURSIVE waiting (destination, count) AS (
    (
        SELECT m.destination, 1 FROM outbox.messages AS m
        WHERE m.status IN ('pending', 'dead')
        ORDER BY m.destination
        LIMIT 1
    )
    UNION ALL
    SELECT
        (
            SELECT m.destination FROM outbox.messages AS m
            WHERE m.status IN ('pending', 'dead') AND m.destination > w.destination
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
