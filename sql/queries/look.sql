-- Which lanes of a destination have work, seen without taking anything.
--
-- $1 destination, $2 lanes, $3 the low bound of each lane.
-- Guarantees: one row; a lane is missing from "ready" only if this snapshot shows no pending message above its bound.
-- "next_xid" as in read.sql.
-- LATERAL … LIMIT 1 keeps one index probe a lane; EXISTS would let the planner choose a scan of all that is pending.
-- Index: messages_pending_pkey once a lane, messages_pending_deferred once.
-- Deferred messages count only when due; now() is this statement's start and, unlike clock_timestamp(), can use the index.
SELECT
    s.snapshot::text AS snapshot,
    pg_snapshot_xmin(s.snapshot)::text::bigint + age(pg_snapshot_xmin(s.snapshot)::xid) AS next_xid,
    (SELECT last_value FROM outbox.messages_id_seq) AS last_id,
    ARRAY(
        SELECT h.lane
        FROM unnest($2::smallint[], $3::bigint[]) AS h (lane, low)
        CROSS JOIN LATERAL (
            SELECT m.id
            FROM outbox.messages AS m
            WHERE m.status = 'pending' AND m.destination = $1 AND m.lane = h.lane AND m.id > h.low
                AND m.available_at IS NULL
            ORDER BY m.id
            LIMIT 1
        ) AS first
    ) AS ready,
    ARRAY(
        SELECT DISTINCT due.lane
        FROM (
            SELECT m.lane
            FROM outbox.messages AS m
            WHERE m.status = 'pending' AND m.destination = $1 AND m.available_at <= now()
            ORDER BY m.available_at
            LIMIT 100
        ) AS due
FROM (SELECT pg_current_snapshot() AS snapshot OFFSET 0) AS s
    ) AS due
FROM (SELECT pg_current_snapshot() AS snapshot OFFSET 0) AS s
