-- Creates the sixteen lanes of a destination, if they are missing.
--
-- $1 destination. Guarantees: safe when many relays start at once; writes nothing if the lanes exist.
INSERT INTO outbox.lanes (destination, lane)
SELECT $1, g.lane::smallint
FROM generate_series(0, 15) AS g (lane)
WHERE NOT EXISTS (SELECT FROM outbox.lanes AS l WHERE l.destination = $1 AND l.lane = g.lane)
ON CONFLICT DO NOTHING
