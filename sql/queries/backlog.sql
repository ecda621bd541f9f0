-- What is pending, how old the oldest message is, and how many are dead or in quarantine, measured in the table and not
-- as seen by a publisher.
--
-- $1 destination, $2 lanes, $3 a floor of each lane, below which nothing but retries is pending, $4 the count at which
-- to stop, $5 whether groups keep an order, $6 whether dead messages block their groups.
-- Guarantees: one row; never counts more than $4 rows of a kind; the lag is 0 when nothing is pending; "firsts" are the
-- lowest ids of the lanes in "lanes", for the next floors. Rows below the floors are not walked. A message that an
-- operator holds back (available_at in the future, no attempt) or that is in quarantine counts as pending, but not for
-- the lag. A scheduled message that is due and not pending yet counts for both, from when it fell due. "ready_lag" is the age of the oldest message that nothing holds up, among the first and the last 100 of each
-- lane and the 100 latest that fell due. (If the first ones are all held up, a message that stands still is among the
-- last.)
-- Index: messages_pending_pkey (head of each lane, then a bounded walk), messages_pending_deferred, messages_dead_pkey,
-- messages_scheduled_due.
WITH s AS MATERIALIZED (
    SELECT
        clock_timestamp() AS now,
        EXISTS (SELECT FROM outbox.quarantine AS z WHERE z.destination = $1) AS has_quarantine,
        $5 AND EXISTS (
            SELECT FROM outbox.messages_pending AS d WHERE d.destination = $1 AND d.available_at IS NOT NULL
        ) AS has_deferred,
        $6 AND EXISTS (SELECT FROM outbox.messages_dead AS d WHERE d.destination = $1) AS has_dead
), heads AS MATERIALIZED (
    SELECT h.lane, first.id, first.enqueued_at
    FROM s
    CROSS JOIN unnest($2::smallint[], $3::bigint[]) AS h (lane, floor)
    CROSS JOIN LATERAL (
        SELECT m.id, m.enqueued_at
        FROM outbox.messages AS m
        WHERE m.status = 'pending' AND m.destination = $1 AND m.lane = h.lane AND m.id > h.floor
            AND m.available_at IS NULL
            AND NOT (s.has_quarantine AND EXISTS (
                SELECT FROM outbox.quarantine AS z
                WHERE z.destination = $1 AND z.lane = m.lane AND z.message_id = m.id
                    AND z.event_position = m.event_position AND z.enqueued_at = m.enqueued_at
            ))
        ORDER BY m.id
        LIMIT 1
    ) AS first
), early AS MATERIALIZED (
    SELECT m.lane, m.id, m.group_id, m.enqueued_at, m.available_at
    FROM unnest($2::smallint[], $3::bigint[]) AS h (lane, floor)
    CROSS JOIN LATERAL (
        SELECT p.lane, p.id, p.group_id, p.enqueued_at, p.available_at
        FROM outbox.messages AS p
        WHERE p.status = 'pending' AND p.destination = $1 AND p.lane = h.lane AND p.id > h.floor AND p.available_at IS NULL
        ORDER BY p.id
        LIMIT 100
    ) AS m
    UNION ALL
    SELECT m.lane, m.id, m.group_id, m.enqueued_at, m.available_at
    FROM unnest($2::smallint[], $3::bigint[]) AS h (lane, floor)
    CROSS JOIN LATERAL (
        SELECT p.lane, p.id, p.group_id, p.enqueued_at, p.available_at
        FROM outbox.messages AS p
        WHERE p.status = 'pending' AND p.destination = $1 AND p.lane = h.lane AND p.id > h.floor AND p.available_at IS NULL
        ORDER BY p.id DESC
        LIMIT 100
    ) AS m
    UNION ALL
    (
        SELECT p.lane, p.id, p.group_id, p.enqueued_at, p.available_at
        FROM outbox.messages_pending AS p
        WHERE p.destination = $1 AND p.available_at <= now()
        ORDER BY p.available_at DESC
        LIMIT 100
    )
), deferred AS MATERIALIZED (
    SELECT m.enqueued_at, m.attempts > 0 OR m.available_at <= now() AS counts
    FROM outbox.messages_pending AS m
    WHERE m.destination = $1 AND m.available_at IS NOT NULL
    LIMIT $4
), overdue AS MATERIALIZED (
    SELECT m.deliver_at
    FROM outbox.messages_scheduled AS m
    WHERE m.destination = $1 AND m.deliver_at <= now()
    ORDER BY m.deliver_at
    LIMIT $4
)
SELECT
    coalesce(extract(epoch FROM s.now - least(
        (SELECT min(enqueued_at) FROM heads), (SELECT min(enqueued_at) FROM deferred WHERE counts),
        (SELECT min(deliver_at) FROM overdue)
    )), 0)::float8 AS lag,
    least($4, (SELECT count(*) FROM deferred) + (SELECT count(*) FROM overdue) + (
        SELECT count(*)
        FROM (
            SELECT
            FROM unnest($2::smallint[], $3::bigint[]) AS h (lane, floor)
            CROSS JOIN LATERAL (
                SELECT
                FROM outbox.messages AS m
                WHERE m.status = 'pending' AND m.destination = $1 AND m.lane = h.lane AND m.id > h.floor
                    AND m.available_at IS NULL
                ORDER BY m.id
                LIMIT $4
            ) AS of_lane
            LIMIT $4
        ) AS waiting
    )) AS backlog,
    (
        SELECT count(*)
        FROM (SELECT FROM outbox.messages AS m WHERE m.status = 'dead' AND m.destination = $1 LIMIT $4) AS dead
    ) AS dead,
    ARRAY(SELECT lane FROM heads ORDER BY lane) AS lanes,
    ARRAY(SELECT id FROM heads ORDER BY lane) AS firsts,
    (
        SELECT count(*) FROM (SELECT FROM outbox.quarantine AS z WHERE z.destination = $1 LIMIT $4) AS quarantined
    ) AS quarantined,
    coalesce((
        SELECT extract(epoch FROM s.now - min(greatest(e.enqueued_at, e.available_at)))
        FROM early AS e
        WHERE NOT (s.has_quarantine AND EXISTS (
                SELECT FROM outbox.quarantine AS z
                WHERE z.destination = $1
                    AND ($5 AND z.group_id = e.group_id OR z.lane = e.lane AND z.message_id = e.id)
            ))
            AND NOT (s.has_dead AND e.group_id IS NOT NULL AND EXISTS (
                SELECT FROM outbox.messages_dead AS d WHERE d.destination = $1 AND d.group_id = e.group_id
            ))
            AND NOT (s.has_deferred AND e.group_id IS NOT NULL AND EXISTS (
                SELECT FROM outbox.messages_pending AS d
                WHERE d.destination = $1 AND d.group_id = e.group_id AND d.id < e.id AND d.available_at IS NOT NULL
            ))
    ), 0)::float8 AS ready_lag
FROM s
