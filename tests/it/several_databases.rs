//! Several databases in one process (`DATABASE_URLS_FILE`): each is served as if it were alone, and everything that is said
//! about it names it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use support::chosen_major;
use support::postgres::{Cluster, Options, StopMode};
use support::proxy::{Fault, Rule};
use support::relay::Command;
use support::test_bed::{TestBed, enqueue_range, ensure_each_once, numbers};

const FILE: &str = "DATABASE_URLS_FILE";

/// The command of the first one for both databases, from a file with a line for each.
fn command(folder: &Path, [one, other]: [&TestBed; 2]) -> Result<Command> {
    let path = folder.join("databases");
    let text = format!("# the shops\norders {}\n\nbilling {}\n", one.relay_url(), other.relay_url());
    std::fs::write(&path, text)?;
    Ok(one.relay().without("DATABASE_URL").env(FILE, path.to_string_lossy()))
}

fn of(database: &str, series: &str, destination: &str) -> String {
    format!("{series}{{database=\"{database}\",destination=\"{destination}\"}}")
}

#[tokio::test]
async fn each_database_is_served_and_its_series_and_log_lines_name_it() -> Result<()> {
    let (orders, billing) = (TestBed::new().await?, TestBed::new().await?);
    let queue = orders.fifo("tickets").await?;
    let folder = tempfile::tempdir()?;
    let relay = command(folder.path(), [&orders, &billing])?.start().await?;
    enqueue_range(&orders.client, "tickets", 1..=30, 3).await?;
    enqueue_range(&billing.client, "tickets", 31..=50, 3).await?;
    orders.until_nothing_is_pending().await?;
    billing.until_nothing_is_pending().await?;
    relay.wait_for_metric(&of("orders", "delivered_messages_total", "tickets"), 30.0).await?;
    relay.wait_for_metric(&of("billing", "delivered_messages_total", "tickets"), 20.0).await?;
    let (_, text) = relay.get("/metrics").await?;
    ensure!(text.matches("# TYPE outbox_relay_delivered_messages_total ").count() == 1, "{text}");
    ensure!(text.contains("\noutbox_relay_log_lines_total{level=\"info\"}"), "{text}");
    relay.wait_for_status("/readyz", 200).await?;
    let log = relay.stop().await?;
    for name in ["orders", "billing"] {
        let starts = format!("outbox{{database=\"{name}\"}}: outbox-relay starts");
        ensure!(log.matches(&starts).count() == 1, "{log}");
    }
    ensure!(log.matches("outbox-relay ends delivered=50").count() == 1, "{log}");
    ensure_each_once(numbers(&orders.queues.contents(&queue).await?)?, 50)
}

#[tokio::test]
async fn a_database_that_is_away_stops_no_other_and_the_probes_name_it() -> Result<()> {
    let orders = TestBed::new().await?;
    let cluster = Cluster::start(&Options { major: chosen_major(), ..Options::default() })?;
    let billing = TestBed::on(&cluster).await?;
    let queue = orders.standard("audit").await?;
    let folder = tempfile::tempdir()?;
    cluster.stop(StopMode::Fast)?;
    let relay = command(folder.path(), [&orders, &billing])?.start().await?;
    enqueue_range(&orders.client, "audit", 1..=20, 0).await?;
    orders.until_nothing_is_pending().await?;
    relay.wait_for_log("outbox{database=\"billing\"}: the database cannot be used").await?;
    let (status, text) = relay.get("/readyz").await?;
    ensure!(status == 503 && text.contains("billing: database") && !text.contains("orders"), "{status}: {text}");
    let (status, text) = relay.get("/databases/orders/readyz").await?;
    ensure!(status == 200, "{status}: {text}");
    let up = relay.metrics().await?;
    ensure!(up.get("database_up{database=\"orders\"}")? == 1.0 && up.get("database_up{database=\"billing\"}")? == 0.0);
    let (_, page) = relay.get("/").await?;
    ensure!(page.contains("does not answer") && page.contains("href=\"databases/billing/\""), "{page}");
    cluster.start_again()?;
    relay.wait_for_status("/readyz", 200).await?;
    let client = billing.connect().await?;
    enqueue_range(&client, "audit", 21..=30, 0).await?;
    relay.wait_for_metric(&of("billing", "delivered_messages_total", "audit"), 10.0).await?;
    relay.stop().await?;
    ensure_each_once(numbers(&orders.queues.contents(&queue).await?)?, 30)
}

#[tokio::test]
async fn each_database_follows_its_own_table_of_destinations() -> Result<()> {
    let (orders, billing) = (TestBed::new().await?, TestBed::new().await?);
    let tickets = orders.queues.create_fifo("tickets").await?;
    let folder = tempfile::tempdir()?;
    let relays = command(folder.path(), [&orders, &billing])?.without("OUTBOX_RELAY_DESTINATIONS");
    let relay = relays.start().await?;
    relay.wait_for_log("outbox{database=\"billing\"}: no destination").await?;
    let set = ["--database", "orders", "destinations", "set", "tickets", &tickets];
    relays.output(&set).await?.ensure_success()?;
    enqueue_range(&orders.client, "tickets", 1..=10, 2).await?;
    relay.wait_for_metric(&of("orders", "delivered_messages_total", "tickets"), 10.0).await?;
    ensure!(relay.metrics().await?.get(&of("billing", "delivered_messages_total", "tickets")).is_err());
    relay.stop().await?;
    Ok(())
}

#[tokio::test]
async fn until_empty_ends_when_every_database_is_empty() -> Result<()> {
    let (orders, billing) = (TestBed::new().await?, TestBed::new().await?);
    let queue = orders.standard("audit").await?;
    enqueue_range(&orders.client, "audit", 1..=10, 0).await?;
    enqueue_range(&billing.client, "audit", 11..=500, 0).await?;
    let folder = tempfile::tempdir()?;
    command(folder.path(), [&orders, &billing])?.deliver_all().await?;
    ensure_each_once(numbers(&orders.queues.contents(&queue).await?)?, 500)
}

#[tokio::test]
async fn each_database_has_a_page_and_status_asks_for_that_of_the_chosen_one() -> Result<()> {
    let (orders, billing) = (TestBed::new().await?, TestBed::new().await?);
    orders.standard("audit").await?;
    let folder = tempfile::tempdir()?;
    let relays = command(folder.path(), [&orders, &billing])?;
    let relay = relays.start().await?;
    relay.wait_for_status("/readyz", 200).await?;
    for path in ["", "status.json", "status.css", "docs/operations.md", "metrics", "livez"] {
        let (status, text) = relay.get(&format!("/databases/orders/{path}")).await?;
        ensure!(status == 200, "{path} answered {status}: {text}");
        let (status, _) = relay.get(&format!("/databases/nobody/{path}")).await?;
        ensure!(status == if path == "status.css" { 200 } else { 404 }, "{path} answered {status}");
    }
    let (_, text) = relay.get("/databases/billing/metrics").await?;
    ensure!(text.contains("database=\"billing\"") && !text.contains("database=\"orders\""), "{text}");
    let (_, text) = relay.get("/status.json").await?;
    let json: Value = serde_json::from_str(&text)?;
    ensure!(json["databases"]["orders"]["destinations"][0]["destination"] == "audit", "{text}");
    orders.relay().output(&["pause", "audit", "--actor", "ada"]).await?.ensure_success()?;
    relay.wait_for_metric(&of("orders", "paused", "audit"), 1.0).await?;
    let status = relays.env("OUTBOX_RELAY_HTTP_LISTEN", relay.address());
    let paused = status.output(&["status", "--database", "orders", "--json"]).await?;
    paused.ensure_success()?;
    let other = status.output(&["status", "--database", "billing"]).await?;
    other.ensure_success()?;
    ensure!(paused.stdout.contains("ada") && !other.stdout.contains("ada"), "{}\n{}", paused.stdout, other.stdout);
    relay.stop().await?;
    Ok(())
}

#[tokio::test]
async fn commands_take_the_chosen_database_or_all_or_say_which_there_are() -> Result<()> {
    let (orders, billing) = (TestBed::new().await?, TestBed::empty().await?);
    orders.standard("audit").await?;
    let folder = tempfile::tempdir()?;
    let relays = command(folder.path(), [&orders, &billing])?;
    let checked = relays.output(&["check"]).await?;
    ensure!(checked.code == Some(1), "{}", checked.stdout);
    let (first, second) = checked.stdout.split_once("database billing\n").context("no heading for billing")?;
    ensure!(first.starts_with("database orders\n") && !first.contains('✗'), "{first}");
    ensure!(second.contains("outbox-relay migrate"), "{second}");
    let migrated = relays.output(&["migrate"]).await?;
    migrated.ensure_success()?;
    ensure!(migrated.stdout.contains("is up to date") && migrated.stdout.contains("applied migration 1 "));
    let checked = relays.output(&["check", "--json"]).await?;
    checked.ensure_success()?;
    let found: Vec<Value> = serde_json::from_str(&checked.stdout)?;
    for name in ["orders", "billing"] {
        ensure!(found.iter().any(|finding| finding["database"] == name), "{}", checked.stdout);
    }
    let refused = relays.output(&["status"]).await?;
    ensure!(
        refused.code == Some(2)
            && refused.stderr.contains("has 2 databases (orders, billing); choose one with --database NAME"),
        "{}",
        refused.stderr
    );
    let unknown = relays.output(&["status", "--database", "stock"]).await?;
    ensure!(unknown.code == Some(2) && unknown.stderr.contains("\"stock\" is not in"), "{}", unknown.stderr);
    let shown = relays.output(&["config", "--database", "billing"]).await?;
    shown.ensure_success()?;
    ensure!(
        shown.stdout.lines().any(|line| line.starts_with("database ") && line.contains("billing")),
        "{}",
        shown.stdout
    );
    Ok(())
}

#[tokio::test]
async fn a_file_that_cannot_be_used_is_refused_without_a_secret() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.standard("audit").await?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("databases");
    let relay = bed.relay().without("DATABASE_URL").env(FILE, path.to_string_lossy());
    let twice = format!("orders {0}\nbilling {0}\n", bed.url());
    let table = [
        ("", "is empty"),
        ("orders postgres://app:hunter2@[db/x\n", "line 1: the connection string of orders "),
        ("orders postgres://app:hunter2@db/x\norders postgres://db/y\n", "line 2: \"orders\" is named twice"),
        (twice.as_str(), "orders and billing are the same outbox"),
    ];
    for (text, expected) in table {
        std::fs::write(&path, text)?;
        let refused = relay.output(&["run"]).await?;
        let said = &refused.stderr;
        ensure!(refused.code == Some(2) && said.contains(expected) && !said.contains("hunter2"), "{text}: {said}");
    }
    let both = relay.env("DATABASE_URL", bed.url()).output(&["run"]).await?;
    ensure!(both.stderr.contains("DATABASE_URL and DATABASE_URLS_FILE are both set"), "{}", both.stderr);
    let chosen = bed.relay().env("OUTBOX_RELAY_DATABASE", "orders").output(&["run"]).await?;
    ensure!(
        chosen.code == Some(2) && chosen.stderr.contains("DATABASE_URLS_FILE, which is not set"),
        "{}",
        chosen.stderr
    );
    Ok(())
}

/// A line for a database that is there, after one for a role that the server does not know.
fn with_a_bad_one(folder: &Path, good: &TestBed) -> Result<Command> {
    let path = folder.join("databases");
    let (server, _) = good.relay_url().rsplit_once('/').context("no database")?;
    let bad = format!("{}/elsewhere", server.replacen("//postgres:", "//nobody_of_this_name:", 1));
    std::fs::write(&path, format!("bad {bad}\ngood {}\n", good.relay_url()))?;
    Ok(good.relay().without("DATABASE_URL").env(FILE, path.to_string_lossy()))
}

#[tokio::test]
async fn a_database_that_cannot_be_emptied_does_not_keep_the_others_from_it() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    // Long after the other one has failed, messages are left.
    proxy.script([Rule::new(Fault::Delay(Duration::from_millis(200)))]);
    let queue = bed.standard("audit").await?;
    bed.enqueue_many("audit", 200, 0).await?;
    let folder = tempfile::tempdir()?;
    let slow = with_a_bad_one(folder.path(), &bed)?.env("OUTBOX_RELAY_MAX_IN_FLIGHT", "1");
    let ended = slow.until_empty().await?;
    ensure!(ended.code == Some(1) && ended.stderr.contains("nobody_of_this_name"), "{:?} {}", ended.code, ended.stderr);
    ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, 200)
}

#[tokio::test]
async fn migrate_goes_on_after_a_database_that_fails() -> Result<()> {
    let bed = TestBed::empty().await?;
    let folder = tempfile::tempdir()?;
    let ended = with_a_bad_one(folder.path(), &bed)?.output(&["migrate"]).await?;
    ensure!(ended.code == Some(1) && ended.stderr.contains("nobody_of_this_name"), "{:?} {}", ended.code, ended.stderr);
    ensure!(ended.stdout.contains("applied migration 1 "), "{}", ended.stdout);
    Ok(())
}
