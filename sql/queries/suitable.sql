-- Requirements on any database with an outbox, whatever its schema version.
--
-- No parameters. Guarantees: one row, with or without the schema. "hidden" are tables of which row level security may
-- hide rows from this role; a policy that shows it all of them, without a restrictive one, makes that harmless. "odd"
-- are tables that were replaced by something else, such as a view. "idle_session_millis" is how long the server lets a
-- session stay idle; 0 means no limit, and it is null before version 14. Reads only the catalog.
SELECT
    current_setting('server_version_num')::integer AS version_number,
    pg_encoding_to_char(d.encoding)::text AS encoding,
    pg_is_in_recovery() AS is_standby,
    current_user::text AS role,
    ARRAY(
        SELECT c.relname::text
        FROM pg_class AS c
        JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE n.nspname = 'outbox' AND c.relkind IN ('r', 'p') AND pg_catalog.row_security_active(c.oid)
            AND c.relname IN (
                'events', 'messages', 'messages_pending', 'messages_dead', 'messages_scheduled', 'lanes', 'quarantine', 'pauses',
                'settings', 'migrations', 'destinations', 'served', 'routes', 'replays'
            )
            AND NOT (
                EXISTS (
                    SELECT FROM pg_policy AS p
                    WHERE p.polrelid = c.oid AND p.polpermissive AND p.polcmd IN ('*', 'r')
                        AND pg_get_expr(p.polqual, p.polrelid) = 'true'
                        AND (0::oid = ANY (p.polroles) OR EXISTS (
                            SELECT FROM pg_catalog.unnest(p.polroles) AS r (oid) WHERE r.oid <> 0::oid AND pg_has_role(r.oid, 'USAGE')
                        ))
                )
                AND NOT EXISTS (SELECT FROM pg_policy AS p WHERE p.polrelid = c.oid AND NOT p.polpermissive)
            )
        ORDER BY 1
    ) AS hidden,
    ARRAY(
        SELECT c.relname::text
        FROM pg_class AS c
        JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE n.nspname = 'outbox' AND c.relkind NOT IN ('r', 'p') AND c.relname IN (
            'events', 'messages', 'messages_pending', 'messages_delivered', 'messages_dead', 'messages_scheduled', 'lanes',
            'quarantine'
        )
        ORDER BY 1
    ) AS odd,
    (extract(epoch FROM current_setting('idle_session_timeout', true)::interval)::float8 * 1000::float8)::bigint AS idle_session_millis
FROM pg_database AS d
WHERE d.datname = current_database()
