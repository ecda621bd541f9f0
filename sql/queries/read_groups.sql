-- Continues reading groups whose later messages were left in the table because too many were pending.
--
-- $1 destination, $2 the lane of each group, $3 the groups, $4 the last id in memory of each, $5 how many messages of
-- each at most, $6 how many bytes of each, $7 the largest body, $8 whether dead messages block their groups, $9 the
-- claim's transaction id, $10 its server, $11 whether to read event by event; these as in read.sql. $12 the id up to
-- which to look in each group, $13 how many bytes of all groups together, or null.
-- Guarantees: the ids of a group ascend, and no message of it that this snapshot shows is left out between two of them,
-- not even one that waits for a retry, except messages in quarantine; "wait" of "holds" is its wait in milliseconds,
-- and null when it is due. "part" is the position of the group in $3, from 1, and negative for a group for
-- which $13 left no room. The other columns as in read.sql.
-- Index: messages_pending_pkey, from $4 to $12 once a group; events_pkey once a message.
SELECT
    CASE WHEN m.bytes_before = 0 THEN m.said END AS said,
    m.lane, m.id, m.event_position, m.enqueued_at, m.attempts, m.group_id,
    CASE WHEN m.held_by IS NOT NULL OR m.available_at > m.now THEN ARRAY[
        m.held_by, NULL, NULL, NULL,
        CASE
            WHEN m.available_at = 'infinity' THEN 9223372036854775807
            WHEN m.available_at > m.now THEN (extract(epoch FROM m.available_at - m.now)::float8 * 1000::float8)::bigint
        END
    ] END AS holds,
    m.has_more,
    m.event_id::text, m.event_type, m.stream_id, m.stream_version,
    CASE WHEN octet_length(m.body_sent) <= $7 AND octet_length(m.metadata_sent) <= 1048576 THEN m.body_sent END AS body,
    CASE WHEN octet_length(m.body_sent) <= $7 AND octet_length(m.metadata_sent) <= 1048576 THEN m.metadata_sent END AS metadata,
    coalesce(m.bytes, octet_length(m.body_sent) + octet_length(m.metadata_sent), m.stored)::bigint AS bytes,
    m.form,
    (CASE WHEN m.comes THEN m.part ELSE -m.part END)::integer AS part,
    m.sqs_sequence_number::text AS superseded
FROM (
    -- A stored value of more than eight times the limits cannot be shorter than the limits as text, so it is not
    -- unpacked.
    SELECT
        g.*,
        CASE WHEN g.comes AND g.held_by IS NULL AND g.stored <= 8 * ($7 + 1048576)
            THEN coalesce(g.payload::text, g.body, replace(encode(g.body_bytes, 'base64'), E'\n', ''), '') END AS body_sent,
        CASE WHEN g.comes AND g.held_by IS NULL AND g.stored <= 8 * ($7 + 1048576) THEN g.metadata::text END AS metadata_sent
    FROM (
        SELECT
            s.said, s.now, h.part, w.*,
            -- As in read.sql.
            CASE WHEN $13::bigint IS NULL THEN true
                ELSE sum(coalesce(w.stored, 0)) OVER (ROWS UNBOUNDED PRECEDING) - coalesce(w.stored, 0) < $13 END AS comes
        FROM (
            SELECT
                t.now, t.has_dead, t.has_quarantine,
                ARRAY[
                    0, (extract(epoch FROM t.now)::float8 * 1000000::float8)::bigint, t.is_claimed::integer, t.hides_events::integer,
                    t.last_id
                ] AS said
            FROM (
                SELECT
                    clock_timestamp() AS now,
                    coalesce(
                        CASE WHEN extract(epoch FROM pg_postmaster_start_time())::text = $10
                            THEN pg_xact_status($9::text::xid8) = 'in progress' END, false
                    ) AS is_claimed,
                    pg_catalog.row_security_active('outbox.events'::regclass) AS hides_events,
                    (SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END FROM outbox.messages_id_seq) AS last_id,
                    $8 AND EXISTS (SELECT FROM outbox.messages_dead AS d WHERE d.destination = $1) AS has_dead,
                    EXISTS (SELECT FROM outbox.quarantine AS z WHERE z.destination = $1) AS has_quarantine
                OFFSET 0
            ) AS t
            OFFSET 0
        ) AS s
        CROSS JOIN unnest($2::smallint[], $3::text[], $4::bigint[], $12::bigint[], $5::bigint[], $6::bigint[])
            WITH ORDINALITY AS h (lane, group_id, above, upto, max_count, bytes, part)
        CROSS JOIN LATERAL (
            SELECT v.*
            FROM (
                SELECT
                    p.*, e.event_id, e.event_type, e.stream_id, e.stream_version, e.payload, e.body, e.body_bytes, e.metadata,
                    e.bytes, e.stored, e.form,
                    CASE WHEN s.has_dead OR s.has_quarantine THEN least(
                        (
                            SELECT min(d.id) FROM outbox.messages_dead AS d
                            WHERE s.has_dead AND d.destination = $1 AND d.group_id = h.group_id
                        ),
                        (
                            SELECT min(z.message_id) FROM outbox.quarantine AS z
                            WHERE s.has_quarantine AND z.destination = $1 AND z.group_id = h.group_id
                        )
                    ) END AS held_by,
                    sum(coalesce(e.stored, 0)) OVER ids - coalesce(e.stored, 0) AS bytes_before,
                    pg_catalog.lead(p.id) OVER ids IS NOT NULL AS has_more
                FROM (
                    SELECT
                        q.lane, q.id, q.attempts, q.enqueued_at, q.group_id, q.event_position, q.sqs_sequence_number,
                        q.available_at
                    FROM outbox.messages AS q
                    WHERE q.status = 'pending' AND q.destination = $1 AND q.lane = h.lane AND q.id > h.above
                        AND q.id <= h.upto AND q.group_id = h.group_id
                        AND NOT (s.has_quarantine AND EXISTS (
                            SELECT FROM outbox.quarantine AS z
                            WHERE z.destination = $1 AND z.lane = q.lane AND z.message_id = q.id
                                AND z.event_position = q.event_position AND z.enqueued_at = q.enqueued_at
                        ))
                    ORDER BY q.id
                    LIMIT h.max_count
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
                    FROM outbox.read_event(p.event_position, $7 + 1048576) AS r
                    WHERE $11
                    OFFSET 0
                ) AS e ON true
                WINDOW ids AS (ORDER BY p.id ROWS UNBOUNDED PRECEDING)
            ) AS v
            WHERE v.bytes_before < h.bytes
            OFFSET 0
        ) AS w
    ) AS g
    WHERE g.comes OR g.bytes_before = 0
    OFFSET 0
) AS m
