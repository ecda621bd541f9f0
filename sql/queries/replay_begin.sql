-- Begins a replay, or finds the unfinished one with the same arguments.
--
-- $1 source, $2 destination, $3 whether to include events that are not known to have gone to the source, $4 event
-- types, $5 stream, $6 since, $7 until, $8 first and $9 last position, $10 who.
-- Guarantees: never two unfinished ones with the same arguments; outbox.audit_log records a new one in the same
-- transaction.
SELECT outbox.replay_begin($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
