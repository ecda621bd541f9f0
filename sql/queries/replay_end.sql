-- Gives a replay up.
--
-- $1 which. Guarantees: one row; false when it had ended. What it has written is published all the same.
SELECT outbox.replay_end($1)
