//! Outboxes in schemas of other names. Every command works where the usual name belongs to somebody else. `apart.rs` has what
//! outboxes of one database do to each other.

mod apart;
mod outbox;

use std::collections::HashSet;

use anyhow::{Context, Result, ensure};
use outbox_relay::schema::Schema;
use serde_json::Value;

use support::postgres::PASSWORD;
use support::relay::Command;
use support::test_bed::{TestBed, connect};

use outbox::{Outbox, things};

#[tokio::test]
async fn nothing_in_a_schema_of_another_name_tells_the_usual_one() -> Result<()> {
    let bed = TestBed::empty().await?;
    Outbox::migrated(&bed, "lottery").await?;
    let things = things(&bed.client, "lottery").await?;
    ensure!(things.len() > 300, "only {} things", things.len());
    // `outbox-relay` is one word.
    let has_the_word =
        |text: &str| text.split(|c: char| !(c.is_alphanumeric() || "_-".contains(c))).any(|word| word == "outbox");
    // The comment on the lane says so in prose.
    let is_wrong = |text: &&String| has_the_word(&text.replace("let the outbox run empty", ""));
    let wrong: Vec<&String> = things.iter().filter(is_wrong).collect();
    ensure!(wrong.is_empty(), "these name another schema: {wrong:#?}");
    ensure!(
        things.iter().any(|text| text.contains("SET LOCAL lottery.maintenance")),
        "a hint does not name the schema"
    );
    ensure!(bed.count("SELECT count(*) FROM pg_namespace WHERE nspname = 'outbox'").await? == 0);
    Ok(())
}

#[tokio::test]
async fn the_printed_migrations_of_another_name_make_what_migrate_makes() -> Result<()> {
    let (printed, migrated) = (TestBed::empty().await?, TestBed::empty().await?);
    let script = Command::new().env("OUTBOX_RELAY_SCHEMA", "lottery_outbox").output(&["migrate", "--print"]).await?;
    let by_flag = Command::new().output(&["migrate", "--print", "--schema", "lottery_outbox"]).await?;
    ensure!(script.stdout == by_flag.stdout, "the flag is another setting");
    printed.client.batch_execute(&script.stdout).await?;
    Outbox::migrated(&migrated, "lottery_outbox").await?;
    let name = "lottery_outbox";
    ensure!(things(&printed.client, name).await? == things(&migrated.client, name).await?);
    // The records are the same as of any other name, so this is no other schema to a relay.
    let again = printed.relay().env("OUTBOX_RELAY_SCHEMA", name).output(&["migrate"]).await?;
    ensure!(again.stdout.contains("(schema lottery_outbox) is up to date"), "{again:?}");
    Ok(())
}

/// A schema of the usual name, which belongs to somebody else, and a login that may create schemas.
async fn somebody_elses(bed: &TestBed) -> Result<String> {
    let database: String = bed.client.query_one("SELECT current_database()", &[]).await?.get(0);
    // Its names are those that a forgotten statement would use.
    let theirs = format!(
        "CREATE SCHEMA outbox;
        CREATE TABLE outbox.events (note text);
        CREATE TABLE outbox.messages (note text);
        CREATE TABLE outbox.migrations (note text);
        CREATE ROLE stranger_of_{database} LOGIN PASSWORD '{PASSWORD}';
        GRANT CREATE ON DATABASE {database} TO stranger_of_{database}"
    );
    bed.client.batch_execute(&theirs).await?;
    Ok(bed.url().replace("//postgres:", &format!("//stranger_of_{database}:")))
}

#[tokio::test]
async fn every_command_works_beside_a_schema_of_the_usual_name_that_belongs_to_somebody_else() -> Result<()> {
    let bed = TestBed::empty().await?;
    let url = somebody_elses(&bed).await?;
    let before = things(&bed.client, "outbox").await?;
    let outbox = Outbox { bed: &bed, schema: own()?, queue: bed.queues.create_fifo("tickets").await? };
    let command = || outbox.command().env("DATABASE_URL", &url);
    let runs = async |words: &str| {
        let ended = command().output(&words.split(' ').collect::<Vec<_>>()).await?;
        ended.ensure_success().with_context(|| format!("{words}: {}", ended.stdout))?;
        anyhow::Ok(ended.stdout)
    };
    let refused = command().output(&["status"]).await?;
    ensure!(
        refused.code == Some(1) && refused.stderr.contains("(schema lottery_outbox) is not migrated"),
        "{refused:?}"
    );
    let migrated = runs("migrate").await?;
    ensure!(
        migrated.contains("applied migration 1 (events)") && migrated.contains("(schema lottery_outbox)"),
        "{migrated}"
    );
    ensure!(runs("migrate").await?.contains("up to date"));
    ensure!(runs("check").await?.contains("✓ schema: lottery_outbox is up to date"));
    ensure!(runs("config").await?.contains("lottery_outbox"));
    let owner = connect(&url).await?;
    let write = "SELECT outbox.enqueue('tickets', 'T', jsonb_build_object('n', n), 'g' || n % 2) FROM generate_series(1, 6) AS n";
    outbox.run_on(&owner, write).await?;
    outbox.bury(2).await?;
    ensure!(
        runs("dead list --json").await?.contains("InternalError")
            && runs("dead show 2").await?.contains("InternalError")
    );
    runs("dead redrive 2 --yes").await?;
    outbox.bury(3).await?;
    runs("dead discard 3 --yes").await?;
    let aside = "INSERT INTO outbox.quarantine (destination, lane, message_id, event_position, enqueued_at, group_id, reason)
        SELECT destination, lane, id, event_position, enqueued_at, group_id, 'broken' FROM outbox.messages WHERE id = 4";
    outbox.run(aside).await?;
    ensure!(runs("quarantine list --json").await?.contains("broken"));
    runs("quarantine release 4 --yes").await?;
    runs("pause tickets --reason test").await?;
    ensure!(runs("status").await?.contains("paused"));
    runs("resume tickets").await?;
    runs("set batch-size=500").await?;
    ensure!(runs("config").await?.contains("500"));
    runs("set --unset batch-size").await?;
    runs("run --until-empty").await?;
    let status: Value = serde_json::from_str(&runs("status --json").await?)?;
    ensure!(
        status["destinations"][0]["pending"] == 0 && status["destinations"][0]["destination"] == "tickets",
        "{status}"
    );
    ensure!(runs("replay --destination tickets --dry-run").await?.contains('6'));
    runs("replay --destination tickets --yes").await?;
    runs("run --until-empty").await?;
    ensure!(bed.queues.depth(&outbox.queue).await?.visible == 5 + 6);
    for function in
        ["append('s', 0, '[{\"event_type\": \"T\", \"payload\": 1}]')", "read_all()", "accept('c', gen_random_uuid())"]
    {
        outbox.run_on(&owner, &format!("SELECT outbox.{function}")).await?;
    }
    outbox.run_on(&owner, "CALL outbox.purge(now())").await?;
    ensure!(things(&bed.client, "outbox").await? == before, "the schema of somebody else was changed");
    Ok(())
}

fn own() -> Result<Schema> {
    Schema::parse("lottery_outbox").map_err(|why| anyhow::anyhow!(why))
}

#[tokio::test]
async fn the_generated_roles_are_named_after_the_schema_and_may_use_it_only() -> Result<()> {
    let usual = Command::new().output(&["generate", "roles"]).await?;
    ensure!(usual.stdout == include_str!("../../deploy/roles.sql"), "not what deploy/roles.sql has");
    let bed = TestBed::new().await?;
    // Roles belong to the cluster, which other tests use as well.
    let outbox = Outbox::migrated(&bed, "own_roles").await?;
    let roles = outbox.runs("generate roles").await?.stdout;
    bed.client.batch_execute(&roles).await?;
    let login = format!("CREATE ROLE serves_own_roles LOGIN PASSWORD '{PASSWORD}' IN ROLE own_roles_relay");
    bed.client.batch_execute(&login).await?;
    let url = bed.url().replace("//postgres:", "//serves_own_roles:");
    outbox.write(1..=30).await?;
    let relay = outbox.command().env("DATABASE_URL", &url);
    let checked = relay.output(&["check"]).await?;
    ensure!(checked.code == Some(0) && checked.stdout.contains("✓ rights"), "{}", checked.stdout);
    relay.deliver_all().await?;
    outbox.ensure_arrived(30).await?;
    let others = connect(&url).await?.query("SELECT FROM outbox.messages", &[]).await;
    ensure!(others.is_err(), "it may read another outbox");
    // Without one of them, the remedy names the schema and the role.
    outbox.run("REVOKE DELETE ON outbox.messages FROM own_roles_relay").await?;
    let checked = relay.output(&["check"]).await?;
    let remedy = "lacks DELETE on own_roles.messages\n    → run the SQL of `outbox-relay generate roles --schema own_roles` as \
                  the owner, and GRANT own_roles_relay to this role";
    ensure!(checked.code == Some(1) && checked.stdout.contains(remedy), "{}", checked.stdout);
    Ok(())
}

#[tokio::test]
async fn every_word_that_needs_quotes_is_refused_as_a_name() -> Result<()> {
    let bed = TestBed::empty().await?;
    let words = "SELECT word, quote_ident(word) = word FROM pg_get_keywords()";
    let mut usable = 0;
    for row in bed.client.query(words, &[]).await? {
        let (word, is_plain): (String, bool) = (row.get(0), row.get(1));
        let parsed = Schema::parse(&word);
        ensure!(is_plain || parsed.is_err(), "{word} would need quotes");
        usable += usize::from(parsed.is_ok());
    }
    ensure!(usable > 200, "only {usable} words can be used");
    // Words of SQL that need none.
    for name in ["schema", "sequence", "trigger", "function"] {
        let outbox = Outbox::migrated(&bed, name).await?;
        outbox.write(1..=3).await?;
        outbox.command().deliver_all().await?;
        outbox.runs("replay --destination tickets --yes").await?;
        ensure!(outbox.count("SELECT count(*) FROM outbox.messages_pending").await? == 3, "{name}");
    }
    Ok(())
}

#[tokio::test]
async fn an_outbox_that_was_renamed_as_the_page_on_upgrading_says_works_on() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.enqueue_many("tickets", 10, 2).await?;
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/upgrading.md"))?;
    let blocks = page.split("```sql\n").skip(1).filter_map(|text| text.split("```").next());
    let rename =
        blocks.into_iter().find(|block| block.contains("RENAME TO lottery_outbox")).context("not on the page")?;
    bed.client.batch_execute(rename).await?;
    // As if it had always had that name, but for the comments.
    let fresh = TestBed::empty().await?;
    Outbox::migrated(&fresh, "lottery_outbox").await?;
    let (renamed, made) =
        (things(&bed.client, "lottery_outbox").await?, things(&fresh.client, "lottery_outbox").await?);
    let functions = |things: Vec<String>| -> HashSet<String> {
        let all = things.into_iter().filter(|thing| thing.starts_with("function"));
        all.map(|thing| thing.rsplit_once('$').map_or(thing.clone(), |(body, _)| body.to_owned())).collect()
    };
    let (renamed, made) = (functions(renamed), functions(made));
    ensure!(made.len() > 40 && renamed == made, "{:#?}", renamed.difference(&made).collect::<Vec<_>>());
    let outbox = Outbox::migrated(&bed, "lottery_outbox").await?;
    outbox.run("SELECT outbox.enqueue('tickets', 'T', '{\"n\": 11}', 'g1')").await?;
    outbox.command().deliver_all().await?;
    bed.ensure_arrived_in_order(&outbox.queue, 11).await?;
    ensure!(outbox.read().await? == 11);
    Ok(())
}
