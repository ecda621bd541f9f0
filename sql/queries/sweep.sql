-- Finds messages between two ids of each lane that the forward reads may have passed: a transaction can take an id and
-- commit after higher ids were read.
--
-- $1 destination, $2 lanes, $3 and $4 the ids (exclusive, inclusive) between which to look in each lane, $5 how many of
-- each lane at most, $6 groups to leave out, because their messages are known to wait in the table.
-- Guarantees: the first row carries the snapshot under which all others were seen; within a lane the lowest ids come.
-- NOT IN with a subquery is hashed once, so that many groups to leave out cost no more than few.
-- Index: messages_pending_pkey once a lane. Returns ids only; the relay reads what it does not know from there on.
SELECT pg_current_snapshot()::text AS snapshot, NULL::smallint AS lane, NULL::bigint AS id
UNION ALL
SELECT NULL, p.lane, p.id
FROM unnest($2::smallint[], $3::bigint[], $4::bigint[]) AS h (lane, above, upto)
CROSS JOIN LATERAL (
    SELECT m.lane, m.id
    FROM outbox.messages AS m
    WHERE m.status = 'pending' AND m.destination = $1 AND m.lane = h.lane AND m.id > h.above AND m.id <= h.upto
        AND m.available_at IS NULL
        AND (m.group_id IS NULL OR m.group_id NOT IN (SELECT unnest($6::text[])))
    ORDER BY m.id
    LIMIT $5
) AS p
