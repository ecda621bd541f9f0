-- Reads on in one group whose later messages were left in the table because too many of them waited.
--
-- $1 destination, $2 lane, $3 group, $4 the last id in memory, $5 how many at most.
-- Guarantees: the ids ascend and none of the group that this snapshot shows is left out between two of them, not even one
-- that waits for a retry; "wait" says how long, and is null for a message that is due.
-- Index: messages_pending_pkey, from $4 upwards; events_pkey once a message.
SELECT
    s.next_xid, s.now, m.lane, m.id, m.attempts, m.enqueued_at, m.group_id,
    e.event_id::text, e.event_type, e.stream_id, e.stream_version, e.payload::text, e.metadata::text,
    CASE WHEN m.available_at > s.now
        THEN (extract(epoch FROM m.available_at - s.now) * 1000)::bigint END AS wait
FROM (
    SELECT
        pg_snapshot_xmin(x.snapshot)::text::bigint + age(pg_snapshot_xmin(x.snapshot)::xid) AS next_xid,
        clock_timestamp() AS now
    FROM (SELECT pg_current_snapshot() AS snapshot OFFSET 0) AS x
    OFFSET 0
) AS s
CROSS JOIN LATERAL (
    SELECT p.lane, p.id, p.attempts, p.enqueued_at, p.group_id, p.event_position, p.available_at
    FROM outbox.messages AS p
    WHERE p.status = 'pending' AND p.destination = $1 AND p.lane = $2 AND p.id > $4 AND p.group_id = $3
    ORDER BY p.id
    LIMIT $5
) AS m
LEFT JOIN outbox.events AS e ON e.position = m.event_position
