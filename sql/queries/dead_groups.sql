-- The groups of claimed lanes that have dead messages, each with the first of them.
--
-- $1 destination, $2 lanes. Guarantees: none of those that this snapshot shows is left out, so that a relay that is told to
-- hold them up never publishes one by mistake. Index: messages_dead_pkey once a lane.
SELECT d.lane, d.group_id, min(d.id)
FROM outbox.messages_dead AS d
WHERE d.destination = $1 AND d.lane = ANY ($2::smallint[]) AND d.group_id IS NOT NULL
GROUP BY d.lane, d.group_id
