-- Pauses a destination, or all (*).
--
-- $1 destination, $2 for how many seconds or null, $3 reason, $4 actor.
-- Guarantees: one row per destination; a destination that was already paused keeps its start time. Leaves a row in
-- outbox.audit_log.
SELECT outbox.pause($1, make_interval(secs => $2), $3, $4)
