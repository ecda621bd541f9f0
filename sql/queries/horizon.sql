-- What keeps vacuum from removing dead rows; the oldest holder of each kind.
--
-- No parameters. Returns the kind, how long it has held the horizon in seconds if PostgreSQL knows that, and the
-- transaction id it holds. From the id the caller can tell how long otherwise: the horizon is held for as long as that
-- id is the same.
-- For its own tables only holders in this database count (PostgreSQL, GetOldestNonRemovableTransactionId); slots and
-- standbys count for all. This very statement has an age of zero. A transaction of another database can make all
-- snapshots of this one begin at its id; then the longest-running one is shown. Autovacuum workers do not hold the
-- horizon.
-- The first column says whether the sessions of others are visible at all, which requires pg_read_all_stats. If that is
-- all there is to say, there is one row in which the other columns are null.
-- Index: none; these are views of shared memory.
SELECT DISTINCT ON (h.kind) pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE'), h.kind, h.seconds, h.xid
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
