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
    'The same for consumers that get each stream in order, from a FIFO queue: true if the version is higher than all before. One '
    'row per stream, and nothing to prune. A gap is accepted, because a dead message leaves one; an event that fills the gap '
    'later, after a redrive or a replay, is refused as old.';

CREATE FUNCTION outbox.prune_inbox(keep interval DEFAULT '15 days', max_count bigint DEFAULT 10000) RETURNS bigint
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    pruned bigint;
BEGIN
    IF keep IS NULL OR keep < interval '0' THEN
        RAISE EXCEPTION 'keep must be a time of 0 or more' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM outbox.check_max_count(max_count);
    DELETE FROM outbox.inbox AS i
    WHERE i.ctid = ANY (ARRAY(SELECT o.ctid FROM outbox.inbox AS o WHERE o.accepted_at < now() - keep LIMIT max_count));
    GET DIAGNOSTICS pruned = ROW_COUNT;
    RETURN pruned;
END
$$;

COMMENT ON FUNCTION outbox.prune_inbox(interval, bigint) IS
    'Deletes rows that were accepted longer ago. 15 days are longer than SQS can keep a message (14 days); keep more if '
    'dead-letter queues are redriven later. Call it until it returns 0.';

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
