-- Reads the next messages of claimed lanes, each lane from its own read position.
--
-- $1 destination, $2 lanes, $3 the read position of each lane, $4 how many messages of each lane at most, $5 how many
-- bytes of each, $6 the largest body that can be sent, in bytes, $7 whether groups keep an order, $8 whether dead
-- messages block their groups, $9 the claim's transaction id and $10 its server as in claim.sql, $11 whether to read
-- event by event, $12 how many bytes of all lanes together, null for no such limit.
-- Guarantees: within a lane the ids ascend, and no message that this snapshot shows is left out between two of them,
-- except messages in quarantine. "has_more", in the last row of a lane, says that $4 would have allowed more. Bytes are
-- counted as PostgreSQL stores them, so that nothing is unpacked that is not sent; the first message always comes. "part"
-- is 0. It is -1 in a row that stands for a lane for which $12 left no room; such a row has no text and is no message.
-- A message with a body larger than $6, or with more than a mebibyte of metadata, comes without its text, with "bytes"
-- instead. Most members of metadata may never be sent, so what remains of it is counted when the message is composed.
-- "body" is what is sent. "form" says what that is: null for JSON, as is the case for nearly all; text; base64; unreadable, if
-- PostgreSQL cannot read the event (with $11) and the body is its error.
-- "holds" is null for a message that nothing holds up, as is the case for nearly all. Otherwise it has "held_by",
-- "behind", "behind_wait", "behind_last" and "wait"; the last is always null here. "held_by" is the lowest dead message
-- (with $8) or message in quarantine of the group: nothing of the group may go, and the message comes without its text.
-- "behind" is the lowest deferred message of the group below this one, which must go first, and "behind_wait" the time
-- until that is due in milliseconds: null when it is due, the largest number when that is not known (infinity).
-- "behind_last" is the highest such message.
-- "superseded" is the number of the last copy of a message that SQS accepted before an earlier one of the group.
-- A read never walks rows below the position, so entries of delivered rows that vacuum could not remove cost nothing.
-- "next_xid" is above every transaction that had begun to write. The snapshot's xmax is not: it only follows the latest
-- transaction that has ended. age() counts from the next transaction id (PostgreSQL, GetStableLatestTransactionId).
-- "last_id" is the highest message id that was handed out; an id above it was set by hand.
-- "is_claimed" says whether the claim's transaction is running on the very server that answers. Another server is not
-- asked for its status: one whose ids have not advanced so far would treat the id as one of the future and fail.
-- "hides_events" says that a message whose event is missing proves nothing, because row level security is in force on
-- outbox.events.
-- "said" has the values that are the same in all rows: "next_xid", the server's time in microseconds since 1970,
-- "is_claimed" and "hides_events" as 0 or 1, and "last_id". It is null in all rows but the first of each lane. "holds"
-- and "said" are arrays and not separate columns, because each column costs server and relay something in each row.
-- An event is looked up in a separate subquery (OFFSET 0), which allows only one probe per message: in a join the
-- planner would prefer to walk all events if there were none when they were analyzed.
-- Index: messages_pending_pkey once a lane, events_pkey once a message; messages_pending_deferred_groups,
-- messages_dead_groups and quarantine_groups once a message if there are any such messages.
SELECT
    CASE WHEN m.bytes_before = 0 THEN m.said END AS said,
    m.lane, m.id, m.event_position, m.enqueued_at, m.attempts, m.group_id,
    CASE WHEN $7 AND (m.held_by IS NOT NULL OR m.behind IS NOT NULL) THEN ARRAY[
        m.held_by, m.behind[1], m.behind[2],
        CASE WHEN m.behind IS NOT NULL THEN (
            SELECT max(d.id) FROM outbox.messages_pending AS d
            WHERE d.destination = $1 AND d.group_id = m.group_id AND d.id < m.id AND d.available_at IS NOT NULL
        ) END,
        NULL
    ] END AS holds,
    m.has_more,
    m.event_id::text, m.event_type, m.stream_id, m.stream_version,
    CASE WHEN octet_length(m.body_sent) <= $6 AND octet_length(m.metadata_sent) <= 1048576 THEN m.body_sent END AS body,
    CASE WHEN octet_length(m.body_sent) <= $6 AND octet_length(m.metadata_sent) <= 1048576 THEN m.metadata_sent END AS metadata,
    coalesce(m.bytes, octet_length(m.body_sent) + octet_length(m.metadata_sent), m.stored)::bigint AS bytes,
    m.form,
    CASE WHEN m.comes THEN 0 ELSE -1 END AS part,
    m.sqs_sequence_number::text AS superseded
FROM (
    -- A stored value of more than eight times the limits cannot be shorter than the limits as text, so it is not
    -- unpacked.
    SELECT
        g.*,
        CASE WHEN g.comes AND g.held_by IS NULL AND g.stored <= 8 * ($6 + 1048576)
            THEN coalesce(g.payload::text, g.body, replace(encode(g.body_bytes, 'base64'), E'\n', ''), '') END AS body_sent,
        CASE WHEN g.comes AND g.held_by IS NULL AND g.stored <= 8 * ($6 + 1048576) THEN g.metadata::text END AS metadata_sent
    FROM (
        SELECT
            s.said, w.*,
            -- Lanes come one after the other. If $12 is null the planner leaves the sum out, a tenth of the statement.
            CASE WHEN $12::bigint IS NULL THEN true
                ELSE sum(coalesce(w.stored, 0)) OVER (ROWS UNBOUNDED PRECEDING) - coalesce(w.stored, 0) < $12 END AS comes
        FROM (
            SELECT
                t.now, t.has_deferred, t.has_dead, t.has_quarantine,
                ARRAY[
                    t.next_xid, (extract(epoch FROM t.now)::float8 * 1000000::float8)::bigint, t.is_claimed::integer,
                    t.hides_events::integer, t.last_id
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
                    $7 AND EXISTS (
                        SELECT FROM outbox.messages_pending AS d WHERE d.destination = $1 AND d.available_at IS NOT NULL
                    ) AS has_deferred,
                    $8 AND EXISTS (SELECT FROM outbox.messages_dead AS d WHERE d.destination = $1) AS has_dead,
                    EXISTS (SELECT FROM outbox.quarantine AS z WHERE z.destination = $1) AS has_quarantine
                FROM (SELECT pg_current_snapshot() AS snapshot OFFSET 0) AS x
                OFFSET 0
            ) AS t
            OFFSET 0
        ) AS s
        CROSS JOIN unnest($2::smallint[], $3::bigint[], $4::bigint[], $5::bigint[]) AS h (lane, above, max_count, bytes)
        CROSS JOIN LATERAL (
            SELECT v.*
            FROM (
                SELECT
                    p.*, e.event_id, e.event_type, e.stream_id, e.stream_version, e.payload, e.body, e.body_bytes, e.metadata,
                    e.bytes, e.stored, e.form,
                    -- Inside a CASE, so that nothing runs per message if there are no such messages at all. $7 and $8
                    -- are in the condition because the planner knows them: for a queue without order the part is not even
                    -- planned, which would take as long as the read.
                    CASE WHEN $8 AND s.has_dead OR $7 AND s.has_quarantine THEN least(
                        (
                            SELECT min(d.id) FROM outbox.messages_dead AS d
                            WHERE s.has_dead AND d.destination = $1 AND d.group_id = p.group_id
                        ),
                        (
                            SELECT min(z.message_id) FROM outbox.quarantine AS z
                            WHERE $7 AND s.has_quarantine AND z.destination = $1 AND z.group_id = p.group_id
                        )
                    ) END AS held_by,
                    CASE WHEN $7 AND s.has_deferred THEN (
                        SELECT ARRAY[
                            d.id,
                            CASE WHEN d.available_at > s.now AND isfinite(d.available_at)
                                THEN (extract(epoch FROM d.available_at - s.now)::float8 * 1000::float8)::bigint
                                WHEN d.available_at = 'infinity' THEN 9223372036854775807 END
                        ]
                        FROM outbox.messages_pending AS d
                        WHERE d.destination = $1 AND d.group_id = p.group_id AND d.id < p.id AND d.available_at IS NOT NULL
                        ORDER BY d.id
                        LIMIT 1
                    ) END AS behind,
                    sum(coalesce(e.stored, 0)) OVER ids - coalesce(e.stored, 0) AS bytes_before,
                    pg_catalog.lead(p.id) OVER ids IS NOT NULL AS has_more
                FROM (
                    SELECT q.lane, q.id, q.attempts, q.enqueued_at, q.group_id, q.event_position, q.sqs_sequence_number
                    FROM outbox.messages AS q
                    WHERE q.status = 'pending' AND q.destination = $1 AND q.lane = h.lane AND q.id > h.above
                        AND q.available_at IS NULL
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
                    FROM outbox.read_event(p.event_position, $6 + 1048576) AS r
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
