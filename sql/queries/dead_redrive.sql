-- Makes a chunk of the dead messages that match a filter pending again.
--
-- $1 ids, $2 destination, $3 event type, $4 group, $5 part of the reason, $6 since, $7 upto, $8 how many at most, $9 who.
-- Guarantees: outbox.audit_log records it in the same transaction. Messages locked by another session are left out.
SELECT outbox.dead_redrive($1::bigint[], $2, $3, $4, $5, $6::timestamptz, $7::timestamptz, $8, $9)
