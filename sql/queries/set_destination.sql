-- Adds a destination to outbox.destinations, or changes it as a whole.
--
-- $1 name, $2 target, $3 fair, $4 role, $5 external id, $6 claim check, $7 claim check above, $8 key of the claim check,
-- $9 actor. Leaves a row in outbox.audit_log.
SELECT outbox.set_destination($1, $2, $3, $4, $5, $6, $7, $8, $9)
