-- What operators have decided: pauses in force, and settings that override the environment.
--
-- No parameters. A pause has no name; its value is the reason. Ages are by the database's clock, in seconds.
-- Index: none; both tables have one row per decision.
SELECT
    p.destination, NULL::text AS name, p.reason AS value, p.actor,
    extract(epoch FROM clock_timestamp() - p.paused_at)::float8 AS age,
    extract(epoch FROM p.ends_at - clock_timestamp())::float8 AS left_over
FROM outbox.pauses AS p
WHERE p.ends_at IS NULL OR p.ends_at > clock_timestamp()
UNION ALL
SELECT s.destination, s.name, s.value, s.actor, extract(epoch FROM clock_timestamp() - s.set_at)::float8, NULL
FROM outbox.settings AS s
ORDER BY 1, 2
