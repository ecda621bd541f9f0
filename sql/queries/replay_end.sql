-- Abandons a replay.
--
-- $1 which, $2 who. Guarantees: one row; false when it had ended. Messages it has written are published all the same.
SELECT outbox.replay_end($1, $2)
