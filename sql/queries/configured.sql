-- The rows of outbox.destinations, which relays serve whose environment names no destination.
--
-- No parameters. Guarantees: ordered by name. Index: none; the table has one row per destination.
SELECT
    d.name, d.target, d.fair, d.role, d.external_id, d.claim_check, d.claim_check_above, d.claim_check_key,
    extract(epoch FROM d.changed_at)::float8 AS changed_at, d.changed_by
FROM outbox.destinations AS d
ORDER BY d.name
