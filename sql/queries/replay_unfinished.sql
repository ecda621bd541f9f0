-- The replay with these arguments that has not ended.
--
-- Parameters as in replay_begin.sql, without the last. Guarantees: one row, null when there is none. Reads outbox.replays,
-- which has a row for each time that somebody typed the command.
SELECT outbox.replay_unfinished($1, $2, $3, $4, $5, $6, $7, $8, $9)
