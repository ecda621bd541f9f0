-- Dead messages: finding, redriving and discarding them. The verbs of `outbox-relay dead`, as functions, so that psql
-- is enough. Each change leaves a row in outbox.audit_log.

CREATE TABLE outbox.audit_log (
    id          bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    taken_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    action      text NOT NULL CHECK (action <> ''),
    actor       text NOT NULL,
    role        text NOT NULL DEFAULT session_user,
    filter      jsonb NOT NULL CHECK (jsonb_typeof(filter) = 'object'),
    messages    bigint NOT NULL CHECK (messages >= 0),
    message_ids bigint[] NOT NULL
);

COMMENT ON TABLE outbox.audit_log IS 'What operators did to messages. Rows are only added; delete old ones as you like.';
COMMENT ON COLUMN outbox.audit_log.id IS 'Order of the actions.';
COMMENT ON COLUMN outbox.audit_log.taken_at IS 'When.';
COMMENT ON COLUMN outbox.audit_log.action IS 'What: redrive, discard, release, pause, resume, set, set destination, remove destination or replay.';
COMMENT ON COLUMN outbox.audit_log.actor IS 'Who did it, as given to the command; otherwise the role.';
COMMENT ON COLUMN outbox.audit_log.role IS 'The role of the login.';
COMMENT ON COLUMN outbox.audit_log.filter IS 'Which messages were selected: the arguments that were not null.';
COMMENT ON COLUMN outbox.audit_log.messages IS 'How many messages were changed.';
COMMENT ON COLUMN outbox.audit_log.message_ids IS 'Their ids.';

-- Messages that are set aside one by one, so that they stop no others: SQS accepted them and the database refuses to
-- record that, or the database cannot read them. They stay pending in outbox.messages, and no relay sends them.
CREATE TABLE outbox.quarantine (
    destination    text COLLATE "C" NOT NULL,
    lane           smallint NOT NULL,
    message_id     bigint NOT NULL,
    event_position bigint NOT NULL,
    enqueued_at    timestamptz NOT NULL,
    group_id       text COLLATE "C",
    quarantined_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    outcome        text CHECK (outcome IN ('delivered', 'dead')),
    sqs_message_id text,
    attempts       smallint,
    last_error     text,
    reason         text NOT NULL,
    sqs_sequence_number numeric,
    PRIMARY KEY (destination, lane, message_id),
    CONSTRAINT quarantine_dead_has_error CHECK (
        (coalesce(outcome, '') = 'dead') = (attempts IS NOT NULL AND last_error IS NOT NULL)
    ),
    CONSTRAINT quarantine_delivered_has_sqs_id CHECK ((outcome = 'delivered') = (sqs_message_id IS NOT NULL))
);

CREATE INDEX quarantine_groups ON outbox.quarantine (destination, group_id, message_id) WHERE group_id IS NOT NULL;

COMMENT ON TABLE outbox.quarantine IS
    'Pending messages that no relay sends: their outcome cannot be recorded, or they cannot be read. On a FIFO queue their '
    'group waits. Relays retry recording an outcome once a minute; outbox.release() returns a message to them.';
COMMENT ON COLUMN outbox.quarantine.destination IS 'As outbox.messages.destination.';
COMMENT ON COLUMN outbox.quarantine.lane IS 'As outbox.messages.lane.';
COMMENT ON COLUMN outbox.quarantine.message_id IS 'outbox.messages.id of the message.';
COMMENT ON COLUMN outbox.quarantine.event_position IS
    'Identifies the message together with enqueued_at: an id can be assigned again after a failover.';
COMMENT ON COLUMN outbox.quarantine.enqueued_at IS 'As outbox.messages.enqueued_at.';
COMMENT ON COLUMN outbox.quarantine.group_id IS 'As outbox.messages.group_id.';
COMMENT ON COLUMN outbox.quarantine.quarantined_at IS 'When.';
COMMENT ON COLUMN outbox.quarantine.outcome IS
    'The outcome that could not be recorded: delivered or dead; null for a message that stays pending, because it cannot be read '
    'or because PostgreSQL refuses to change it.';
COMMENT ON COLUMN outbox.quarantine.sqs_message_id IS 'The MessageId that SQS returned, if it accepted the message.';
COMMENT ON COLUMN outbox.quarantine.sqs_sequence_number IS 'The SequenceNumber that SQS returned, if the queue is FIFO.';
COMMENT ON COLUMN outbox.quarantine.attempts IS 'How often a dead message was sent.';
COMMENT ON COLUMN outbox.quarantine.last_error IS 'Why a dead message is dead, as it will be recorded in outbox.messages.';
COMMENT ON COLUMN outbox.quarantine.reason IS 'The error of PostgreSQL.';

-- For reads that failed on a row: reads one event at a time and returns an error as text instead of failing the
-- statement.
CREATE FUNCTION outbox.read_event(event_position bigint, max_bytes bigint) RETURNS TABLE (
    event_id uuid, event_type text, stream_id text, stream_version bigint, body text, metadata text, bytes bigint, form text
)
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    RETURN QUERY
        SELECT
            e.event_id, e.event_type, e.stream_id, e.stream_version,
            CASE WHEN octet_length(t.body) + octet_length(t.metadata) <= max_bytes THEN t.body END,
            CASE WHEN octet_length(t.body) + octet_length(t.metadata) <= max_bytes THEN t.metadata END,
            (octet_length(t.body) + octet_length(t.metadata))::bigint,
            CASE WHEN e.payload IS NULL THEN CASE WHEN e.body IS NULL THEN 'base64' ELSE 'text' END END
        FROM outbox.events AS e
        CROSS JOIN LATERAL (
            -- The empty text makes PostgreSQL read the body here: otherwise it returns where the body is stored, and whoever
            -- looks there fails.
            SELECT
                coalesce(e.payload::text, e.body || '', replace(encode(e.body_bytes, 'base64'), E'\n', ''), '') AS body,
                e.metadata::text AS metadata
            OFFSET 0
        ) AS t
        WHERE e.position = event_position;
EXCEPTION
    WHEN OTHERS THEN
        RETURN QUERY SELECT
            NULL::uuid, NULL::text, NULL::text, NULL::bigint, pg_catalog.format('%s (SQLSTATE %s)', SQLERRM, SQLSTATE), '{}', 0::bigint,
            'unreadable';
END
$$;

COMMENT ON FUNCTION outbox.read_event(bigint, bigint) IS
    'One event as a relay reads it: the body as it is sent, and its form, which is null for JSON, text, or base64. An event that '
    'PostgreSQL cannot read has the form unreadable, and its error as body; one larger than max_bytes comes without its text.';

CREATE FUNCTION outbox.release(destination text, message_id bigint) RETURNS bigint
LANGUAGE sql VOLATILE
AS $$
    WITH released AS (
        DELETE FROM outbox.quarantine AS q
        WHERE q.destination = release.destination AND q.message_id = release.message_id
        RETURNING q.destination, q.lane, q.message_id, q.event_position, q.enqueued_at
    ), due AS (
        -- As a redrive does.
        UPDATE outbox.messages AS m
        SET available_at = clock_timestamp()
        FROM released AS r
        WHERE m.status = 'pending' AND m.destination = r.destination AND m.lane = r.lane AND m.id = r.message_id
            AND m.event_position = r.event_position AND m.enqueued_at = r.enqueued_at
            AND m.group_id IS NOT NULL AND m.available_at IS NULL
    ), action AS (
        INSERT INTO outbox.audit_log (action, actor, filter, messages, message_ids)
        SELECT 'release', session_user, pg_catalog.jsonb_build_object('destination', release.destination), 1, ARRAY[r.message_id]
        FROM released AS r
    )
    SELECT count(*) FROM released
$$;

COMMENT ON FUNCTION outbox.release(text, bigint) IS
    'Returns a message in quarantine to the relays, which send it, a second time if they had sent it; returns how many were '
    'returned. Leaves a row in outbox.audit_log.';

CREATE FUNCTION outbox.dead_find(
    ids         bigint[] DEFAULT NULL,
    destination text DEFAULT NULL,
    event_type  text DEFAULT NULL,
    group_id    text DEFAULT NULL,
    reason      text DEFAULT NULL,
    since       timestamptz DEFAULT NULL,
    upto        timestamptz DEFAULT NULL
) RETURNS SETOF outbox.messages_dead
LANGUAGE sql STABLE
AS $$
    SELECT m.*
    FROM outbox.messages_dead AS m
    WHERE (dead_find.ids IS NULL OR m.id = ANY (dead_find.ids))
        AND (dead_find.destination IS NULL OR m.destination = dead_find.destination)
        AND (dead_find.group_id IS NULL OR m.group_id = dead_find.group_id)
        AND (dead_find.reason IS NULL OR strpos(lower(m.last_error), lower(dead_find.reason)) > 0)
        AND (dead_find.since IS NULL OR m.dead_at >= dead_find.since)
        AND (dead_find.upto IS NULL OR m.dead_at <= dead_find.upto)
        AND (dead_find.event_type IS NULL OR EXISTS (
            SELECT FROM outbox.events AS e
            WHERE e.position = m.event_position AND e.event_type = dead_find.event_type
        ))
$$;

COMMENT ON FUNCTION outbox.dead_find(bigint[], text, text, text, text, timestamptz, timestamptz) IS
    'The dead messages that match every argument that is not null: reason is a part of last_error, since and upto bound dead_at.';

CREATE FUNCTION outbox.dead_list(
    ids         bigint[] DEFAULT NULL,
    destination text DEFAULT NULL,
    event_type  text DEFAULT NULL,
    group_id    text DEFAULT NULL,
    reason      text DEFAULT NULL,
    since       timestamptz DEFAULT NULL,
    upto        timestamptz DEFAULT NULL,
    max_count   bigint DEFAULT 100
) RETURNS TABLE (
    id bigint, destination text, event_type text, group_id text, attempts smallint, dead_at timestamptz, reason text
)
LANGUAGE sql STABLE
AS $$
    SELECT m.id, m.destination, e.event_type, m.group_id, m.attempts, m.dead_at, m.last_error
    FROM outbox.dead_find(
        dead_list.ids, dead_list.destination, dead_list.event_type, dead_list.group_id, dead_list.reason,
        dead_list.since, dead_list.upto
    ) AS m
    LEFT JOIN outbox.events AS e ON e.position = m.event_position
    ORDER BY m.dead_at DESC, m.id DESC
    LIMIT dead_list.max_count
$$;

COMMENT ON FUNCTION outbox.dead_list(bigint[], text, text, text, text, timestamptz, timestamptz, bigint) IS
    'Dead messages, the latest first. Arguments as outbox.dead_find.';

CREATE FUNCTION outbox.dead_show(id bigint) RETURNS TABLE (
    id bigint, destination text, lane smallint, group_id text, attempts smallint, enqueued_at timestamptz,
    dead_at timestamptz, reason text, event_position bigint, event_id uuid, event_type text, stream_id text,
    stream_version bigint, payload jsonb, metadata jsonb, body text, body_bytes bytea
)
LANGUAGE sql STABLE
AS $$
    SELECT
        m.id, m.destination, m.lane, m.group_id, m.attempts, m.enqueued_at, m.dead_at, m.last_error, m.event_position,
        e.event_id, e.event_type, e.stream_id, e.stream_version, e.payload, e.metadata, e.body, e.body_bytes
    FROM outbox.messages_dead AS m
    LEFT JOIN outbox.events AS e ON e.position = m.event_position
    WHERE m.id = dead_show.id
$$;

COMMENT ON FUNCTION outbox.dead_show(bigint) IS 'One dead message with everything about it.';

-- A call without any argument would mean all dead messages. That must be explicit: since => '-infinity'.
CREATE FUNCTION outbox.dead_filter(
    ids bigint[], destination text, event_type text, group_id text, reason text, since timestamptz, upto timestamptz
) RETURNS jsonb
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    filter jsonb := jsonb_strip_nulls(pg_catalog.jsonb_build_object(
        'ids', pg_catalog.to_jsonb(ids), 'destination', destination, 'event_type', event_type, 'group', group_id, 'reason', reason,
        'since', since, 'upto', upto
    ));
BEGIN
    IF filter - 'upto'::text = '{}' THEN
        RAISE EXCEPTION 'no dead messages were chosen'
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Give ids or a filter; since => ''-infinity'' means all.';
    END IF;
    RETURN filter;
END
$$;

COMMENT ON FUNCTION outbox.dead_filter(bigint[], text, text, text, text, timestamptz, timestamptz) IS
    'The arguments that are not null, for outbox.audit_log; an error if all are null, which does not mean all messages.';

CREATE FUNCTION outbox.dead_choose(
    ids bigint[], destination text, event_type text, group_id text, reason text, since timestamptz, upto timestamptz,
    max_count bigint
) RETURNS SETOF outbox.messages_dead
LANGUAGE plpgsql VOLATILE
AS $$
#variable_conflict use_column
DECLARE
    left_over bigint := $8;
    one       record;
BEGIN
    IF left_over < 0 THEN
        RAISE EXCEPTION 'at most % messages', left_over
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Use a number of 0 or more, or null for all.';
    END IF;
    -- Message by message, here and wherever the chosen messages are changed: in a join the planner compares each with
    -- each if the table was empty when it was analyzed.
    FOR one IN
        SELECT f.destination, f.lane, f.id, f.dead_at
        FROM outbox.dead_find($1, $2, $3, $4, $5, $6, $7) AS f
        ORDER BY f.id
    LOOP
        EXIT WHEN left_over <= 0;
        RETURN QUERY
            SELECT d.*
            FROM outbox.messages_dead AS d
            -- dead_at distinguishes the death that was found from a later one of the same message, which was redriven
            -- meanwhile.
            WHERE d.destination = one.destination AND d.lane = one.lane AND d.id = one.id AND d.dead_at = one.dead_at
            FOR UPDATE SKIP LOCKED;
        IF FOUND THEN
            left_over := left_over - 1;
        END IF;
    END LOOP;
END
$$;

COMMENT ON FUNCTION outbox.dead_choose(bigint[], text, text, text, text, timestamptz, timestamptz, bigint) IS
    'Locks the dead messages to be changed, the lowest ids first. Messages locked by another session are left out.';

CREATE FUNCTION outbox.dead_redrive(
    ids         bigint[] DEFAULT NULL,
    destination text DEFAULT NULL,
    event_type  text DEFAULT NULL,
    group_id    text DEFAULT NULL,
    reason      text DEFAULT NULL,
    since       timestamptz DEFAULT NULL,
    upto        timestamptz DEFAULT NULL,
    max_count   bigint DEFAULT NULL,
    actor       text DEFAULT NULL
) RETURNS bigint
LANGUAGE plpgsql VOLATILE
AS $$
#variable_conflict use_column
DECLARE
    filter  jsonb := outbox.dead_filter($1, $2, $3, $4, $5, $6, $7);
    changed bigint[] := '{}';
    latest  timestamptz;
    chosen  record;
BEGIN
    FOR chosen IN SELECT c.* FROM outbox.dead_choose($1, $2, $3, $4, $5, $6, $7, $8) AS c LOOP
        -- Relays find these as they find messages committed late: each rescans from the bottom at once when
        -- outbox.audit_log grows. In a group they are due now instead of not deferred: so no relay sends the messages
        -- behind them first, not even one that reads above them and does not know them yet.
        UPDATE outbox.messages AS m
        SET status = 'pending', dead_at = NULL, attempts = 0,
            available_at = CASE WHEN m.group_id IS NOT NULL THEN clock_timestamp() END
        WHERE m.status = 'dead' AND m.destination = chosen.destination AND m.lane = chosen.lane AND m.id = chosen.id;
        IF FOUND THEN
            changed := pg_catalog.array_append(changed, chosen.id);
            latest := greatest(latest, chosen.dead_at);
        END IF;
    END LOOP;
    IF pg_catalog.cardinality(changed) > 0 THEN
        INSERT INTO outbox.audit_log (action, actor, filter, messages, message_ids)
        VALUES ('redrive', coalesce($9, session_user), filter, pg_catalog.cardinality(changed), changed);
    END IF;
    IF latest > clock_timestamp() - interval '5 minutes' THEN
        RAISE WARNING 'some of these messages died less than 5 minutes ago'
            USING DETAIL = 'A FIFO queue drops a message whose deduplication id it accepted within 5 minutes.';
    END IF;
    RETURN pg_catalog.cardinality(changed);
END
$$;

COMMENT ON FUNCTION outbox.dead_redrive(bigint[], text, text, text, text, timestamptz, timestamptz, bigint, text) IS
    'Makes dead messages pending again, with no attempts charged; at most "max_count" of them, the lowest ids first. Arguments as '
    'outbox.dead_find. Returns how many. Leaves a row in outbox.audit_log.';

CREATE FUNCTION outbox.dead_discard(
    ids         bigint[] DEFAULT NULL,
    destination text DEFAULT NULL,
    event_type  text DEFAULT NULL,
    group_id    text DEFAULT NULL,
    reason      text DEFAULT NULL,
    since       timestamptz DEFAULT NULL,
    upto        timestamptz DEFAULT NULL,
    max_count   bigint DEFAULT NULL,
    actor       text DEFAULT NULL
) RETURNS bigint
LANGUAGE plpgsql VOLATILE
AS $$
#variable_conflict use_column
DECLARE
    filter  jsonb := outbox.dead_filter($1, $2, $3, $4, $5, $6, $7);
    changed bigint[] := '{}';
    chosen  record;
BEGIN
    FOR chosen IN SELECT c.* FROM outbox.dead_choose($1, $2, $3, $4, $5, $6, $7, $8) AS c LOOP
        DELETE FROM outbox.messages_dead AS m
        WHERE m.destination = chosen.destination AND m.lane = chosen.lane AND m.id = chosen.id;
        IF FOUND THEN
            changed := pg_catalog.array_append(changed, chosen.id);
        END IF;
    END LOOP;
    IF pg_catalog.cardinality(changed) > 0 THEN
        INSERT INTO outbox.audit_log (action, actor, filter, messages, message_ids)
        VALUES ('discard', coalesce($9, session_user), filter, pg_catalog.cardinality(changed), changed);
    END IF;
    RETURN pg_catalog.cardinality(changed);
END
$$;

COMMENT ON FUNCTION outbox.dead_discard(bigint[], text, text, text, text, timestamptz, timestamptz, bigint, text) IS
    'Deletes dead messages for good; their events stay. Arguments as outbox.dead_find. Returns how many. Leaves a row in '
    'outbox.audit_log.';
