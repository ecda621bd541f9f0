//! Functions of the schema, the relay's statements, the migrations and the roles call what they mean, whatever the search
//! path has.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use support::relay::Command;
use support::repository;
use support::roles::Roles;
use support::test_bed::{TestBed, connect};

#[tokio::test]
async fn functions_that_a_caller_has_on_the_path_are_not_called_instead_of_those_of_postgresql() -> Result<()> {
    let bed = TestBed::new().await?;
    make_hostile(&bed).await?;
    bed.client.batch_execute("SET search_path = public").await?;
    ensure!(bed.client.batch_execute("SELECT jsonb_build_object('a'::text, 'b'::text)").await.is_err());
    bed.client.batch_execute("INSERT INTO outbox.routes VALUES ('Order', 'tickets')").await?;
    let mut wrong = Vec::new();
    for call in [
        "SELECT outbox.enqueue('tickets', 'T', '1', 'g')",
        "SELECT outbox.enqueue('tickets', 'T', body => 'text', group_id => 'g')",
        r#"SELECT outbox.enqueue_many('tickets', '[{"event_type": "T", "body_base64": "AA=="}]')"#,
        r#"SELECT outbox.enqueue_many('tickets', '[{"event_type": "T", "payload": 1, "group_id": "g"}]')"#,
        r#"SELECT outbox.append('s', 0, '[{"event_type": "T", "payload": 1}]', '{tickets}')"#,
        r#"SELECT outbox.append('s', 1, '[{"event_type": "T", "payload": 1, "event_id": "7f1d3c1e-2f7b-4a57-9a70-0f3f8f3c2a11"}]')"#,
        "INSERT INTO outbox.outboxevent (aggregatetype, aggregateid, type, payload) VALUES ('Order', '7', 'T', '1')",
        "BEGIN; INSERT INTO outbox.outboxevent (aggregatetype, aggregateid, type) VALUES ('Order', '7', 'T');
            DO $$ BEGIN ASSERT (SELECT count(*) FROM outbox.outboxevent) = 1; END $$; DELETE FROM outbox.outboxevent; COMMIT",
        "SELECT outbox.release('tickets', 1)",
        "SELECT outbox.pause('tickets', reason => 'why')",
        "SELECT outbox.resume('tickets')",
        "UPDATE outbox.messages SET status = 'dead', dead_at = now(), last_error = 'why' WHERE status = 'pending'",
        "SELECT outbox.dead_list(destination => 'tickets')",
        "SELECT outbox.dead_show(1)",
        "SELECT outbox.dead_redrive(destination => 'tickets', max_count => 1)",
        "SELECT outbox.dead_discard(destination => 'tickets')",
        "SELECT outbox.set_setting('batch-size', '500')",
        "SELECT outbox.set_destination('other', 'https://sqs.us-east-1.amazonaws.com/1/other')",
        "SELECT outbox.remove_destination('other')",
        "SELECT outbox.find_message('tickets', 1)",
        "SELECT outbox.read_event(1, 1000)",
        "SELECT outbox.read_stream('s')",
        "SELECT outbox.read_all()",
        "SELECT outbox.stream_version('s')",
        "SELECT outbox.replay_step(outbox.replay_begin('tickets', since => '-infinity'))",
        "SELECT outbox.accept('c', gen_random_uuid())",
        "SELECT outbox.accept('c', 's', 1)",
        "SELECT outbox.accept_in_order('c', 's', 2)",
        "SELECT outbox.checkpoint('c', 0, 1)",
        "SELECT outbox.prune_inbox(interval '0')",
        "SELECT outbox.purge_events(now())",
    ] {
        if let Err(error) = bed.client.batch_execute(call).await {
            wrong.push(format!("{call}: {error:?}"));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
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

/// Puts functions and operators in front of those that PostgreSQL has.
const HOSTILE: &str = include_str!("search_path/hostile.sql");

/// Every text of SQL that runs with the rights of a relay, an operator or the schema's owner, with its name.
fn texts() -> Result<Vec<(String, String)>> {
    let mut texts = Vec::new();
    for folder in ["sql/queries", "sql/migrations", "deploy"] {
        for entry in std::fs::read_dir(repository().join(folder))? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "sql") {
                let name = Path::new(folder).join(path.file_name().context("no name")?);
                texts.push((name.display().to_string(), std::fs::read_to_string(&path)?));
            }
        }
    }
    texts.sort();
    Ok(texts)
}

/// Whatever stands before a parenthesis in the texts.
fn called(texts: &[(String, String)], more: &str) -> Vec<String> {
    let is_of_a_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let all = texts.iter().map(|(_, text)| text.as_str()).chain([more]);
    let before = all.flat_map(|text| text.match_indices('(').map(|(at, _)| text[..at].trim_end()));
    let words = before.map(|text| &text[text.trim_end_matches(is_of_a_name).len()..]);
    words.filter(|word| !word.is_empty()).map(str::to_lowercase).collect::<BTreeSet<_>>().into_iter().collect()
}

/// Makes the schema `public` of the database hostile.
async fn make_hostile(bed: &TestBed) -> Result<()> {
    let printed = Command::new().output(&["migrate", "--print"]).await?;
    let words = called(&texts()?, &printed.stdout);
    ensure!(words.len() > 100, "the functions of the texts were not found: {words:?}");
    bed.client.execute("SELECT set_config('test.words', $1, false)", &[&words.join(" ")]).await?;
    bed.client.batch_execute(HOSTILE).await?;
    // The session of the test itself goes on with PostgreSQL's own.
    let in_front = bed.count("SELECT count(*) FROM pg_proc WHERE pronamespace = 'public'::regnamespace").await?;
    ensure!(in_front > 10_000, "{in_front} functions are in front");
    Ok(())
}

async fn ensure_not_called(bed: &TestBed, by: &str) -> Result<()> {
    ensure!(bed.count("SELECT count(*) FROM public.called WHERE is_called").await? == 0, "{by} called one on the path");
    Ok(())
}

#[tokio::test]
async fn nothing_that_anybody_puts_on_the_path_runs_with_the_rights_of_migrations_roles_or_a_relay() -> Result<()> {
    let bed = TestBed::empty().await?;
    make_hostile(&bed).await?;
    let relay = bed.relay().without("OUTBOX_RELAY_DESTINATIONS");
    relay.output(&["migrate"]).await?.ensure_success()?;
    ensure_not_called(&bed, "migrate").await?;
    bed.client.batch_execute("SET search_path = public").await?;
    let roles = Roles::create(&bed).await.context("the roles")?;
    ensure_not_called(&bed, "roles.sql").await?;

    // One login with all the rights that statements need.
    bed.client.batch_execute("SET search_path = pg_catalog").await?;
    let database: String = bed.client.query_one("SELECT current_database()::text", &[]).await?.get(0);
    let grant = format!("GRANT rights_of_operator_{database} TO {}", roles.relay);
    bed.client.batch_execute(&grant).await?;
    let session = connect(&roles.relay_url).await?;
    session.batch_execute("SET plan_cache_mode = force_generic_plan").await?;
    let mut wrong = Vec::new();
    for (name, text) in texts()?.into_iter().filter(|(name, _)| name.starts_with("sql/queries/")) {
        let number = (1..).take_while(|n| text.contains(&format!("${n}"))).count();
        let nulls = if number == 0 { String::new() } else { format!("({})", vec!["NULL"; number].join(", ")) };
        // What is in a list of VALUES is made ready only when it runs.
        let run = if number == 0 { "; EXECUTE q" } else { "" };
        let explain = format!("PREPARE q AS {text}; EXPLAIN EXECUTE q{nulls}{run}");
        if let Err(error) = session.batch_execute(&explain).await {
            wrong.push(format!("{name}: {}", error.as_db_error().map_or("", |error| error.message())));
        }
        session.batch_execute("DEALLOCATE ALL").await?;
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));

    bed.fifo("tickets").await?;
    bed.client.batch_execute("SELECT outbox.enqueue('tickets', 'T', '1', 'g')").await?;
    let relay = bed.relay().env("DATABASE_URL", &roles.relay_url).env("OUTBOX_RELAY_DELIVERED_RETENTION", "1s");
    let relay = relay.start().await?;
    let left = "SELECT count(*) FROM outbox.messages";
    support::eventually("it is sent and pruned", || async { Ok(bed.count(left).await? == 0) }).await?;
    relay.stop().await?;
    ensure_not_called(&bed, "a relay").await
}

#[tokio::test]
async fn nothing_that_anybody_puts_on_the_path_runs_with_the_rights_of_who_runs_the_printed_migrations() -> Result<()> {
    let bed = TestBed::empty().await?;
    make_hostile(&bed).await?;
    bed.client.batch_execute("SET search_path = public").await?;
    let printed = Command::new().output(&["migrate", "--print"]).await?;
    bed.client.batch_execute(&printed.stdout).await?;
    bed.client.batch_execute("SET search_path = pg_catalog").await?;
    ensure_not_called(&bed, "the printed script").await
}
