-- Reads on in one group whose later messages were left in the table because too many of them waited.
--
-- $1 destination, $2 lane, $3 group, $4 the last id in memory, $5 how many at most, $6 how many bytes.
-- Guarantees: the ids ascend and none of the group that this snapshot shows is left out between two of them, not even one
-- that waits for a retry; "wait" says how long in milliseconds, and is null for a message that is due. Bytes as in read.sql.
-- Index: messages_pending_pkey, from $4 upwards; events_pkey once a message.
SELECT
    s.next_xid, s.now, m.lane, m.id, m.attempts, m.enqueued_at, m.group_id,
    m.event_id::text, m.event_type, m.stream_id, m.stream_version, m.payload::text, m.metadata::text,
    CASE WHEN m.available_at > s.now
        THEN (extract(epoch FROM m.available_at - s.now) * 1000)::bigint END AS wait,
    m.has_more
FROM (
    SELECT
        pg_snapshot_xmin(x.snapshot)::text::bigint + age(pg_snapshot_xmin(x.snapshot)::xid) AS next_xid,
        clock_timestamp() AS now
    FROM (SELECT pg_current_snapshot() AS snapshot OFFSET 0) AS x
    OFFSET 0
) AS s
CROSS JOIN LATERAL (
    SELECT
        p.*, e.event_id, e.event_type, e.stream_id, e.stream_version, e.payload, e.metadata,
        sum(coalesce(pg_column_size(e.payload) + pg_column_size(e.metadata), 0)) OVER ids
            - coalesce(pg_column_size(e.payload) + pg_column_size(e.metadata), 0) AS bytes_before,
        lead(p.id) OVER ids IS NOT NULL AS has_more
    FROM (
        SELECT q.lane, q.id, q.attempts, q.enqueued_at, q.group_id, q.event_position, q.available_at
        FROM outbox.messages AS q
        WHERE q.status = 'pending' AND q.destination = $1 AND q.lane = $2 AND q.id > $4 AND q.group_id = $3
        ORDER BY q.id
        LIMIT $5
    ) AS p
    LEFT JOIN LATERAL (
        SELECT * FROM outbox.events AS f WHERE f.position = p.event_position OFFSET 0
    ) AS e ON true
    WINDOW ids AS (ORDER BY p.id ROWS UNBOUNDED PRECEDING)
) AS m
WHERE m.bytes_before < $6
