-- One dead message: as JSON, as the columns of sql/queries/read.sql, and with other data for an operator.
--
-- $1 id. Guarantees: no row if the message is not dead. JSON has the bytes of a body in base64, as they are sent. Reads the dead
-- partition; events_pkey.
SELECT
    ARRAY[0, (extract(epoch FROM now())::float8 * 1000000::float8)::bigint, 1, 0, 0] AS said,
    d.lane, d.id, d.event_position, d.enqueued_at, d.attempts, d.group_id, NULL::bigint[] AS holds, false AS has_more,
    d.event_id::text, d.event_type, d.stream_id, d.stream_version, b.body, d.metadata::text,
    (octet_length(b.body) + octet_length(d.metadata::text))::bigint AS bytes,
    CASE WHEN d.payload IS NULL THEN CASE WHEN d.body IS NULL THEN 'base64' ELSE 'text' END END AS form, 0 AS part,
    (pg_catalog.to_jsonb(d) - 'body_bytes'::text || pg_catalog.jsonb_build_object('body_base64', CASE WHEN d.body_bytes IS NOT NULL THEN b.body END))::text,
    d.destination, d.reason,
    to_char(d.dead_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
    to_char(d.enqueued_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')
FROM outbox.dead_show($1) AS d
CROSS JOIN LATERAL (
    SELECT coalesce(d.payload::text, d.body, replace(encode(d.body_bytes, 'base64'), E'\n', ''), '') AS body
) AS b
