-- The same messages as the relay's, in the peer's own table, which its own command has created.
-- $1 how many, $2 the queue's URL.
INSERT INTO outbox_events (destination, payload, headers, status, attempts, available_at, created_at)
SELECT
    $2, jsonb_build_object('n', n, 'ticket', repeat(md5(n::text), 13))::text,
    '{"event_type": "TicketPurchased"}', 'pending', 0, now() AT TIME ZONE 'utc', now() AT TIME ZONE 'utc'
FROM generate_series(1, $1) AS n
