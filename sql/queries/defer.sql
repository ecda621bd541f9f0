-- Records failed attempts and when to retry.
--
-- $1 destination, $2 lanes, $3 ids, $4 event positions, $5 times of enqueueing, $6 attempts, $7 milliseconds to wait,
-- $8 errors, $9 the claim's transaction id and $10 its server as in claim.sql. Null milliseconds are for a message that
-- only waits behind another one of its group: a message with an available_at counts as the head of its group.
-- Guarantees: attempts never go down; a message that is no longer pending is left alone.
-- Event position and time identify the message: after a failover an id may belong to another one, which is left alone.
-- The claim's transaction must still be running on this very server: once it has ended, another relay may hold the
-- lanes and has decided again what waits. Null is for messages in quarantine, which no relay touches.
-- Index: messages_pending_pkey once a message.
-- Runs in a transaction of src/outbox/settle.rs in which the planner may use only one index probe per message. With the
-- destination as a column of a subquery that probe uses the whole key. As a constant, "all of this destination" looks
-- equally cheap on a fresh outbox, where the planner has no statistics. And "= ANY (ARRAY[...])" is no clause for a
-- merge join: with "=" the planner also considers a walk through the whole index, in the order of a merge join, and
-- mistakes it for a walk to one row if the outbox was empty when it was analyzed. Each message was then compared with
-- all pending ones.
UPDATE outbox.messages AS m
SET attempts = greatest(m.attempts, d.attempts),
    available_at = clock_timestamp() + d.wait::float8 * interval '1 millisecond',
    last_error = d.last_error
FROM (
    SELECT $1::text AS destination, u.*
    FROM unnest(
        $2::smallint[], $3::bigint[], $4::bigint[], $5::timestamptz[], $6::smallint[], $7::bigint[], $8::text[]
    ) AS u (lane, id, event_position, enqueued_at, attempts, wait, last_error)
    WHERE $9::text IS NULL
        OR CASE WHEN extract(epoch FROM pg_postmaster_start_time())::text = $10
            THEN pg_xact_status($9::text::xid8) = 'in progress' END
    OFFSET 0
) AS d
WHERE m.status = 'pending' AND m.destination = ANY (ARRAY[d.destination]) AND m.lane = d.lane AND m.id = d.id
    AND m.event_position = d.event_position AND m.enqueued_at = d.enqueued_at
