-- Gives messages up: they become dead, with the reason, and are kept for an operator.
--
-- $1 destination, $2 lanes, $3 ids, $4 attempts, $5 reasons.
-- Guarantees: idempotent; a message that is no longer pending is left alone. Index: messages_pending_pkey once a message.
UPDATE outbox.messages AS m
SET status = 'dead', dead_at = clock_timestamp(), available_at = NULL,
    attempts = greatest(m.attempts, d.attempts), last_error = d.last_error
FROM unnest($2::smallint[], $3::bigint[], $4::smallint[], $5::text[]) AS d (lane, id, attempts, last_error)
WHERE m.status = 'pending' AND m.destination = $1 AND m.lane = d.lane AND m.id = d.id
