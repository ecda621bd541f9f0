-- Takes the exclusive right to some lanes until the surrounding transaction ends.
--
-- $1 destination, $2 wanted lanes, $3 how many at most, $4 the lane to begin with (relays that start at different
-- lanes meet less often).
-- Guarantees: no two transactions hold the same lane; a lane somebody else holds is skipped, never waited for.
-- The rows are locked and never updated. Index: lanes_pkey.
SELECT l.lane
FROM outbox.lanes AS l
WHERE l.destination = $1 AND l.lane = ANY ($2::smallint[])
ORDER BY (l.lane - $4::smallint + 16) % 16
LIMIT $3
FOR UPDATE SKIP LOCKED
