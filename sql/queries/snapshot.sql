-- Says which transactions have ended, for the statements that follow: each of those sees at least what these have committed.
SELECT pg_current_snapshot()::text AS snapshot
