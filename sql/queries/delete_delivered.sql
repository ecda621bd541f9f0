-- Removes delivered messages at once: what OUTBOX_RELAY_DELIVERED_RETENTION=0s does instead of deliver.sql.
--
-- $1 destination, $2 lanes, $3 ids. Guarantees as deliver.sql. Index: messages_pending_pkey once a message.
DELETE FROM outbox.messages AS m
USING unnest($2::smallint[], $3::bigint[]) AS d (lane, id)
WHERE m.status = 'pending' AND m.destination = $1 AND m.lane = d.lane AND m.id = d.id
