-- Whether a scheduled message of a destination is due.
--
-- $1 destination, $2 ids that do not count. Guarantees: one row.
-- Index: messages_scheduled_due.
SELECT EXISTS (
    SELECT FROM outbox.messages_scheduled AS m
    WHERE m.destination = $1 AND m.deliver_at <= now() AND m.id <> ALL ($2::bigint[])
) AS is_due
