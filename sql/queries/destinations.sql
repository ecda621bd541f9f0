-- Destinations that a relay has served, in the order of their names.
--
-- No parameters. Index: none; there are sixteen lanes a destination.
SELECT DISTINCT l.destination FROM outbox.lanes AS l ORDER BY l.destination
