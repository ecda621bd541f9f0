-- The unfinished replay with these arguments.
--
-- Parameters as in replay_begin.sql, without the last. Guarantees: one row, null when there is none. Reads
-- outbox.replays, which has one row per replay ever started.
SELECT outbox.replay_unfinished($1, $2, $3, $4, $5, $6, $7, $8, $9)
