-- Whether this role may list replays.
--
-- No parameters. Guarantees: one row.
SELECT has_table_privilege('outbox.replays', 'SELECT')
