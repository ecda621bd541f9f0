-- One dead message: as JSON, as the columns of sql/queries/read.sql, and with other data for an operator.
--
-- $1 id. Guarantees: no row if the message is not dead. Reads the dead partition; events_pkey.
SELECT
    ARRAY[0, (extract(epoch FROM now()) * 1000000)::bigint, 1, 0, 0] AS said,
    d.lane, d.id, d.event_position, d.enqueued_at, d.attempts, d.group_id, NULL::bigint[] AS holds, false AS has_more,
    d.event_id::text, d.event_type, d.stream_id, d.stream_version, d.payload::text, d.metadata::text,
    (octet_length(d.payload::text) + octet_length(d.metadata::text))::bigint AS bytes, NULL::text AS unreadable, 0 AS part,
    to_jsonb(d)::text, d.destination, d.reason,
    to_char(d.dead_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"'),
    to_char(d.enqueued_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')
FROM outbox.dead_show($1) AS d
