-- Whether anything of a destination is still pending, deferred messages included, and whether any of that is not held up.
--
-- $1 destination, $2 whether dead messages hold up their groups. Guarantees: no watermark and no lane is left out, so "no" is
-- final for this snapshot. What is in quarantine is pending, and held up as its group is.
-- Index: messages_pending_pkey up to the first that is not held up, messages_dead_groups, quarantine_groups.
SELECT
    EXISTS (SELECT FROM outbox.messages AS m WHERE m.status = 'pending' AND m.destination = $1) AS is_pending,
    EXISTS (
        SELECT
        FROM outbox.messages_pending AS m
        WHERE m.destination = $1
            AND NOT ($2 AND m.group_id IS NOT NULL AND EXISTS (
                SELECT FROM outbox.messages_dead AS d WHERE d.destination = $1 AND d.group_id = m.group_id
            ))
            AND NOT EXISTS (
                SELECT FROM outbox.quarantine AS z
                WHERE z.destination = $1 AND (z.group_id = m.group_id OR z.lane = m.lane AND z.message_id = m.id)
            )
    ) AS is_free
