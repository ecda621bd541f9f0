-- A safe order: up to which position every event is committed, or will never be. docs/decisions/0005-the-fence.md tells of
-- the other ways and why this one.
--
-- Positions are given before transactions commit, so a reader that has seen position 7 may find 6 later. Therefore each
-- transaction that writes events holds a shared advisory lock, the fence, whose key tells the position above which all of its
-- events are. It blocks nobody. Whoever reads looks at the sequence first, then at the fences, then at the events.

-- With the owner's rights, so that whoever may insert events needs none on their sequence.
CREATE FUNCTION outbox.fence() RETURNS trigger
LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    writer  text := pg_current_xact_id()::text;
    nothing text;
BEGIN
    -- One for each transaction: the first is the lowest. Lock and mark are undone together when a subtransaction is rolled
    -- back. Assignments, because PERFORM would run the executor.
    IF current_setting('outbox.fenced', true) IS DISTINCT FROM writer THEN
        -- 0x6F75 in the upper 16 bits tells a fence from other advisory locks; 48 bits are left for the position.
        nothing := pg_advisory_xact_lock_shared(
            x'6F75000000000000'::bigint + coalesce(pg_sequence_last_value('outbox.events_position_seq'::regclass), 0)
        );
        nothing := set_config('outbox.fenced', writer, true);
    END IF;
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION outbox.fence() IS
    'Before events get their positions: a shared advisory lock that tells above which position this transaction writes.';

-- For the statement, not for each row, and before rows get their positions.
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
    -- In this order. Whoever sets a fence after the second look gets positions above what the first look saw.
    SELECT CASE WHEN s.is_called THEN s.last_value ELSE s.last_value - 1 END INTO last FROM outbox.events_position_seq AS s;
    SELECT min(((l.classid::bigint & 65535) << 32) | l.objid::bigint) INTO fenced
    FROM pg_locks AS l
    WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.mode = 'ShareLock' AND l.classid::bigint >> 16 = x'6F75'::int
        AND l.database = (SELECT d.oid FROM pg_database AS d WHERE d.datname = current_database());
    RETURN least(last, fenced);
END
$$;

COMMENT ON FUNCTION outbox.safe_position() IS
    'Up to this position every event is committed, or will never be. To be asked before the events are read, by a statement '
    'of its own, under READ COMMITTED.';

COMMENT ON COLUMN outbox.events.transaction_id IS 'The writing transaction: which events were written together.';
