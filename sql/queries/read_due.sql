-- Reads the messages of claimed lanes whose retry is due.
--
-- $1 destination, $2 lanes, $3 how many at most, $4 how many bytes, $5 groups that are left out, because their turn comes
-- otherwise, $6 groups whose head alone is asked for, which has failed attempts: many messages of one group that were
-- redriven would keep the head, and those of all others, from being seen.
-- Guarantees: what is due first comes first, and of those due at the same time the lower id. Bytes as in read.sql.
-- Index: messages_pending_deferred; events_pkey once a message. now() is this statement's start and, unlike
-- clock_timestamp(), can use the index.
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
CROSS JOIN LATERAL (
    SELECT
        p.*, e.event_id, e.event_type, e.stream_id, e.stream_version, e.payload, e.metadata,
        sum(coalesce(pg_column_size(e.payload) + pg_column_size(e.metadata), 0)) OVER times
            - coalesce(pg_column_size(e.payload) + pg_column_size(e.metadata), 0) AS bytes_before,
        lead(p.id) OVER times IS NOT NULL AS has_more
    FROM (
        SELECT q.lane, q.id, q.attempts, q.enqueued_at, q.group_id, q.event_position, q.available_at
        FROM outbox.messages_pending AS q
        WHERE q.destination = $1 AND q.available_at <= now() AND q.lane = ANY ($2::smallint[])
            AND (
                q.group_id IS NULL
                OR q.group_id <> ALL ($5::text[]) AND (q.attempts > 0 OR q.group_id <> ALL ($6::text[]))
            )
        ORDER BY q.available_at, q.id
        LIMIT $3
    ) AS p
    LEFT JOIN LATERAL (
        SELECT * FROM outbox.events AS f WHERE f.position = p.event_position OFFSET 0
    ) AS e ON true
    WINDOW times AS (ORDER BY p.available_at, p.id ROWS UNBOUNDED PRECEDING)
) AS m
WHERE m.bytes_before < $4
