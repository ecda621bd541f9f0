-- As its README inserts "manually", for the numbers $1 to $2; partition by remainder of $3; $4 the queue's URL.
INSERT INTO outbox (idempotent_key, partition_key, destinations, headers, payload)
SELECT
    gen_random_uuid(), md5((n % $3::bigint)::text)::uuid, jsonb_build_array(jsonb_build_object('queue_url', $4::text)),
    '{"event_type": "TicketPurchased"}', jsonb_build_object('n', n, 'ticket', repeat(md5(n::text), 13))::text
FROM generate_series($1::bigint, $2::bigint) AS n
