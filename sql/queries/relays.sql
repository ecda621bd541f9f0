-- The relays that are connected to this database.
--
-- No parameters. Guarantees: each once, in order, as HOST/PID. Every role may see application_name, unlike most of
-- pg_stat_activity. Behind PgBouncer, a server connection keeps the name of the last client that used it.
SELECT DISTINCT substr(a.application_name, length('outbox-relay ') + 1) AS relay
FROM pg_stat_activity AS a
WHERE a.datname = current_database() AND a.application_name LIKE 'outbox-relay %'
ORDER BY relay
