//! Databases that cannot hold an outbox, or hide some of its rows, are refused with the reason and the remedy: a hidden
//! row looks like a missing one.

use anyhow::{Result, ensure};
use tokio_postgres::Client;

use support::postgres::{Cluster, Options, StopMode};
use support::relay::Command;
use support::roles::Roles;
use support::test_bed::{TestBed, connect, enqueue_range, ensure_each_once, numbers};
use support::{chosen_major, cluster};

/// Every command that needs the database fails, with each of these sentences.
async fn ensure_refused(command: &Command, commands: &[&[&str]], sentences: &[&str]) -> Result<()> {
    for arguments in commands {
        let ended = command.output(arguments).await?;
        let said = format!("{}{}", ended.stdout, ended.stderr);
        ensure!(ended.code.is_some_and(|code| code != 0), "{arguments:?} ended with {:?}: {said}", ended.code);
        for sentence in sentences {
            ensure!(said.contains(sentence), "{arguments:?} does not say {sentence:?}:\n{said}");
        }
    }
    Ok(())
}

const ALL: [&[&str]; 4] = [&["migrate"], &["check"], &["run", "--until-empty"], &["status"]];

#[tokio::test]
async fn a_database_of_another_encoding_is_refused_and_nothing_is_made_in_it() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.fifo("tickets").await?;
    let maintenance = connect(&cluster()?.url("postgres")).await?;
    for encoding in ["SQL_ASCII", "LATIN1"] {
        let name = format!("{}_{}", database_of(&bed.client).await?, encoding.to_lowercase());
        let create =
            format!("CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'");
        maintenance.batch_execute(&create).await?;
        let url = cluster()?.url(&name);
        let command = bed.relay().env("DATABASE_URL", &url);
        let sentences = [&format!("its encoding is {encoding}"), "ENCODING 'UTF8'"];
        ensure_refused(&command, &ALL, &sentences).await?;
        let schemas = "SELECT count(*) FROM pg_namespace WHERE nspname = 'outbox'";
        let made: i64 = connect(&url).await?.query_one(schemas, &[]).await?.get(0);
        ensure!(made == 0, "{encoding}: a schema was made");
    }
    Ok(())
}

#[tokio::test]
async fn a_standby_is_refused_and_served_once_it_is_promoted() -> Result<()> {
    let cluster = Cluster::start(&Options { major: chosen_major(), ..Options::default() })?;
    let mut bed = TestBed::on(&cluster).await?;
    let queue = bed.fifo("tickets").await?;
    bed.enqueue_many("tickets", 20, 5).await?;
    cluster.stop(StopMode::Fast)?;
    cluster.become_standby()?;
    cluster.start_again()?;
    bed.client = bed.connect().await?;
    ensure_refused(&bed.relay(), &ALL, &["it is a standby", "point DATABASE_URL at the primary"]).await?;
    let relay = bed.relay().start().await?;
    relay.wait_for_log("it is a standby").await?;
    bed.client.query_one("SELECT pg_promote()", &[]).await?;
    bed.until_nothing_is_pending().await?;
    relay.stop().await?;
    bed.ensure_arrived_in_order(&queue, 20).await
}

async fn database_of(client: &Client) -> Result<String> {
    Ok(client.query_one("SELECT current_database()::text", &[]).await?.try_get(0)?)
}

#[tokio::test]
async fn row_level_security_that_hides_rows_is_noticed_by_every_command() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.fifo("tickets").await?;
    let roles = Roles::create(&bed).await?;
    bed.enqueue_many("tickets", 20, 5).await?;
    let relay = bed.relay().env("DATABASE_URL", &roles.relay_url);
    for table in [
        "messages",
        "messages_pending",
        "events",
        "lanes",
        "quarantine",
        "messages_dead",
        "destinations",
        "served",
        "routes",
        "replays",
    ] {
        bed.client.batch_execute(&format!("ALTER TABLE outbox.{table} ENABLE ROW LEVEL SECURITY")).await?;
        let sentences = [&format!("outbox.{table} from {}", roles.relay), "CREATE POLICY relay"];
        ensure_refused(&relay, &[&["check"], &["run", "--until-empty"], &["status"]], &sentences).await?;
        let open = format!("CREATE POLICY relay ON outbox.{table} TO {} USING (true)", roles.relay);
        bed.client.batch_execute(&open).await?;
    }
    ensure!(bed.pending().await? == 20, "something became of them");
    relay.deliver_all().await?;
    ensure!(bed.delivered().await? == 20);
    Ok(())
}

#[tokio::test]
async fn row_level_security_that_comes_under_a_running_relay_costs_no_message() -> Result<()> {
    for table in ["messages", "events"] {
        let bed = TestBed::new().await?;
        let queue = bed.fifo("tickets").await?;
        let roles = Roles::create(&bed).await?;
        let relay = bed.relay().env("DATABASE_URL", &roles.relay_url).start().await?;
        bed.enqueue_many("tickets", 20, 5).await?;
        bed.until_nothing_is_pending().await?;
        let secured = format!("ALTER TABLE outbox.{table} ENABLE ROW LEVEL SECURITY");
        bed.client.batch_execute(&secured).await?;
        enqueue_range(&bed.client, "tickets", 21..=40, 5).await?;
        let line = relay.wait_for_log("row level security may hide rows").await?;
        ensure!(line.contains(&format!("outbox.{table} ")) && line.contains("DISABLE ROW LEVEL SECURITY"), "{line}");
        relay.wait_for_metric("database_up", 0.0).await?;
        ensure!(bed.pending().await? == 20, "something became of them");
        bed.client.batch_execute(&format!("ALTER TABLE outbox.{table} DISABLE ROW LEVEL SECURITY")).await?;
        bed.until_nothing_is_pending().await?;
        relay.stop().await?;
        ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, 40)?;
    }
    Ok(())
}
