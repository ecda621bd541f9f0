-- Five roles without a login, each with exactly the privileges its work needs. Grant them to the roles your teams log
-- in with:
--
--     psql --no-psqlrc --set ON_ERROR_STOP=1 --file deploy/roles.sql "$OWNER_URL"
--     psql --command 'GRANT outbox_relay TO the_relays_login' "$OWNER_URL"
--
-- Run it after `outbox-relay migrate` as the owner of the schema, if the owner may create roles, or as a superuser. Run
-- it again after every release that migrates, because a new table has no grants at first. It may run any number of
-- times on PostgreSQL 13 to 18. It is one transaction, so a running relay never notices.
--
-- This is for the schema `outbox`. `outbox-relay generate roles --schema NAME` prints it for another one, with roles that
-- are named after that.

BEGIN;

-- Functions and operators that somebody may have created in a schema on the path would run with your rights.
SET LOCAL search_path = pg_catalog, pg_temp;

DO $$
DECLARE
    role text;
BEGIN
    FOREACH role IN ARRAY ARRAY['outbox_application', 'outbox_relay', 'outbox_operator', 'outbox_reader', 'outbox_consumer'] LOOP
        -- Roles belong to the cluster, so another database's outbox may have created them already.
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role) THEN
            EXECUTE format('CREATE ROLE %I NOLOGIN', role);
        END IF;
    END LOOP;
END
$$;

-- Privileges granted by an older version of this file are revoked, so that these lines are all there is.
REVOKE ALL ON SCHEMA outbox FROM outbox_application, outbox_relay, outbox_operator, outbox_reader,
    outbox_consumer;
REVOKE ALL ON ALL TABLES IN SCHEMA outbox FROM outbox_application, outbox_relay, outbox_operator, outbox_reader,
    outbox_consumer;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA outbox FROM outbox_application, outbox_relay, outbox_operator, outbox_reader,
    outbox_consumer;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA outbox FROM outbox_application, outbox_relay, outbox_operator, outbox_reader,
    outbox_consumer;

GRANT USAGE ON SCHEMA outbox TO outbox_application, outbox_relay, outbox_operator, outbox_reader,
    outbox_consumer;

-- Every callable function but outbox.enqueue_due runs with the privileges of its caller, so the permission to call it grants
-- no access to a table. By default PUBLIC may call functions; the grants are for databases where that was revoked.

-- The application only appends. It decides neither when an event was recorded nor the state of a message. It can read
-- what identifies an event, never its content: RETURNING, ON CONFLICT and the next version of a stream need that.
-- Privileges on the parent apply to the partitions, and identity columns need none on their sequence.
GRANT INSERT (event_id, stream_id, stream_version, event_type, payload, metadata, destinations, body, body_bytes),
    SELECT (position, event_id, stream_id, stream_version) ON outbox.events TO outbox_application;
GRANT INSERT (destination, event_position, group_id, status, deliver_at), SELECT (id) ON outbox.messages TO outbox_application;
-- It may cancel and move what it has scheduled. No other state of a message can be written with these columns alone.
GRANT SELECT, DELETE, UPDATE (deliver_at) ON outbox.messages_scheduled TO outbox_application;
-- outbox.append takes larger events for destinations with a claim check.
GRANT SELECT (name, claim_check) ON outbox.destinations TO outbox_application;
-- The trigger outbox.fence looks at the last position that was handed out.
GRANT SELECT ON SEQUENCE outbox.events_position_seq TO outbox_application;
GRANT EXECUTE ON FUNCTION outbox.time_ordered_uuid, outbox.refused_character, outbox.event_problem, outbox.enqueue,
    outbox.enqueue_many, outbox.check_stream, outbox.check_max_count,
    outbox.message_bytes, outbox.check_size, outbox.check_append, outbox.append, outbox.stream_version, outbox.read_stream TO outbox_application;
-- The outbox as one table. An INSERT there has its owner's privileges, so these rights alone are enough for a login that
-- writes no other way: GRANT USAGE ON SCHEMA outbox, and these. They let it send where outbox.routes leads, and see what
-- its own transaction has written. UPDATE is refused with a hint.
GRANT SELECT, INSERT, UPDATE, DELETE ON outbox.outboxevent TO outbox_application;
GRANT EXECUTE ON FUNCTION outbox.written_above, outbox.is_own TO outbox_application;
-- If outbox.events is also the event store, from which the application reads its streams with outbox.read_stream, make
-- its user a member of outbox_reader as well.

-- The relay reads events and never writes them. Of a message it changes only the outcome, never the content. Moving a
-- message to another partition needs only the privilege to update those columns of the parent; deleting is for messages
-- older than the retention. Some statements name a partition, whose own privileges count then. outbox.migrations shows
-- whether the schema fits.
GRANT SELECT ON outbox.events, outbox.messages, outbox.messages_pending, outbox.messages_dead, outbox.messages_scheduled,
    outbox.migrations TO outbox_relay;
-- Scheduled messages become pending by this function, which has its owner's privileges.
GRANT EXECUTE ON FUNCTION outbox.enqueue_due TO outbox_relay;
-- `outbox-relay check` compares them with the relay's destinations.
GRANT SELECT ON outbox.routes TO outbox_relay;
-- What operators have decided, and the replays that the status page shows.
GRANT SELECT ON outbox.pauses, outbox.settings, outbox.destinations, outbox.replays TO outbox_relay;
-- Which destinations it serves, so that messages which nobody serves can be told.
GRANT SELECT, INSERT, UPDATE (seen_at) ON outbox.served TO outbox_relay;
GRANT UPDATE (status, attempts, available_at, delivered_at, dead_at, sqs_message_id, sqs_sequence_number, last_error), DELETE
    ON outbox.messages TO outbox_relay;
-- The sequences show whether there is anything new: messages, and what operators have done to them.
GRANT SELECT ON SEQUENCE outbox.messages_id_seq, outbox.audit_log_id_seq TO outbox_relay;
-- Messages that cannot be recorded or read are set aside, and recorded when that is possible.
GRANT SELECT, INSERT, UPDATE, DELETE ON outbox.quarantine TO outbox_relay;
GRANT EXECUTE ON FUNCTION outbox.read_event TO outbox_relay;
-- Lanes are created at the first start for a destination, and from then on only locked. A row lock needs the privilege
-- to update one column, no matter which.
GRANT SELECT, INSERT, UPDATE (lane) ON outbox.lanes TO outbox_relay;

-- The operator sees everything, redrives and discards dead messages, replays events, pauses and sets, and adds to the
-- record of that, which contains the login's role and cannot be changed afterwards.
GRANT SELECT ON ALL TABLES IN SCHEMA outbox TO outbox_operator;
GRANT SELECT ON ALL SEQUENCES IN SCHEMA outbox TO outbox_operator;
GRANT UPDATE (status, attempts, available_at, dead_at, last_error) ON outbox.messages TO outbox_operator;
-- The update privilege is only for the row lock.
GRANT UPDATE (status), DELETE ON outbox.messages_dead TO outbox_operator;
-- Scheduled messages are cancelled and moved.
GRANT UPDATE (deliver_at), DELETE ON outbox.messages_scheduled TO outbox_operator;
GRANT INSERT (action, actor, filter, messages, message_ids) ON outbox.audit_log TO outbox_operator;
GRANT DELETE ON outbox.quarantine TO outbox_operator;
GRANT EXECUTE ON FUNCTION outbox.find_message, outbox.dead_find, outbox.dead_list, outbox.dead_show, outbox.dead_filter,
    outbox.dead_choose,
    outbox.dead_redrive, outbox.dead_discard, outbox.release, outbox.pause, outbox.resume, outbox.set_setting,
    outbox.set_destination, outbox.remove_destination TO outbox_operator;
GRANT INSERT, UPDATE, DELETE ON outbox.pauses, outbox.settings, outbox.destinations TO outbox_operator;
-- A replay writes new messages for existing events; the operator writes no events.
GRANT INSERT (destination, event_position, group_id) ON outbox.messages TO outbox_operator;
GRANT INSERT (actor, source, destination, all_events, event_types, stream_id, since, until, first_position, stop_position,
    start_position, position, last_position), UPDATE (position, stream_version, messages, moved_at, ended_at) ON outbox.replays TO outbox_operator;
GRANT EXECUTE ON FUNCTION outbox.position_at, outbox.safe_position, outbox.replay_matches, outbox.replay_plan,
    outbox.replay_count, outbox.replay_group, outbox.replay_unfinished, outbox.replay_begin,
    outbox.replay_step, outbox.replay_end TO outbox_operator;

-- The reader sees everything, bodies included, and changes nothing.
GRANT SELECT ON ALL TABLES IN SCHEMA outbox TO outbox_reader;
GRANT SELECT ON ALL SEQUENCES IN SCHEMA outbox TO outbox_reader;
GRANT EXECUTE ON FUNCTION outbox.find_message, outbox.dead_find, outbox.dead_list, outbox.dead_show, outbox.position_at,
    outbox.replay_matches, outbox.replay_plan, outbox.replay_count, outbox.replay_unfinished, outbox.check_stream, outbox.check_max_count,
    outbox.read_stream, outbox.read_all, outbox.safe_position, outbox.stream_version TO outbox_reader;

-- A consumer records which events it has accepted and its progress, in the database of its effect. A projection, which
-- reads the store with outbox.read_all, also needs outbox_reader.
GRANT SELECT ON outbox.migrations TO outbox_consumer;
GRANT SELECT, INSERT, DELETE ON outbox.inbox, outbox.inbox_versions, outbox.inbox_gaps, outbox.checkpoints TO outbox_consumer;
GRANT UPDATE (stream_version) ON outbox.inbox_versions TO outbox_consumer;
GRANT UPDATE (position, moved_at) ON outbox.checkpoints TO outbox_consumer;
GRANT EXECUTE ON FUNCTION outbox.accept(text, uuid), outbox.accept(text, text, bigint), outbox.accept_in_order,
    outbox.check_max_count, outbox.prune_inbox, outbox.checkpoint(text), outbox.checkpoint(text, bigint, bigint) TO outbox_consumer;

-- What holds vacuum back or keeps messages locked is visible only to roles that may see the statistics of all sessions,
-- including the text of all statements. Relay and operator work without it. If you want it, run as a superuser:
-- GRANT pg_read_all_stats TO outbox_relay, outbox_operator;

COMMIT;
