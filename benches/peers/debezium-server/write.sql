-- The numbers $1 to $2; aggregate by remainder of $3.
INSERT INTO outbox (id, aggregatetype, aggregateid, type, payload)
SELECT
    gen_random_uuid(), 'ticket', 'g' || n % $3::bigint, 'TicketPurchased',
    jsonb_build_object('n', n, 'ticket', repeat(md5(n::text), 13))
FROM generate_series($1::bigint, $2::bigint) AS n
