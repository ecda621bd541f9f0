-- Reads the next messages of claimed lanes, each lane from its own cursor.
--
-- $1 destination, $2 lanes, $3 the cursor of each lane, $4 how many messages of each lane at most, $5 how many bytes of each.
-- Guarantees: within a lane the ids ascend and none that this snapshot shows is left out between two of them. "has_more"
-- says of the last of a lane that $4 would have allowed more. The bytes are those that PostgreSQL stores, so that nothing
-- is unpacked that is not sent; the first message always comes.
-- A read never walks what lies below the cursor, so entries of delivered rows that vacuum could not remove cost nothing.
-- "next_xid" is above every transaction that had begun to write. The snapshot's xmax is not: it only follows the latest
-- transaction that has ended. age() counts from the next transaction id (PostgreSQL, GetStableLatestTransactionId).
-- A message whose event is missing comes back with nulls instead of vanishing.
-- An event is looked up in a subquery of its own (OFFSET 0), which leaves nothing but a probe a message: in a join the
-- planner would rather walk all events wherever there were none when they were analyzed.
-- Index: messages_pending_pkey once a lane, events_pkey once a message.
SELECT
    s.next_xid, s.now, m.lane, m.id, m.attempts, m.enqueued_at, m.group_id,
    m.event_id::text, m.event_type, m.stream_id, m.stream_version, m.payload::text, m.metadata::text,
    NULL::bigint AS wait, m.has_more
FROM (
    SELECT
        pg_snapshot_xmin(x.snapshot)::text::bigint + age(pg_snapshot_xmin(x.snapshot)::xid) AS next_xid,
        clock_timestamp() AS now
    FROM (SELECT pg_current_snapshot() AS snapshot OFFSET 0) AS x
    OFFSET 0
) AS s
CROSS JOIN unnest($2::smallint[], $3::bigint[], $4::bigint[], $5::bigint[]) AS h (lane, cursor, most, bytes)
CROSS JOIN LATERAL (
    SELECT
        p.*, e.event_id, e.event_type, e.stream_id, e.stream_version, e.payload, e.metadata,
        sum(coalesce(pg_column_size(e.payload) + pg_column_size(e.metadata), 0)) OVER ids
            - coalesce(pg_column_size(e.payload) + pg_column_size(e.metadata), 0) AS bytes_before,
        lead(p.id) OVER ids IS NOT NULL AS has_more
    FROM (
        SELECT q.lane, q.id, q.attempts, q.enqueued_at, q.group_id, q.event_position
        FROM outbox.messages AS q
        WHERE q.status = 'pending' AND q.destination = $1 AND q.lane = h.lane AND q.id > h.cursor
            AND q.available_at IS NULL
        ORDER BY q.id
        LIMIT h.most
    ) AS p
    LEFT JOIN LATERAL (
        SELECT * FROM outbox.events AS f WHERE f.position = p.event_position OFFSET 0
    ) AS e ON true
    WINDOW ids AS (ORDER BY p.id ROWS UNBOUNDED PRECEDING)
) AS m
WHERE m.bytes_before < h.bytes
