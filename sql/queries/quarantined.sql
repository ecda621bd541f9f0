-- Messages in quarantine, the oldest first.
--
-- $1 destination, or null for all, $2 how many at most. Reads outbox.quarantine, which is small or the reason to look.
SELECT
    q.destination, q.lane, q.message_id, q.event_position, q.enqueued_at, q.group_id, q.outcome, q.sqs_message_id, q.attempts,
    q.last_error, q.reason, q.sqs_sequence_number::text,
    to_char(q.quarantined_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') AS since
FROM outbox.quarantine AS q
WHERE $1::text IS NULL OR q.destination = $1
ORDER BY q.quarantined_at, q.message_id
LIMIT $2
