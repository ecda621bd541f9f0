-- Whether anything of a destination is still pending, deferred messages included.
--
-- $1 destination. Guarantees: no bound and no lane is left out, so "no" is final for this snapshot.
-- Index: messages_pending_pkey.
SELECT EXISTS (SELECT FROM outbox.messages AS m WHERE m.status = 'pending' AND m.destination = $1)
