-- Looks at a chunk of one lane's delivered messages, in the order of ids, and deletes those older than the retention.
--
-- $1 destination, $2 lane, $3 the id above which to look, $4 retention in seconds, $5 how many to look at.
-- Guarantees: looks at $5 rows at most, so a chunk costs the same however much is kept; one row, with the highest id
-- looked at (null when there was nothing above $3), how many messages were deleted, and whether any could be old
-- enough: a message is not older than its time of enqueueing, which grows with the ids, so after a chunk of younger
-- ones no later message is due. Two relays that prune the same lane at once wait for each other for at most one chunk.
-- Index: messages_delivered_pkey.
-- Runs in a transaction of src/outbox/measure.rs in which the planner may use only index scans and nested loops: on a
-- table without statistics it would sort the whole lane for each chunk. The deletion probes whole keys, as in
-- deliver.sql.
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
