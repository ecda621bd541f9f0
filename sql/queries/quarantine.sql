-- Sets messages aside, so that they stop no others and no relay sends them.
--
-- $1 destination, $2 lanes, $3 ids, $4 event positions, $5 times of enqueueing, $6 groups, $7 outcomes that could not
-- be recorded (delivered, dead, or null for a message that stays pending: it could not be read, or changed), $8 SQS message ids, $9 attempts and $10
-- errors of dead messages, $11 reasons, $12 SQS sequence numbers.
-- Guarantees: idempotent; of two messages with one id the later counts. Index: quarantine_pkey.
INSERT INTO outbox.quarantine AS q
    (destination, lane, message_id, event_position, enqueued_at, group_id, outcome, sqs_message_id, attempts, last_error, reason,
    sqs_sequence_number)
SELECT
    $1, u.lane, u.message_id, u.event_position, u.enqueued_at, u.group_id, u.outcome, u.sqs_message_id, u.attempts, u.last_error,
    u.reason, u.sqs_sequence_number::numeric
FROM unnest(
    $2::smallint[], $3::bigint[], $4::bigint[], $5::timestamptz[], $6::text[], $7::text[], $8::text[], $9::smallint[],
    $10::text[], $11::text[], $12::text[]
) AS u (
    lane, message_id, event_position, enqueued_at, group_id, outcome, sqs_message_id, attempts, last_error, reason,
    sqs_sequence_number
)
ON CONFLICT (destination, lane, message_id) DO UPDATE
SET event_position = excluded.event_position, enqueued_at = excluded.enqueued_at, group_id = excluded.group_id,
    outcome = excluded.outcome, sqs_message_id = excluded.sqs_message_id, attempts = excluded.attempts,
    last_error = excluded.last_error, reason = excluded.reason,
    sqs_sequence_number = excluded.sqs_sequence_number
