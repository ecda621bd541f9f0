-- Transactions that may have written messages and are still running, and the next transaction id.
--
-- No parameters. Guarantees: a transaction that has inserted a message holds this lock on the table until it ends, so a
-- transaction that is missing here had taken no message id before this statement began (PostgreSQL, 13.3.1 "Table-Level
-- Locks"). Claims, other databases and transactions that write other tables are not included. pg_locks shows the lower
-- 32 bits of ids. Reads no table; scans the lock table of the whole server once.
WITH locks AS MATERIALIZED (
    SELECT l.locktype, l.database, l.relation, l.virtualtransaction, l.transactionid, l.mode
    FROM pg_locks AS l
    WHERE l.granted AND l.locktype IN ('relation', 'transactionid')
)
SELECT
    pg_snapshot_xmin(s.snapshot)::text::bigint + age(pg_snapshot_xmin(s.snapshot)::xid) AS next_xid,
    ARRAY(
        SELECT x.transactionid::text::bigint
        FROM locks AS x
        WHERE x.locktype = 'transactionid' AND x.mode = 'ExclusiveLock' AND x.virtualtransaction IN (
            SELECT r.virtualtransaction
            FROM locks AS r
            WHERE r.locktype = 'relation' AND r.mode = 'RowExclusiveLock'
                AND r.relation IN ('outbox.messages'::regclass::oid, 'outbox.messages_pending'::regclass::oid)
                AND r.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database())
        )
    ) AS transaction_ids
FROM (SELECT pg_current_snapshot() AS snapshot OFFSET 0) AS s
