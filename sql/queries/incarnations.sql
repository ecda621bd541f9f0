-- The lanes of a destination and the incarnation of each, as claim.sql returns it.
--
-- $1 destination. Guarantees: a lane that is missing in the answer must be created (create_lanes.sql). Index:
-- lanes_pkey.
SELECT l.lane, pg_catalog.concat_ws('/', l.incarnation, l.tableoid, extract(epoch FROM pg_postmaster_start_time())) AS incarnation
FROM outbox.lanes AS l
WHERE l.destination = $1
