-- Ends the pause of a destination, or all pauses (*); returns how many were in force.
--
-- $1 destination, $2 actor. Leaves a row in outbox.audit_log.
SELECT outbox.resume($1, $2)
