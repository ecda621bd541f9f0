-- Gives a message in quarantine back to the relays; returns how many were given back.
--
-- $1 destination, $2 id. Leaves a row in outbox.audit_log.
SELECT outbox.release($1, $2)
