-- How many events a replay would be about, by type.
--
-- $1 source, $2 event types, $3 stream, $4 since, $5 until, $6 first and $7 last position, $8 the count at which to stop.
-- Guarantees: one row a type, the most frequent first; in all no more than $8 events. "known" are those that are known to
-- have gone to the source. Index: events_pkey between two positions, or events_stream_id_stream_version_key for a stream.
SELECT f.event_type, count(*) FILTER (WHERE f.is_known) AS known, count(*) AS events
FROM (
    SELECT * FROM outbox.replay_find($1, $2, $3, $4, $5, $6, $7) LIMIT $8
) AS f
GROUP BY f.event_type
ORDER BY events DESC, f.event_type
