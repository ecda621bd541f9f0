-- Which lanes of a destination have work; it changes nothing.
--
-- $1 destination, $2 lanes, $3 the low watermark of each lane, $4 whether dead messages block their groups, $5 the
-- longest delay of a retry in seconds, $6 whether groups keep an order.
-- Guarantees: one row; a lane is missing from "ready" only if this snapshot shows no pending message above its
-- watermark, except messages in quarantine. "next_xid" as in read.sql.
-- LATERAL ... LIMIT 1 keeps it at one index probe per lane; EXISTS would let the planner choose a scan of everything
-- pending.
-- Index: messages_pending_pkey once a lane, messages_pending_deferred once, messages_pending_deferred_groups once a
-- message that is due.
-- Retries are looked for in the partition itself: with the status as a condition the planner may use the primary key.
-- Deferred messages count only when due and when no deferred message of their group comes before them (with $6). now()
-- is the start of this statement and, unlike clock_timestamp(), can use the index. Only the latest and the earliest of
-- them are looked at, so that many waiting ones cost little. A retry further ahead than any relay defers was recorded
-- by a clock that was ahead, and counts as due.
SELECT
    s.snapshot::text AS snapshot,
    pg_snapshot_xmin(s.snapshot)::text::bigint + age(pg_snapshot_xmin(s.snapshot)::xid) AS next_xid,
    (SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END FROM outbox.messages_id_seq) AS last_id,
    ARRAY(
        SELECT h.lane
        FROM unnest($2::smallint[], $3::bigint[]) AS h (lane, low)
        CROSS JOIN LATERAL (
            SELECT m.id
            FROM outbox.messages AS m
            WHERE m.status = 'pending' AND m.destination = $1 AND m.lane = h.lane AND m.id > h.low
                AND m.available_at IS NULL
                AND NOT (s.has_quarantine AND EXISTS (
                    SELECT FROM outbox.quarantine AS z
                    WHERE z.destination = $1 AND z.lane = m.lane AND z.message_id = m.id
                        AND z.event_position = m.event_position AND z.enqueued_at = m.enqueued_at
                ))
            ORDER BY m.id
            LIMIT 1
        ) AS first
    ) AS ready,
    ARRAY(
        SELECT DISTINCT due.lane
        FROM (
            (
                SELECT m.lane, m.group_id, m.id
                FROM outbox.messages_pending AS m
                WHERE m.destination = $1 AND m.available_at <= now()
                ORDER BY m.available_at DESC
                LIMIT 1000
            )
            UNION ALL
            (
                SELECT m.lane, m.group_id, m.id
                FROM outbox.messages_pending AS m
                WHERE m.destination = $1 AND m.available_at <= now()
                ORDER BY m.available_at
                LIMIT 1000
            )
            UNION ALL
            (
                SELECT m.lane, m.group_id, m.id
                FROM outbox.messages_pending AS m
                WHERE m.destination = $1 AND m.available_at > now() + make_interval(secs => $5)
                    AND m.available_at < 'infinity' AND m.attempts > 0
                LIMIT 100
            )
        ) AS due
        WHERE due.group_id IS NULL OR NOT (
            ($4 AND EXISTS (
                SELECT FROM outbox.messages_dead AS d WHERE d.destination = $1 AND d.group_id = due.group_id
            ))
            OR s.has_quarantine AND EXISTS (
                SELECT FROM outbox.quarantine AS z WHERE z.destination = $1 AND z.group_id = due.group_id
            )
            OR $6 AND EXISTS (
                SELECT FROM outbox.messages_pending AS d
                WHERE d.destination = $1 AND d.group_id = due.group_id AND d.id < due.id AND d.available_at IS NOT NULL
            )
        )
    ) AS due
FROM (
    SELECT
        pg_current_snapshot() AS snapshot,
        EXISTS (SELECT FROM outbox.quarantine AS z WHERE z.destination = $1) AS has_quarantine
    OFFSET 0
) AS s
