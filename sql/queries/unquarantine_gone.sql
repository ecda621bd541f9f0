-- Ends the quarantine of messages that are not pending any more, without an outcome that waits to be recorded: a copy was
-- under way when they were set aside, and has arrived.
--
-- $1 destination. Index: quarantine_pkey, messages_pending_pkey.
DELETE FROM outbox.quarantine AS q
WHERE q.destination = $1 AND q.outcome IS NULL AND NOT EXISTS (
    SELECT FROM outbox.messages AS m
    WHERE m.status = 'pending' AND m.destination = q.destination AND m.lane = q.lane AND m.id = q.message_id
        AND m.event_position = q.event_position AND m.enqueued_at = q.enqueued_at
)
