-- Marks messages delivered: moves them out of the pending partition.
--
-- $1 destination, $2 lanes, $3 ids, $4 event positions, $5 times of enqueueing, $6 SQS message ids, $7 SQS sequence
-- numbers. Guarantees: idempotent; a message that is no longer pending is left alone, and the count of rows shows it. A
-- late mark is never refused, because SQS did accept the message. The caller sorts ids, so two relays cannot deadlock.
-- Event position and time identify the message: after a failover an id may belong to another one, which is left alone.
-- Index: messages_pending_pkey once a message. Runs in a transaction of src/outbox/settle.rs in which the planner may
-- use only one index probe per message. With the destination as a column of a subquery that probe uses the whole key.
-- As a constant, "all of this destination" looks equally cheap on a fresh outbox, where the planner has no statistics.
-- And "= ANY (ARRAY[...])" is no clause for a merge join: with "=" the planner also considers a walk through the whole
-- index, in the order of a merge join, and mistakes it for a walk to one row if the outbox was empty when it was
-- analyzed. Each message was then compared with all pending ones.
UPDATE outbox.messages AS m
SET status = 'delivered', delivered_at = clock_timestamp(), available_at = NULL, sqs_message_id = d.sqs_message_id,
    sqs_sequence_number = d.sqs_sequence_number::numeric
FROM (
    SELECT $1::text AS destination, u.*
    FROM unnest($2::smallint[], $3::bigint[], $4::bigint[], $5::timestamptz[], $6::text[], $7::text[])
        AS u (lane, id, event_position, enqueued_at, sqs_message_id, sqs_sequence_number)
    OFFSET 0
) AS d
WHERE m.status = 'pending' AND m.destination = ANY (ARRAY[d.destination]) AND m.lane = d.lane AND m.id = d.id
    AND m.event_position = d.event_position AND m.enqueued_at = d.enqueued_at
