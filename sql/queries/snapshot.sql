-- The transactions that have ended. Each of the statements that follow sees at least what these have committed.
SELECT pg_current_snapshot()::text AS snapshot
