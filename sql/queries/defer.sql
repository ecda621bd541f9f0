-- Records failed attempts and when to try again.
--
-- $1 destination, $2 lanes, $3 ids, $4 attempts, $5 milliseconds to wait, $6 errors.
-- Guarantees: attempts never go down; a message that is no longer pending is left alone.
-- Index: messages_pending_pkey once a message.
UPDATE outbox.messages AS m
SET attempts = greatest(m.attempts, d.attempts),
    available_at = clock_timestamp() + d.wait * interval '1 millisecond',
    last_error = d.last_error
FROM unnest($2::smallint[], $3::bigint[], $4::smallint[], $5::bigint[], $6::text[])
    AS d (lane, id, attempts, wait, last_error)
WHERE m.status = 'pending' AND m.destination = $1 AND m.lane = d.lane AND m.id = d.id
