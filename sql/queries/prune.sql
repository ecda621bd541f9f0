-- Deletes a chunk of one lane's delivered messages that are older than the retention.
--
-- $1 destination, $2 lane, $3 retention in seconds, $4 how many at most.
-- Guarantees: looks at the $4 lowest ids only, so a chunk costs the same whatever is kept. Two relays that prune the same
-- lane at once wait for each other for one chunk at most. Index: messages_delivered_pkey.
DELETE FROM outbox.messages AS m
WHERE m.status = 'delivered' AND m.destination = $1 AND m.lane = $2
    AND m.id = ANY (ARRAY(
        SELECT oldest.id
        FROM (
            SELECT d.id, d.delivered_at
            FROM outbox.messages AS d
            WHERE d.status = 'delivered' AND d.destination = $1 AND d.lane = $2
            ORDER BY d.id
            LIMIT $4
        ) AS oldest
        WHERE oldest.delivered_at < now() - $3::float8 * interval '1 second'
    ))
