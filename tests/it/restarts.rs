//! PostgreSQL stops and comes back: nothing is lost, and the relay needs no help.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::ChildStdout;

use support::postgres::{Cluster, Options, StopMode};
use support::relay::{Command, Relay, ensure_reported_at_most_once_a_second};
use support::test_bed::{TestBed, connect, enqueue, numbers};
use support::{chosen_major, eventually};

/// The time limit for an answer after the database has stopped.
const PATIENCE: Duration = Duration::from_secs(60);

fn own_cluster() -> Result<Arc<Cluster>> {
    let options = Options { major: chosen_major(), ..Options::default() };
    Ok(Arc::new(Cluster::start(&options)?))
}

/// Commits as many messages as possible until told to stop, and reconnects as applications do.
async fn write(url: String, stop: Arc<AtomicBool>) -> i64 {
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        let Ok(client) = connect(&url).await else {
            tokio::task::yield_now().await;
            continue;
        };
        while !stop.load(Ordering::Relaxed) {
            number += 1;
            let group = format!("g{}", number % 10);
            if enqueue(&client, "tickets", &format!("{{\"n\": {number}}}"), Some(&group)).await.is_err() {
                break;
            }
        }
    }
    number
}

#[tokio::test]
async fn postgresql_restarted_in_mid_traffic_loses_nothing() -> Result<()> {
    let cluster = own_cluster()?;
    let bed = TestBed::on(&cluster).await?;
    let queue = bed.fifo("tickets").await?;
    let relay = bed.relay().start().await?;
    let stop = Arc::new(AtomicBool::new(false));
    let writer = tokio::spawn(write(bed.url().to_owned(), Arc::clone(&stop)));
    for _ in 0..3 {
        let before = delivered(&relay).await?;
        eventually("messages flow", || async { Ok(delivered(&relay).await? >= before + 100.0) }).await?;
        let restarted = Arc::clone(&cluster);
        tokio::task::spawn_blocking(move || restarted.restart(StopMode::Immediate)).await??;
    }
    let before = delivered(&relay).await?;
    eventually("messages flow again", || async { Ok(delivered(&relay).await? >= before + 100.0) }).await?;
    stop.store(true, Ordering::Relaxed);
    let written = writer.await?;
    let client = bed.connect().await?;
    let pending = "SELECT count(*) FROM outbox.messages_pending";
    eventually("nothing is pending", || async { Ok(client.query_one(pending, &[]).await?.get::<_, i64>(0) == 0) })
        .await?;
    let log = relay.stop().await?;
    ensure!(log.contains("the database is back"), "{log}");
    ensure_reported_at_most_once_a_second(&log)?;
    let query = "SELECT (payload ->> 'n')::bigint FROM outbox.events ORDER BY position";
    let committed: Vec<i64> = client.query(query, &[]).await?.iter().map(|row| row.get(0)).collect();
    let mut arrived = numbers(&bed.queues.contents(&queue).await?)?;
    for group in 0..10 {
        let of_group: Vec<_> = arrived.iter().copied().filter(|n| n % 10 == group).collect();
        ensure!(of_group.is_sorted(), "g{group} arrived as {of_group:?}");
    }
    arrived.sort_unstable();
    ensure!(arrived == committed, "{} arrived, {} are committed of {written}", arrived.len(), committed.len());
    Ok(())
}

async fn delivered(relay: &Relay) -> Result<f64> {
    relay.metrics().await?.get(r#"delivered_messages_total{destination="tickets"}"#)
}

#[tokio::test]
async fn a_relay_lives_while_its_database_is_down_and_delivers_when_it_is_back() -> Result<()> {
    let cluster = own_cluster()?;
    let bed = TestBed::on(&cluster).await?;
    let queue = bed.fifo("tickets").await?;
    bed.enqueue("tickets", "{\"n\": 1}", None).await?;
    cluster.stop(StopMode::Fast)?;
    let relay = bed.relay().start().await?;
    relay.wait_for_log("the database cannot be used").await?;
    ensure!(relay.get("/livez").await?.0 == 200, "a dead database is no reason to restart the relay");
    ensure!(relay.get("/readyz").await?.0 == 503);
    ensure!(relay.metrics().await?.get("database_up")? == 0.0);
    cluster.start_again()?;
    relay.wait_for_status("/readyz", 200).await?;
    relay.wait_for_metric(r#"delivered_messages_total{destination="tickets"}"#, 1.0).await?;
    relay.wait_for_metric("database_up", 1.0).await?;
    relay.stop().await?;
    ensure!(bed.queues.depth(&queue).await?.visible == 1);
    Ok(())
}

/// Each attempt to settle a message of `tickets` fails and is counted, since a sequence is not rolled back.
const TICKETS_FAIL: &str = "CREATE SEQUENCE tries;
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN PERFORM nextval('tries'); RAISE EXCEPTION 'no room for tickets' USING ERRCODE = 'disk_full'; END $$;
    CREATE TRIGGER refuse BEFORE INSERT ON outbox.messages_delivered
        FOR EACH ROW WHEN (NEW.destination = 'tickets') EXECUTE FUNCTION refuse()";

#[tokio::test]
async fn a_database_that_fails_one_destination_is_down_until_it_serves_both() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.fifo("tickets").await?;
    bed.standard("audit").await?;
    bed.client.batch_execute(TICKETS_FAIL).await?;
    let relay = bed.relay().start().await?;
    relay.wait_for_status("/readyz", 200).await?;
    bed.enqueue("tickets", "{\"n\": 1}", None).await?;
    relay.wait_for_log("the database cannot be used").await?;
    let tried = "SELECT last_value FROM tries";
    eventually("tickets has tried five times", || async { Ok(bed.count(tried).await? >= 5) }).await?;
    bed.enqueue_many("audit", 10, 0).await?;
    relay.wait_for_metric(r#"delivered_messages_total{destination="audit"}"#, 10.0).await?;
    ensure!(relay.metrics().await?.get("database_up")? == 0.0, "up, though it fails a destination");
    ensure!(relay.get("/readyz").await?.0 == 503, "ready, though it fails a destination");
    bed.client.batch_execute("DROP FUNCTION refuse CASCADE").await?;
    relay.wait_for_log("the database is back").await?;
    relay.wait_for_metric("database_up", 1.0).await?;
    let log = relay.stop().await?;
    for line in ["the database cannot be used", "the database is back"] {
        ensure!(log.matches(line).count() == 1, "{line}:\n{log}");
    }
    Ok(())
}

async fn until_it_shows(lines: &mut Lines<BufReader<ChildStdout>>, word: &str) -> Result<()> {
    let reading = async {
        while !lines.next_line().await?.context("it ended")?.contains(word) {}
        Ok(())
    };
    tokio::time::timeout(PATIENCE, reading).await.with_context(|| format!("it never shows {word}"))?
}

#[tokio::test]
async fn a_watched_status_continues_when_the_database_is_back() -> Result<()> {
    let cluster = own_cluster()?;
    let bed = TestBed::on(&cluster).await?;
    bed.fifo("tickets").await?;
    let relay = bed.relay().start().await?;
    relay.wait_for_status("/readyz", 200).await?;
    let mut watching = Command::new().env("DATABASE_URL", bed.url()).spawn(&["status", "--watch"])?;
    let mut lines = BufReader::new(watching.stdout.take().context("no output")?).lines();
    until_it_shows(&mut lines, "tickets").await?;
    cluster.stop(StopMode::Immediate)?;
    until_it_shows(&mut lines, "looking again").await?;
    cluster.start_again()?;
    until_it_shows(&mut lines, "tickets").await?;
    watching.kill().await?;
    relay.stop().await?;
    Ok(())
}
