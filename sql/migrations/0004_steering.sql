-- Steering without a restart: which destinations are paused, and which settings override the environment. Relays look
-- once a second. The functions are the verbs of `outbox-relay pause|resume|set`, so that psql is enough. Each leaves a
-- row in outbox.audit_log.

CREATE TABLE outbox.pauses (
    destination text PRIMARY KEY CHECK (destination <> ''),
    paused_at   timestamptz NOT NULL DEFAULT clock_timestamp() CHECK (isfinite(paused_at)),
    ends_at     timestamptz CHECK (isfinite(ends_at)),
    reason      text NOT NULL,
    actor       text NOT NULL
);

COMMENT ON TABLE outbox.pauses IS 'Paused destinations. Their messages wait; nothing is lost.';
COMMENT ON COLUMN outbox.pauses.destination IS 'Which one; * means all.';
COMMENT ON COLUMN outbox.pauses.paused_at IS 'Since when.';
COMMENT ON COLUMN outbox.pauses.ends_at IS 'When it ends automatically; null means until resumed.';
COMMENT ON COLUMN outbox.pauses.reason IS 'The reason, for people who find it paused.';
COMMENT ON COLUMN outbox.pauses.actor IS 'Who.';

CREATE TABLE outbox.settings (
    destination text NOT NULL CHECK (destination <> ''),
    name        text NOT NULL CHECK (name <> ''),
    value       text NOT NULL,
    set_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    actor       text NOT NULL,
    PRIMARY KEY (destination, name)
);

COMMENT ON TABLE outbox.settings IS 'Settings that override the environment of every relay, until they are unset.';
COMMENT ON COLUMN outbox.settings.destination IS 'The destination; * means all without a setting of their own.';
COMMENT ON COLUMN outbox.settings.name IS 'The name of the flag without the leading dashes, such as batch-size.';
COMMENT ON COLUMN outbox.settings.value IS 'The value, in the form of the environment variable.';
COMMENT ON COLUMN outbox.settings.set_at IS 'When.';
COMMENT ON COLUMN outbox.settings.actor IS 'Who.';

CREATE FUNCTION outbox.pause(
    destination text DEFAULT '*',
    lasting     interval DEFAULT NULL,
    reason      text DEFAULT '',
    actor       text DEFAULT session_user
) RETURNS void
LANGUAGE sql VOLATILE
AS $$
    INSERT INTO outbox.pauses (destination, ends_at, reason, actor)
    VALUES (pause.destination, clock_timestamp() + pause.lasting, pause.reason, pause.actor)
    ON CONFLICT ON CONSTRAINT pauses_pkey DO UPDATE
    SET ends_at = excluded.ends_at, reason = excluded.reason, actor = excluded.actor,
        -- A pause that had ended starts over.
        paused_at = CASE WHEN pauses.ends_at <= clock_timestamp() THEN excluded.paused_at ELSE pauses.paused_at END;
    INSERT INTO outbox.audit_log (action, actor, filter, messages, message_ids)
    VALUES (
        'pause', pause.actor,
        jsonb_strip_nulls(
            pg_catalog.jsonb_build_object('destination', pause.destination, 'lasting', pause.lasting::text, 'reason', pause.reason)
        ),
        0, '{}'
    );
$$;

COMMENT ON FUNCTION outbox.pause(text, interval, text, text) IS
    'Stops publishing to a destination, or to all (*), for a time or until resumed. Requests in flight are finished.';

CREATE FUNCTION outbox.resume(destination text DEFAULT '*', actor text DEFAULT session_user) RETURNS bigint
LANGUAGE sql VOLATILE
AS $$
    WITH ended AS (
        DELETE FROM outbox.pauses AS p
        WHERE resume.destination = '*' OR p.destination = resume.destination
        RETURNING p.ends_at
    ), action AS (
        INSERT INTO outbox.audit_log (action, actor, filter, messages, message_ids)
        SELECT 'resume', resume.actor, pg_catalog.jsonb_build_object('destination', resume.destination), 0, '{}'
    )
    SELECT count(*) FILTER (WHERE ends_at IS NULL OR ends_at > clock_timestamp()) FROM ended
$$;

COMMENT ON FUNCTION outbox.resume(text, text) IS
    'Ends the pause of a destination, or all pauses (*); returns how many were in force.';

CREATE FUNCTION outbox.set_setting(
    name        text,
    value       text,
    destination text DEFAULT '*',
    actor       text DEFAULT session_user
) RETURNS void
LANGUAGE sql VOLATILE
AS $$
    DELETE FROM outbox.settings AS s
    WHERE set_setting.value IS NULL AND s.destination = set_setting.destination AND s.name = set_setting.name;
    INSERT INTO outbox.settings (destination, name, value, actor)
    SELECT set_setting.destination, set_setting.name, set_setting.value, set_setting.actor WHERE set_setting.value IS NOT NULL
    ON CONFLICT ON CONSTRAINT settings_pkey DO UPDATE
    SET value = excluded.value, set_at = excluded.set_at, actor = excluded.actor;
    INSERT INTO outbox.audit_log (action, actor, filter, messages, message_ids)
    VALUES (
        'set', set_setting.actor,
        jsonb_strip_nulls(
            pg_catalog.jsonb_build_object('destination', set_setting.destination, 'name', set_setting.name, 'value', set_setting.value)
        ),
        0, '{}'
    );
$$;

COMMENT ON FUNCTION outbox.set_setting(text, text, text, text) IS
    'Sets a setting that overrides the environment, for a destination or for all (*); null removes it.';
