-- Whether every pending message of a destination belongs to a group that has a dead one.
--
-- $1 destination. Guarantees: final for this snapshot. Asked by `run --until-empty` only, when nothing else is left to do.
-- Index: messages_pending_pkey up to the first that is not blocked, messages_dead_pkey.
SELECT NOT EXISTS (
    SELECT
    FROM outbox.messages_pending AS m
    WHERE m.destination = $1
        AND (m.lane, coalesce(m.group_id, '')) NOT IN (
            SELECT d.lane, d.group_id FROM outbox.messages_dead AS d WHERE d.destination = $1 AND d.group_id IS NOT NULL
        )
)
