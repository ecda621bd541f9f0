-- How many dead messages match a filter, how many of them are recent, and the server's time.
--
-- $1 ids, $2 destination, $3 event type, $4 group, $5 part of the reason, $6 since, $7 seconds, instead of since.
-- Guarantees: one row; messages that die later are not counted, and the time, returned as "upto", excludes them.
-- Reads the dead partition, which is small or the reason to look.
SELECT
    pg_catalog.count(m.id) AS messages,
    pg_catalog.count(m.id) FILTER (WHERE m.dead_at > s.now - interval '5 minutes') AS recent,
    s.now,
    s.since
FROM (
    SELECT now() AS now, coalesce($6::timestamptz, now() - $7::float8 * interval '1 second') AS since
) AS s
LEFT JOIN LATERAL outbox.dead_find($1::bigint[], $2, $3, $4, $5, s.since, s.now) AS m ON true
GROUP BY s.now, s.since
