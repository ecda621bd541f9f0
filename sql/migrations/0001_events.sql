-- Events: immutable facts, the order in which they may be read, and the protection against changes.
-- docs/decisions/0002-slim-messages-partitioned-by-status.md says why events and messages are two tables.
--
-- Advisory locks of outbox-relay, in all files. Every key depends on the schema, so that outboxes of one database never wait
-- for each other. The first key has 64 bits; the others are two numbers, of which the first begins with 0x6F75 ("ou"):
--     shared     16 bits of the schema's hash, 48 bits of a position   outbox.fence(): a transaction writes events above it
--     exclusive  (0x6F750001, hash of schema and stream)        outbox.append(): writers of a stream wait for each other
--     exclusive  (0x6F750002, hash of schema and destination)   outbox.enqueue_due(): one relay at a time makes messages pending
--     exclusive  (0x6F750003, hash of the schema)               a replay begins, or events are purged
--     exclusive  (0x6F750004, hash of the schema)               `outbox-relay migrate`

-- If the schema exists already, the migrating role needs no privilege to create one.
DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_namespace WHERE nspname = 'outbox') THEN CREATE SCHEMA outbox; END IF; END $$;

-- A time-ordered default keeps the unique index on event_id local and small. PostgreSQL has uuidv7() since version 18.
DO $migration$
BEGIN
    IF current_setting('server_version_num')::integer >= 180000 THEN
        CREATE FUNCTION outbox.time_ordered_uuid() RETURNS uuid
        LANGUAGE sql VOLATILE PARALLEL SAFE
        AS 'SELECT uuidv7()';
    ELSE
        -- RFC 9562, version 7: 48 bits of milliseconds, then random bits.
        CREATE FUNCTION outbox.time_ordered_uuid() RETURNS uuid
        LANGUAGE sql VOLATILE PARALLEL SAFE
        AS $$
            SELECT encode(
                set_bit(
                    set_bit(
                        overlay(
                            uuid_send(gen_random_uuid())
                            PLACING substring(int8send((extract(epoch FROM clock_timestamp())::float8 * 1000::float8)::bigint) FROM 3)
                            FROM 1 FOR 6
                        ),
                        52, 1
                    ),
                    53, 1
                ),
                'hex'
            )::uuid
        $$;
    END IF;
END
$migration$;

COMMENT ON FUNCTION outbox.time_ordered_uuid() IS
    'A UUID of version 7 (RFC 9562): ordered by time of creation, so that its index grows at one end.';

-- Its rules are checked by a trigger: see outbox.check_event().
CREATE TABLE outbox.events (
    position       bigint GENERATED ALWAYS AS IDENTITY (CACHE 1) PRIMARY KEY,
    recorded_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    stream_version bigint,
    event_id       uuid NOT NULL DEFAULT outbox.time_ordered_uuid() UNIQUE,
    stream_id      text COLLATE "C",
    event_type     text NOT NULL,
    payload        jsonb,
    metadata       jsonb NOT NULL DEFAULT '{}',
    destinations   jsonb,
    body           text,
    body_bytes     bytea
);

-- An event without a stream takes no space in this index.
CREATE UNIQUE INDEX events_stream ON outbox.events (stream_id, stream_version) WHERE stream_id IS NOT NULL;

COMMENT ON TABLE outbox.events IS
    'Immutable events. Never updated; a body is stored here once, whatever the number of destinations. It is in one of the '
    'columns payload, body and body_bytes.';
COMMENT ON COLUMN outbox.events.position IS
    'Order of insertion. CACHE 1, so that writers that wait for each other get their positions in that order.';
COMMENT ON COLUMN outbox.events.recorded_at IS 'When the row was written (clock_timestamp, not the start of the transaction).';
COMMENT ON COLUMN outbox.events.stream_version IS
    'Number of the event in its stream, from 1; null when the event belongs to no stream.';
COMMENT ON COLUMN outbox.events.event_id IS
    'Id of the event for consumers, sent as the attribute event_id; time-ordered unless the application sets it.';
COMMENT ON COLUMN outbox.events.stream_id IS 'The aggregate the event belongs to, if any.';
COMMENT ON COLUMN outbox.events.event_type IS 'Type of the event, for example TicketPurchased; sent as an attribute.';
COMMENT ON COLUMN outbox.events.payload IS
    'A body of JSON, sent as payload::text byte for byte; null if the event has another body.';
COMMENT ON COLUMN outbox.events.metadata IS
    'A flat object; its members are sent as message attributes (traceparent, correlation_id and the like).';
COMMENT ON COLUMN outbox.events.destinations IS
    'Where the event was sent when it was written: an object of destination and group (or null). Messages are pruned, so a '
    'replay uses this. Null when the application did not set it.';
COMMENT ON COLUMN outbox.events.body IS
    'A body of any text (XML, signed JSON, plain text), sent byte for byte. At least one character, and none that SQS refuses.';
COMMENT ON COLUMN outbox.events.body_bytes IS
    'A body of bytes (protobuf, Avro, compressed), sent in base64 with the attribute content-encoding = base64. At least one byte.';

-- SQS takes #x9 | #xA | #xD | #x20 to #xD7FF | #xE000 to #xFFFD | #x10000 to #x10FFFF (SendMessage, MessageBody). These are
-- the others that a text of PostgreSQL in UTF-8 can hold: neither zero nor half of a surrogate pair.
CREATE FUNCTION outbox.refused_character(body text) RETURNS text
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
AS $$
DECLARE
    place integer;
BEGIN
    IF body COLLATE "C" !~ '[\x01-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]' THEN
        RETURN NULL;
    END IF;
    place := length(substring(body COLLATE "C" FROM '^[^\x01-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]*')) + 1;
    RETURN pg_catalog.format('U+%s at character %s', pg_catalog.upper(lpad(to_hex(ascii(substr(body, place, 1))), 4, '0')), place);
END
$$;

COMMENT ON FUNCTION outbox.refused_character(text) IS
    'The first character of a text that SQS takes in no body, and its place, counted from 1: U+0001 at character 17. Null if there '
    'is none.';

-- Not CHECK constraints: PostgreSQL parses the stored text of each again for every statement, which cost as much as all
-- else that the statement does (docs/benchmarks/notes.md). The function's plans are kept. Like every trigger it does not
-- run in sessions with session_replication_role = replica: rows that are replicated were checked where they were written.
CREATE FUNCTION outbox.check_event() RETURNS trigger
LANGUAGE plpgsql
AS $$
DECLARE
    problem text;
    hint    text;
BEGIN
    -- One expression for the usual case, an event with a payload. A body of another kind is looked at more closely.
    IF NEW.event_type = '' OR jsonb_typeof(NEW.metadata) <> 'object' OR jsonb_typeof(NEW.destinations) <> 'object'
        OR (NEW.stream_id IS NULL) <> (NEW.stream_version IS NULL) OR NEW.stream_id = '' OR NEW.stream_version < 1
        OR NEW.payload IS NULL OR NEW.body IS NOT NULL OR NEW.body_bytes IS NOT NULL THEN
        CASE
            WHEN NEW.event_type = '' THEN
                problem := 'event_type is empty';
                hint := 'It names what has happened, for example TicketPurchased.';
            WHEN jsonb_typeof(NEW.metadata) <> 'object' THEN
                problem := pg_catalog.format('metadata is a JSON %s and no object', jsonb_typeof(NEW.metadata));
                hint := 'Its members become attributes, for example {"correlation_id": "4711"}.';
            WHEN jsonb_typeof(NEW.destinations) <> 'object' THEN
                problem := pg_catalog.format('destinations is a JSON %s and no object', jsonb_typeof(NEW.destinations));
                hint := 'It has the group, or null, of each destination, for example {"tickets": "draw-7", "audit": null}.';
            WHEN NEW.stream_id = '' THEN
                problem := 'stream_id is empty';
                hint := 'It names the aggregate, for example draw-7; null if the event belongs to no stream.';
            WHEN NEW.stream_version < 1 THEN
                problem := pg_catalog.format('stream_version is %s', NEW.stream_version);
                hint := 'Versions of a stream begin at 1.';
            WHEN (NEW.stream_id IS NULL) <> (NEW.stream_version IS NULL) THEN
                problem := pg_catalog.format(
                    'stream_id is %s and stream_version is %s',
                    coalesce(pg_catalog.quote_literal(NEW.stream_id), 'null'), coalesce(NEW.stream_version::text, 'null')
                );
                hint := 'An event of a stream has both, an event without a stream has neither.';
            WHEN pg_catalog.num_nonnulls(NEW.payload, NEW.body, NEW.body_bytes) <> 1 THEN
                problem := CASE
                    WHEN NEW.payload IS NULL AND NEW.body IS NULL THEN 'payload, body and body_bytes are null'
                    ELSE 'more than one of payload, body and body_bytes is not null'
                END;
                hint := 'Set one of them: payload for JSON, body for any other text, body_bytes for bytes, which are sent in base64.';
            WHEN NEW.body = '' OR octet_length(NEW.body_bytes) = 0 THEN
                problem := CASE WHEN NEW.body = '' THEN 'body is empty' ELSE 'body_bytes is empty' END;
                hint := 'SQS takes a message of at least one character. An event that has nothing to say may have the payload {}.';
            WHEN outbox.refused_character(NEW.body) IS NOT NULL THEN
                problem := pg_catalog.format('body has %s, which SQS refuses', outbox.refused_character(NEW.body));
                hint := 'SQS takes tab, line feed, carriage return, and all characters from U+0020 on but U+FFFE and U+FFFF. Send '
                    'anything else as body_bytes.';
            ELSE
                problem := NULL;
        END CASE;
        IF problem IS NOT NULL THEN
            RAISE EXCEPTION 'impossible event: %', problem
                USING ERRCODE = 'check_violation', HINT = hint, SCHEMA = TG_TABLE_SCHEMA, TABLE = TG_TABLE_NAME;
        END IF;
    END IF;
    RETURN NEW;
END
$$;

COMMENT ON FUNCTION outbox.check_event() IS 'Refuses impossible events.';

CREATE TRIGGER check_event BEFORE INSERT OR UPDATE ON outbox.events FOR EACH ROW EXECUTE FUNCTION outbox.check_event();

-- The safe order: up to which position every event is committed or never will be. docs/decisions/0005-the-fence.md
-- describes the other ways and why this one was chosen.
--
-- Positions are assigned before transactions commit, so a reader that has seen position 7 may find 6 later. Therefore
-- each transaction that writes events holds a shared advisory lock, the fence. Its key contains the position above
-- which all events of the transaction are. It blocks nobody. A reader looks at the sequence first, then at the fences,
-- then at the events.

-- The function needs it, whoever writes events. A function with its owner's privileges would take twice the time.
GRANT SELECT ON SEQUENCE outbox.events_position_seq TO PUBLIC;

CREATE FUNCTION outbox.fence() RETURNS trigger
LANGUAGE plpgsql
AS $$
DECLARE
    nothing text;
BEGIN
    -- One lock per transaction: the first is the lowest. A rolled back subtransaction undoes lock and mark together.
    -- This is a single expression, because the time goes into preparing each. PERFORM would run the executor.
    -- The keys of advisory locks are listed at the top of this file; 48 bits are left for the position.
    nothing := CASE
        WHEN pg_catalog.current_setting('outbox.fenced', true) IS DISTINCT FROM pg_catalog.pg_current_xact_id()::text
        THEN pg_catalog.concat(
            pg_catalog.pg_advisory_xact_lock_shared(
                (pg_catalog.hashtext('outbox')::bigint << 48)
                    + coalesce(pg_catalog.pg_sequence_last_value('outbox.events_position_seq'::pg_catalog.regclass), 0)
            ),
            pg_catalog.set_config('outbox.fenced', pg_catalog.pg_current_xact_id()::text, true)
        )
    END;
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION outbox.fence() IS
    'Before events get their positions: takes a shared advisory lock that says above which position this transaction writes.';

-- Per statement, not per row, and before rows get their positions.
CREATE TRIGGER fence BEFORE INSERT ON outbox.events FOR EACH STATEMENT EXECUTE FUNCTION outbox.fence();

CREATE FUNCTION outbox.safe_position() RETURNS bigint
LANGUAGE plpgsql VOLATILE
AS $$
DECLARE
    last   bigint;
    fenced bigint;
BEGIN
    IF pg_is_in_recovery() THEN
        RAISE EXCEPTION 'a standby does not know which writers are running on its primary'
            USING ERRCODE = 'object_not_in_prerequisite_state', HINT = 'Ask the primary.';
    ELSIF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'the isolation level is %, whose snapshot is older than the answer',
            current_setting('transaction_isolation')
            USING ERRCODE = 'invalid_transaction_state', HINT = 'Use READ COMMITTED, which is the default.';
    END IF;
    -- In this order: a transaction that sets a fence after the second look gets positions above what the first look
    -- saw.
    SELECT CASE WHEN s.is_called THEN s.last_value ELSE s.last_value - 1 END INTO last FROM outbox.events_position_seq AS s;
    SELECT min(((l.classid::bigint & 65535::bigint) << 32) | l.objid::bigint) INTO fenced
    FROM pg_locks AS l
    WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.mode = 'ShareLock'
        AND l.classid::bigint >> 16 = hashtext('outbox') & 65535
        AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database());
    RETURN least(last, fenced);
END
$$;

COMMENT ON FUNCTION outbox.safe_position() IS
    'Up to this position every event is committed or never will be. Call it before the events are read, in a separate '
    'statement, under READ COMMITTED.';

-- A protection against mistakes, not access control: deploy/roles.sql says who may update at all.
CREATE FUNCTION outbox.protect() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    IF coalesce(current_setting('outbox.maintenance', true), '') <> 'on' THEN
        RAISE EXCEPTION 'events are facts and are not changed: % on outbox.events', TG_OP
            USING ERRCODE = 'restrict_violation',
                HINT = 'Append an event that corrects it; CALL outbox.purge(before) deletes old ones. For maintenance: '
                    'SET LOCAL outbox.maintenance = ''on''.';
    END IF;
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION outbox.protect() IS 'Refuses to change events, unless outbox.maintenance is on.';

CREATE TRIGGER protect BEFORE UPDATE OR DELETE OR TRUNCATE ON outbox.events
    FOR EACH STATEMENT EXECUTE FUNCTION outbox.protect();
