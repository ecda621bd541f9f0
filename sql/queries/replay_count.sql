-- How many events a replay would publish, by type.
--
-- $1 source, $2 destination, $3 whether to include events that are not known to have gone to the source, $4 event
-- types, $5 stream, $6 since, $7 until, $8 first and $9 last position, $10 how many events to look at.
-- Guarantees: one row per type, and one without a type when there is no event; "others" would be published only with
-- $3; no more than $10 events are looked at, however few of them match, and "may_be_more" says whether there may be
-- others.
-- Index: events_pkey between two positions, or events_stream for a stream.
SELECT
    c.event_type, coalesce(c.matching, 0) AS matching, coalesce(c.others, 0) AS others,
    (p.plan).last_position - (p.plan).position > $10 AS may_be_more
FROM (SELECT outbox.replay_plan($1, $2, $3, $4, $5, $6, $7, $8, $9) AS plan OFFSET 0) AS p
LEFT JOIN LATERAL outbox.replay_count(p.plan, $10) AS c ON true
ORDER BY c.matching DESC, c.event_type
