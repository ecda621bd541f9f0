-- Why the outcomes of some messages matched no pending row.
--
-- $1 destination, $2 lanes, $3 ids, $4 event positions, $5 times of enqueueing, $6 SQS message ids.
-- Guarantees: one row for each message that is not pending as it was sent: 'own' when the outcome is recorded already,
-- by a statement whose answer was lost; 'recorded' when another relay recorded one; 'replaced' when the id belongs to
-- another message now; 'gone' when there is none.
-- Index: the primary key of each partition once a message.
SELECT
    u.lane, u.id,
    CASE
        WHEN bool_or(m.is_same AND m.sqs_message_id = u.sqs_message_id) THEN 'own'
        WHEN bool_or(m.is_same) THEN 'recorded'
        WHEN bool_or(m.is_same IS NOT NULL) THEN 'replaced'
        ELSE 'gone'
    END AS fate
FROM unnest($2::smallint[], $3::bigint[], $4::bigint[], $5::timestamptz[], $6::text[])
    AS u (lane, id, event_position, enqueued_at, sqs_message_id)
LEFT JOIN LATERAL (
    SELECT
        p.event_position = u.event_position AND p.enqueued_at = u.enqueued_at AS is_same, p.sqs_message_id, p.status
    FROM outbox.messages AS p
    WHERE p.destination = $1 AND p.lane = u.lane AND p.id = u.id
    OFFSET 0
) AS m ON true
GROUP BY u.lane, u.id, u.sqs_message_id
