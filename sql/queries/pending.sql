-- Whether anything of a destination is pending between two ids, including deferred messages, and whether any of it is
-- not held up.
--
-- $1 destination, $2 whether dead messages block their groups, $3 whether groups keep an order, $4 lanes, $5 and $6 the
-- ids (exclusive, inclusive) between which to look in each of them. Guarantees: no watermark is used, so "no" is final
-- for this snapshot. Held up are messages in quarantine, messages that an operator holds back (available_at infinity),
-- and the messages behind them in their groups. "took" is the number of milliseconds that the server worked.
-- Index: messages_pending_pkey up to the first message that is not held up, messages_pending_deferred_groups,
-- messages_dead_groups, quarantine_groups.
SELECT
    EXISTS (
        SELECT
        FROM pg_catalog.unnest($4::smallint[]) AS h (lane)
        CROSS JOIN LATERAL (
            SELECT
            FROM outbox.messages AS m
            WHERE m.status = 'pending' AND m.destination = $1 AND m.lane = h.lane AND m.id > $5 AND m.id <= $6
            ORDER BY m.id
            LIMIT 1
        ) AS first
    ) AS is_pending,
    EXISTS (
        SELECT
        FROM pg_catalog.unnest($4::smallint[]) AS h (lane)
        CROSS JOIN LATERAL (
            SELECT
            FROM outbox.messages_pending AS m
            WHERE m.destination = $1 AND m.lane = h.lane AND m.id > $5 AND m.id <= $6
                AND m.available_at IS DISTINCT FROM 'infinity'
                AND NOT ($3 AND m.group_id IS NOT NULL AND EXISTS (
                    SELECT FROM outbox.messages_pending AS d
                    WHERE d.destination = $1 AND d.group_id = m.group_id AND d.id < m.id
                        AND d.available_at IS NOT NULL AND d.available_at = 'infinity'
                ))
                AND NOT ($2 AND m.group_id IS NOT NULL AND EXISTS (
                    SELECT FROM outbox.messages_dead AS d WHERE d.destination = $1 AND d.group_id = m.group_id
                ))
                AND NOT EXISTS (
                    SELECT FROM outbox.quarantine AS z
                    WHERE z.destination = $1 AND (z.group_id = m.group_id OR z.lane = m.lane AND z.message_id = m.id)
                )
            ORDER BY m.id
            LIMIT 1
        ) AS first
    ) AS is_free,
    extract(epoch FROM clock_timestamp() - statement_timestamp())::float8 * 1000::float8 AS took
