-- Whether this role may list replays.
--
-- No parameters. Guarantees: one row.
SELECT pg_catalog.has_table_privilege('outbox.replays', 'SELECT')
