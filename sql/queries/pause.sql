-- Pauses a destination, or all (*).
--
-- $1 destination, $2 for how many seconds or null, $3 reason, $4 actor.
-- Guarantees: one row a destination; what was paused already keeps the time since when. Leaves a row in outbox.audit_log.
SELECT outbox.pause($1, make_interval(secs => $2), $3, $4)
