-- Reads the next messages of claimed lanes, each lane from its own cursor.
--
-- $1 destination, $2 lanes, $3 the cursor of each lane, $4 how many messages of each lane at most.
-- Guarantees: within a lane the ids ascend and none that this snapshot shows is left out between two of them.
-- A read never walks what lies below the cursor, so entries of delivered rows that vacuum could not remove cost nothing.
-- "next_xid" is above every transaction that had begun to write. The snapshot's xmax is not: it only follows the latest
-- transaction that has ended. age() counts from the next transaction id (PostgreSQL, GetStableLatestTransactionId).
-- A message whose event is missing comes back with nulls instead of vanishing.
-- Index: messages_pending_pkey once a lane, events_pkey once a message.
SELECT
    s.next_xid, s.now, m.lane, m.id, m.attempts, m.enqueued_at, m.group_id,
    e.event_id::text, e.event_type, e.stream_id, e.stream_version, e.payload::text, e.metadata::text
FROM (
    SELECT
        pg_snapshot_xmin(x.snapshot)::text::bigint + age(pg_snapshot_xmin(x.snapshot)::xid) AS next_xid,
        clock_timestamp() AS now
    FROM (SELECT pg_current_snapshot() AS snapshot OFFSET 0) AS x
    OFFSET 0
) AS s
CROSS JOIN unnest($2::smallint[], $3::bigint[], $4::bigint[]) AS h (lane, cursor, most)
CROSS JOIN LATERAL (
    SELECT p.lane, p.id, p.attempts, p.enqueued_at, p.group_id, p.event_position
    FROM outbox.messages AS p
    WHERE p.status = 'pending' AND p.destination = $1 AND p.lane = h.lane AND p.id > h.cursor
        AND p.available_at IS NULL
    ORDER BY p.id
    LIMIT h.most
) AS m
LEFT JOIN outbox.events AS e ON e.position = m.event_position
