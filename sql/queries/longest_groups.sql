-- The groups of a destination that have the most messages to send.
--
-- $1 destination, $2 lanes, $3 a floor of each lane, below which nothing but retries is pending, $4 how many messages of
-- each lane are looked at, $5 how many groups are wanted.
-- Guarantees: at most $5 rows, the longest first; a lane beyond $4 messages counts only its oldest ones. Retries do not
-- count.
-- Index: messages_pending_pkey (a bounded walk of each lane).
SELECT m.group_id, count(*) AS messages
FROM unnest($2::smallint[], $3::bigint[]) AS h (lane, floor)
CROSS JOIN LATERAL (
    SELECT p.group_id
    FROM outbox.messages AS p
    WHERE p.status = 'pending' AND p.destination = $1 AND p.lane = h.lane AND p.id > h.floor AND p.available_at IS NULL
    ORDER BY p.id
    LIMIT $4
) AS m
WHERE m.group_id IS NOT NULL
GROUP BY m.group_id
ORDER BY messages DESC, m.group_id
LIMIT $5
