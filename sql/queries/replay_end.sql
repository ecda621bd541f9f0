-- Gives a replay up.
--
-- $1 which, $2 who. Guarantees: one row; false when it had ended. What it has written is published all the same.
SELECT outbox.replay_end($1, $2)
