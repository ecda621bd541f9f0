-- Looks at a chunk of one lane's delivered messages, in the order of ids, and deletes those older than the retention.
--
-- $1 destination, $2 lane, $3 the id above which to look, $4 retention in seconds, $5 how many to look at.
-- Guarantees: looks at $5 rows at most, so a chunk costs the same whatever is kept; one row, which tells the highest id
-- looked at (null when there was nothing above $3), how many were deleted, and whether any could be: a message is not
-- older than the time it was enqueued, and that grows with the ids, so beyond a chunk of younger ones none is due. Two
-- relays that prune the same lane at once wait for each other for one chunk at most. Index: messages_delivered_pkey.
-- Runs in a transaction of src/outbox/measure.rs that allows the planner nothing but index scans and nested loops: on a
-- table without statistics it would sort the whole lane for each chunk. The deletion probes whole keys, as deliver.sql.
WITH chunk AS (
    SELECT
        d.destination,
        d.lane,
        d.id,
        d.delivered_at < now() - $4::float8 * interval '1 second' AS is_old,
        d.enqueued_at < now() - $4::float8 * interval '1 second' AS may_be_old
    FROM outbox.messages AS d
    WHERE d.status = 'delivered' AND d.destination = $1 AND d.lane = $2 AND d.id > $3
    ORDER BY d.id
    LIMIT $5
), deleted AS (
    DELETE FROM outbox.messages AS m
    USING chunk AS c
    WHERE c.is_old AND m.status = 'delivered' AND m.destination = c.destination AND m.lane = c.lane AND m.id = c.id
    RETURNING m.id
)
SELECT
    max(c.id) AS highest,
    (SELECT count(*) FROM deleted) AS deleted,
    coalesce(bool_or(c.is_old OR c.may_be_old), false) AS may_be_old
FROM chunk AS c
