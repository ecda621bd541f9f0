-- Returns a message in quarantine to the relays; returns how many were returned.
--
-- $1 destination, $2 id. Leaves a row in outbox.audit_log.
SELECT outbox.release($1, $2)
