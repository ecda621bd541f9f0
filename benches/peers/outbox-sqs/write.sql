-- What its save() writes, for the numbers $1 to $2; group by remainder of $3; $4 the queue's URL.
INSERT INTO outbox_events (
    destination, payload, headers, group_id, dedup_id, status, attempts, available_at, created_at
)
SELECT
    $4::text, jsonb_build_object('n', n, 'ticket', repeat(md5(n::text), 13))::text,
    '{"event_type": "TicketPurchased"}',
    CASE WHEN $4::text LIKE '%.fifo' THEN 'g' || n % $3::bigint END, CASE WHEN $4::text LIKE '%.fifo' THEN n::text END,
    'pending', 0, now() AT TIME ZONE 'utc', now() AT TIME ZONE 'utc'
FROM generate_series($1::bigint, $2::bigint) AS n
