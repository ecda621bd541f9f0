-- Removes a destination from outbox.destinations.
--
-- $1 name, $2 actor. Guarantees: one row with the number of rows removed; if there was one, a row in outbox.audit_log.
SELECT outbox.remove_destination($1, $2)
