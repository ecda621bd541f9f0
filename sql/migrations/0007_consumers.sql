-- The consuming end: consumers whose effect happens exactly once although SQS delivers at least once, and projections
-- that read the store. These tables belong in the database that has the effect, which may be another one than the
-- outbox's.

CREATE TABLE outbox.inbox (
    consumer    text COLLATE "C" NOT NULL CONSTRAINT consumer_has_1_to_200_characters CHECK (length(consumer) BETWEEN 1 AND 200),
    event_id    uuid NOT NULL,
    accepted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (consumer, event_id)
);

-- For pruning, which looks for old rows. A summary of pages (BRIN) would do only until pruned space is reused; then it
-- would read everything.
CREATE INDEX inbox_accepted_at ON outbox.inbox (accepted_at);

COMMENT ON TABLE outbox.inbox IS 'Which consumer has accepted which event.';
COMMENT ON COLUMN outbox.inbox.consumer IS 'Name of the consumer; it identifies the effect.';
COMMENT ON COLUMN outbox.inbox.event_id IS 'The attribute event_id of the message.';
COMMENT ON COLUMN outbox.inbox.accepted_at IS 'When.';

CREATE TABLE outbox.inbox_versions (
    consumer       text COLLATE "C" NOT NULL CONSTRAINT consumer_has_1_to_200_characters CHECK (length(consumer) BETWEEN 1 AND 200),
    stream_id      text COLLATE "C" NOT NULL CHECK (stream_id <> ''),
    stream_version bigint NOT NULL CHECK (stream_version >= 1),
    PRIMARY KEY (consumer, stream_id)
);

COMMENT ON TABLE outbox.inbox_versions IS 'The progress of consumers that get each stream in order: one row per stream.';
COMMENT ON COLUMN outbox.inbox_versions.consumer IS 'Name of the consumer; it identifies the effect.';
COMMENT ON COLUMN outbox.inbox_versions.stream_id IS 'The attribute stream_id of the message.';
COMMENT ON COLUMN outbox.inbox_versions.stream_version IS 'The highest stream_version that was accepted.';

CREATE TABLE outbox.inbox_gaps (
    consumer      text COLLATE "C" NOT NULL CONSTRAINT consumer_has_1_to_200_characters CHECK (length(consumer) BETWEEN 1 AND 200),
    stream_id     text COLLATE "C" NOT NULL CHECK (stream_id <> ''),
    first_version bigint NOT NULL CHECK (first_version >= 1),
    last_version  bigint NOT NULL,
    noticed_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (consumer, stream_id, first_version),
    CONSTRAINT inbox_gaps_is_not_empty CHECK (first_version <= last_version)
);

CREATE INDEX inbox_gaps_noticed_at ON outbox.inbox_gaps (noticed_at);

COMMENT ON TABLE outbox.inbox_gaps IS
    'Versions below the highest one that outbox.accept_in_order() has not accepted yet. One row per gap, which may never be '
    'filled: its event is dead, or does not go to this queue.';
COMMENT ON COLUMN outbox.inbox_gaps.consumer IS 'As outbox.inbox_versions.consumer.';
COMMENT ON COLUMN outbox.inbox_gaps.stream_id IS 'As outbox.inbox_versions.stream_id.';
COMMENT ON COLUMN outbox.inbox_gaps.first_version IS 'The first version that is missing.';
COMMENT ON COLUMN outbox.inbox_gaps.last_version IS 'The last version that is missing.';
COMMENT ON COLUMN outbox.inbox_gaps.noticed_at IS 'When a later version was accepted.';

CREATE TABLE outbox.checkpoints (
    consumer text COLLATE "C" PRIMARY KEY CONSTRAINT consumer_has_1_to_200_characters CHECK (length(consumer) BETWEEN 1 AND 200),
    position bigint NOT NULL CHECK (position >= 0),
    moved_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

COMMENT ON TABLE outbox.checkpoints IS 'The progress of projections that read outbox.read_all().';
COMMENT ON COLUMN outbox.checkpoints.consumer IS 'Name of the projection.';
COMMENT ON COLUMN outbox.checkpoints.position IS 'The projection contains all events up to this position.';
COMMENT ON COLUMN outbox.checkpoints.moved_at IS 'When it last moved.';

CREATE FUNCTION outbox.accept(consumer text, event_id uuid) RETURNS boolean
LANGUAGE sql VOLATILE
AS $$
    WITH accepted AS (
        INSERT INTO outbox.inbox (consumer, event_id) VALUES (accept.consumer, accept.event_id)
        ON CONFLICT ON CONSTRAINT inbox_pkey DO NOTHING
        RETURNING 1
    )
    SELECT EXISTS (SELECT FROM accepted)
$$;

COMMENT ON FUNCTION outbox.accept(text, uuid) IS
    'Whether this is the first time for this consumer. Call it in the transaction of the effect, and apply the effect only if it '
    'returns true: then both are committed, or neither. A second call with the same event waits for the first.';

CREATE FUNCTION outbox.accept(consumer text, stream_id text, stream_version bigint) RETURNS boolean
LANGUAGE sql VOLATILE
AS $$
    WITH accepted AS (
        INSERT INTO outbox.inbox_versions AS v (consumer, stream_id, stream_version)
        VALUES (accept.consumer, accept.stream_id, accept.stream_version)
        ON CONFLICT ON CONSTRAINT inbox_versions_pkey DO UPDATE SET stream_version = excluded.stream_version
        WHERE v.stream_version < excluded.stream_version
        RETURNING 1
    )
    SELECT EXISTS (SELECT FROM accepted)
$$;

COMMENT ON FUNCTION outbox.accept(text, text, bigint) IS
    'For consumers of which only the newest event of a stream counts, because each holds the whole state: true if the version is '
    'higher than all before. One row per stream, and nothing to prune. What fills a gap later is refused as old, so an effect '
    'of its own would be lost: use outbox.accept(consumer, event_id) or outbox.accept_in_order() for such effects.';

CREATE FUNCTION outbox.accept_in_order(consumer text, stream_id text, stream_version bigint) RETURNS text
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    highest bigint;
    gap outbox.inbox_gaps;
BEGIN
    LOOP
        -- Nearly every event is the next one of its stream.
        UPDATE outbox.inbox_versions AS v SET stream_version = $3
        WHERE v.consumer = $1 AND v.stream_id = $2 AND v.stream_version = $3 - 1;
        IF FOUND THEN
            RETURN 'accepted';
        END IF;
        -- The first event of a stream is like any other, after version 0.
        INSERT INTO outbox.inbox_versions AS v (consumer, stream_id, stream_version) VALUES ($1, $2, $3)
        ON CONFLICT ON CONSTRAINT inbox_versions_pkey DO NOTHING;
        IF FOUND THEN
            highest := 0;
            EXIT;
        END IF;
        -- Until the transaction ends, nobody else changes anything about this stream.
        SELECT v.stream_version INTO highest FROM outbox.inbox_versions AS v
        WHERE v.consumer = $1 AND v.stream_id = $2 FOR UPDATE;
        -- Otherwise somebody has just deleted the row, and the stream begins again.
        EXIT WHEN FOUND;
    END LOOP;
    UPDATE outbox.inbox_versions AS v SET stream_version = $3
    WHERE v.consumer = $1 AND v.stream_id = $2 AND v.stream_version < $3;
    IF $3 = highest + 1 THEN
        RETURN 'accepted';
    ELSIF $3 > highest THEN
        INSERT INTO outbox.inbox_gaps (consumer, stream_id, first_version, last_version) VALUES ($1, $2, highest + 1, $3 - 1);
        RETURN 'early';
    END IF;
    DELETE FROM outbox.inbox_gaps AS g
    WHERE g.consumer = $1 AND g.stream_id = $2 AND g.first_version <= $3 AND g.last_version >= $3
    RETURNING * INTO gap;
    IF NOT FOUND THEN
        RETURN 'duplicate';
    END IF;
    INSERT INTO outbox.inbox_gaps (consumer, stream_id, first_version, last_version, noticed_at)
    SELECT $1, $2, rest.first_version, rest.last_version, gap.noticed_at
    FROM (VALUES (gap.first_version, $3 - 1), ($3 + 1, gap.last_version)) AS rest (first_version, last_version)
    WHERE rest.first_version <= rest.last_version;
    RETURN 'late';
END
$$;

COMMENT ON FUNCTION outbox.accept_in_order(text, text, bigint) IS
    'Where an event stands among those of its stream: accepted, the next one; early, an earlier version has not been accepted; '
    'late, a later version has been accepted; duplicate, it was accepted before. All but duplicates are accepted by it, each '
    'once, in whatever order they come. Call it in the transaction of the effect, and roll back what you do not want to take.';

CREATE FUNCTION outbox.prune_inbox(keep interval DEFAULT '15 days', max_count bigint DEFAULT 10000) RETURNS bigint
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    pruned bigint;
    gaps bigint;
BEGIN
    IF keep IS NULL OR keep < interval '0' THEN
        RAISE EXCEPTION 'keep must be a time of 0 or more' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM outbox.check_max_count(max_count);
    DELETE FROM outbox.inbox AS i
    WHERE i.ctid = ANY (ARRAY(SELECT o.ctid FROM outbox.inbox AS o WHERE o.accepted_at < now() - keep LIMIT max_count));
    GET DIAGNOSTICS pruned = ROW_COUNT;
    DELETE FROM outbox.inbox_gaps AS g
    WHERE g.ctid = ANY (ARRAY(
        SELECT o.ctid FROM outbox.inbox_gaps AS o WHERE o.noticed_at < now() - keep LIMIT max_count - pruned
    ));
    GET DIAGNOSTICS gaps = ROW_COUNT;
    RETURN pruned + gaps;
END
$$;

COMMENT ON FUNCTION outbox.prune_inbox(interval, bigint) IS
    'Deletes rows that were accepted longer ago, and gaps that were noticed longer ago: what fills one then is a duplicate. 15 '
    'days are longer than SQS can keep a message (14 days); keep more if dead-letter queues are redriven later. Call it until '
    'it returns 0.';

CREATE FUNCTION outbox.checkpoint(consumer text) RETURNS bigint
LANGUAGE plpgsql STABLE
AS $$
BEGIN
    IF coalesce($1, '') = '' THEN
        RAISE EXCEPTION 'no consumer was given'
            USING ERRCODE = 'invalid_parameter_value', HINT = 'A projection has a name, for example sales.';
    END IF;
    RETURN coalesce((SELECT c.position FROM outbox.checkpoints AS c WHERE c.consumer = $1), 0);
END
$$;

COMMENT ON FUNCTION outbox.checkpoint(text) IS 'The position of a projection; 0 when it has not begun.';

CREATE FUNCTION outbox.checkpoint(consumer text, expected bigint, reached bigint) RETURNS boolean
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    moved bigint;
BEGIN
    IF coalesce($1, '') = '' THEN
        RAISE EXCEPTION 'no consumer was given'
            USING ERRCODE = 'invalid_parameter_value', HINT = 'A projection has a name, for example sales.';
    ELSIF $3 IS NULL OR $2 IS NULL OR $2 < 0 OR $3 < $2 THEN
        RAISE EXCEPTION 'a checkpoint does not go from % to %', $2, $3
            USING ERRCODE = 'invalid_parameter_value', HINT = 'To rebuild a projection, delete its row of outbox.checkpoints.';
    END IF;
    IF $2 = 0 THEN
        INSERT INTO outbox.checkpoints AS c (consumer, position) VALUES ($1, $3)
        ON CONFLICT ON CONSTRAINT checkpoints_pkey DO UPDATE SET position = excluded.position, moved_at = excluded.moved_at
        WHERE c.position = 0;
    ELSE
        UPDATE outbox.checkpoints AS c SET position = $3, moved_at = clock_timestamp() WHERE c.consumer = $1 AND c.position = $2;
    END IF;
    GET DIAGNOSTICS moved = ROW_COUNT;
    RETURN moved = 1;
END
$$;

COMMENT ON FUNCTION outbox.checkpoint(text, bigint, bigint) IS
    'Compare and set: advances a projection from the expected position. Call it in the transaction that changes the '
    'projection, and roll back if it returns false: another session has advanced it.';
