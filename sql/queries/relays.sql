-- The relays of this outbox that are connected to the database.
--
-- $1 what the names of their sessions begin with. Guarantees: each once, in order, as HOST/PID. Every role may see
-- application_name, unlike most of pg_stat_activity. Behind PgBouncer, a server connection keeps the name of the last client
-- that used it.
SELECT DISTINCT substr(a.application_name, length($1) + 1) AS relay
FROM pg_stat_activity AS a
WHERE a.datname = current_database() AND starts_with(a.application_name, $1)
ORDER BY relay
