-- What waits, how old the oldest of it is, and how many are dead, measured in the table and not by the publisher's view.
--
-- $1 destination, $2 lanes, $3 the count at which to stop counting.
-- Guarantees: one row; never counts more than $3 rows of a partition; the lag is 0 when nothing waits.
-- Index: messages_pending_pkey (head of each lane, then a bounded walk), messages_dead_pkey.
SELECT
    coalesce((
        SELECT extract(epoch FROM max(clock_timestamp() - head.enqueued_at))
        FROM unnest($2::smallint[]) AS h (lane)
        CROSS JOIN LATERAL (
            SELECT m.enqueued_at
            FROM outbox.messages AS m
            WHERE m.status = 'pending' AND m.destination = $1 AND m.lane = h.lane
            ORDER BY m.id
            LIMIT 1
        ) AS head
    ), 0)::float8 AS lag,
    (
        SELECT count(*)
        FROM (
            SELECT FROM outbox.messages AS m WHERE m.status = 'pending' AND m.destination = $1 LIMIT $3
        ) AS waiting
    ) AS backlog,
    (
        SELECT count(*)
        FROM (SELECT FROM outbox.messages AS m WHERE m.status = 'dead' AND m.destination = $1 LIMIT $3) AS buried
    ) AS dead
