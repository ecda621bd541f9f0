-- Finds messages between two ids of each lane that the forward reads may have passed: a transaction can take an id and
-- commit after higher ids were read.
--
-- $1 destination, $2 lanes, $3 and $4 the ids (exclusive, inclusive) between which to look in each lane, $5 how many of
-- each lane at most, $6 groups to leave out, because their messages are known to wait in the table.
-- Guarantees: every row carries the snapshot's xmin, and there is at least one row (with nulls) to carry it.
-- NOT IN with a subquery is hashed once, so that many groups to leave out cost no more than few.
-- Index: messages_pending_pkey once a lane. Returns ids only; what is new is read by read_found.sql.
SELECT s.xmin, m.lane, m.id
FROM (SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint AS xmin OFFSET 0) AS s
LEFT JOIN LATERAL (
    SELECT p.lane, p.id
    FROM unnest($2::smallint[], $3::bigint[], $4::bigint[]) AS h (lane, above, upto)
    CROSS JOIN LATERAL (
        SELECT p.lane, p.id
        FROM outbox.messages AS p
        WHERE p.status = 'pending' AND p.destination = $1 AND p.lane = h.lane AND p.id > h.above AND p.id <= h.upto
            AND p.available_at IS NULL
            AND (p.group_id IS NULL OR p.group_id NOT IN (SELECT unnest($6::text[])))
        ORDER BY p.id
        LIMIT $5
    ) AS p
) AS m ON true
