-- Removes records of delivered messages whose ids were given again, to others that are pending and are recorded next.
--
-- $1 destination, $2 lanes, $3 ids, $4 event positions, $5 times of enqueueing of the messages to be recorded. Somebody has set
-- the sequence of ids back, or restored the table without it; the primary key would refuse the record of what was delivered.
-- Guarantees: only where the pending message is the one that is meant and the record is another one's.
-- Index: messages_delivered_pkey and messages_pending_pkey once a message. Runs in a transaction as deliver.sql.
DELETE FROM outbox.messages AS m
USING (
    SELECT $1::text AS destination, u.*
    FROM unnest($2::smallint[], $3::bigint[], $4::bigint[], $5::timestamptz[]) AS u (lane, id, event_position, enqueued_at)
    OFFSET 0
) AS d
WHERE m.status = 'delivered' AND m.destination = ANY (ARRAY[d.destination]) AND m.lane = d.lane AND m.id = d.id
    AND (m.event_position, m.enqueued_at) <> (d.event_position, d.enqueued_at)
    AND EXISTS (
        SELECT FROM outbox.messages AS p
        WHERE p.status = 'pending' AND p.destination = d.destination AND p.lane = d.lane AND p.id = d.id
            AND p.event_position = d.event_position AND p.enqueued_at = d.enqueued_at
        OFFSET 0
    )
