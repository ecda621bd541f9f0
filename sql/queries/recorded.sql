-- When events were recorded: by their commit if the server keeps that (track_commit_timestamp), and when they were written.
--
-- $1 ids of events, as text. Guarantees: at most one row for each. Index: events_event_id_key. For development only.
SELECT
    e.event_id::text,
    CASE WHEN current_setting('track_commit_timestamp')::boolean THEN pg_xact_commit_timestamp(e.xmin) END,
    e.recorded_at
FROM outbox.events AS e
WHERE e.event_id = ANY ($1::text[]::uuid[])
