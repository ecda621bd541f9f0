-- Messages: an event's delivery to one destination, partitioned by status, and the lanes that relays claim.
-- docs/decisions/0002-slim-messages-partitioned-by-status.md explains the design of the tables.

CREATE TABLE outbox.messages (
    id             bigint GENERATED ALWAYS AS IDENTITY (CACHE 1),
    event_position bigint NOT NULL,
    enqueued_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    available_at   timestamptz,
    delivered_at   timestamptz,
    dead_at        timestamptz,
    lane           smallint NOT NULL GENERATED ALWAYS AS
                   ((hashtext(coalesce(group_id, event_position::text)) & 15)::smallint) STORED,
    attempts       smallint NOT NULL DEFAULT 0 CHECK (attempts >= 0),
    destination    text COLLATE "C" NOT NULL CHECK (octet_length(destination) BETWEEN 1 AND 80),
    status         text COLLATE "C" NOT NULL DEFAULT 'pending',
    group_id       text COLLATE "C" CHECK (octet_length(group_id) BETWEEN 1 AND 1024),
    sqs_message_id text,
    last_error     text,
    CONSTRAINT messages_delivered_has_time CHECK ((status = 'delivered') = (delivered_at IS NOT NULL)),
    CONSTRAINT messages_dead_has_time_and_reason
        CHECK ((status = 'dead') = (dead_at IS NOT NULL) AND (status <> 'dead' OR last_error IS NOT NULL)),
    CONSTRAINT messages_only_pending_waits CHECK (available_at IS NULL OR status = 'pending'),
    CONSTRAINT messages_only_delivered_has_sqs_id CHECK (sqs_message_id IS NULL OR status = 'delivered')
) PARTITION BY LIST (status);

-- The pending partition is a queue: small and constantly changing. Vacuum runs by count, not by share, and neither
-- sleeps nor takes the exclusive lock that truncating the tail needs. The checks here hold when a row leaves, so they
-- are not repeated when it is delivered.
CREATE TABLE outbox.messages_pending PARTITION OF outbox.messages (
    CONSTRAINT messages_pending_id CHECK (id > 0),
    CONSTRAINT messages_pending_time CHECK (isfinite(enqueued_at))
) FOR VALUES IN ('pending') WITH (
    autovacuum_vacuum_scale_factor = 0,
    autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_cost_delay = 0,
    autovacuum_analyze_scale_factor = 0,
    autovacuum_analyze_threshold = 20000,
    vacuum_truncate = off
);

-- Delivered rows come and go at the same rate once the retention is reached.
CREATE TABLE outbox.messages_delivered PARTITION OF outbox.messages FOR VALUES IN ('delivered') WITH (
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_cost_delay = 0
);

CREATE TABLE outbox.messages_dead PARTITION OF outbox.messages FOR VALUES IN ('dead');

-- Each partition has its own key. A key on the parent would have to contain the status. With that column in the index,
-- the planner uses "status = 'pending'" to find a row: on a fresh outbox it walked the whole index for every message it
-- marked. Such a key would also make each entry eight bytes longer, for a value that is the same in all of them.
ALTER TABLE outbox.messages_pending ADD PRIMARY KEY (destination, lane, id);
ALTER TABLE outbox.messages_delivered ADD PRIMARY KEY (destination, lane, id);
ALTER TABLE outbox.messages_dead ADD PRIMARY KEY (destination, lane, id);

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
    'hash(group) mod 16: the unit that relays claim. PostgreSQL may change hashtext between major versions, and pg_upgrade '
    'keeps stored values. So let the outbox run empty before it; otherwise messages of a group written before and after may '
    'be published by two relays at a time.';
COMMENT ON COLUMN outbox.messages.attempts IS 'Failed attempts that were the fault of the message; outages cost none.';
COMMENT ON COLUMN outbox.messages.destination IS 'Logical queue name; OUTBOX_RELAY_DESTINATIONS maps it to a queue URL.';
COMMENT ON COLUMN outbox.messages.status IS 'pending, delivered or dead.';
COMMENT ON COLUMN outbox.messages.group_id IS
    'Messages of one group reach a FIFO queue in the order of their ids; null means no order.';
COMMENT ON COLUMN outbox.messages.sqs_message_id IS 'The MessageId that SQS returned.';
COMMENT ON COLUMN outbox.messages.last_error IS 'Why the last attempt failed; for a dead message why it is dead.';
COMMENT ON TABLE outbox.messages_pending IS 'Messages that are not published yet.';
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

CREATE FUNCTION outbox.enqueue(
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

COMMENT ON FUNCTION outbox.enqueue(text, text, jsonb, text, jsonb) IS
    'Records an event and one message that carries it to the destination, in the caller''s transaction. Returns the message id.';
