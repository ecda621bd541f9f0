-- One table: a view in Debezium's outbox layout, for object mappers and for applications that write such a table already.
-- An INSERT writes one event, and a message to each destination that outbox.routes has for its aggregate type.
-- docs/one-table.md describes it.

CREATE TABLE outbox.routes (
    aggregatetype text COLLATE "C" NOT NULL CHECK (length(aggregatetype) BETWEEN 1 AND 255),
    destination   text COLLATE "C" NOT NULL CHECK (octet_length(destination) BETWEEN 1 AND 80),
    is_grouped    boolean NOT NULL DEFAULT true,
    PRIMARY KEY (aggregatetype, destination)
);

COMMENT ON TABLE outbox.routes IS
    'Where rows of outbox.outboxevent are sent: a message to each destination of their aggregate type.';
COMMENT ON COLUMN outbox.routes.aggregatetype IS
    'As in outbox.outboxevent; * means all types without a route of their own.';
COMMENT ON COLUMN outbox.routes.destination IS 'As outbox.messages.destination.';
COMMENT ON COLUMN outbox.routes.is_grouped IS
    'Whether aggregateid is the group of the messages, which keeps their order; false means no group and no order.';

-- What the view shows: rows that the transaction itself has written, and nobody else's. Whoever reads from it what is left
-- to be sent finds nothing, so an old job that was forgotten sends nothing twice; and a role that may only write sees no
-- payload but its own.

-- outbox.write_event() notes it. A subtransaction that is rolled back takes its note with it.
--
-- This function and the next decide what a login may see that cannot read outbox.events, so they do not look for functions,
-- operators and types where that login says. The note they may believe: it only chooses among rows of the own transaction.
CREATE FUNCTION outbox.written_above() RETURNS bigint
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    note CONSTANT text := current_setting('outbox.written_above', true);
BEGIN
    RETURN CASE WHEN split_part(note, ' ', 1) = pg_current_xact_id_if_assigned()::text
        THEN split_part(note, ' ', 2)::bigint
        ELSE 9223372036854775807
    END;
END
$$;

COMMENT ON FUNCTION outbox.written_above() IS
    'All events that the current transaction has written by outbox.outboxevent have positions above this one.';

CREATE FUNCTION outbox.is_own(event_position bigint, written_above bigint, writer xid) RETURNS boolean
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    own   CONSTANT bigint := pg_current_xact_id_if_assigned()::text::bigint;
    -- How far the writer's transaction id is ahead; an id in a row has only the lower 32 bits.
    ahead CONSTANT bigint := ($3::text::bigint - own) & 4294967295;
BEGIN
    -- Rows above that position are younger than this transaction, so these ids are not from an earlier turn of 32 bits.
    -- What is seen although its writer has not committed is one's own, also if a subtransaction wrote it: those have
    -- later ids.
    RETURN CASE
        WHEN $1 > $2 AND ahead < 2147483648 THEN pg_xact_status((own + ahead)::text::xid8) = 'in progress'
        ELSE false
    END;
END
$$;

COMMENT ON FUNCTION outbox.is_own(bigint, bigint, xid) IS
    'Whether the current transaction has written this row of outbox.events by outbox.outboxevent.';

-- A barrier: conditions of a query must not see the rows that are left out. The position is asked for in a subquery, so that
-- the planner does not know it: it would find a row by its position instead of its id, walking all that the transaction wrote.
CREATE VIEW outbox.outboxevent WITH (security_barrier) AS
SELECT
    e.event_id AS id,
    (e.metadata ->> 'aggregatetype'::text)::varchar(255) AS aggregatetype,
    (e.metadata ->> 'aggregateid'::text)::varchar(255) AS aggregateid,
    e.event_type::varchar(255) AS type,
    e.payload,
    e.metadata - '{aggregatetype,aggregateid}'::text[] AS metadata,
    (SELECT min(m.deliver_at) FROM outbox.messages_scheduled AS m WHERE m.event_position = e.position) AS deliver_at
FROM outbox.events AS e
WHERE e.position > (SELECT outbox.written_above()) AND outbox.is_own(e.position, (SELECT outbox.written_above()), e.xmin)
    AND e.metadata ? 'aggregatetype'::text;

COMMENT ON VIEW outbox.outboxevent IS
    'Events and messages as one table, in Debezium''s layout. INSERT writes an event and its messages; DELETE is accepted and changes '
    'nothing; UPDATE is refused. It shows what the current transaction has written through it.';
COMMENT ON COLUMN outbox.outboxevent.id IS 'outbox.events.event_id; generated if it is null.';
COMMENT ON COLUMN outbox.outboxevent.aggregatetype IS 'Chooses the routes; sent as an attribute.';
COMMENT ON COLUMN outbox.outboxevent.aggregateid IS
    'The group of the messages, unless the route has none; sent as an attribute.';
COMMENT ON COLUMN outbox.outboxevent.type IS 'outbox.events.event_type.';
COMMENT ON COLUMN outbox.outboxevent.payload IS 'outbox.events.payload; null is sent as the JSON text null.';
COMMENT ON COLUMN outbox.outboxevent.metadata IS 'More members for outbox.events.metadata: attributes, such as traceparent.';
COMMENT ON COLUMN outbox.outboxevent.deliver_at IS 'Not before this time; null means now.';

-- With the privileges of its owner: whoever may INSERT into the view can send where the routes lead, and needs no right on
-- the tables.
CREATE FUNCTION outbox.write_event() RETURNS trigger
LANGUAGE plpgsql VOLATILE SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    targets text[];
    groups  text[];
    event   bigint;
    nothing text;
    problem text;
    hint    text;
BEGIN
    SELECT pg_catalog.array_agg(r.destination), pg_catalog.array_agg(CASE WHEN r.is_grouped THEN NEW.aggregateid END)
    INTO targets, groups
    FROM outbox.routes AS r
    WHERE r.aggregatetype = NEW.aggregatetype;
    IF targets IS NULL THEN
        SELECT pg_catalog.array_agg(r.destination), pg_catalog.array_agg(CASE WHEN r.is_grouped THEN NEW.aggregateid END)
        INTO targets, groups
        FROM outbox.routes AS r
        WHERE r.aggregatetype = '*';
    END IF;
    IF targets IS NULL OR coalesce(NEW.aggregatetype, '') = '' OR NEW.aggregateid IS NULL OR coalesce(NEW.type, '') = '' THEN
        CASE
            WHEN coalesce(NEW.aggregatetype, '') = '' THEN
                problem := 'aggregatetype is empty';
                hint := 'It names the kind of aggregate, for example Order, and chooses the destinations.';
            WHEN NEW.aggregateid IS NULL THEN
                problem := 'aggregateid is null';
                hint := 'It names the aggregate, for example 7, and is the group unless the route has is_grouped = false.';
            WHEN coalesce(NEW.type, '') = '' THEN
                problem := 'type is empty';
                hint := 'It names what has happened, for example OrderCreated.';
            ELSE
                problem := pg_catalog.format('aggregatetype %L has no route', NEW.aggregatetype);
                hint := pg_catalog.format(
                    'INSERT INTO outbox.routes (aggregatetype, destination) VALUES (%L, ''a name of OUTBOX_RELAY_DESTINATIONS''); '
                    'the type * stands for all that have none.', NEW.aggregatetype
                );
        END CASE;
        RAISE EXCEPTION 'impossible row: %', problem
            USING ERRCODE = 'check_violation', HINT = hint, SCHEMA = TG_TABLE_SCHEMA, TABLE = TG_TABLE_NAME;
    END IF;
    NEW.id := coalesce(NEW.id, outbox.time_ordered_uuid());
    INSERT INTO outbox.events (event_id, event_type, payload, metadata, destinations)
    VALUES (
        NEW.id, NEW.type, coalesce(NEW.payload, 'null'),
        coalesce(nullif(NEW.metadata, 'null'), '{}')
            || pg_catalog.jsonb_build_object('aggregatetype', NEW.aggregatetype, 'aggregateid', NEW.aggregateid),
        jsonb_object(targets, groups)
    )
    RETURNING events.position INTO event;
    FOR i IN 1 .. pg_catalog.cardinality(targets) LOOP
        IF NEW.deliver_at > clock_timestamp() THEN
            INSERT INTO outbox.messages (destination, event_position, group_id, status, deliver_at)
            VALUES (targets[i], event, groups[i], 'scheduled', NEW.deliver_at);
        ELSE
            INSERT INTO outbox.messages (destination, event_position, group_id) VALUES (targets[i], event, groups[i]);
        END IF;
    END LOOP;
    -- The first row of a transaction is noted, for outbox.written_above(). A single expression, as in outbox.fence().
    nothing := CASE
        WHEN split_part(current_setting('outbox.written_above', true), ' ', 1) IS DISTINCT FROM pg_current_xact_id()::text
        THEN set_config('outbox.written_above', pg_catalog.concat(pg_current_xact_id(), ' ', event - 1), true)
    END;
    RETURN NEW;
END
$$;

REVOKE ALL ON FUNCTION outbox.write_event() FROM PUBLIC;

COMMENT ON FUNCTION outbox.write_event() IS
    'A row of outbox.outboxevent becomes an event and a message to each destination of its routes.';

CREATE TRIGGER write_event INSTEAD OF INSERT ON outbox.outboxevent FOR EACH ROW EXECUTE FUNCTION outbox.write_event();

-- Applications that write for Debezium often delete the row at once, so that the table stays empty. The message is sent
-- all the same, as with Debezium; the row is reported as deleted, because object mappers count.
CREATE FUNCTION outbox.keep_event() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    IF TG_OP = 'UPDATE' THEN
        RAISE EXCEPTION 'events are facts and are not changed: UPDATE on outbox.outboxevent'
            USING ERRCODE = 'restrict_violation',
                HINT = 'Give a row all its values when it is inserted, or insert an event that corrects it.';
    END IF;
    RETURN OLD;
END
$$;

COMMENT ON FUNCTION outbox.keep_event() IS 'Accepts a DELETE and changes nothing; refuses an UPDATE.';

CREATE TRIGGER keep_event INSTEAD OF UPDATE OR DELETE ON outbox.outboxevent
    FOR EACH ROW EXECUTE FUNCTION outbox.keep_event();
