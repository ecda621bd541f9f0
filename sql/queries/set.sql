-- Sets a setting that overrides the environment, for a destination or all (*); a null value removes it.
--
-- $1 name, $2 value or null, $3 destination, $4 actor. Leaves a row in outbox.audit_log.
SELECT outbox.set_setting($1, $2, $3, $4)
