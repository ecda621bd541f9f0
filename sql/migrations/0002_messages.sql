-- Messages: an event's delivery to one destination, partitioned by status, and the lanes that relays claim.
-- docs/decisions/0002-slim-messages-partitioned-by-status.md explains the design of the tables.

-- The rules of pending messages are checked by a trigger: see outbox.check_message().
CREATE TABLE outbox.messages (
    id             bigint GENERATED ALWAYS AS IDENTITY (CACHE 1),
    event_position bigint NOT NULL,
    enqueued_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    available_at   timestamptz,
    delivered_at   timestamptz,
    dead_at        timestamptz,
    lane           smallint NOT NULL,
    attempts       smallint NOT NULL DEFAULT 0,
    destination    text COLLATE "C" NOT NULL,
    status         text COLLATE "C" NOT NULL DEFAULT 'pending',
    group_id       text COLLATE "C",
    sqs_message_id text,
    last_error     text,
    sqs_sequence_number numeric,
    deliver_at     timestamptz
) PARTITION BY LIST (status);

-- The pending partition is a queue: small and constantly changing. Vacuum runs by count, not by share, and neither
-- sleeps nor takes the exclusive lock that truncating the tail needs.
CREATE TABLE outbox.messages_pending PARTITION OF outbox.messages FOR VALUES IN ('pending') WITH (
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_cost_delay = 0,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 20000,
    vacuum_truncate = off
);

-- Messages for later. When they fall due they become pending, with new ids: so they come behind what was written before.
CREATE TABLE outbox.messages_scheduled PARTITION OF outbox.messages FOR VALUES IN ('scheduled') WITH (
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_cost_delay = 0
);

-- Delivered rows come and go at the same rate once the retention is reached.
CREATE TABLE outbox.messages_delivered PARTITION OF outbox.messages (
    CONSTRAINT messages_delivered_state CHECK (
        delivered_at IS NOT NULL AND dead_at IS NULL AND available_at IS NULL AND deliver_at IS NULL AND attempts >= 0 AND lane BETWEEN 0 AND 15
            AND octet_length(destination) BETWEEN 1 AND 80 AND octet_length(group_id) BETWEEN 1 AND 1024
    )
) FOR VALUES IN ('delivered') WITH (
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_cost_delay = 0
);

CREATE TABLE outbox.messages_dead PARTITION OF outbox.messages (
    CONSTRAINT messages_dead_state CHECK (
        dead_at IS NOT NULL AND last_error IS NOT NULL AND delivered_at IS NULL AND available_at IS NULL
            AND sqs_message_id IS NULL AND deliver_at IS NULL AND attempts >= 0 AND lane BETWEEN 0 AND 15
            AND octet_length(destination) BETWEEN 1 AND 80 AND octet_length(group_id) BETWEEN 1 AND 1024
    )
) FOR VALUES IN ('dead');

CREATE FUNCTION outbox.lane(group_id text, event_position bigint) RETURNS smallint
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT (hashtext(coalesce($1, $2::text)) & 15)::smallint
$$;

COMMENT ON FUNCTION outbox.lane(text, bigint) IS
    'The lane of a message, 0 to 15: the hash of its group, or of its event if it has none.';

-- Neither CHECK constraints nor a generated lane: PostgreSQL parses the stored text of each again for every statement,
-- see outbox.check_event(). Before INSERT it also runs for a message that becomes pending again. There is no trigger
-- before UPDATE, which would lock each row once more when its outcome is recorded. After UPDATE it does not run for a row
-- that moves to another partition.
CREATE FUNCTION outbox.check_message() RETURNS trigger
LANGUAGE plpgsql
AS $$
DECLARE
    problem text;
    hint    text;
BEGIN
    IF TG_OP = 'INSERT' THEN
        NEW.lane := (hashtext(coalesce(NEW.group_id, NEW.event_position::text)) & 15)::smallint;
    ELSIF NEW.status = 'pending'
        AND NEW.lane <> (hashtext(coalesce(NEW.group_id, NEW.event_position::text)) & 15)::smallint THEN
        problem := pg_catalog.format('lane %s is not that of its group', NEW.lane);
        hint := 'Change both: SET group_id = ''draw-7'', lane = outbox.lane(''draw-7'', event_position).';
    END IF;
    -- One expression for the usual case.
    IF NEW.id < 1 OR NOT isfinite(NEW.enqueued_at) OR NEW.attempts < 0
        OR octet_length(NEW.destination) NOT BETWEEN 1 AND 80 OR octet_length(NEW.group_id) NOT BETWEEN 1 AND 1024
        OR NEW.delivered_at IS NOT NULL OR NEW.dead_at IS NOT NULL OR NEW.sqs_message_id IS NOT NULL
        OR (NEW.deliver_at IS NULL) <> (NEW.status = 'pending') OR NOT isfinite(NEW.deliver_at)
        OR (NEW.available_at IS NOT NULL AND NEW.status <> 'pending') THEN
        CASE
            WHEN NEW.status = 'pending' AND NEW.deliver_at IS NOT NULL THEN
                problem := pg_catalog.format('it is pending, and deliver_at is %s', NEW.deliver_at);
                hint := 'A message for later has the status scheduled; to send a scheduled one now, SET deliver_at = now().';
            WHEN NEW.status <> 'pending' AND NEW.deliver_at IS NULL THEN
                problem := 'it is scheduled, and deliver_at is null';
                hint := 'It says when the message is sent; a message to be sent now is pending, which is the default.';
            WHEN NOT isfinite(NEW.deliver_at) THEN
                problem := pg_catalog.format('deliver_at is %s', NEW.deliver_at);
                hint := 'Give a time, or do not write the message.';
            WHEN NEW.status <> 'pending' AND NEW.available_at IS NOT NULL THEN
                problem := 'it is scheduled, and available_at is not null';
                hint := 'deliver_at says when it is sent.';
            WHEN NEW.id < 1 THEN
                problem := pg_catalog.format('id is %s', NEW.id);
                hint := 'Ids begin at 1; leave them to the sequence.';
            WHEN NOT isfinite(NEW.enqueued_at) THEN
                problem := pg_catalog.format('enqueued_at is %s', NEW.enqueued_at);
                hint := 'Lag is counted from there; leave it to its default.';
            WHEN NEW.attempts < 0 THEN
                problem := pg_catalog.format('attempts is %s', NEW.attempts);
                hint := 'It counts failed attempts; leave it to its default.';
            WHEN octet_length(NEW.destination) NOT BETWEEN 1 AND 80 THEN
                problem := pg_catalog.format('a destination of %s bytes', octet_length(NEW.destination));
                hint := 'It is a name of OUTBOX_RELAY_DESTINATIONS, of 1 to 80 bytes.';
            WHEN octet_length(NEW.group_id) NOT BETWEEN 1 AND 1024 THEN
                problem := pg_catalog.format('a group of %s bytes', octet_length(NEW.group_id));
                hint := 'Name the group by an id, for example draw-7; null means that the message has no order.';
            ELSE
                problem := 'delivered_at, dead_at and sqs_message_id are for messages that are not pending';
                hint := 'Set status as well, or leave them null.';
        END CASE;
    END IF;
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION 'impossible message: %', problem
            USING ERRCODE = 'check_violation', HINT = hint, SCHEMA = TG_TABLE_SCHEMA, TABLE = TG_TABLE_NAME;
    END IF;
    RETURN NEW;
END
$$;

COMMENT ON FUNCTION outbox.check_message() IS
    'Refuses impossible pending and scheduled messages, and assigns new ones to their lanes.';

CREATE TRIGGER check_message BEFORE INSERT ON outbox.messages_pending
    FOR EACH ROW EXECUTE FUNCTION outbox.check_message();
CREATE TRIGGER check_change
    AFTER UPDATE OF id, event_position, enqueued_at, lane, destination, group_id, delivered_at, dead_at, sqs_message_id, deliver_at
    ON outbox.messages_pending FOR EACH ROW EXECUTE FUNCTION outbox.check_message();

CREATE TRIGGER check_message BEFORE INSERT ON outbox.messages_scheduled
    FOR EACH ROW EXECUTE FUNCTION outbox.check_message();
CREATE TRIGGER check_change AFTER UPDATE ON outbox.messages_scheduled FOR EACH ROW EXECUTE FUNCTION outbox.check_message();

-- Each partition has its own key. A key on the parent would have to contain the status. With that column in the index,
-- the planner uses "status = 'pending'" to find a row: on a fresh outbox it walked the whole index for every message it
-- marked. Such a key would also make each entry eight bytes longer, for a value that is the same in all of them.
ALTER TABLE outbox.messages_pending ADD PRIMARY KEY (destination, lane, id);
ALTER TABLE outbox.messages_delivered ADD PRIMARY KEY (destination, lane, id);
ALTER TABLE outbox.messages_dead ADD PRIMARY KEY (destination, lane, id);
ALTER TABLE outbox.messages_scheduled ADD PRIMARY KEY (destination, lane, id);

-- Finds what falls due next.
CREATE INDEX messages_scheduled_due ON outbox.messages_scheduled (destination, deliver_at, id);

-- Purging asks which events are still needed.
CREATE INDEX messages_scheduled_events ON outbox.messages_scheduled (event_position);

-- Finds the few rows that wait for a retry, so that ordinary reads never step over them.
CREATE INDEX messages_pending_deferred ON outbox.messages_pending (destination, available_at)
    WHERE available_at IS NOT NULL;

-- Finds them by group, because nothing of a group may overtake its deferred message. Only deferred rows with a group
-- are in it, so the planner cannot use it to find due rows.
CREATE INDEX messages_pending_deferred_groups ON outbox.messages_pending (destination, group_id, id)
    WHERE available_at IS NOT NULL AND group_id IS NOT NULL;

-- Finds whether a group has a dead message, which blocks the group with OUTBOX_RELAY_ON_DEAD=block.
CREATE INDEX messages_dead_groups ON outbox.messages_dead (destination, group_id, id) WHERE group_id IS NOT NULL;

COMMENT ON TABLE outbox.messages IS
    'An event''s delivery to one destination. UPDATE ... SET status moves a row between the partitions.';
COMMENT ON COLUMN outbox.messages.id IS
    'Order of delivery within a group. CACHE 1, so that writers that wait for each other get their ids in that order.';
COMMENT ON COLUMN outbox.messages.event_position IS 'outbox.events.position of the event. No foreign key, on purpose.';
COMMENT ON COLUMN outbox.messages.enqueued_at IS 'When the row was written; lag and latency are counted from here.';
COMMENT ON COLUMN outbox.messages.available_at IS
    'Not before this time: set by a retry, or by hand to hold a message back (infinity: until it is released); null means '
    'now. The messages behind it in its group wait for it. To release it, set it to now(), not to null.';
COMMENT ON COLUMN outbox.messages.delivered_at IS 'When the relay recorded that SQS accepted the message.';
COMMENT ON COLUMN outbox.messages.dead_at IS 'When the message was declared dead.';
COMMENT ON COLUMN outbox.messages.lane IS
    'hash(group) mod 16: the unit that relays claim; a trigger sets it. PostgreSQL may change hashtext between major versions, '
    'and stored values are kept. So let the outbox run empty before such an upgrade, or set the lanes anew; otherwise messages '
    'of a group written before and after may be published by two relays at a time.';
COMMENT ON COLUMN outbox.messages.attempts IS 'Failed attempts that were the fault of the message; outages cost none.';
COMMENT ON COLUMN outbox.messages.destination IS 'Logical queue name; OUTBOX_RELAY_DESTINATIONS maps it to a queue URL.';
COMMENT ON COLUMN outbox.messages.status IS 'pending, scheduled, delivered or dead.';
COMMENT ON COLUMN outbox.messages.deliver_at IS
    'When a scheduled message becomes pending; null otherwise. Until then it holds nothing up. Then it gets a new id, and this '
    'time as enqueued_at.';
COMMENT ON COLUMN outbox.messages.group_id IS
    'Messages of one group reach a FIFO queue in the order of their ids; null means no order.';
COMMENT ON COLUMN outbox.messages.sqs_message_id IS 'The MessageId that SQS returned.';
COMMENT ON COLUMN outbox.messages.sqs_sequence_number IS
    'The SequenceNumber that a FIFO queue returned; it rises within a group in the order of arrival. Of a message that is not '
    'delivered: the number of a copy that SQS accepted before an earlier message of the group, so that another copy follows.';
COMMENT ON COLUMN outbox.messages.last_error IS 'Why the last attempt failed; for a dead message why it is dead.';
COMMENT ON TABLE outbox.messages_pending IS 'Messages that are not published yet.';
COMMENT ON TABLE outbox.messages_scheduled IS 'Messages for later. DELETE cancels one, UPDATE of deliver_at moves it.';
COMMENT ON TABLE outbox.messages_delivered IS
    'Messages that SQS accepted; pruned after OUTBOX_RELAY_DELIVERED_RETENTION.';
COMMENT ON TABLE outbox.messages_dead IS 'Dead messages, kept for an operator.';

-- A transaction gets its transaction id when it writes its first row, which is after that row has got its message id. A relay
-- tells by transaction ids which writers may still commit below an id that it has read, and one without a transaction id
-- would be missed. So the transaction id comes first: before the statement, where the rows have no ids yet.
CREATE FUNCTION outbox.assign_transaction_id() RETURNS trigger
LANGUAGE plpgsql
AS $$
DECLARE
    nothing xid8;
BEGIN
    nothing := pg_current_xact_id();
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION outbox.assign_transaction_id() IS
    'Before messages get their ids: gives the transaction its transaction id, if it has none yet.';

CREATE TRIGGER transaction_id_first BEFORE INSERT ON outbox.messages FOR EACH STATEMENT
WHEN (pg_current_xact_id_if_assigned() IS NULL) EXECUTE FUNCTION outbox.assign_transaction_id();

-- Lane rows are locked, never updated: an updated lock row would bloat under a long transaction.
--
-- Unlogged on purpose: PostgreSQL empties such a table when it recovers from a crash and when a standby is promoted.
-- That is exactly when commits may be lost and ids may be assigned again. Relays then create the rows again with
-- another incarnation, which tells each relay to forget what it knows about this database.
CREATE UNLOGGED TABLE outbox.lanes (
    destination text COLLATE "C" NOT NULL CHECK (octet_length(destination) BETWEEN 1 AND 80),
    lane        smallint NOT NULL CHECK (lane BETWEEN 0 AND 15),
    incarnation uuid NOT NULL DEFAULT gen_random_uuid(),
    PRIMARY KEY (destination, lane)
);

COMMENT ON TABLE outbox.lanes IS
    'One row per lane of a destination. Only the relay that holds its lock publishes that lane.';
COMMENT ON COLUMN outbox.lanes.destination IS 'Logical queue name.';
COMMENT ON COLUMN outbox.lanes.lane IS '0 to 15, as outbox.messages.lane.';
COMMENT ON COLUMN outbox.lanes.incarnation IS
    'Changes with every crash, promotion or restore of the database: what a relay remembers is valid under only one.';

CREATE FUNCTION outbox.find_message(destination text, id bigint) RETURNS SETOF outbox.messages
LANGUAGE sql STABLE
AS $$
    SELECT m.*
    FROM generate_series(0, 15) AS l (lane)
    CROSS JOIN LATERAL (
        SELECT o.*
        FROM outbox.messages AS o
        WHERE o.destination = find_message.destination AND o.lane = l.lane::smallint AND o.id = find_message.id
    ) AS m
$$;

COMMENT ON FUNCTION outbox.find_message(text, bigint) IS
    'A message by its id, whatever its status. Keys begin with the lane, so every lane is probed: 16 index probes.';

-- In PL/pgSQL, which keeps the plans; PostgreSQL plans a function in SQL again at every call. One function for all bodies: of
-- two with a third argument of jsonb and of text, PostgreSQL would take the one with text for a literal.
CREATE FUNCTION outbox.enqueue(
    destination text,
    event_type  text,
    payload     jsonb DEFAULT NULL,
    group_id    text DEFAULT NULL,
    metadata    jsonb DEFAULT '{}',
    deliver_at  timestamptz DEFAULT NULL,
    body        text DEFAULT NULL,
    body_bytes  bytea DEFAULT NULL
) RETURNS bigint
LANGUAGE plpgsql VOLATILE
AS $$
#variable_conflict use_column
DECLARE
    event bigint;
    id    bigint;
BEGIN
    INSERT INTO outbox.events (event_type, payload, metadata, destinations, body, body_bytes)
    VALUES ($2, $3, coalesce($5, '{}'), pg_catalog.jsonb_build_object($1, $4), $7, $8)
    RETURNING events.position INTO event;
    IF $6 > clock_timestamp() THEN
        INSERT INTO outbox.messages (destination, event_position, group_id, status, deliver_at)
        VALUES ($1, event, $4, 'scheduled', $6)
        RETURNING messages.id INTO id;
    ELSE
        INSERT INTO outbox.messages (destination, event_position, group_id) VALUES ($1, event, $4)
        RETURNING messages.id INTO id;
    END IF;
    RETURN id;
END
$$;

COMMENT ON FUNCTION outbox.enqueue(text, text, jsonb, text, jsonb, timestamptz, text, bytea) IS
    'Records an event and one message that carries it to the destination, in the caller''s transaction; not before deliver_at, if '
    'it is given. The body is the payload (JSON), or body => (any text), or body_bytes => (sent in base64). Returns the message id. '
    'That of a scheduled message is its own until it falls due.';

-- With the privileges of its owner: a relay writes no messages but these. Its plans are kept, and the table may have been
-- empty when they were made.
CREATE FUNCTION outbox.enqueue_due(
    destination text, max_count bigint, pass_over bigint[] DEFAULT '{}',
    OUT moved bigint, OUT refused bigint, OUT code text, OUT problem text
)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off
AS $$
DECLARE
    due tid[];
    ids bigint[];
BEGIN
    moved := 0;
    -- One relay at a time, so that messages of a group become pending in the order of their times.
    IF NOT pg_try_advisory_xact_lock(x'6F750002'::int, hashtext('outbox' || $1)) THEN
        RETURN;
    END IF;
    SELECT pg_catalog.array_agg(d.ctid), pg_catalog.array_agg(d.id) INTO due, ids
    FROM (
        SELECT o.ctid, o.id
        FROM outbox.messages_scheduled AS o
        WHERE o.destination = $1 AND o.deliver_at <= now() AND o.id <> ALL ($3)
        ORDER BY o.deliver_at, o.id
        LIMIT $2
        -- Somebody may be about to cancel one.
        FOR UPDATE SKIP LOCKED
    ) AS d;
    WITH taken AS (
        DELETE FROM outbox.messages_scheduled AS m
        WHERE m.ctid = ANY (due)
        RETURNING m.id, m.deliver_at, m.event_position, m.group_id
    ), enqueued AS (
        INSERT INTO outbox.messages (destination, event_position, group_id, enqueued_at)
        SELECT $1, t.event_position, t.group_id, t.deliver_at FROM taken AS t ORDER BY t.deliver_at, t.id
        RETURNING 1
    )
    SELECT count(*) INTO moved FROM enqueued;
EXCEPTION WHEN OTHERS THEN
    -- One of several: they are tried in smaller parts.
    IF pg_catalog.cardinality(ids) IS DISTINCT FROM 1 THEN
        RAISE;
    END IF;
    moved := 0;
    refused := ids[1];
    GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, problem = MESSAGE_TEXT;
END
$$;

REVOKE ALL ON FUNCTION outbox.enqueue_due(text, bigint, bigint[]) FROM PUBLIC;

COMMENT ON FUNCTION outbox.enqueue_due(text, bigint, bigint[]) IS
    'Makes scheduled messages of a destination pending that have fallen due, at most so many, the earliest first, but for those '
    'with these ids; returns how many, and the id of one that was refused alone, with the reason. Relays call it.';

-- Only for an event that has a body other than a payload, or a member that is not known: the others are not slowed down.
CREATE FUNCTION outbox.event_problem(event jsonb, known text[]) RETURNS text
LANGUAGE plpgsql IMMUTABLE
AS $$
DECLARE
    others  CONSTANT jsonb := event - known - '{payload,body,body_base64}'::text[];
    bodies  CONSTANT integer := (event ? 'payload'::text)::integer + (event ->> 'body'::text IS NOT NULL)::integer
        + (event ->> 'body_base64'::text IS NOT NULL)::integer;
    encoded CONSTANT text := translate(event ->> 'body_base64'::text, E' \t\r\n', '');
BEGIN
    RETURN CASE
        WHEN others <> '{}' THEN pg_catalog.format('has members that are not known: %s', others)
        WHEN bodies = 0 THEN 'has no payload, body or body_base64'
        WHEN bodies > 1 THEN 'has more than one of payload, body and body_base64'
        WHEN jsonb_typeof(event -> 'body'::text) NOT IN ('string', 'null') THEN 'has a body that is no string'
        WHEN event ->> 'body'::text = '' THEN 'has an empty body'
        WHEN outbox.refused_character(event ->> 'body'::text) IS NOT NULL
            THEN pg_catalog.format('has a body with %s, which SQS refuses', outbox.refused_character(event ->> 'body'::text))
        WHEN jsonb_typeof(event -> 'body_base64'::text) NOT IN ('string', 'null') THEN 'has a body_base64 that is no string'
        WHEN encoded = '' THEN 'has an empty body_base64'
        WHEN encoded !~ '^([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$' THEN 'has a body_base64 that is no base64'
    END;
END
$$;

COMMENT ON FUNCTION outbox.event_problem(jsonb, text[]) IS
    'What is wrong with the body of an event in JSON, or with its members besides those that are known and the body; null if nothing is.';

CREATE FUNCTION outbox.enqueue_many(destination text, events jsonb) RETURNS SETOF bigint
LANGUAGE plpgsql VOLATILE
AS $$
#variable_conflict use_column
DECLARE
    now     CONSTANT timestamptz := clock_timestamp();
    example CONSTANT text :=
        'An event is {"event_type": "TicketPurchased", "payload": ...} and may have group_id, metadata and deliver_at. Instead of a '
        'payload it may have a body (text) or a body_base64.';
    wrong   record;
BEGIN
    IF jsonb_typeof($2) IS DISTINCT FROM 'array' THEN
        RAISE EXCEPTION 'events must be a JSON array' USING ERRCODE = 'invalid_parameter_value', HINT = example;
    END IF;
    SELECT w.n, w.problem INTO wrong
    FROM (
        SELECT e.n, CASE
            WHEN jsonb_typeof(e.event) <> 'object' THEN 'is not an object'
            WHEN jsonb_typeof(e.event -> 'event_type'::text) IS DISTINCT FROM 'string' OR e.event ->> 'event_type'::text = ''
                THEN 'has no event_type'
            WHEN jsonb_typeof(e.event -> 'group_id'::text) NOT IN ('string', 'null') THEN 'has a group_id that is no string'
            WHEN jsonb_typeof(e.event -> 'metadata'::text) NOT IN ('object', 'null') THEN 'has metadata that are no object'
            WHEN jsonb_typeof(e.event -> 'deliver_at'::text) NOT IN ('string', 'null') THEN 'has a deliver_at that is no string'
            WHEN NOT e.event ? 'payload'::text OR e.event - '{event_type,payload,group_id,metadata,deliver_at}'::text[] <> '{}'
                THEN outbox.event_problem(e.event, '{event_type,group_id,metadata,deliver_at}')
        END AS problem
        FROM jsonb_array_elements($2) WITH ORDINALITY AS e (event, n)
    ) AS w
    WHERE w.problem IS NOT NULL
    ORDER BY w.n
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'event % of the array %', wrong.n, wrong.problem
            USING ERRCODE = 'invalid_parameter_value', HINT = example;
    END IF;
    RETURN QUERY
        WITH event AS (
            INSERT INTO outbox.events (event_type, payload, metadata, destinations, body, body_bytes)
            SELECT
                e.event ->> 'event_type'::text, e.event -> 'payload'::text, coalesce(nullif(e.event -> 'metadata'::text, 'null'), '{}'),
                pg_catalog.jsonb_build_object($1, e.event -> 'group_id'::text), e.event ->> 'body'::text,
                decode(e.event ->> 'body_base64'::text, 'base64')
            FROM jsonb_array_elements($2) WITH ORDINALITY AS e (event, n)
            ORDER BY e.n
            RETURNING events.position
        ), numbered AS (
            SELECT e.position, row_number() OVER (ORDER BY e.position) AS n FROM event AS e
        ), message AS (
            INSERT INTO outbox.messages (destination, event_position, group_id, status, deliver_at)
            SELECT
                $1, e.position, g.event ->> 'group_id'::text, CASE WHEN l.deliver_at IS NULL THEN 'pending' ELSE 'scheduled' END,
                l.deliver_at
            FROM numbered AS e
            JOIN jsonb_array_elements($2) WITH ORDINALITY AS g (event, n) ON g.n = e.n
            LEFT JOIN LATERAL (
                SELECT (g.event ->> 'deliver_at'::text)::timestamptz AS deliver_at
            ) AS l ON l.deliver_at > now
            ORDER BY e.position
            RETURNING messages.id
        )
        SELECT m.id FROM message AS m ORDER BY m.id;
END
$$;

COMMENT ON FUNCTION outbox.enqueue_many(text, jsonb) IS
    'The same for a JSON array of events, in its order: [{"event_type": ..., "payload": ..., "group_id": ..., "metadata": ..., '
    '"deliver_at": ...}]. The last three may be left out; instead of "payload" there may be "body", a string, or "body_base64". '
    'Returns the message ids.';
