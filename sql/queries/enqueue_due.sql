-- Makes scheduled messages pending that have fallen due.
--
-- $1 destination, $2 how many at most, $3 how many of the earliest to pass over. Guarantees: one row, how many there were; 0 also while another relay does it.
-- Index: messages_scheduled_due.
SELECT outbox.enqueue_due($1, $2, $3)
