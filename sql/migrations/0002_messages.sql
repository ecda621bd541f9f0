-- Messages: an event's delivery to one destination, partitioned by status, and the lanes that relays claim.
-- docs/decisions/0002-slim-messages-partitioned-by-status.md tells why the tables look as they do.

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

-- The pending partition is a queue: small, all churn. Vacuum it by count, not by share, and let vacuum neither sleep
-- nor take the exclusive lock that truncating the tail needs.
-- What is checked here was so when it leaves, and is not checked again when it is delivered.
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

-- Each partition has a key of its own. One on the parent would have to contain the status, and with that column in the
-- index the planner takes "status = 'pending'" for a way to find a row: on a fresh outbox it walked the whole index for
-- every message it marked. It would also make each entry eight bytes longer for a value that is the same in all of them.
ALTER TABLE outbox.messages_pending ADD PRIMARY KEY (destination, lane, id);
ALTER TABLE outbox.messages_delivered ADD PRIMARY KEY (destination, lane, id);
ALTER TABLE outbox.messages_dead ADD PRIMARY KEY (destination, lane, id);

-- The few rows that wait for a retry are found here, so that ordinary reads never step over them.
CREATE INDEX messages_pending_deferred ON outbox.messages_pending (destination, available_at)
    WHERE available_at IS NOT NULL;

-- And by their group, because nothing of a group may overtake its message that waits. Only deferred rows with a group are in
-- it, so that the planner cannot take it for a way to those that are due.
CREATE INDEX messages_pending_deferred_groups ON outbox.messages_pending (destination, group_id, id)
    WHERE available_at IS NOT NULL AND group_id IS NOT NULL;

-- Whether a group has a dead message, which holds it up with OUTBOX_RELAY_ON_DEAD=block.
CREATE INDEX messages_dead_groups ON outbox.messages_dead (destination, group_id, id) WHERE group_id IS NOT NULL;

COMMENT ON TABLE outbox.messages IS
    'An event''s delivery to one destination. UPDATE ... SET status moves a row between the partitions.';
COMMENT ON COLUMN outbox.messages.id IS
    'Order of delivery within a group. CACHE 1, so that writers that wait for each other get their ids in that order.';
COMMENT ON COLUMN outbox.messages.event_position IS 'outbox.events.position of the event. No foreign key, on purpose.';
COMMENT ON COLUMN outbox.messages.enqueued_at IS 'When the row was written; lag and latency are counted from here.';
COMMENT ON COLUMN outbox.messages.available_at IS
    'Not before this time: set by a retry, or by hand to hold a message back (infinity: until somebody says otherwise); '
    'null means now. What follows in its group waits behind it. To let it go, set it to now(), not to null.';
COMMENT ON COLUMN outbox.messages.delivered_at IS 'When the relay recorded that SQS accepted the message.';
COMMENT ON COLUMN outbox.messages.dead_at IS 'When the relay gave the message up.';
COMMENT ON COLUMN outbox.messages.lane IS
    'hash(group) mod 16: what relays claim. PostgreSQL may change hashtext between major versions; stored values stay '
    'under pg_upgrade, so let the outbox run empty before one, or messages of a group written before and after may be '
    'published by two relays at a time.';
COMMENT ON COLUMN outbox.messages.attempts IS 'Failed attempts that were the message''s own fault; outages cost none.';
COMMENT ON COLUMN outbox.messages.destination IS 'Logical queue name; OUTBOX_RELAY_DESTINATIONS maps it to a queue URL.';
COMMENT ON COLUMN outbox.messages.status IS 'pending, delivered or dead.';
COMMENT ON COLUMN outbox.messages.group_id IS
    'Messages of one group reach a FIFO queue in the order of their ids; null means no order is asked for.';
COMMENT ON COLUMN outbox.messages.sqs_message_id IS 'The MessageId that SQS answered.';
COMMENT ON COLUMN outbox.messages.last_error IS 'Why the last attempt failed; for a dead message the reason.';
COMMENT ON TABLE outbox.messages_pending IS 'Messages that wait to be published.';
COMMENT ON TABLE outbox.messages_delivered IS
    'Messages that SQS accepted; pruned after OUTBOX_RELAY_DELIVERED_RETENTION.';
COMMENT ON TABLE outbox.messages_dead IS 'Messages that were given up, kept for an operator.';

-- Lane rows are locked, never updated: an updated lock row would bloat under a long transaction.
--
-- Unlogged on purpose: PostgreSQL empties such a table when it recovers from a crash and when a standby is promoted, just
-- when commits may be lost and ids may be given anew. Relays then make the rows again, with another incarnation, which tells
-- each of them to forget what it has learnt of this database.
CREATE UNLOGGED TABLE outbox.lanes (
    destination text COLLATE "C" NOT NULL CHECK (octet_length(destination) BETWEEN 1 AND 80),
    lane        smallint NOT NULL CHECK (lane BETWEEN 0 AND 15),
    incarnation uuid NOT NULL DEFAULT gen_random_uuid(),
    PRIMARY KEY (destination, lane)
);

COMMENT ON TABLE outbox.lanes IS
    'One row for each slice of a destination. The relay that has it locked is the only one that publishes that lane.';
COMMENT ON COLUMN outbox.lanes.destination IS 'Logical queue name.';
COMMENT ON COLUMN outbox.lanes.lane IS '0 to 15, as outbox.messages.lane.';
COMMENT ON COLUMN outbox.lanes.incarnation IS
    'Another one after every crash, promotion or restore of the database: what a relay remembers is valid under one only.';

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
    'A message by its id, whatever became of it. Keys begin with the lane, so each lane is looked at: 16 probes of an index.';

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
