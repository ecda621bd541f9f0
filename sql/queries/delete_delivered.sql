-- Removes delivered messages at once: what OUTBOX_RELAY_DELIVERED_RETENTION=0s does instead of deliver.sql.
--
-- $1 destination, $2 lanes, $3 ids. Guarantees as deliver.sql. Index: messages_pending_pkey once a message.
-- Runs in a transaction of src/outbox/settle.rs that allows the planner nothing but an index probe a message. With the
-- destination as a column of a subquery that probe has the whole key; as a constant, "all of this destination" looks as
-- cheap on a fresh outbox, where the planner has no statistics.
DELETE FROM outbox.messages AS m
USING (
    SELECT $1::text AS destination, u.*
    FROM unnest($2::smallint[], $3::bigint[]) AS u (lane, id)
    OFFSET 0
) AS d
WHERE m.status = 'pending' AND m.destination = d.destination AND m.lane = d.lane AND m.id = d.id
