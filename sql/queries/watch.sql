-- Whether quiet destinations need a closer look: the cheapest question an idle relay can ask, many times a second.
--
-- $1 destinations. Guarantees: one row. "scheduled_in" is for each of them the number of seconds until the next scheduled
-- message falls due, negative if it has, null when there is none; "last_id" is the highest message id handed out so far, committed or not, to any
-- destination; "latest_due" is the latest time at which a deferred message fell due, in seconds since 1970, null when
-- none is due; "last_action" grows with every change that operators make to messages, as far as this role may see that.
-- It names the partition, because planning a partitioned table costs more than running this.
-- Index: messages_pending_deferred, messages_scheduled_due. now() is the start of this statement and, unlike clock_timestamp(), can use the
-- index.
SELECT
    (SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END FROM outbox.messages_id_seq) AS last_id,
    (
        SELECT extract(epoch FROM greatest(max(d.available_at), '1970-01-01'))::float8
        FROM pg_catalog.unnest($1::text[]) AS h (destination)
        CROSS JOIN LATERAL (
            SELECT m.available_at
            FROM outbox.messages_pending AS m
            WHERE m.destination = h.destination AND m.available_at <= now()
            ORDER BY m.available_at DESC
            LIMIT 1
        ) AS d
    ) AS latest_due,
    coalesce(CASE
        WHEN pg_catalog.has_sequence_privilege('outbox.audit_log_id_seq', 'SELECT')
        THEN pg_sequence_last_value('outbox.audit_log_id_seq'::regclass)
    END, 0) AS last_action,
    ARRAY(
        SELECT extract(epoch FROM d.deliver_at - clock_timestamp())::float8
        FROM pg_catalog.unnest($1::text[]) WITH ORDINALITY AS h (destination, n)
        LEFT JOIN LATERAL (
            SELECT m.deliver_at
            FROM outbox.messages_scheduled AS m
            WHERE m.destination = h.destination
            ORDER BY m.deliver_at
            LIMIT 1
        ) AS d ON true
        ORDER BY h.n
    ) AS scheduled_in
