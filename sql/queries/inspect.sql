-- What `outbox-relay check` needs to know about the server.
--
-- No parameters. Guarantees: one row. "missing_rights" are missing privileges of the relay's role, compared with
-- `deploy/roles.sql`; "broken" are relations of the migrations that are missing or invalid; "unvacuumed" are tables for
-- which autovacuum is turned off.
SELECT
    current_setting('server_version') AS version,
    current_setting('server_version_num')::int AS version_number,
    pg_is_in_recovery() AS is_standby,
    current_setting('default_transaction_read_only') = 'on' AS is_read_only,
    current_setting('autovacuum') = 'on' AS has_autovacuum,
    current_setting('fsync') = 'on' AND current_setting('full_page_writes') = 'on'
        AND current_setting('synchronous_commit') <> 'off' AS is_durable,
    extract(epoch FROM clock_timestamp())::float8 AS clock,
    current_user::text AS role,
    ARRAY(
        SELECT r.what
        FROM (VALUES
            ('SELECT on outbox.events', pg_catalog.has_table_privilege(to_regclass('outbox.events'), 'SELECT')),
            ('SELECT on outbox.messages', pg_catalog.has_table_privilege(to_regclass('outbox.messages'), 'SELECT')),
            ('SELECT on outbox.messages_pending', pg_catalog.has_table_privilege(to_regclass('outbox.messages_pending'), 'SELECT')),
            ('SELECT on outbox.messages_dead', pg_catalog.has_table_privilege(to_regclass('outbox.messages_dead'), 'SELECT')),
            ('SELECT on outbox.messages_scheduled', pg_catalog.has_table_privilege(to_regclass('outbox.messages_scheduled'), 'SELECT')),
            ('EXECUTE on outbox.enqueue_due',
                pg_catalog.has_function_privilege(to_regprocedure('outbox.enqueue_due(text, bigint, bigint[])'), 'EXECUTE')),
            ('UPDATE (status) on outbox.messages', pg_catalog.has_column_privilege(to_regclass('outbox.messages'), 'status', 'UPDATE')),
            ('UPDATE (attempts) on outbox.messages', pg_catalog.has_column_privilege(to_regclass('outbox.messages'), 'attempts', 'UPDATE')),
            ('UPDATE (available_at) on outbox.messages',
                pg_catalog.has_column_privilege(to_regclass('outbox.messages'), 'available_at', 'UPDATE')),
            ('UPDATE (delivered_at) on outbox.messages',
                pg_catalog.has_column_privilege(to_regclass('outbox.messages'), 'delivered_at', 'UPDATE')),
            ('UPDATE (dead_at) on outbox.messages', pg_catalog.has_column_privilege(to_regclass('outbox.messages'), 'dead_at', 'UPDATE')),
            ('UPDATE (sqs_message_id) on outbox.messages',
                pg_catalog.has_column_privilege(to_regclass('outbox.messages'), 'sqs_message_id', 'UPDATE')),
            ('UPDATE (sqs_sequence_number) on outbox.messages',
                pg_catalog.has_column_privilege(to_regclass('outbox.messages'), 'sqs_sequence_number', 'UPDATE')),
            ('UPDATE (last_error) on outbox.messages', pg_catalog.has_column_privilege(to_regclass('outbox.messages'), 'last_error', 'UPDATE')),
            ('DELETE on outbox.messages', pg_catalog.has_table_privilege(to_regclass('outbox.messages'), 'DELETE')),
            ('SELECT on outbox.lanes', pg_catalog.has_table_privilege(to_regclass('outbox.lanes'), 'SELECT')),
            ('INSERT on outbox.lanes', pg_catalog.has_table_privilege(to_regclass('outbox.lanes'), 'INSERT')),
            ('UPDATE (lane) on outbox.lanes', pg_catalog.has_column_privilege(to_regclass('outbox.lanes'), 'lane', 'UPDATE')),
            ('SELECT on outbox.pauses', pg_catalog.has_table_privilege(to_regclass('outbox.pauses'), 'SELECT')),
            ('SELECT on outbox.settings', pg_catalog.has_table_privilege(to_regclass('outbox.settings'), 'SELECT')),
            ('SELECT on outbox.destinations', pg_catalog.has_table_privilege(to_regclass('outbox.destinations'), 'SELECT')),
            ('SELECT on outbox.served', pg_catalog.has_table_privilege(to_regclass('outbox.served'), 'SELECT')),
            ('INSERT on outbox.served', pg_catalog.has_table_privilege(to_regclass('outbox.served'), 'INSERT')),
            ('UPDATE (seen_at) on outbox.served', pg_catalog.has_column_privilege(to_regclass('outbox.served'), 'seen_at', 'UPDATE')),
            ('SELECT on outbox.quarantine', pg_catalog.has_table_privilege(to_regclass('outbox.quarantine'), 'SELECT')),
            ('INSERT on outbox.quarantine', pg_catalog.has_table_privilege(to_regclass('outbox.quarantine'), 'INSERT')),
            ('UPDATE on outbox.quarantine', pg_catalog.has_table_privilege(to_regclass('outbox.quarantine'), 'UPDATE')),
            ('DELETE on outbox.quarantine', pg_catalog.has_table_privilege(to_regclass('outbox.quarantine'), 'DELETE')),
            ('EXECUTE on outbox.read_event',
                pg_catalog.has_function_privilege(to_regprocedure('outbox.read_event(bigint, bigint)'), 'EXECUTE')),
            ('SELECT on outbox.messages_id_seq', pg_catalog.has_sequence_privilege(to_regclass('outbox.messages_id_seq'), 'SELECT')),
            ('SELECT on outbox.audit_log_id_seq', pg_catalog.has_sequence_privilege(to_regclass('outbox.audit_log_id_seq'), 'SELECT'))
        ) AS r (what, has)
        WHERE r.has IS NOT TRUE
    ) AS missing_rights,
    ARRAY(
        SELECT w.name
        FROM (VALUES
            ('events_pkey'), ('events_event_id_key'), ('events_stream'), ('messages_pending_pkey'),
            ('messages_delivered_pkey'), ('messages_dead_pkey'), ('messages_pending_deferred'),
            ('messages_pending_deferred_groups'), ('messages_dead_groups'), ('lanes_pkey'), ('quarantine_pkey'),
            ('quarantine_groups'), ('messages_scheduled_pkey'), ('messages_scheduled_due'), ('messages_scheduled_events')
        ) AS w (name)
        LEFT JOIN pg_class AS c ON c.relname = w.name AND c.relnamespace = 'outbox'::regnamespace::oid
        LEFT JOIN pg_index AS i ON i.indexrelid = c.oid
        WHERE i.indisvalid IS NOT TRUE
        UNION ALL
        SELECT w.name
        FROM (VALUES ('messages_pending'), ('messages_scheduled'), ('messages_delivered'), ('messages_dead')) AS w (name)
        LEFT JOIN pg_class AS c ON c.relname = w.name AND c.relnamespace = 'outbox'::regnamespace::oid
        WHERE c.relispartition IS NOT TRUE
    ) AS broken,
    ARRAY(
        SELECT c.relname::text
        FROM pg_class AS c
        WHERE c.relnamespace = 'outbox'::regnamespace::oid AND c.relkind = 'r'
            AND EXISTS (
                SELECT FROM pg_options_to_table(c.reloptions) AS o
                WHERE o.option_name = 'autovacuum_enabled' AND NOT o.option_value::boolean
            )
    ) AS unvacuumed
