-- The groups of claimed lanes whose first message waits for a retry, due or not: nothing of them may go before it.
--
-- $1 destination, $2 lanes. Guarantees: none is left out, however many there are; keys only, so that many cost little.
-- "wait" is in milliseconds and null for a message that is due. "is_redriven" says that it was not recorded by a relay but
-- redriven by an operator, wherever it stood in its group: then others may come before it.
-- Index: messages_pending_deferred. The lanes are asked for outside, or the planner would rather take the primary key.
SELECT DISTINCT ON (d.lane, d.group_id)
    d.lane, d.group_id, d.id,
    CASE WHEN d.available_at > clock_timestamp()
        THEN (extract(epoch FROM d.available_at - clock_timestamp()) * 1000)::bigint END AS wait,
    d.attempts = 0 AS is_redriven
FROM (
    SELECT p.lane, p.group_id, p.id, p.available_at, p.attempts
    FROM outbox.messages_pending AS p
    WHERE p.destination = $1 AND p.available_at >= '-infinity' AND p.group_id IS NOT NULL
    OFFSET 0
) AS d
WHERE d.lane = ANY ($2::smallint[])
ORDER BY d.lane, d.group_id, d.id
