-- Who keeps vacuum from removing rows that no longer count, the oldest of each kind.
--
-- No parameters. Returns the kind, how long it has held the horizon in seconds where PostgreSQL knows that, and the
-- transaction id it holds, from which the caller tells the rest: it is held as long as that id is the same.
-- Only this database counts for its own tables (PostgreSQL, GetOldestNonRemovableTransactionId); slots and standbys count
-- for all. This very statement counts with an age of nothing. A transaction of another database can make all snapshots of this one
-- begin at its id; then the one that has been there for longest is shown. Autovacuum's workers do not hold the horizon.
-- The first column says whether sessions of others are seen at all, for which PostgreSQL asks for pg_read_all_stats; the others
-- are null in the one row of which nothing but that is to be said.
-- Index: none; these are views of shared memory.
SELECT DISTINCT ON (h.kind) pg_has_role('pg_read_all_stats', 'USAGE'), h.kind, h.seconds, h.xid
FROM (
    SELECT NULL AS kind, NULL::float8 AS seconds, NULL AS xid, NULL::int AS transactions
    UNION ALL
    SELECT
        'transaction' AS kind, extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS seconds,
        coalesce(a.backend_xmin, a.backend_xid)::text AS xid,
        greatest(age(a.backend_xmin), age(a.backend_xid)) AS transactions
    FROM pg_stat_activity AS a
    WHERE a.datname = current_database() AND a.xact_start IS NOT NULL
        AND (a.backend_xmin IS NOT NULL OR a.backend_xid IS NOT NULL)
        AND a.backend_type IS DISTINCT FROM 'autovacuum worker'
    UNION ALL
    SELECT
        'prepared_transaction', extract(epoch FROM clock_timestamp() - p.prepared)::float8, p.transaction::text,
        age(p.transaction)
    FROM pg_prepared_xacts AS p
    WHERE p.database = current_database()
    UNION ALL
    SELECT 'replication_slot', NULL, s.xmin::text, age(s.xmin) FROM pg_replication_slots AS s WHERE s.xmin IS NOT NULL
    UNION ALL
    SELECT 'standby', NULL, r.backend_xmin::text, age(r.backend_xmin)
    FROM pg_stat_replication AS r
    WHERE r.backend_xmin IS NOT NULL
) AS h
ORDER BY h.kind, h.transactions DESC, h.seconds DESC NULLS LAST
