-- The numbers $1 to $2; group by remainder of $3.
WITH event AS (
    INSERT INTO outbox.events (event_type, payload)
    SELECT 'TicketPurchased', jsonb_build_object('n', n, 'ticket', repeat(md5(n::text), 13))
    FROM generate_series($1::bigint, $2::bigint) AS n
    RETURNING position, (payload ->> 'n')::bigint AS n
)
INSERT INTO outbox.messages (destination, event_position, group_id)
SELECT 'tickets', position, 'g' || n % $3::bigint FROM event ORDER BY n
