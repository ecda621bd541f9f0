-- The event store: events are appended to streams with an expected version, read back, and purged when they are old.
-- docs/event-sourcing.md says how to build an application on it.

CREATE FUNCTION outbox.check_stream(stream_id text) RETURNS void
LANGUAGE plpgsql IMMUTABLE
AS $$
BEGIN
    IF coalesce(stream_id, '') = '' THEN
        RAISE EXCEPTION 'no stream was given' USING ERRCODE = 'invalid_parameter_value',
            HINT = 'The name of a stream is neither empty nor null, for example draw-7.';
    ELSIF octet_length(stream_id) > 1024 THEN
        RAISE EXCEPTION 'a stream of % bytes is too long, 1024 are the most', octet_length(stream_id)
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Name the stream by an id, for example draw-7.';
    END IF;
END
$$;

COMMENT ON FUNCTION outbox.check_stream(text) IS 'Refuses a stream without a valid name.';

CREATE FUNCTION outbox.stream_version(stream_id text) RETURNS bigint
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    PERFORM outbox.check_stream($1);
    RETURN (SELECT coalesce(max(e.stream_version), 0) FROM outbox.events AS e WHERE e.stream_id = $1);
END
$$;

COMMENT ON FUNCTION outbox.stream_version(text) IS 'The version of a stream''s last event; 0 when it has none.';

-- Counts as the relay does, but includes attributes that the relay leaves out: those are few, so the result is at most
-- a little higher.
CREATE FUNCTION outbox.message_bytes(stream_id text, stream_version bigint, event jsonb) RETURNS bigint
LANGUAGE plpgsql IMMUTABLE
AS $$
DECLARE
    payload text := event -> 'payload'::text;
    bytes   bigint := octet_length(payload);
BEGIN
    IF payload IS NULL THEN
        bytes := coalesce(
            octet_length(event ->> 'body'::text),
            octet_length(translate(event ->> 'body_base64'::text, E' \t\r\n', '')) + octet_length('content-encodingStringbase64')
        );
    ELSIF bytes > 500000 THEN
        -- SQS refuses U+FFFE and U+FFFF, so the relay writes each as six characters of JSON. Each is three bytes here,
        -- which cannot make a small payload too large.
        bytes := bytes + 3 * (length(payload) - length(translate(payload, chr(65534) || chr(65535), '')));
    END IF;
    IF event ? 'metadata'::text THEN
        bytes := bytes + (
            SELECT coalesce(sum(octet_length(m.key) + octet_length('String') + octet_length(m.value)), 0)
            FROM jsonb_each_text(event -> 'metadata'::text) AS m
            WHERE m.key <> 'AWSTraceHeader'
        );
    END IF;
    RETURN bytes
        + octet_length('event_idString') + 36
        + octet_length('event_typeString') + octet_length(event ->> 'event_type'::text)
        + octet_length('stream_idString') + octet_length(stream_id)
        + octet_length('stream_versionNumber') + octet_length(stream_version::text);
END
$$;

COMMENT ON FUNCTION outbox.message_bytes(text, bigint, jsonb) IS 'Bytes of the SQS message that an event becomes.';

CREATE FUNCTION outbox.check_size(stream_id text, after_version bigint, events jsonb, destinations text[]) RETURNS void
LANGUAGE plpgsql STABLE
AS $$
DECLARE
    -- SQS's limit for a message with its attributes.
    max_bytes CONSTANT bigint := 1048576;
    found_one  record;
BEGIN
    SELECT e.n, outbox.message_bytes($1, $2 + e.n, e.event) AS bytes INTO found_one
    FROM jsonb_array_elements($3) WITH ORDINALITY AS e (event, n)
    WHERE outbox.message_bytes($1, $2 + e.n, e.event) > max_bytes
    ORDER BY e.n
    LIMIT 1;
    -- Bodies of destinations with a claim check go to a bucket. The table is read only if something is too large.
    IF FOUND AND EXISTS (
        SELECT FROM pg_catalog.unnest($4) AS n (name)
        WHERE NOT EXISTS (SELECT FROM outbox.destinations AS d WHERE d.name = n.name AND d.claim_check IS NOT NULL)
    ) THEN
        RAISE EXCEPTION 'event % of the array becomes a message of % bytes, SQS takes %', found_one.n, found_one.bytes, max_bytes
            USING ERRCODE = 'invalid_parameter_value',
                HINT = 'Keep large content elsewhere, for example in S3, and its address in the event; or give each destination a claim check in outbox.destinations.';
    END IF;
END
$$;

COMMENT ON FUNCTION outbox.check_size(text, bigint, jsonb, text[]) IS
    'Refuses events whose messages SQS can never accept, unless every destination has a claim check in outbox.destinations.';

CREATE FUNCTION outbox.check_append(stream_id text, expected_version bigint, events jsonb, destinations text[]) RETURNS void
LANGUAGE plpgsql IMMUTABLE
AS $$
DECLARE
    -- SQS's limit for a MessageGroupId.
    most_characters CONSTANT integer := 128;
    is_sent         CONSTANT boolean := coalesce(pg_catalog.cardinality(destinations), 0) > 0;
    -- SQS accepts them in no attribute, so consumers would not see the name.
    control         CONSTANT text := '[\x01-\x08\x0b\x0c\x0e-\x1f]';
    uuid_form       CONSTANT text := '^[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}$';
    item    record;
    problem text;
    hint    text := 'An event is {"event_type": "TicketPurchased", "payload": ...} and may have event_id and metadata. Instead of a '
        'payload it may have a body (text) or a body_base64.';
BEGIN
    PERFORM outbox.check_stream(stream_id);
    IF expected_version < 0 THEN
        problem := pg_catalog.format('the expected version %s is negative', expected_version);
        hint := 'It is the version of the stream''s last event, 0 for a stream without events, or null for any.';
    ELSIF is_sent AND length(stream_id) > most_characters THEN
        problem := pg_catalog.format('a stream of %s characters is too long for a group, SQS takes %s', length(stream_id), most_characters);
        hint := 'Name the stream by an id, or append without destinations.';
    ELSIF is_sent AND stream_id ~ control THEN
        problem := 'the stream has a control character, which SQS takes in no attribute';
        hint := 'Name the stream by an id, or append without destinations.';
    ELSIF jsonb_typeof(events) IS DISTINCT FROM 'array' OR events = '[]' THEN
        problem := 'events must be a JSON array with at least one event';
    ELSIF '' = ANY (destinations)
        -- NULL is not counted by the subquery, so it also causes a difference.
        OR pg_catalog.cardinality(destinations) > (SELECT pg_catalog.count(DISTINCT d.name) FROM pg_catalog.unnest(destinations) AS d (name)) THEN
        problem := 'a destination is empty or given twice';
        hint := 'Destinations are names of OUTBOX_RELAY_DESTINATIONS, for example {tickets,audit}.';
    ELSE
        FOR item IN SELECT e.event, e.n FROM jsonb_array_elements(events) WITH ORDINALITY AS e (event, n) LOOP
            problem := CASE
                WHEN jsonb_typeof(item.event) <> 'object' THEN 'is not an object'
                WHEN jsonb_typeof(item.event -> 'event_type'::text) IS DISTINCT FROM 'string' OR item.event ->> 'event_type'::text = ''
                    THEN 'has no event_type'
                WHEN jsonb_typeof(coalesce(item.event -> 'metadata'::text, '{}')) <> 'object' THEN 'has metadata that are no object'
                WHEN is_sent AND item.event ->> 'event_type'::text ~ control
                    THEN 'has a control character in its event_type, which SQS takes in no attribute'
                WHEN item.event ? 'event_id'::text AND coalesce(item.event ->> 'event_id'::text, '') !~* uuid_form
                    THEN pg_catalog.format('has an event_id that is no UUID: %s', item.event -> 'event_id'::text)
                WHEN NOT item.event ? 'payload'::text OR item.event - '{event_id,event_type,payload,metadata}'::text[] <> '{}'
                    THEN outbox.event_problem(item.event, '{event_id,event_type,metadata}')
            END;
            IF problem IS NOT NULL THEN
                problem := pg_catalog.format('event %s of the array %s', item.n, problem);
                EXIT;
            END IF;
        END LOOP;
        IF problem IS NULL AND EXISTS (
            SELECT FROM jsonb_array_elements(events) AS e (event)
            WHERE e.event ? 'event_id'::text
            GROUP BY (e.event ->> 'event_id'::text)::uuid
            HAVING count(*) > 1
        ) THEN
            problem := 'an event_id is given twice';
            hint := 'Two events are two facts; give each an id of its own, or none.';
        END IF;
    END IF;
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION '%', problem USING ERRCODE = 'invalid_parameter_value', HINT = hint;
    END IF;
END
$$;

COMMENT ON FUNCTION outbox.check_append(text, bigint, jsonb, text[]) IS 'Refuses invalid arguments of outbox.append.';

CREATE FUNCTION outbox.append(
    stream_id        text,
    expected_version bigint,
    events           jsonb,
    destinations     text[] DEFAULT '{}',
    deliver_at       timestamptz DEFAULT NULL
) RETURNS TABLE (event_id uuid, stream_version bigint, event_position bigint, was_stored boolean)
LANGUAGE plpgsql VOLATILE
AS $$
#variable_conflict use_column
DECLARE
    given     uuid[];
    wanted    bigint;
    stored    bigint;
    elsewhere bigint;
    example   text;
    current   bigint;
    written   bigint;
    routes    jsonb;
    later     timestamptz := CASE WHEN $5 > clock_timestamp() THEN $5 END;
BEGIN
    PERFORM outbox.check_append($1, $2, $3, $4);
    routes := coalesce((SELECT pg_catalog.jsonb_object_agg(d.name, $1) FROM pg_catalog.unnest($4) AS d (name)), '{}');
    wanted := jsonb_array_length($3);
    -- Writers of a stream wait for each other, so that positions and message ids come in the order of versions. Writers
    -- of streams with the same hash wait needlessly.
    PERFORM pg_advisory_xact_lock(x'6F750001'::int, hashtext('outbox' || $1));
    given := ARRAY(SELECT (e.event ->> 'event_id'::text)::uuid FROM jsonb_array_elements($3) AS e (event) WHERE e.event ? 'event_id'::text);
    IF pg_catalog.cardinality(given) > 0 THEN
        SELECT
            count(*), count(*) FILTER (WHERE s.stream_id IS DISTINCT FROM $1),
            min(coalesce(s.stream_id, '')) FILTER (WHERE s.stream_id IS DISTINCT FROM $1)
        INTO stored, elsewhere, example
        FROM outbox.events AS s
        WHERE s.event_id = ANY (given);
        IF stored = wanted AND elsewhere = 0 THEN
            -- The same call again, because its first answer was lost.
            RETURN QUERY
                SELECT s.event_id, s.stream_version, s.position, true
                FROM outbox.events AS s
                WHERE s.event_id = ANY (given)
                ORDER BY s.stream_version;
            RETURN;
        ELSIF stored > 0 THEN
            RAISE EXCEPTION 'some of these events are stored already, but not all of them in this stream'
                USING ERRCODE = 'unique_violation',
                    DETAIL = pg_catalog.format('%s of %s event ids are known%s.', stored, wanted,
                        CASE WHEN elsewhere > 0 THEN pg_catalog.format(', one of them in stream "%s"', example) END),
                    HINT = 'Give an event its id once, and repeat a call with the same events.';
        END IF;
    END IF;
    current := coalesce((SELECT max(s.stream_version) FROM outbox.events AS s WHERE s.stream_id = $1), 0);
    IF $2 <> current THEN
        RAISE EXCEPTION 'stream "%" is at version % and not at %', $1, current, $2
            USING ERRCODE = 'OX409', DETAIL = pg_catalog.format('stream_id=%s expected=%s actual=%s', $1, $2, current),
                HINT = 'Somebody else has appended. Read the stream again, decide again, and append with its version.';
    END IF;
    IF pg_catalog.cardinality($4) > 0 THEN
        PERFORM outbox.check_size($1, current, $3, $4);
    END IF;
    RETURN QUERY
        WITH event AS (
            INSERT INTO outbox.events
                (event_id, stream_id, stream_version, event_type, payload, metadata, destinations, body, body_bytes)
            SELECT
                coalesce((e.event ->> 'event_id'::text)::uuid, outbox.time_ordered_uuid()), $1, current + e.n,
                e.event ->> 'event_type'::text, e.event -> 'payload'::text, coalesce(e.event -> 'metadata'::text, '{}'), routes,
                e.event ->> 'body'::text, decode(e.event ->> 'body_base64'::text, 'base64')
            FROM jsonb_array_elements($3) WITH ORDINALITY AS e (event, n)
            ORDER BY e.n
            -- Another session that inserts without this function may be first.
            ON CONFLICT (stream_id, stream_version) WHERE stream_id IS NOT NULL DO NOTHING
            RETURNING events.event_id, events.stream_version, events.position
        ), message AS (
            INSERT INTO outbox.messages (destination, event_position, group_id, status, deliver_at)
            SELECT d.name, e.position, $1, CASE WHEN later IS NULL THEN 'pending' ELSE 'scheduled' END, later
            FROM event AS e
            -- Not $4 itself: with its length known PostgreSQL would think a new plan at each call worth while.
            CROSS JOIN pg_catalog.unnest((SELECT $4)) AS d (name)
            ORDER BY e.position
        )
        SELECT e.event_id, e.stream_version, e.position, false FROM event AS e ORDER BY e.stream_version;
    GET DIAGNOSTICS written = ROW_COUNT;
    IF written < wanted THEN
        RAISE EXCEPTION 'stream "%" has moved on from version %', $1, current
            USING ERRCODE = 'OX409', DETAIL = pg_catalog.format(
                'stream_id=%s expected=%s actual=%s', $1, coalesce($2::text, 'any'),
                (SELECT max(s.stream_version) FROM outbox.events AS s WHERE s.stream_id = $1)
            ),
                HINT = 'Somebody else has appended. Read the stream again, decide again, and append with its version.';
    END IF;
END
$$;

COMMENT ON FUNCTION outbox.append(text, bigint, jsonb, text[], timestamptz) IS
    'Appends events to a stream and, in the same statement, a message of each to the destinations, with the stream as group, to '
    'be sent not before the last argument, if there is one; consumers then get it after events that were appended meanwhile. '
    'The expected version is the stream''s last one, 0 for none, or null for any; with another one it fails with SQLSTATE '
    'OX409. A call with event ids that are stored already returns the same as before, with was_stored, so that other changes '
    'in the same transaction can be left out. Returns ids, versions and positions.';

CREATE FUNCTION outbox.check_max_count(max_count bigint) RETURNS void
LANGUAGE plpgsql IMMUTABLE
AS $$
BEGIN
    IF max_count IS NULL OR max_count < 1 THEN
        RAISE EXCEPTION 'max_count is %', coalesce(max_count::text, 'null')
            USING ERRCODE = 'invalid_parameter_value', HINT = 'It is the maximum number of rows: 1 or more.';
    END IF;
END
$$;

COMMENT ON FUNCTION outbox.check_max_count(bigint) IS 'Refuses an invalid limit; with it no rows would be returned, which would look like the end.';

CREATE FUNCTION outbox.read_stream(stream_id text, from_version bigint DEFAULT 1, max_count integer DEFAULT 1000)
RETURNS TABLE (
    event_position bigint, event_id uuid, stream_version bigint, event_type text, payload jsonb, metadata jsonb,
    recorded_at timestamptz, body text, body_bytes bytea
)
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    PERFORM outbox.check_stream($1);
    PERFORM outbox.check_max_count($3);
    IF $2 IS NULL OR $2 < 0 THEN
        RAISE EXCEPTION 'a stream is not read from version %', $2
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Versions begin at 1.';
    END IF;
    RETURN QUERY
        SELECT
            e.position, e.event_id, e.stream_version, e.event_type, e.payload, e.metadata, e.recorded_at, e.body, e.body_bytes
        FROM outbox.events AS e
        WHERE e.stream_id = $1 AND e.stream_version >= $2
        ORDER BY e.stream_version
        LIMIT $3;
END
$$;

COMMENT ON FUNCTION outbox.read_stream(text, bigint, integer) IS 'A stream''s events from a version on, in order.';

CREATE FUNCTION outbox.read_all(after bigint DEFAULT 0, max_count integer DEFAULT 1000)
RETURNS TABLE (
    event_position bigint, event_id uuid, stream_id text, stream_version bigint, event_type text, payload jsonb,
    metadata jsonb, recorded_at timestamptz, body text, body_bytes bytea
)
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    upto bigint;
BEGIN
    PERFORM outbox.check_max_count(max_count);
    IF after IS NULL OR after < 0 THEN
        RAISE EXCEPTION 'events are not read after position %', after
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Begin after 0; outbox.checkpoint() returns the position of a projection.';
    END IF;
    -- A separate statement, before the events are read: see outbox.safe_position().
    upto := outbox.safe_position();
    RETURN QUERY
        SELECT
            e.position, e.event_id, e.stream_id, e.stream_version, e.event_type, e.payload, e.metadata, e.recorded_at, e.body,
            e.body_bytes
        FROM outbox.events AS e
        WHERE e.position > after AND e.position <= upto
        ORDER BY e.position
        LIMIT max_count;
END
$$;

COMMENT ON FUNCTION outbox.read_all(bigint, integer) IS
    'All events after a position, in order, up to the position below which no new event can appear. The last position '
    'returned is the next checkpoint; nothing is ever skipped. Under READ COMMITTED, on the primary.';

CREATE FUNCTION outbox.purge_events(before timestamptz, after bigint DEFAULT 0, looks bigint DEFAULT 10000)
RETURNS TABLE (purged bigint, position_done bigint, has_ended boolean)
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    upto  bigint;
    found record;
    mode  text := coalesce(current_setting('outbox.maintenance', true), '');
BEGIN
    IF before IS NULL OR before > now() THEN
        RAISE EXCEPTION 'before must be a time in the past' USING ERRCODE = 'invalid_parameter_value';
    ELSIF after IS NULL OR after < 0 THEN
        RAISE EXCEPTION 'events are not purged after position %', after
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Begin after 0, and continue from position_done.';
    ELSIF coalesce(looks, 0) < 1 THEN
        RAISE EXCEPTION 'a step of % events', looks
            USING ERRCODE = 'invalid_parameter_value', HINT = 'Use a number above 0.';
    ELSIF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'the isolation level is %, whose snapshot may not show what began meanwhile',
            current_setting('transaction_isolation')
            USING ERRCODE = 'invalid_transaction_state', HINT = 'Use READ COMMITTED, which is the default.';
    END IF;
    -- No replay can begin meanwhile; one that has begun keeps its events.
    PERFORM pg_advisory_xact_lock(x'6F750003'::int, hashtext('outbox'));
    upto := outbox.position_at(before + interval '1 minute');
    SELECT max(w.position) AS last, count(*) AS looked INTO found
    FROM (
        SELECT e.position FROM outbox.events AS e WHERE e.position > after AND e.position <= upto ORDER BY e.position LIMIT looks
    ) AS w;
    position_done := coalesce(found.last, after);
    has_ended := found.looked < looks;
    PERFORM set_config('outbox.maintenance', 'on', true);
    WITH kept AS MATERIALIZED (
        SELECT m.event_position
        FROM outbox.messages AS m
        WHERE m.status IN ('pending', 'scheduled', 'dead') AND m.event_position > after AND m.event_position <= position_done
    ), gone AS (
        DELETE FROM outbox.events AS e
        WHERE e.position > after AND e.position <= position_done AND e.recorded_at < before
            -- Hashed, because there are no more of them than fit this window, whatever the statistics say.
            AND e.position NOT IN (SELECT k.event_position FROM kept AS k)
            AND NOT EXISTS (
                SELECT FROM outbox.replays AS r
                WHERE r.ended_at IS NULL AND e.position > r.start_position AND e.position <= r.last_position
                    AND (r.stream_id = e.stream_id OR r.stream_id IS NULL AND e.position > r.position)
            )
            -- A stream keeps its last event, so that its versions continue from there. max() is one probe of the index;
            -- EXISTS may become a bitmap of the whole stream.
            AND (e.stream_id IS NULL OR e.stream_version < (
                SELECT max(l.stream_version) FROM outbox.events AS l WHERE l.stream_id = e.stream_id
            ))
        RETURNING 1
    )
    SELECT count(*) INTO purged FROM gone;
    PERFORM set_config('outbox.maintenance', mode, true);
    RETURN NEXT;
END
$$;

COMMENT ON FUNCTION outbox.purge_events(timestamptz, bigint, bigint) IS
    'Deletes events recorded before a time, if history is not needed forever: looks at no more than "looks" events after a '
    'position, and returns where to continue. Keeps every event with a pending or dead message, events that an unfinished '
    'replay needs, and the last event of each stream. It does not check how far projections have come.';

CREATE PROCEDURE outbox.purge(before timestamptz)
LANGUAGE plpgsql
AS $$
DECLARE
    step record;
    at   bigint := 0;
BEGIN
    LOOP
        SELECT f.position_done, f.has_ended INTO step FROM outbox.purge_events(before, at) AS f;
        COMMIT;
        EXIT WHEN step.has_ended;
        at := step.position_done;
    END LOOP;
END
$$;

COMMENT ON PROCEDURE outbox.purge(timestamptz) IS
    'Deletes all events recorded before a time that outbox.purge_events() may delete, each step in a separate transaction: '
    'CALL outbox.purge(now() - interval ''90 days'').';
