-- Destinations to which routes of `outbox.outboxevent` lead and that are not among these, ordered by name, with the aggregate
-- types that are sent there.
--
-- $1 text[] served: the destinations of a relay. Guarantees: one row per destination.
SELECT r.destination, pg_catalog.array_agg(r.aggregatetype ORDER BY r.aggregatetype) AS aggregatetypes
FROM outbox.routes AS r
WHERE r.destination <> ALL ($1)
GROUP BY r.destination
ORDER BY r.destination
