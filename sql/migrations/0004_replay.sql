-- Replay: past events are published again, as new messages, so that a new read model can be filled from history. The verb of
-- `outbox-relay replay`, as functions, so that psql is enough:
--
--     SELECT outbox.replay_begin('tickets', to_destination => 'sales');   -- returns the replay's id, say 7
--     SELECT * FROM outbox.replay_step(7);                                -- again and again, until has_ended
--
-- A replay is a row of outbox.replays, which moves on in the transaction that writes its messages. So it can stop at any
-- moment and go on later, and no event is published twice by it.

ALTER TABLE outbox.events ADD COLUMN destinations jsonb;
-- Not validated against old rows, which have none, so that adding it does not read the table.
ALTER TABLE outbox.events
    ADD CONSTRAINT events_destinations_is_object CHECK (jsonb_typeof(destinations) = 'object') NOT VALID;

COMMENT ON COLUMN outbox.events.destinations IS
    'Where the event was sent when it was written: an object of destination and group (or null). Messages are pruned, so this '
    'is what a replay goes by. Null when the application did not say.';

CREATE OR REPLACE FUNCTION outbox.enqueue(
    destination text,
    event_type  text,
    payload     jsonb,
    group_id    text DEFAULT NULL,
    metadata    jsonb DEFAULT '{}'
) RETURNS bigint
LANGUAGE sql VOLATILE
AS $$
    WITH event AS (
        INSERT INTO outbox.events (event_type, payload, metadata, destinations)
        VALUES (
            enqueue.event_type, enqueue.payload, coalesce(enqueue.metadata, '{}'),
            jsonb_build_object(enqueue.destination, enqueue.group_id)
        )
        RETURNING position
    )
    INSERT INTO outbox.messages (destination, event_position, group_id)
    SELECT enqueue.destination, event.position, enqueue.group_id FROM event
    RETURNING id
$$;

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
    position       bigint NOT NULL,
    last_position  bigint NOT NULL,
    begun_by       xid8 NOT NULL DEFAULT pg_current_xact_id(),
    messages       bigint NOT NULL DEFAULT 0 CHECK (messages >= 0)
);

COMMENT ON TABLE outbox.replays IS 'Past events that are published again. One that has not ended goes on where it stopped.';
COMMENT ON COLUMN outbox.replays.id IS 'Order of the replays.';
COMMENT ON COLUMN outbox.replays.begun_at IS 'When it began.';
COMMENT ON COLUMN outbox.replays.moved_at IS 'When it last moved on.';
COMMENT ON COLUMN outbox.replays.ended_at IS 'When it came to its end or was given up; null while there is more to do.';
COMMENT ON COLUMN outbox.replays.actor IS 'Who, as the command said; else the role.';
COMMENT ON COLUMN outbox.replays.role IS 'The role that was logged in.';
COMMENT ON COLUMN outbox.replays.source IS 'The destination whose events they are.';
COMMENT ON COLUMN outbox.replays.destination IS 'Where they are published now.';
COMMENT ON COLUMN outbox.replays.all_events IS 'Whether events count that are not known to have gone to the source.';
COMMENT ON COLUMN outbox.replays.event_types IS 'Only events of these types; null means all.';
COMMENT ON COLUMN outbox.replays.stream_id IS 'Only events of this stream; null means all.';
COMMENT ON COLUMN outbox.replays.since IS 'Only events recorded at this time or later.';
COMMENT ON COLUMN outbox.replays.until IS 'Only events recorded before this time.';
COMMENT ON COLUMN outbox.replays.first_position IS 'Only events from this position on.';
COMMENT ON COLUMN outbox.replays.stop_position IS 'Only events up to this position, as it was asked for.';
COMMENT ON COLUMN outbox.replays.position IS 'All events up to here are done.';
COMMENT ON COLUMN outbox.replays.last_position IS 'The last position that it goes to, fixed when it began.';
COMMENT ON COLUMN outbox.replays.begun_by IS 'The transaction in which it began: writers below this one may still commit an event of its range.';
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
    -- Positions and times grow together, so halving finds it with a few probes of the key where no index has the time.
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
    'About where the events of a time begin: positions are given just before times, so writers may be swapped by the '
    'difference. One more than the last position when all are older.';

CREATE FUNCTION outbox.replay_find(
    source         text,
    event_types    text[] DEFAULT NULL,
    stream_id      text DEFAULT NULL,
    since          timestamptz DEFAULT NULL,
    until          timestamptz DEFAULT NULL,
    first_position bigint DEFAULT NULL,
    stop_position  bigint DEFAULT NULL
) RETURNS TABLE (event_position bigint, event_type text, is_known boolean)
LANGUAGE sql STABLE
AS $$
    SELECT e.position, e.event_type, e.destinations ? replay_find.source IS TRUE
    FROM outbox.events AS e
    WHERE e.position >= greatest(
            replay_find.first_position, (SELECT outbox.position_at(replay_find.since - interval '1 minute')), 0
        )
        AND e.position <= least(
            replay_find.stop_position, (SELECT outbox.position_at(replay_find.until + interval '1 minute')),
            (SELECT max(l.position) FROM outbox.events AS l)
        )
        AND (replay_find.since IS NULL OR e.recorded_at >= replay_find.since)
        AND (replay_find.until IS NULL OR e.recorded_at < replay_find.until)
        AND (replay_find.event_types IS NULL OR e.event_type = ANY (replay_find.event_types))
        AND (replay_find.stream_id IS NULL OR e.stream_id = replay_find.stream_id)
$$;

COMMENT ON FUNCTION outbox.replay_find(text, text[], text, timestamptz, timestamptz, bigint, bigint) IS
    'The events that a replay with these arguments would be about; is_known says whether they are known to have gone to the '
    'source.';

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
    -- Two at a time would begin the same replay twice.
    PERFORM pg_advisory_xact_lock(hashtext('outbox-relay replay'));
    begun := outbox.replay_unfinished($1, $2, $3, $4, $5, $6, $7, $8, $9);
    IF begun IS NOT NULL THEN
        RETURN begun;
    END IF;
    INSERT INTO outbox.replays AS r (
        actor, source, destination, all_events, event_types, stream_id, since, until, first_position, stop_position,
        position, last_position
    ) VALUES (
        coalesce($10, session_user), $1, coalesce($2, $1), coalesce($3, false), $4, $5, $6, $7, $8, $9,
        greatest($8, outbox.position_at($6 - interval '1 minute'), 1) - 1,
        coalesce(least(
            $9, outbox.position_at($7 + interval '1 minute'), (SELECT max(e.position) FROM outbox.events AS e)
        ), 0)
    ) RETURNING r.id INTO begun;
    INSERT INTO outbox.actions (action, actor, filter, messages, message_ids)
    SELECT
        'replay', r.actor,
        jsonb_strip_nulls(to_jsonb(r)) - '{begun_at,moved_at,actor,role,position,last_position,begun_by,messages}'::text[],
        0, '{}'
    FROM outbox.replays AS r
    WHERE r.id = begun;
    RETURN begun;
END
$$;

COMMENT ON FUNCTION outbox.replay_begin(
    text, text, boolean, text[], text, timestamptz, timestamptz, bigint, bigint, text
) IS
    'Begins a replay of the events that went to the source, to that destination or another, and returns its id; one with the '
    'same arguments that has not ended goes on. all_events takes events as well that are not known to have gone to the '
    'source. Leaves a row in outbox.actions.';

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
    'The replay with these arguments that has not ended, if there is one.';

CREATE FUNCTION outbox.replay_step(replay bigint, most bigint DEFAULT 1000, in_haste boolean DEFAULT false)
RETURNS TABLE (
    messages bigint, all_messages bigint, position_done bigint, last_position bigint, has_ended boolean, must_wait boolean
)
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    r       outbox.replays;
    done    bigint;
    seen    bigint;
    written bigint := 0;
BEGIN
    -- Whoever else steps the same replay waits, and goes on behind this step.
    SELECT p.* INTO r FROM outbox.replays AS p WHERE p.id = replay FOR UPDATE;
    IF r.id IS NULL THEN
        RAISE EXCEPTION 'there is no replay %', replay USING ERRCODE = 'invalid_parameter_value';
    ELSIF most IS NULL OR most < 1 THEN
        RAISE EXCEPTION 'a step of % events', most
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Use a number above 0.';
    ELSIF r.ended_at IS NOT NULL THEN
        RETURN QUERY SELECT 0::bigint, r.messages, r.position, r.last_position, true, false;
        RETURN;
    ELSIF NOT in_haste AND pg_snapshot_xmin(pg_current_snapshot()) < r.begun_by THEN
        -- A writer that was running when the replay began may still commit an event of its range.
        RETURN QUERY SELECT 0::bigint, r.messages, r.position, r.last_position, false, true;
        RETURN;
    END IF;
    -- A step looks at so many events, not at so many that match: however few of them do, it is short.
    IF r.stream_id IS NULL THEN
        SELECT max(w.position), count(*) INTO done, seen
        FROM (
            SELECT e.position
            FROM outbox.events AS e
            WHERE e.position > r.position AND e.position <= r.last_position
            ORDER BY e.position
            LIMIT most
        ) AS w;
    ELSE
        SELECT max(w.position), count(*) INTO done, seen
        FROM (
            SELECT e.position
            FROM outbox.events AS e
            WHERE e.stream_id = r.stream_id AND e.position > r.position AND e.position <= r.last_position
            ORDER BY e.position
            LIMIT most
        ) AS w;
    END IF;
    IF seen < most THEN
        done := r.last_position;
    END IF;
    IF seen > 0 THEN
        -- In the order of positions, so that the messages of a group get their ids in that order.
        INSERT INTO outbox.messages (destination, event_position, group_id)
        SELECT r.destination, e.position, coalesce(nullif(e.destinations ->> r.source, ''), e.stream_id)
        FROM outbox.events AS e
        WHERE e.position > r.position AND e.position <= done
            AND (r.stream_id IS NULL OR e.stream_id = r.stream_id)
            AND (r.all_events OR e.destinations ? r.source)
            AND (r.event_types IS NULL OR e.event_type = ANY (r.event_types))
            AND (r.since IS NULL OR e.recorded_at >= r.since)
            AND (r.until IS NULL OR e.recorded_at < r.until)
        ORDER BY e.position;
        GET DIAGNOSTICS written = ROW_COUNT;
    END IF;
    UPDATE outbox.replays AS p
    SET position = greatest(done, r.position), messages = p.messages + written, moved_at = clock_timestamp(),
        ended_at = CASE WHEN done >= r.last_position THEN clock_timestamp() END
    WHERE p.id = r.id
    RETURNING p.* INTO r;
    RETURN QUERY SELECT written, r.messages, r.position, r.last_position, r.ended_at IS NOT NULL, false;
END
$$;

COMMENT ON FUNCTION outbox.replay_step(bigint, bigint, boolean) IS
    'Goes on with a replay: looks at the next events, so many at most, and writes a message for each that matches. must_wait '
    'says that nothing was done, because a transaction runs that may have written events of its range; in_haste goes on all '
    'the same, without what such a transaction has not committed.';

CREATE FUNCTION outbox.replay_end(replay bigint) RETURNS boolean
LANGUAGE sql VOLATILE
AS $$
    WITH ended AS (
        UPDATE outbox.replays AS r SET ended_at = clock_timestamp() WHERE r.id = replay AND r.ended_at IS NULL RETURNING r.id
    )
    SELECT EXISTS (SELECT FROM ended)
$$;

COMMENT ON FUNCTION outbox.replay_end(bigint) IS
    'Gives a replay up. What it has written is published all the same. Returns whether there was something to give up.';

COMMENT ON COLUMN outbox.actions.action IS 'What: redrive, discard, pause, resume, set or replay.';
