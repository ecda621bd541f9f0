-- Makes scheduled messages pending that have fallen due.
--
-- $1 destination, $2 how many at most, $3 ids to pass over. Guarantees: one row: how many there were, 0 also
-- while another relay does it or somebody has locked them; and the id, SQLSTATE and message of one that PostgreSQL refused
-- when it was the only one.
-- Index: messages_scheduled_due.
SELECT d.moved, d.refused, d.code, d.problem FROM outbox.enqueue_due($1, $2, $3) AS d
