//! Functions of the schema call what they mean, whatever the search path of their caller has.

use anyhow::{Result, ensure};

use support::test_bed::TestBed;

/// Functions of PostgreSQL that take arguments of any type, with those that fit these arguments better. Whoever may create
/// functions in a schema on the path could put them in front.
const IN_FRONT: &str = "CREATE FUNCTION public.in_front() RETURNS jsonb LANGUAGE plpgsql
        AS $$ BEGIN RAISE EXCEPTION 'a function on the path was called'; END $$;
    CREATE FUNCTION public.jsonb_build_object(text, text) RETURNS jsonb LANGUAGE sql AS 'SELECT public.in_front()';
    CREATE FUNCTION public.jsonb_build_object(text, jsonb) RETURNS jsonb LANGUAGE sql AS 'SELECT public.in_front()';
    CREATE FUNCTION public.cardinality(text[]) RETURNS integer LANGUAGE sql AS 'SELECT public.in_front()::integer';
    CREATE FUNCTION public.cardinality(bigint[]) RETURNS integer LANGUAGE sql AS 'SELECT public.in_front()::integer';
    CREATE FUNCTION public.unnest(text[]) RETURNS SETOF text LANGUAGE sql AS 'SELECT public.in_front()::text';
    CREATE FUNCTION public.format(text, text) RETURNS text LANGUAGE sql AS 'SELECT public.in_front()::text'";

#[tokio::test]
async fn functions_that_a_caller_has_on_the_path_are_not_called_instead_of_those_of_postgresql() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.client.batch_execute(IN_FRONT).await?;
    bed.client.batch_execute("SET search_path = public").await?;
    ensure!(bed.client.batch_execute("SELECT jsonb_build_object('a'::text, 'b'::text)").await.is_err());
    bed.client.batch_execute("INSERT INTO outbox.routes VALUES ('Order', 'tickets')").await?;
    for call in [
        "SELECT outbox.enqueue('tickets', 'T', '1', 'g')",
        "SELECT outbox.enqueue('tickets', 'T', body => 'text', group_id => 'g')",
        r#"SELECT outbox.enqueue_many('tickets', '[{"event_type": "T", "body_base64": "AA=="}]')"#,
        r#"SELECT outbox.enqueue_many('tickets', '[{"event_type": "T", "payload": 1, "group_id": "g"}]')"#,
        r#"SELECT outbox.append('s', 0, '[{"event_type": "T", "payload": 1}]', '{tickets}')"#,
        "INSERT INTO outbox.outboxevent (aggregatetype, aggregateid, type, payload) VALUES ('Order', '7', 'T', '1')",
        "BEGIN; INSERT INTO outbox.outboxevent (aggregatetype, aggregateid, type) VALUES ('Order', '7', 'T');
            DO $$ BEGIN ASSERT (SELECT count(*) FROM outbox.outboxevent) = 1; END $$; DELETE FROM outbox.outboxevent; COMMIT",
        "SELECT outbox.release('tickets', 1)",
        "SELECT outbox.pause('tickets', reason => 'why')",
        "SELECT outbox.resume('tickets')",
        "SELECT outbox.dead_redrive(destination => 'tickets')",
    ] {
        bed.client.batch_execute(call).await.map_err(|error| anyhow::anyhow!("{call}: {error:?}"))?;
    }
    ensure!(bed.pending().await? == 7);
    Ok(())
}

#[tokio::test]
async fn whatever_takes_arguments_of_any_type_is_called_with_its_schema() -> Result<()> {
    let bed = TestBed::new().await?;
    // The last three have forms for the very types they are called with, which come first. count(*) has no argument.
    let unqualified = "SELECT coalesce(string_agg(DISTINCT f.proname || ' calls ' || g.proname, ', '), '')
        FROM pg_proc AS f
        JOIN pg_proc AS g ON f.prosrc ~ ('(^|[^.[:alnum:]_])' || g.proname || '\\s*\\((?!\\*)')
        WHERE f.pronamespace = 'outbox'::regnamespace AND g.pronamespace = 'pg_catalog'::regnamespace
            AND EXISTS (
                SELECT FROM unnest(g.proargtypes::oid[]) AS a (type) JOIN pg_type AS t ON t.oid = a.type
                WHERE t.typtype = 'p' AND t.typname ~ '^any'
            )
            AND g.proname NOT IN ('min', 'max', 'lower')";
    let unqualified: String = bed.client.query_one(unqualified, &[]).await?.get(0);
    ensure!(unqualified.is_empty(), "{unqualified}");
    let functions = "SELECT count(*) FROM pg_proc WHERE pronamespace = 'outbox'::regnamespace";
    ensure!(bed.count(functions).await? > 40, "the functions are not there");
    Ok(())
}
