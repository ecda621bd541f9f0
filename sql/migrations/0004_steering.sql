-- Steering without a restart: which destinations there are, which are paused, and which settings override the environment.
-- Relays look every second or two. The functions are the verbs of `outbox-relay destinations|pause|resume|set`, so that
-- psql is enough. Each leaves a row in outbox.audit_log.

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

CREATE TABLE outbox.destinations (
    name              text COLLATE "C" PRIMARY KEY CHECK (name ~ '^[A-Za-z0-9_.-]{1,80}$'),
    target            text NOT NULL,
    fair              boolean NOT NULL DEFAULT false,
    role              text,
    external_id       text,
    claim_check       text,
    claim_check_above bigint,
    claim_check_key   text,
    changed_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    changed_by        text NOT NULL DEFAULT session_user
);

COMMENT ON TABLE outbox.destinations IS
    'The destinations of every relay whose environment names none. Relays follow a change within seconds.';
COMMENT ON COLUMN outbox.destinations.name IS 'The destination, as in outbox.messages.destination.';
COMMENT ON COLUMN outbox.destinations.target IS 'The URL of its queue or the ARN of its topic.';
COMMENT ON COLUMN outbox.destinations.fair IS 'Whether a standard queue or topic is told the groups.';
COMMENT ON COLUMN outbox.destinations.role IS 'The ARN of the role under which it is used; null for the relay''s own credentials.';
COMMENT ON COLUMN outbox.destinations.external_id IS 'The external id that the role asks for, if it does.';
COMMENT ON COLUMN outbox.destinations.claim_check IS 'BUCKET or BUCKET/PREFIX for large bodies; null if such messages are dead.';
COMMENT ON COLUMN outbox.destinations.claim_check_above IS 'Messages above this size in bytes go there; null for those that the service could not take.';
COMMENT ON COLUMN outbox.destinations.claim_check_key IS 'The ARN of the KMS key for them; null for what the bucket does by default.';
COMMENT ON COLUMN outbox.destinations.changed_at IS 'When the row was written last, for people.';
COMMENT ON COLUMN outbox.destinations.changed_by IS 'Who wrote it, for people.';

-- Relays note which destinations they serve, so that messages which nobody will deliver can be told. Unlogged: after a crash
-- they note it again.
CREATE UNLOGGED TABLE outbox.served (
    destination text COLLATE "C" PRIMARY KEY CHECK (destination <> ''),
    seen_at     timestamptz NOT NULL
);

COMMENT ON TABLE outbox.served IS 'When a running relay last said that it serves a destination. Written by relays.';
COMMENT ON COLUMN outbox.served.destination IS 'The destination.';
COMMENT ON COLUMN outbox.served.seen_at IS 'When; relays say it about once a minute.';

CREATE FUNCTION outbox.set_destination(
    name              text,
    target            text,
    fair              boolean DEFAULT false,
    role              text DEFAULT NULL,
    external_id       text DEFAULT NULL,
    claim_check       text DEFAULT NULL,
    claim_check_above bigint DEFAULT NULL,
    claim_check_key   text DEFAULT NULL,
    actor             text DEFAULT session_user
) RETURNS void
LANGUAGE sql VOLATILE
AS $$
    INSERT INTO outbox.destinations (
        name, target, fair, role, external_id, claim_check, claim_check_above, claim_check_key, changed_by
    )
    VALUES (
        set_destination.name, set_destination.target, set_destination.fair, set_destination.role, set_destination.external_id,
        set_destination.claim_check, set_destination.claim_check_above, set_destination.claim_check_key, set_destination.actor
    )
    ON CONFLICT ON CONSTRAINT destinations_pkey DO UPDATE
    SET target = excluded.target, fair = excluded.fair, role = excluded.role, external_id = excluded.external_id,
        claim_check = excluded.claim_check, claim_check_above = excluded.claim_check_above,
        claim_check_key = excluded.claim_check_key, changed_at = excluded.changed_at, changed_by = excluded.changed_by;
    INSERT INTO outbox.audit_log (action, actor, filter, messages, message_ids)
    VALUES (
        'set destination', set_destination.actor,
        jsonb_strip_nulls(pg_catalog.jsonb_build_object(
            'destination', set_destination.name, 'target', set_destination.target, 'fair', set_destination.fair,
            'role', set_destination.role, 'external_id', set_destination.external_id,
            'claim_check', set_destination.claim_check, 'claim_check_above', set_destination.claim_check_above,
            'claim_check_key', set_destination.claim_check_key
        )),
        0, '{}'
    );
$$;

COMMENT ON FUNCTION outbox.set_destination(text, text, boolean, text, text, text, bigint, text, text) IS
    'Adds a destination or changes it as a whole. Relays whose environment names none serve it within seconds.';

CREATE FUNCTION outbox.remove_destination(name text, actor text DEFAULT session_user) RETURNS bigint
LANGUAGE sql VOLATILE
AS $$
    WITH removed AS (
        DELETE FROM outbox.destinations AS d WHERE d.name = remove_destination.name RETURNING d.name
    ), action AS (
        INSERT INTO outbox.audit_log (action, actor, filter, messages, message_ids)
        SELECT 'remove destination', remove_destination.actor, pg_catalog.jsonb_build_object('destination', r.name), 0, '{}'
        FROM removed AS r
    )
    SELECT count(*) FROM removed
$$;

COMMENT ON FUNCTION outbox.remove_destination(text, text) IS
    'Removes a destination; returns how many there were, 0 or 1. Its messages stay and wait.';
