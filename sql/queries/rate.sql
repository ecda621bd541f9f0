-- How many messages of a destination were delivered recently.
--
-- $1 destination, $2 seconds, $3 how many of the latest of each lane to look at.
-- Guarantees: one row; looks at no more than 16 times $3 rows. If all rows looked at of a lane count, the result is too
-- low, as "is_capped" says. Ids ascend with time, except for writers that were slow to commit.
-- Index: messages_delivered_pkey, from its end.
SELECT count(*) FILTER (WHERE latest.is_late) AS messages, bool_or(latest.count_of_lane >= $3) AS is_capped
FROM (
    SELECT
        m.delivered_at > clock_timestamp() - make_interval(secs => $2) AS is_late,
        count(*) FILTER (WHERE m.delivered_at > clock_timestamp() - make_interval(secs => $2)) OVER (PARTITION BY h.lane)
            AS count_of_lane
    FROM generate_series(0, 15) AS h (lane)
    CROSS JOIN LATERAL (
        SELECT d.delivered_at
        FROM outbox.messages AS d
        WHERE d.status = 'delivered' AND d.destination = $1 AND d.lane = h.lane::smallint
        ORDER BY d.id DESC
        LIMIT $3
    ) AS m
) AS latest
