-- Marks messages delivered: moves them out of the pending partition.
--
-- $1 destination, $2 lanes, $3 ids, $4 SQS message ids.
-- Guarantees: idempotent; a message that is no longer pending is left alone, and the count of rows tells. A late mark is
-- never refused, because SQS did accept the message. Ids are sorted by the caller, so two relays cannot deadlock.
-- Index: messages_pending_pkey once a message.
UPDATE outbox.messages AS m
SET status = 'delivered', delivered_at = clock_timestamp(), available_at = NULL, sqs_message_id = d.sqs_message_id
FROM unnest($2::smallint[], $3::bigint[], $4::text[]) AS d (lane, id, sqs_message_id)
WHERE m.status = 'pending' AND m.destination = $1 AND m.lane = d.lane AND m.id = d.id
