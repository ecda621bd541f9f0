-- What waits, how old the oldest of it is, and how many are dead, measured in the table and not by the publisher's view.
--
-- $1 destination, $2 lanes, $3 a floor of each lane, below which nothing waits but retries, $4 the count at which to stop.
-- Guarantees: one row; never counts more than $4 rows of a kind; the lag is 0 when nothing waits; "firsts" are the lowest
-- ids of the lanes in "lanes", for the next floors. What lies below the floors is not walked.
-- Index: messages_pending_pkey (head of each lane, then a bounded walk), messages_pending_deferred, messages_dead_pkey.
WITH heads AS MATERIALIZED (
    SELECT h.lane, first.id, first.enqueued_at
    FROM unnest($2::smallint[], $3::bigint[]) AS h (lane, floor)
    CROSS JOIN LATERAL (
        SELECT m.id, m.enqueued_at
        FROM outbox.messages AS m
        WHERE m.status = 'pending' AND m.destination = $1 AND m.lane = h.lane AND m.id > h.floor
            AND m.available_at IS NULL
        ORDER BY m.id
        LIMIT 1
    ) AS first
), deferred AS MATERIALIZED (
    SELECT m.enqueued_at
    FROM outbox.messages_pending AS m
    WHERE m.destination = $1 AND m.available_at IS NOT NULL
    LIMIT $4
)
SELECT
    coalesce(extract(epoch FROM clock_timestamp() - least(
        (SELECT min(enqueued_at) FROM heads), (SELECT min(enqueued_at) FROM deferred)
    )), 0)::float8 AS lag,
    least($4, (SELECT count(*) FROM deferred) + (
        SELECT count(*)
        FROM (
            SELECT
            FROM unnest($2::smallint[], $3::bigint[]) AS h (lane, floor)
            CROSS JOIN LATERAL (
                SELECT
                FROM outbox.messages AS m
                WHERE m.status = 'pending' AND m.destination = $1 AND m.lane = h.lane AND m.id > h.floor
                    AND m.available_at IS NULL
                ORDER BY m.id
                LIMIT $4
            ) AS of_lane
            LIMIT $4
        ) AS waiting
    )) AS backlog,
    (
        SELECT count(*)
        FROM (SELECT FROM outbox.messages AS m WHERE m.status = 'dead' AND m.destination = $1 LIMIT $4) AS buried
    ) AS dead,
    ARRAY(SELECT lane FROM heads ORDER BY lane) AS lanes,
    ARRAY(SELECT id FROM heads ORDER BY lane) AS firsts
