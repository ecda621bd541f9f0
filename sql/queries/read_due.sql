-- Reads the messages of claimed lanes whose retry is due.
--
-- $1 destination, $2 lanes, $3 how many at most, $4 how many bytes, $5 groups that are left out because their messages
-- are read in another way, $6 the largest body, $7 the longest delay of a retry in seconds, $8 whether dead messages
-- block their groups, $9 the claim's transaction id, $10 its server, $11 whether to read event by event, $12 whether
-- groups keep an order.
-- Guarantees: messages come in the order in which they fell due. A retry further ahead than any relay defers was
-- recorded by a clock that was ahead, and counts as due. Groups that are held up are left out, and so are messages with
-- a deferred one of their group before them (with $12). The other columns, and the bytes, as in read.sql.
-- The lanes are compared in a way that no index supports: on a fresh outbox the planner would otherwise walk the
-- primary key for them.
-- Index: messages_pending_deferred, from both ends; messages_pending_deferred_groups and events_pkey once a message.
-- now() is the start of this statement and, unlike clock_timestamp(), can use the index.
SELECT
    CASE WHEN m.bytes_before = 0 THEN s.said END AS said,
    m.lane, m.id, m.event_position, m.enqueued_at, m.attempts, m.group_id,
    NULL::bigint[] AS holds, m.has_more,
    m.event_id::text, m.event_type, m.stream_id, m.stream_version,
    CASE WHEN octet_length(m.body_sent) <= $6 AND octet_length(m.metadata_sent) <= 1048576 THEN m.body_sent END AS body,
    CASE WHEN octet_length(m.body_sent) <= $6 AND octet_length(m.metadata_sent) <= 1048576 THEN m.metadata_sent END AS metadata,
    coalesce(m.bytes, octet_length(m.body_sent) + octet_length(m.metadata_sent), m.stored)::bigint AS bytes,
    m.form,
    0 AS part,
    m.sqs_sequence_number::text AS superseded
FROM (
    SELECT
        t.now, t.has_dead, t.has_quarantine,
        ARRAY[
            t.next_xid, (extract(epoch FROM t.now)::float8 * 1000000::float8)::bigint, t.is_claimed::integer, t.hides_events::integer, t.last_id
        ] AS said
    FROM (
        SELECT
            pg_snapshot_xmin(x.snapshot)::text::bigint + age(pg_snapshot_xmin(x.snapshot)::xid) AS next_xid,
            clock_timestamp() AS now,
            coalesce(
                CASE WHEN extract(epoch FROM pg_postmaster_start_time())::text = $10
                    THEN pg_xact_status($9::text::xid8) = 'in progress' END, false
            ) AS is_claimed,
            pg_catalog.row_security_active('outbox.events'::regclass) AS hides_events,
            (SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END FROM outbox.messages_id_seq) AS last_id,
            $8 AND EXISTS (SELECT FROM outbox.messages_dead AS d WHERE d.destination = $1) AS has_dead,
            EXISTS (SELECT FROM outbox.quarantine AS z WHERE z.destination = $1) AS has_quarantine
        FROM (SELECT pg_current_snapshot() AS snapshot OFFSET 0) AS x
        OFFSET 0
    ) AS t
    OFFSET 0
) AS s
CROSS JOIN LATERAL (
    -- A stored value of more than eight times the limits cannot be shorter than the limits as text, so it is not
    -- unpacked.
    SELECT
        w.*,
        CASE WHEN w.stored <= 8 * ($6 + 1048576)
            THEN coalesce(w.payload::text, w.body, replace(encode(w.body_bytes, 'base64'), E'\n', ''), '') END AS body_sent,
        CASE WHEN w.stored <= 8 * ($6 + 1048576) THEN w.metadata::text END AS metadata_sent
    FROM (
        SELECT
            p.*, e.event_id, e.event_type, e.stream_id, e.stream_version, e.payload, e.body, e.body_bytes, e.metadata,
            e.bytes, e.stored, e.form,
            sum(coalesce(e.stored, 0)) OVER times - coalesce(e.stored, 0) AS bytes_before,
            pg_catalog.lead(p.id) OVER times IS NOT NULL AS has_more
        FROM (
            SELECT u.*
            FROM (
                (
                    SELECT q.lane, q.id, q.attempts, q.enqueued_at, q.group_id, q.event_position, q.sqs_sequence_number, q.available_at
                    FROM outbox.messages_pending AS q
                    WHERE q.destination = $1 AND q.available_at <= now() AND (q.lane = ANY ($2::smallint[])) IS TRUE
                        AND (q.group_id IS NULL OR q.group_id <> ALL ($5::text[]))
                        AND NOT (q.group_id IS NOT NULL AND s.has_dead AND EXISTS (
                            SELECT FROM outbox.messages_dead AS d WHERE d.destination = $1 AND d.group_id = q.group_id
                        ))
                        AND NOT ($12 AND q.group_id IS NOT NULL AND EXISTS (
                            SELECT FROM outbox.messages_pending AS d
                            WHERE d.destination = $1 AND d.group_id = q.group_id AND d.id < q.id AND d.available_at IS NOT NULL
                        ))
                        AND NOT (s.has_quarantine AND EXISTS (
                            SELECT FROM outbox.quarantine AS z
                            WHERE z.destination = $1 AND (
                                z.group_id = q.group_id
                                OR z.lane = q.lane AND z.message_id = q.id AND z.event_position = q.event_position
                                    AND z.enqueued_at = q.enqueued_at
                            )
                        ))
                    ORDER BY q.available_at
                    LIMIT $3
                )
                UNION ALL
                (
                    SELECT q.lane, q.id, q.attempts, q.enqueued_at, q.group_id, q.event_position, q.sqs_sequence_number, q.available_at
                    FROM outbox.messages_pending AS q
                    WHERE q.destination = $1 AND q.available_at > now() + make_interval(secs => $7)
                        AND q.available_at < 'infinity' AND q.attempts > 0
                        AND (q.lane = ANY ($2::smallint[])) IS TRUE
                        AND (q.group_id IS NULL OR q.group_id <> ALL ($5::text[]))
                        AND NOT (q.group_id IS NOT NULL AND s.has_dead AND EXISTS (
                            SELECT FROM outbox.messages_dead AS d WHERE d.destination = $1 AND d.group_id = q.group_id
                        ))
                        AND NOT ($12 AND q.group_id IS NOT NULL AND EXISTS (
                            SELECT FROM outbox.messages_pending AS d
                            WHERE d.destination = $1 AND d.group_id = q.group_id AND d.id < q.id AND d.available_at IS NOT NULL
                        ))
                        AND NOT (s.has_quarantine AND EXISTS (
                            SELECT FROM outbox.quarantine AS z
                            WHERE z.destination = $1 AND (
                                z.group_id = q.group_id
                                OR z.lane = q.lane AND z.message_id = q.id AND z.event_position = q.event_position
                                    AND z.enqueued_at = q.enqueued_at
                            )
                        ))
                    ORDER BY q.available_at
                    LIMIT $3
                )
            ) AS u
            ORDER BY u.available_at, u.id
            LIMIT $3
        ) AS p
        LEFT JOIN LATERAL (
            SELECT
                f.event_id, f.event_type, f.stream_id, f.stream_version, f.payload, f.body, f.body_bytes, f.metadata,
                NULL::bigint AS bytes,
                coalesce(pg_catalog.pg_column_size(f.payload), pg_catalog.pg_column_size(f.body), pg_catalog.pg_column_size(f.body_bytes), 0)
                    + pg_catalog.pg_column_size(f.metadata) AS stored,
                CASE WHEN f.payload IS NULL THEN CASE WHEN f.body IS NULL THEN 'base64' ELSE 'text' END END AS form
            FROM outbox.events AS f
            WHERE NOT $11 AND f.position = p.event_position
            UNION ALL
            SELECT
                r.event_id, r.event_type, r.stream_id, r.stream_version, NULL, r.body, NULL, r.metadata::jsonb, r.bytes,
                least(r.bytes, 2147483647)::integer, r.form
            FROM outbox.read_event(p.event_position, $6 + 1048576) AS r
            WHERE $11
            OFFSET 0
        ) AS e ON true
        WINDOW times AS (ORDER BY p.available_at, p.id ROWS UNBOUNDED PRECEDING)
    ) AS w
    WHERE w.bytes_before < $4
    OFFSET 0
) AS m
