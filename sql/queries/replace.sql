-- Removes records of delivered messages whose ids were assigned again, to pending messages whose outcomes are recorded
-- next.
--
-- $1 destination, $2 lanes, $3 ids, $4 event positions, $5 times of enqueueing of the messages to be recorded. The
-- sequence of ids was reset, or the table was restored without it; the primary key would refuse to record the delivery.
-- Guarantees: only if the pending message is the given one and the record belongs to another.
-- Index: messages_pending_pkey and messages_delivered_pkey once a message, then by physical location. They are looked
-- up in separate subqueries (OFFSET 0), because PostgreSQL 18 would otherwise walk all records first if there are few.
DELETE FROM outbox.messages AS m
WHERE m.status = 'delivered' AND m.ctid = ANY (ARRAY(
    SELECT r.ctid
    FROM unnest($2::smallint[], $3::bigint[], $4::bigint[], $5::timestamptz[]) AS u (lane, id, event_position, enqueued_at)
    CROSS JOIN LATERAL (
        SELECT o.ctid, o.event_position, o.enqueued_at
        FROM outbox.messages AS o
        WHERE o.status = 'delivered' AND o.destination = $1 AND o.lane = u.lane AND o.id = u.id
        OFFSET 0
    ) AS r
    WHERE (r.event_position, r.enqueued_at) <> (u.event_position, u.enqueued_at)
        AND EXISTS (
            SELECT FROM outbox.messages AS p
            WHERE p.status = 'pending' AND p.destination = $1 AND p.lane = u.lane AND p.id = u.id
                AND p.event_position = u.event_position AND p.enqueued_at = u.enqueued_at
            OFFSET 0
        )
))
