-- Three roles with exactly the rights they need: the application that writes, the relay that publishes, and the operator who
-- decides about dead messages.
--
-- A template: choose names and passwords. Run it as the owner of the schema after `outbox-relay migrate`, which itself
-- belongs to the owner and not to the relay.

CREATE ROLE outbox_application LOGIN PASSWORD 'change me';
CREATE ROLE outbox_relay LOGIN PASSWORD 'change me';
CREATE ROLE outbox_operator LOGIN PASSWORD 'change me';

GRANT USAGE ON SCHEMA outbox TO outbox_application, outbox_relay, outbox_operator;

-- The application appends and reads its streams back. It decides neither what a message's state is nor when an event was
-- recorded, and of the messages it sees only the ids that its own inserts return.
GRANT SELECT ON outbox.events TO outbox_application;
GRANT INSERT (event_id, event_type, stream_id, stream_version, payload, metadata) ON outbox.events TO outbox_application;
GRANT INSERT (destination, event_position, group_id), SELECT (id) ON outbox.messages TO outbox_application;

-- The relay reads events and never writes them. It moves messages from state to state and deletes those whose retention
-- is over; rights on the table reach its partitions, but some statements name the partition of what is pending or dead.
GRANT SELECT ON outbox.events, outbox.migrations, outbox.messages_pending, outbox.messages_dead TO outbox_relay;
GRANT SELECT, UPDATE, DELETE ON outbox.messages TO outbox_relay;
GRANT SELECT ON SEQUENCE outbox.messages_id_seq TO outbox_relay;

-- Lanes are made at the first start for a destination. They are only ever locked, which takes the right to update them.
GRANT SELECT, INSERT, UPDATE ON outbox.lanes TO outbox_relay;

-- The operator looks at everything, redrives and discards dead messages, and adds to the record of that.
GRANT SELECT ON ALL TABLES IN SCHEMA outbox TO outbox_operator;
GRANT UPDATE ON outbox.messages, outbox.messages_dead TO outbox_operator;
GRANT DELETE ON outbox.messages_dead TO outbox_operator;
GRANT INSERT ON outbox.actions TO outbox_operator;
