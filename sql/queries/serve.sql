-- Notes that a relay serves these destinations.
--
-- $1 destinations. Guarantees: many relays that say the same write about once a minute; none waits for another, so
-- a row that another relay is writing is passed over.
-- Index: the primary key, once a destination.
WITH held AS (
    SELECT s.destination, s.seen_at
    FROM outbox.served AS s
    WHERE s.destination = ANY ($1::text[])
    ORDER BY s.destination
    FOR UPDATE SKIP LOCKED
), renewed AS (
    UPDATE outbox.served AS s
    SET seen_at = clock_timestamp()
    FROM held AS h
    WHERE s.destination = h.destination AND h.seen_at < clock_timestamp() - interval '1 minute'
)
INSERT INTO outbox.served (destination, seen_at)
SELECT n.name, clock_timestamp()
FROM pg_catalog.unnest($1::text[]) AS n (name)
WHERE NOT EXISTS (SELECT FROM outbox.served AS s WHERE s.destination = n.name)
ORDER BY n.name
ON CONFLICT DO NOTHING
