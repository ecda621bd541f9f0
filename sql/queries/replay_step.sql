-- Runs a step of a replay.
--
-- $1 which, $2 how many messages to write, $3 whether to continue although a transaction is running that may have
-- written events.
-- Guarantees: the messages and the position up to which they were written are one transaction, so one replay publishes
-- no event twice and skips none. Only under READ COMMITTED, see outbox.safe_position().
-- Index: events_pkey, for a stream events_stream.
SELECT s.messages, s.all_messages, s.start_position, s.position_done, s.last_position, s.has_ended, s.must_wait
FROM outbox.replay_step($1, $2, $3) AS s
