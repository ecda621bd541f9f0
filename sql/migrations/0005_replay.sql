-- Replay: past events are published again as new messages, so that a new read model can be filled from history. The
-- verb of `outbox-relay replay`, as functions, so that psql is enough:
--
--     SELECT * FROM outbox.replay_count(outbox.replay_plan('tickets', to_destination => 'sales'));
--     SELECT outbox.replay_begin('tickets', to_destination => 'sales');   -- returns the replay's id, say 7
--     SELECT * FROM outbox.replay_step(7);                                -- repeat until has_ended
--
-- A replay is a row of outbox.replays, which advances in the transaction that writes its messages. So it can stop at
-- any moment and continue later, and it publishes no event twice.

CREATE TABLE outbox.replays (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    begun_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    moved_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at       timestamptz,
    actor          text NOT NULL,
    role           text NOT NULL DEFAULT session_user,
    source         text NOT NULL CHECK (source <> ''),
    destination    text NOT NULL CHECK (destination <> ''),
    all_events     boolean NOT NULL,
    event_types    text[],
    stream_id      text,
    since          timestamptz,
    until          timestamptz,
    first_position bigint,
    stop_position  bigint,
    start_position bigint NOT NULL,
    position       bigint NOT NULL,
    stream_version bigint NOT NULL DEFAULT 0,
    last_position  bigint NOT NULL,
    messages       bigint NOT NULL DEFAULT 0 CHECK (messages >= 0)
);

COMMENT ON TABLE outbox.replays IS 'Replays of past events. An unfinished one continues where it stopped.';
COMMENT ON COLUMN outbox.replays.id IS 'Order of the replays.';
COMMENT ON COLUMN outbox.replays.begun_at IS 'When it began.';
COMMENT ON COLUMN outbox.replays.moved_at IS 'When it last advanced.';
COMMENT ON COLUMN outbox.replays.ended_at IS 'When it was completed or abandoned; null while there is more to do.';
COMMENT ON COLUMN outbox.replays.actor IS 'Who did it, as given to the command; otherwise the role.';
COMMENT ON COLUMN outbox.replays.role IS 'The role of the login.';
COMMENT ON COLUMN outbox.replays.source IS 'The destination whose events are replayed.';
COMMENT ON COLUMN outbox.replays.destination IS 'The destination they are published to.';
COMMENT ON COLUMN outbox.replays.all_events IS 'Whether events are included that are not known to have gone to the source.';
COMMENT ON COLUMN outbox.replays.event_types IS 'Only events of these types; null means all.';
COMMENT ON COLUMN outbox.replays.stream_id IS 'Only events of this stream; null means all.';
COMMENT ON COLUMN outbox.replays.since IS 'Only events recorded at this time or later.';
COMMENT ON COLUMN outbox.replays.until IS 'Only events recorded before this time.';
COMMENT ON COLUMN outbox.replays.first_position IS 'Only events from this position on.';
COMMENT ON COLUMN outbox.replays.stop_position IS 'Only events up to this position, as given to the command.';
COMMENT ON COLUMN outbox.replays.start_position IS 'Where it began.';
COMMENT ON COLUMN outbox.replays.position IS 'All events up to here are done.';
COMMENT ON COLUMN outbox.replays.stream_version IS 'The same within the stream, if only one stream is replayed.';
COMMENT ON COLUMN outbox.replays.last_position IS 'The last position of the replay, fixed when it began.';
COMMENT ON COLUMN outbox.replays.messages IS 'Messages written so far.';

CREATE FUNCTION outbox.position_at(moment timestamptz) RETURNS bigint
LANGUAGE plpgsql STABLE STRICT
AS $$
DECLARE
    low    bigint := 0;
    high   bigint := (SELECT coalesce(max(e.position), 0) + 1 FROM outbox.events AS e);
    middle bigint;
    found  record;
BEGIN
    -- Positions and times grow together, so a binary search needs only a few probes of the key; there is no index on
    -- the time.
    WHILE high - low > 1 LOOP
        middle := low + (high - low) / 2;
        SELECT e.position, e.recorded_at INTO found
        FROM outbox.events AS e
        WHERE e.position >= middle AND e.position < high
        ORDER BY e.position
        LIMIT 1;
        IF found.position IS NOT NULL AND found.recorded_at < moment THEN
            low := found.position;
        ELSE
            high := middle;
        END IF;
    END LOOP;
    RETURN high;
END
$$;

COMMENT ON FUNCTION outbox.position_at(timestamptz) IS
    'The approximate position at which the events of a time begin: positions are assigned just before times, so events '
    'written at nearly the same time may be out of order. One more than the last position when all are older.';

CREATE FUNCTION outbox.replay_matches(event outbox.events, replay outbox.replays) RETURNS boolean
LANGUAGE sql IMMUTABLE
AS $$
    SELECT (replay.all_events OR event.destinations ? replay.source IS TRUE)
        -- Events that named the new destination from the beginning are not new to it.
        AND (replay.source = replay.destination OR event.destinations ? replay.destination IS NOT TRUE)
        AND (replay.event_types IS NULL OR event.event_type = ANY (replay.event_types))
        AND (replay.stream_id IS NULL OR event.stream_id = replay.stream_id)
        AND (replay.since IS NULL OR event.recorded_at >= replay.since)
        AND (replay.until IS NULL OR event.recorded_at < replay.until)
$$;

COMMENT ON FUNCTION outbox.replay_matches(outbox.events, outbox.replays) IS 'Whether a replay publishes an event.';

CREATE FUNCTION outbox.replay_plan(
    source         text,
    to_destination text DEFAULT NULL,
    all_events     boolean DEFAULT false,
    event_types    text[] DEFAULT NULL,
    stream_id      text DEFAULT NULL,
    since          timestamptz DEFAULT NULL,
    until          timestamptz DEFAULT NULL,
    first_position bigint DEFAULT NULL,
    stop_position  bigint DEFAULT NULL
) RETURNS outbox.replays
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    planned outbox.replays;
BEGIN
    planned.source := $1;
    planned.destination := coalesce($2, $1);
    planned.all_events := coalesce($3, false);
    planned.event_types := $4;
    planned.stream_id := $5;
    planned.since := $6;
    planned.until := $7;
    planned.first_position := $8;
    planned.stop_position := $9;
    planned.start_position := greatest($8, outbox.position_at($6 - interval '1 minute'), 1) - 1;
    planned.position := planned.start_position;
    planned.stream_version := 0;
    planned.last_position := coalesce(least(
        $9, outbox.position_at($7 + interval '1 minute'), (SELECT max(e.position) FROM outbox.events AS e)
    ), 0);
    RETURN planned;
END
$$;

COMMENT ON FUNCTION outbox.replay_plan(
    text, text, boolean, text[], text, timestamptz, timestamptz, bigint, bigint
) IS
    'The replay that would begin with these arguments now.';

CREATE FUNCTION outbox.replay_count(replay outbox.replays, max_count bigint DEFAULT 100000)
RETURNS TABLE (event_type text, matching bigint, others bigint)
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    -- At most this many events are looked at, however few of them match. "others" would match with all_events.
    RETURN QUERY
        SELECT
            e.event_type, count(*) FILTER (WHERE outbox.replay_matches(e, replay)),
            count(*) FILTER (
                WHERE NOT replay.all_events AND e.destinations ? replay.source IS NOT TRUE
                    AND (replay.source = replay.destination OR e.destinations ? replay.destination IS NOT TRUE)
            )
        FROM (
            (
                SELECT w.position
                FROM outbox.events AS w
                WHERE replay.stream_id IS NULL AND w.position > replay.position AND w.position <= replay.last_position
                ORDER BY w.position
                LIMIT max_count
            )
            UNION ALL
            (
                SELECT w.position
                FROM outbox.events AS w
                WHERE w.stream_id = replay.stream_id AND w.stream_version > replay.stream_version
                ORDER BY w.stream_version
                LIMIT max_count
            )
        ) AS looked
        JOIN outbox.events AS e ON e.position = looked.position
        WHERE e.position > replay.position AND e.position <= replay.last_position
            AND (replay.event_types IS NULL OR e.event_type = ANY (replay.event_types))
            AND (replay.since IS NULL OR e.recorded_at >= replay.since)
            AND (replay.until IS NULL OR e.recorded_at < replay.until)
        GROUP BY e.event_type;
END
$$;

COMMENT ON FUNCTION outbox.replay_count(outbox.replays, bigint) IS
    'How many of the next events, looking at no more than "max_count", a replay would publish, by type, and how many more it would '
    'publish with all_events. SELECT * FROM outbox.replay_count(outbox.replay_plan(''tickets'')).';

CREATE FUNCTION outbox.replay_begin(
    source         text,
    to_destination text DEFAULT NULL,
    all_events     boolean DEFAULT false,
    event_types    text[] DEFAULT NULL,
    stream_id      text DEFAULT NULL,
    since          timestamptz DEFAULT NULL,
    until          timestamptz DEFAULT NULL,
    first_position bigint DEFAULT NULL,
    stop_position  bigint DEFAULT NULL,
    actor          text DEFAULT session_user
) RETURNS bigint
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    begun bigint;
BEGIN
    -- Without the lock, two at the same time would begin the same replay twice.
    PERFORM pg_advisory_xact_lock(x'6F750003'::int, hashtext('outbox'));
    begun := outbox.replay_unfinished($1, $2, $3, $4, $5, $6, $7, $8, $9);
    IF begun IS NOT NULL THEN
        RETURN begun;
    END IF;
    INSERT INTO outbox.replays AS r (
        actor, source, destination, all_events, event_types, stream_id, since, until, first_position, stop_position,
        start_position, position, last_position
    )
    SELECT
        coalesce($10, session_user), p.source, p.destination, p.all_events, p.event_types, p.stream_id, p.since, p.until,
        p.first_position, p.stop_position, p.start_position, p.position, p.last_position
    FROM outbox.replay_plan($1, $2, $3, $4, $5, $6, $7, $8, $9) AS p
    RETURNING r.id INTO begun;
    INSERT INTO outbox.audit_log (action, actor, filter, messages, message_ids)
    SELECT
        'replay', r.actor,
        jsonb_strip_nulls(pg_catalog.to_jsonb(r)) - '{begun_at,moved_at,actor,role,stream_version,messages}'::text[],
        0, '{}'
    FROM outbox.replays AS r
    WHERE r.id = begun;
    RETURN begun;
END
$$;

COMMENT ON FUNCTION outbox.replay_begin(
    text, text, boolean, text[], text, timestamptz, timestamptz, bigint, bigint, text
) IS
    'Begins a replay of the events that went to the source, to that destination or another, and returns its id; an unfinished '
    'one with the same arguments is continued. all_events also includes events that are not known to have gone to the '
    'source. Leaves a row in outbox.audit_log.';

CREATE FUNCTION outbox.replay_unfinished(
    source         text,
    to_destination text DEFAULT NULL,
    all_events     boolean DEFAULT false,
    event_types    text[] DEFAULT NULL,
    stream_id      text DEFAULT NULL,
    since          timestamptz DEFAULT NULL,
    until          timestamptz DEFAULT NULL,
    first_position bigint DEFAULT NULL,
    stop_position  bigint DEFAULT NULL
) RETURNS bigint
LANGUAGE sql STABLE
AS $$
    SELECT min(r.id)
    FROM outbox.replays AS r
    WHERE r.ended_at IS NULL AND r.source = $1 AND r.destination = coalesce($2, $1)
        AND r.all_events = coalesce($3, false) AND r.event_types IS NOT DISTINCT FROM $4
        AND r.stream_id IS NOT DISTINCT FROM $5 AND r.since IS NOT DISTINCT FROM $6
        AND r.until IS NOT DISTINCT FROM $7 AND r.first_position IS NOT DISTINCT FROM $8
        AND r.stop_position IS NOT DISTINCT FROM $9
$$;

COMMENT ON FUNCTION outbox.replay_unfinished(
    text, text, boolean, text[], text, timestamptz, timestamptz, bigint, bigint
) IS
    'The unfinished replay with these arguments, if there is one.';

CREATE FUNCTION outbox.replay_group(destinations jsonb, stream_id text, source text) RETURNS text
LANGUAGE sql IMMUTABLE
AS $$
    SELECT CASE
        WHEN destinations ? source THEN nullif(destinations ->> source, '')
        WHEN stream_id IS NOT NULL THEN stream_id
        ELSE (
            SELECT CASE WHEN pg_catalog.count(DISTINCT d.value) = 1 THEN min(d.value) END
            FROM jsonb_each_text(destinations) AS d
            WHERE d.value <> ''
        )
    END
$$;

COMMENT ON FUNCTION outbox.replay_group(jsonb, text, text) IS
    'The group in which an event is published again: the one that it had at the source; otherwise its stream; otherwise the only '
    'group that it had anywhere.';

CREATE FUNCTION outbox.replay_step(
    replay   bigint,
    max_count bigint DEFAULT 1000,
    skip_running boolean DEFAULT false,
    looks    bigint DEFAULT 5000
) RETURNS TABLE (
    messages bigint, all_messages bigint, start_position bigint, position_done bigint, last_position bigint,
    has_ended boolean, must_wait boolean
)
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    r       outbox.replays;
    upto    bigint;
    next    record;
    taken   record;
BEGIN
    SELECT NULL::bigint AS count, NULL::bigint AS position, NULL::bigint AS version INTO taken;
    -- A second session that runs a step of the same replay waits, and continues after this step.
    SELECT p.* INTO r FROM outbox.replays AS p WHERE p.id = replay FOR UPDATE;
    IF r.id IS NULL THEN
        RAISE EXCEPTION 'there is no replay %', replay USING ERRCODE = 'invalid_parameter_value';
    ELSIF coalesce(least(max_count, looks), 0) < 1 THEN
        RAISE EXCEPTION 'a step of % messages and % events', max_count, looks
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Use numbers above 0.';
    ELSIF r.ended_at IS NOT NULL THEN
        RETURN QUERY SELECT 0::bigint, r.messages, r.start_position, r.position, r.last_position, true, false;
        RETURN;
    END IF;
    -- Writers that were running when the replay began may still commit events of its range.
    upto := CASE WHEN skip_running THEN r.last_position ELSE least(r.last_position, outbox.safe_position()) END;
    -- Within a stream the order is that of versions, so none of it is known to be complete before all of it is.
    IF upto < r.last_position AND (upto <= r.position OR r.stream_id IS NOT NULL) THEN
        RETURN QUERY SELECT 0::bigint, r.messages, r.start_position, r.position, r.last_position, false, true;
        RETURN;
    END IF;
    -- The next events: at most "looks" are looked at, and at most "max_count" of those that match are taken. A stream is
    -- walked by its versions, for which there is an index.
    IF r.stream_id IS NULL THEN
        SELECT
            pg_catalog.array_agg(w.position ORDER BY w.position) AS seen, max(w.position) AS position, NULL::bigint AS version,
            count(*) AS looked
        INTO next
        FROM (
            SELECT e.position
            FROM outbox.events AS e
            WHERE e.position > r.position AND e.position <= upto
            ORDER BY e.position
            LIMIT looks
        ) AS w;
    ELSE
        SELECT
            pg_catalog.array_agg(w.position ORDER BY w.position) AS seen, max(w.position) AS position,
            max(w.stream_version) AS version, count(*) AS looked
        INTO next
        FROM (
            SELECT e.position, e.stream_version
            FROM outbox.events AS e
            WHERE e.stream_id = r.stream_id AND e.stream_version > r.stream_version
            ORDER BY e.stream_version
            LIMIT looks
        ) AS w
        WHERE w.position <= upto;
    END IF;
    IF next.looked > 0 THEN
        WITH chosen AS (
            SELECT e.position, e.stream_version, outbox.replay_group(e.destinations, e.stream_id, r.source) AS group_id
            FROM outbox.events AS e
            WHERE e.position = ANY (next.seen) AND e.position > r.start_position AND outbox.replay_matches(e, r)
            ORDER BY CASE WHEN r.stream_id IS NULL THEN e.position ELSE e.stream_version END
            LIMIT max_count
        ), message AS (
            -- Inserted in that order, so that the messages of a group get their ids in it.
            INSERT INTO outbox.messages (destination, event_position, group_id)
            SELECT r.destination, c.position, c.group_id
            FROM chosen AS c
            ORDER BY CASE WHEN r.stream_id IS NULL THEN c.position ELSE c.stream_version END
        )
        SELECT count(*) AS count, max(c.position) AS position, max(c.stream_version) AS version INTO taken FROM chosen AS c;
    END IF;
    IF taken.count = max_count THEN
        -- More of the events that were looked at may match.
        next.position := taken.position;
        next.version := taken.version;
    ELSIF next.looked < looks THEN
        next.position := upto;
    END IF;
    IF r.stream_id IS NOT NULL AND (taken.count = max_count OR next.looked = looks) THEN
        -- There is more of the stream, whatever its positions are.
        next.position := least(next.position, r.last_position - 1);
    END IF;
    UPDATE outbox.replays AS p
    SET position = greatest(next.position, r.position), stream_version = coalesce(next.version, r.stream_version),
        messages = p.messages + coalesce(taken.count, 0), moved_at = clock_timestamp(),
        ended_at = CASE WHEN next.position >= r.last_position THEN clock_timestamp() END
    WHERE p.id = r.id
    RETURNING p.* INTO r;
    IF r.ended_at IS NOT NULL THEN
        INSERT INTO outbox.audit_log (action, actor, filter, messages, message_ids)
        VALUES ('replay', r.actor, pg_catalog.jsonb_build_object('id', r.id, 'has_ended', true), r.messages, '{}');
    END IF;
    RETURN QUERY
        SELECT
            coalesce(taken.count, 0::bigint), r.messages, r.start_position, r.position, r.last_position,
            r.ended_at IS NOT NULL, false;
END
$$;

COMMENT ON FUNCTION outbox.replay_step(bigint, bigint, boolean, bigint) IS
    'Runs a step of a replay: looks at no more than "looks" of the next events, and writes no more than "max_count" messages for '
    'those that match. must_wait says that nothing was done, because a transaction is running that has written events of its '
    'range, or may do so; skip_running continues all the same, without the uncommitted events of such a transaction.';

CREATE FUNCTION outbox.replay_end(replay bigint, actor text DEFAULT session_user) RETURNS boolean
LANGUAGE sql VOLATILE
AS $$
    WITH ended AS (
        UPDATE outbox.replays AS r SET ended_at = clock_timestamp() WHERE r.id = $1 AND r.ended_at IS NULL
        RETURNING r.id, r.messages
    ), action AS (
        INSERT INTO outbox.audit_log (action, actor, filter, messages, message_ids)
        SELECT 'replay', coalesce($2, session_user), pg_catalog.jsonb_build_object('id', e.id, 'is_given_up', true), e.messages, '{}'
        FROM ended AS e
    )
    SELECT EXISTS (SELECT FROM ended)
$$;

COMMENT ON FUNCTION outbox.replay_end(bigint, text) IS
    'Abandons a replay. Messages it has written are published all the same. Returns whether it was unfinished.';
