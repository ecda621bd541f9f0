-- What holds some groups up: a dead message, if those block their groups, a message in quarantine, or a deferred one.
--
-- $1 destination, $2 groups, $3 whether dead messages block their groups. Guarantees: one row per group, as this
-- snapshot shows it. "held_by" is the lowest dead message (with $3) or message in quarantine, "head" the lowest
-- deferred one, and "wait" the time until that is due in milliseconds: null when it is due, the largest number when
-- that is not known (infinity).
-- Index: messages_dead_groups, quarantine_groups and messages_pending_deferred_groups once a group.
SELECT
    h.group_id,
    least(
        (SELECT min(d.id) FROM outbox.messages_dead AS d WHERE $3 AND d.destination = $1 AND d.group_id = h.group_id),
        (SELECT min(z.message_id) FROM outbox.quarantine AS z WHERE z.destination = $1 AND z.group_id = h.group_id)
    ) AS held_by,
    b.id AS head,
    CASE WHEN b.available_at > clock_timestamp() AND isfinite(b.available_at)
        THEN (extract(epoch FROM b.available_at - clock_timestamp())::float8 * 1000::float8)::bigint
        WHEN b.available_at = 'infinity' THEN 9223372036854775807 END AS wait
FROM pg_catalog.unnest($2::text[]) AS h (group_id)
LEFT JOIN LATERAL (
    SELECT d.id, d.available_at
    FROM outbox.messages_pending AS d
    WHERE d.destination = $1 AND d.group_id = h.group_id AND d.available_at IS NOT NULL
    ORDER BY d.id
    LIMIT 1
) AS b ON true
