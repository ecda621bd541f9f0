-- Takes the exclusive right to some lanes until the surrounding transaction ends.
--
-- $1 destination, $2 wanted lanes, $3 how many at most, $4 the lane to begin with (relays that start at different lanes
-- meet less often).
-- Guarantees: no two transactions hold the same lane; a lane held by another is skipped, never waited for.
-- "transaction_id" is the claim's own, "server" identifies one run of one server, and "incarnation" one history of the
-- outbox: what was remembered under another one may be about messages that are lost. The rows are locked and never
-- updated. Index: lanes_pkey.
SELECT
    l.lane,
    pg_current_xact_id()::text AS transaction_id,
    extract(epoch FROM pg_postmaster_start_time())::text AS server,
    pg_catalog.concat_ws('/', l.incarnation, l.tableoid, extract(epoch FROM pg_postmaster_start_time())) AS incarnation
FROM outbox.lanes AS l
WHERE l.destination = $1 AND l.lane = ANY ($2::smallint[])
ORDER BY (l.lane - $4::smallint + 16) % 16
LIMIT $3
FOR UPDATE SKIP LOCKED
