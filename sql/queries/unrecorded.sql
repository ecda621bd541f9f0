-- Messages in quarantine whose outcome could not be recorded, in the order of lanes and ids.
--
-- $1 destination, $2 and $3 lane and id after which to look, $4 how many at most. Index: quarantine_pkey.
SELECT
    q.destination, q.lane, q.message_id, q.event_position, q.enqueued_at, q.group_id, q.outcome, q.sqs_message_id, q.attempts,
    q.last_error, q.reason, q.sqs_sequence_number::text
FROM outbox.quarantine AS q
WHERE q.destination = $1 AND (q.lane, q.message_id) > ($2, $3) AND q.outcome IS NOT NULL
ORDER BY q.lane, q.message_id
LIMIT $4
