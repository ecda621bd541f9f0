//! An outage of a queue costs no message an attempt and writes nothing; recovery needs no operator.

use anyhow::{Context, Result, ensure};

use support::eventually;
use support::proxy::{Fault, Rule};
use support::relay::{Command, Relay};
use support::test_bed::{TestBed, ensure_each_once, numbers};

const UP: &str = r#"destination_up{destination="tickets"}"#;

/// A relay that probes often whether the queue is back.
fn probing(bed: &TestBed) -> Command {
    bed.relay().env("OUTBOX_RELAY_RETRY_INITIAL", "10ms").env("OUTBOX_RELAY_RETRY_MAX", "50ms")
}

/// The physical location and version of each message: any write to a row changes its line.
async fn versions(bed: &TestBed) -> Result<Vec<String>> {
    let query = "SELECT concat_ws(' ', tableoid::regclass, id, ctid, xmin, attempts, available_at) AS version
                 FROM outbox.messages ORDER BY id";
    Ok(bed.client.query(query, &[]).await?.iter().map(|row| row.get(0)).collect())
}

async fn failures(relay: &Relay) -> Result<f64> {
    Ok(relay.metrics().await?.sum("request_failures_total"))
}

/// The relay meets the fault repeatedly, writes nothing, and delivers once the fault has ended.
async fn survives(fault: Fault) -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let queue = bed.fifo("tickets").await?;
    bed.enqueue_many("tickets", 40, 8).await?;
    let before = versions(&bed).await?;
    proxy.set(fault);
    let relay = probing(&bed).start().await?;
    relay.wait_for_metric(UP, 0.0).await?;
    proxy.wait_for_requests(4).await?;
    ensure!(failures(&relay).await? >= 1.0);
    ensure!(relay.get("/readyz").await?.0 == 503, "ready while its queue does not work");
    ensure!(relay.get("/livez").await?.0 == 200, "not alive because its queue does not work");
    let after = versions(&bed).await?;
    ensure!(before == after, "the outage wrote: {before:#?} {after:#?}");
    proxy.clear();
    relay.wait_for_metric(UP, 1.0).await?;
    bed.until_nothing_is_pending().await?;
    let log = relay.stop().await?;
    ensure!(log.matches("destination halted").count() == 1, "the same outage is logged repeatedly:\n{log}");
    ensure!(log.matches("destination is back").count() == 1, "{log}");
    ensure!(bed.count("SELECT max(attempts)::bigint FROM outbox.messages").await? == 0);
    ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, 40)
}

#[tokio::test]
async fn a_throttled_queue_costs_no_attempt_and_no_write() -> Result<()> {
    survives(Fault::throttle()).await
}

#[tokio::test]
async fn a_throttled_key_costs_no_attempt_and_no_write() -> Result<()> {
    survives(Fault::key_throttle()).await
}

#[tokio::test]
async fn a_failing_sqs_costs_no_attempt_and_no_write() -> Result<()> {
    survives(Fault::status(503)).await
}

#[tokio::test]
async fn denied_access_costs_no_attempt_and_no_write() -> Result<()> {
    survives(Fault::access_denied()).await
}

#[tokio::test]
async fn expired_credentials_cost_no_attempt_and_no_write() -> Result<()> {
    survives(Fault::expired_token()).await
}

#[tokio::test]
async fn a_queue_said_to_be_missing_costs_no_attempt_and_no_write() -> Result<()> {
    survives(Fault::queue_missing()).await
}

#[tokio::test]
async fn refused_connections_cost_no_attempt_and_no_write() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let queue = bed.fifo("tickets").await?;
    bed.enqueue_many("tickets", 40, 8).await?;
    let before = versions(&bed).await?;
    proxy.refuse_connections().await?;
    let relay = probing(&bed).start().await?;
    relay.wait_for_metric(UP, 0.0).await?;
    eventually("five requests were refused", || async { Ok(failures(&relay).await? >= 5.0) }).await?;
    ensure!(versions(&bed).await? == before, "the outage wrote");
    proxy.accept_connections().await?;
    bed.until_nothing_is_pending().await?;
    relay.wait_for_metric(UP, 1.0).await?;
    relay.stop().await?;
    ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, 40)
}

#[tokio::test]
async fn a_queue_that_is_created_late_gets_its_messages() -> Result<()> {
    let bed = TestBed::new().await?;
    let elsewhere = bed.queues.create_standard("elsewhere").await?;
    let name = format!("late-{}", std::process::id());
    let (base, _) = elsewhere.rsplit_once('/').context("no path")?;
    bed.add_destination("tickets", &format!("{base}/{name}"));
    bed.enqueue_many("tickets", 25, 0).await?;
    let relay = probing(&bed).start().await?;
    relay.wait_for_metric(UP, 0.0).await?;
    let queue = bed.queues.create(&name, &[]).await?;
    bed.until_nothing_is_pending().await?;
    relay.stop().await?;
    ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, 25)
}

#[tokio::test]
async fn a_halted_destination_affects_no_other() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let (tickets, audit) = (bed.fifo("tickets").await?, bed.standard("audit").await?);
    bed.enqueue_many("tickets", 20, 4).await?;
    proxy.script([Rule::new(Fault::throttle()).queue(&tickets)]);
    let relay = probing(&bed).start().await?;
    relay.wait_for_metric(UP, 0.0).await?;
    bed.enqueue_many("audit", 100, 0).await?;
    relay.wait_for_metric(r#"delivered_messages_total{destination="audit"}"#, 100.0).await?;
    ensure!(relay.metrics().await?.get(r#"destination_up{destination="audit"}"#)? == 1.0);
    ensure_each_once(numbers(&bed.queues.contents(&audit).await?)?, 100)?;
    proxy.clear();
    bed.until_nothing_is_pending().await?;
    relay.stop().await?;
    ensure_each_once(numbers(&bed.queues.contents(&tickets).await?)?, 20)
}

#[tokio::test]
async fn a_halted_destination_is_probed_with_one_request_at_a_time() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    bed.standard("tickets").await?;
    bed.enqueue_many("tickets", 200, 0).await?;
    proxy.set(Fault::throttle());
    let relay = probing(&bed).start().await?;
    relay.wait_for_metric(UP, 0.0).await?;
    proxy.wait_until_quiet().await?;
    proxy.forget();
    proxy.wait_for_requests(4).await?;
    ensure!(proxy.most_in_flight() == 1, "{}", proxy.most_in_flight());
    proxy.clear();
    bed.until_nothing_is_pending().await?;
    relay.stop().await?;
    Ok(())
}
