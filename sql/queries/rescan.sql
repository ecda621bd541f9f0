-- Finds messages between two ids of each lane that reads may have passed: a transaction can take an id and commit after higher
-- ids were read, and operators make old messages pending again.
--
-- $1 destination, $2 lanes, $3 and $4 the ids (exclusive, inclusive) between which to look in each lane, $5 how many of
-- each lane at most, $6 groups known to have messages waiting in the table, $7 the id above which those of each group
-- are, $8 the id of each lane up to which messages are left out whose group is held up (with $9 also by dead messages)
-- or has a deferred message that must go first, $10 and $11 as $9 and $10 of read.sql or null, $12 groups of which none
-- are left out for that reason.
-- Guarantees: the row with a snapshot says under which all others were seen, and is_claimed as in read.sql (true
-- without a claim); within a lane the lowest ids come; none in quarantine; the row with "took" comes last and says how
-- many milliseconds the server worked, whatever the network takes.
-- A lookup in a JSON object finds a group among many without a plan that compares each with each.
-- Index: messages_pending_pkey once a lane. Returns only keys; the relay reads from there on what it does not know.
WITH s AS MATERIALIZED (
    SELECT
        pg_current_snapshot() AS snapshot,
        jsonb_object($6::text[], $7::text[]) AS waiting,
        jsonb_object($12::text[], $12::text[]) AS known,
        EXISTS (SELECT FROM outbox.quarantine AS z WHERE z.destination = $1) AS has_quarantine,
        0 < ANY ($8::bigint[]) AND EXISTS (
            SELECT FROM outbox.messages_pending AS d WHERE d.destination = $1 AND d.available_at IS NOT NULL
        ) AS has_deferred,
        0 < ANY ($8) AND $9 AND EXISTS (SELECT FROM outbox.messages_dead AS d WHERE d.destination = $1) AS has_dead
)
SELECT
    s.snapshot::text AS snapshot,
    $10::text IS NULL OR coalesce(
        CASE WHEN extract(epoch FROM pg_postmaster_start_time())::text = $11
            THEN pg_xact_status($10::text::xid8) = 'in progress' END, false
    ) AS is_claimed,
    NULL::smallint AS lane, NULL::bigint AS id, NULL::text AS group_id, NULL::float8 AS took
FROM s
UNION ALL
SELECT NULL, NULL, p.lane, p.id, p.group_id, NULL
FROM s
CROSS JOIN unnest($2::smallint[], $3::bigint[], $4::bigint[], $8) AS h (lane, above, upto, ready_upto)
CROSS JOIN LATERAL (
    SELECT m.lane, m.id, m.group_id
    FROM outbox.messages AS m
    WHERE m.status = 'pending' AND m.destination = $1 AND m.lane = h.lane AND m.id > h.above AND m.id <= h.upto
        AND m.available_at IS NULL
        AND (m.group_id IS NULL OR m.id <= coalesce((s.waiting ->> m.group_id)::bigint, 9223372036854775807))
        AND NOT (s.has_quarantine AND EXISTS (
            SELECT FROM outbox.quarantine AS z
            WHERE z.destination = $1 AND z.lane = m.lane AND (
                z.message_id = m.id AND z.event_position = m.event_position AND z.enqueued_at = m.enqueued_at
                OR m.id <= h.ready_upto AND z.group_id = m.group_id AND NOT s.known ? m.group_id
            )
        ))
        AND NOT (m.group_id IS NOT NULL AND m.id <= h.ready_upto AND s.has_dead AND NOT s.known ? m.group_id AND EXISTS (
            SELECT FROM outbox.messages_dead AS d WHERE d.destination = $1 AND d.group_id = m.group_id
        ))
        AND NOT (m.group_id IS NOT NULL AND m.id <= h.ready_upto AND s.has_deferred AND NOT s.known ? m.group_id AND EXISTS (
            SELECT FROM outbox.messages_pending AS d
            WHERE d.destination = $1 AND d.group_id = m.group_id AND d.id < m.id AND d.available_at IS NOT NULL
        ))
    ORDER BY m.id
    LIMIT $5
) AS p
UNION ALL
SELECT NULL, NULL, NULL, NULL, NULL, extract(epoch FROM clock_timestamp() - statement_timestamp())::float8 * 1000::float8
