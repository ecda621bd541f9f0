-- Dead messages that match a filter, the latest first, as JSON lines and as columns for display.
--
-- $1 ids, $2 destination, $3 event type, $4 group, $5 part of the reason, $6 since, $7 upto, $8 how many at most.
-- Guarantees: at most $8 rows. Reads the dead partition and, once a row, events_pkey.
SELECT
    pg_catalog.to_jsonb(d)::text, d.id, d.destination, coalesce(d.event_type, ''), coalesce(d.group_id, ''), d.attempts,
    to_char(d.dead_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'), d.reason
FROM outbox.dead_list($1::bigint[], $2, $3, $4, $5, $6::timestamptz, $7::timestamptz, $8) AS d
