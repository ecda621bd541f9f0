-- Reads the messages of claimed lanes that wait for a retry, due or not: those not due still block their group.
--
-- $1 destination, $2 lanes, $3 how many at most, $4 milliseconds: only those due within that time.
-- Guarantees: what is due first comes first. "wait" is null for a message that is due.
-- Index: messages_pending_deferred; events_pkey once a message.
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
    FROM outbox.messages_pending AS p
    WHERE p.destination = $1 AND p.available_at <= now() + $4 * interval '1 millisecond'
        AND p.lane = ANY ($2::smallint[])
    ORDER BY p.available_at, p.id
    LIMIT $3
) AS m
LEFT JOIN outbox.events AS e ON e.position = m.event_position
