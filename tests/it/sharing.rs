//! Several relays on one outbox, and relays that die: each lane has one publisher at a time, and nothing is lost.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use support::eventually;
use support::proxy::{Choice, Fault, Rule};
use support::relay::Metrics;
use support::test_bed::{TestBed, enqueue_range, ensure_each, ensure_each_once, ensure_order_in_groups, numbers};

const DELIVERED: &str = r#"delivered_messages_total{destination="tickets"}"#;

/// The sessions that hold lanes: a claim is an open transaction.
const CLAIMS: &str =
    "FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'outbox-relay%'
    AND state = 'idle in transaction'";

#[tokio::test]
async fn two_relays_share_an_outbox_and_send_nothing_twice() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.standard("tickets").await?;
    let relays = [bed.relay().start().await?, bed.relay().start().await?];
    let mut count = 0;
    let both_worked = || async {
        anyhow::Ok(relays[0].metrics().await?.get(DELIVERED)? > 0.0 && relays[1].metrics().await?.get(DELIVERED)? > 0.0)
    };
    // Chance decides which relay gets the lanes, again in each wave, until both had some.
    while count < 2000 || (count < 10_000 && !both_worked().await?) {
        enqueue_range(&bed.client, "tickets", count + 1..=count + 100, 0).await?;
        count += 100;
        bed.until_nothing_is_pending().await?;
        eventually("the lanes are free", || async { Ok(bed.count(&format!("SELECT count(*) {CLAIMS}")).await? == 0) })
            .await?;
    }
    ensure!(both_worked().await?, "one of the relays never got a lane");
    for relay in relays {
        ensure!(relay.metrics().await?.sum("possible_duplicates_total") == 0.0);
        relay.stop().await?;
    }
    ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, count)
}

#[tokio::test]
async fn a_relay_with_too_much_to_do_leaves_lanes_to_another() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let queue = bed.standard("tickets").await?;
    bed.enqueue_many("tickets", 10_000, 0).await?;
    proxy.set(Fault::Delay(Duration::from_millis(20)));
    let relay = bed.relay().env("OUTBOX_RELAY_MAX_IN_FLIGHT", "1");
    let first = relay.start().await?;
    proxy.wait_for_requests(1).await?;
    let second = relay.start().await?;
    let delivered = |relay: Metrics| relay.get(DELIVERED);
    eventually("the second relay has delivered something", || async { Ok(delivered(second.metrics().await?)? > 0.0) })
        .await?;
    let before = delivered(first.metrics().await?)?;
    eventually("the first goes on", || async { Ok(delivered(first.metrics().await?)? > before) }).await?;
    first.stop().await?;
    second.stop().await?;
    let mut arrived = numbers(&bed.queues.contents(&queue).await?)?;
    ensure!(arrived.len() as i64 == bed.delivered().await?, "{} arrived", arrived.len());
    arrived.sort_unstable();
    arrived.dedup();
    ensure!(arrived.len() as i64 == bed.delivered().await?, "some were sent twice");
    Ok(())
}

#[tokio::test]
async fn groups_keep_their_order_with_many_relays() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let queue = bed.fifo("tickets").await?;
    proxy.add(Rule::new(Fault::FailEntries {
        which: Choice::chance(0.05, 7),
        code: "InternalError",
        sender_fault: false,
    }));
    let relay = bed.relay().env("OUTBOX_RELAY_RETRY_INITIAL", "5ms").env("OUTBOX_RELAY_MAX_ATTEMPTS", "1000");
    let relays = [relay.start().await?, relay.start().await?, relay.start().await?];
    bed.enqueue_many("tickets", 3000, 100).await?;
    bed.until_nothing_is_pending().await?;
    for relay in relays {
        relay.stop().await?;
    }
    let messages = bed.queues.contents(&queue).await?;
    ensure_each_once(numbers(&messages)?, 3000)?;
    ensure_order_in_groups(&messages)
}

#[tokio::test]
async fn lanes_that_one_relay_holds_are_left_alone_by_the_other() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let queue = bed.fifo("tickets").await?;
    bed.enqueue_many("tickets", 10, 10).await?;
    proxy.script([Rule::new(Fault::HoldAnswer).queue(&queue)]);
    let first = bed.relay().env("OUTBOX_RELAY_REQUEST_TIMEOUT", "1m").start().await?;
    proxy.wait_for_held(1).await?;
    bed.standard("audit").await?;
    let second = bed.relay().start().await?;
    // While it delivers these one after the other, the second relay also looks for tickets.
    for number in 1..=20 {
        bed.enqueue("audit", "{}", None).await?;
        let audit = r#"delivered_messages_total{destination="audit"}"#;
        second.wait_for_metric(audit, f64::from(number)).await?;
    }
    ensure!(proxy.entries_seen() == 30, "{} entries were sent", proxy.entries_seen());
    proxy.release();
    bed.until_nothing_is_pending().await?;
    first.stop().await?;
    second.stop().await?;
    ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, 10)
}

#[tokio::test]
async fn a_relay_killed_in_mid_flight_loses_nothing() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let (tickets, audit) = (bed.fifo("tickets").await?, bed.standard("audit").await?);
    bed.enqueue_many("tickets", 200, 40).await?;
    bed.enqueue_many("audit", 200, 0).await?;
    proxy.script([Rule::new(Fault::Pass).times(6), Rule::new(Fault::HoldAnswer)]);
    let relay = bed.relay().env("OUTBOX_RELAY_MAX_IN_FLIGHT", "3").start().await?;
    proxy.wait_for_held(6).await?;
    relay.kill().await?;
    ensure!(bed.pending().await? >= 60, "messages that were in flight are not pending");
    proxy.release();
    proxy.wait_until_quiet().await?;
    bed.relay().deliver_all().await?;
    let messages = bed.queues.contents(&tickets).await?;
    ensure_each_once(numbers(&messages)?, 200)?;
    ensure_order_in_groups(&messages)?;
    let sent_to_audit = numbers(&bed.queues.contents(&audit).await?)?;
    let again = sent_to_audit.len() - 200;
    ensure_each(sent_to_audit, 200)?;
    // Three requests of ten were in flight, and up to six before them may not have been recorded yet.
    ensure!((30..=90).contains(&again), "{again} messages were sent twice");
    Ok(())
}

#[tokio::test]
async fn a_relay_killed_again_and_again_loses_nothing_and_keeps_the_order() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let queue = bed.fifo("tickets").await?;
    bed.enqueue_many("tickets", 2000, 100).await?;
    for _ in 0..8 {
        let seen = proxy.requests_seen();
        let relay = bed.relay().start().await?;
        proxy.wait_for_requests(seen + 15).await?;
        relay.kill().await?;
    }
    proxy.wait_until_quiet().await?;
    bed.relay().deliver_all().await?;
    let messages = bed.queues.contents(&queue).await?;
    ensure_each_once(numbers(&messages)?, 2000)?;
    ensure_order_in_groups(&messages)
}

#[tokio::test]
async fn a_claim_whose_session_is_terminated_loses_nothing() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let queue = bed.fifo("tickets").await?;
    bed.enqueue_many("tickets", 300, 30).await?;
    proxy.set(Fault::HoldAnswer);
    let relay = bed.relay().start().await?;
    proxy.wait_for_held(1).await?;
    // While the claim asks for more lanes, its session is never idle.
    let query = format!("SELECT count(pg_terminate_backend(pid)) {CLAIMS}");
    eventually("the claim's session is terminated", || async { Ok(bed.count(&query).await? == 1) }).await?;
    proxy.release();
    bed.until_nothing_is_pending().await?;
    relay.stop().await?;
    let messages = bed.queues.contents(&queue).await?;
    ensure_each_once(numbers(&messages)?, 300)?;
    ensure_order_in_groups(&messages)
}

#[tokio::test]
async fn all_sessions_terminated_while_messages_flow_lose_nothing() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let queue = bed.fifo("tickets").await?;
    let relay = bed.relay().start().await?;
    for round in 0..5 {
        proxy.set(Fault::HoldAnswer);
        enqueue_range(&bed.client, "tickets", round * 100 + 1..=round * 100 + 100, 10).await?;
        proxy.wait_for_held(1).await?;
        let query = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
            WHERE datname = current_database() AND application_name LIKE 'outbox-relay%'";
        ensure!(bed.count(query).await? >= 2);
        proxy.release();
        bed.until_nothing_is_pending().await?;
    }
    relay.stop().await?;
    let messages = bed.queues.contents(&queue).await?;
    ensure_each_once(numbers(&messages)?, 500)?;
    ensure_order_in_groups(&messages)
}

#[tokio::test]
async fn the_lanes_of_a_frozen_relay_go_to_another_and_it_does_no_harm_when_it_wakes() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let queue = bed.fifo("tickets").await?;
    bed.enqueue_many("tickets", 400, 20).await?;
    proxy.set(Fault::HoldAnswer);
    let relay = bed.relay().env("OUTBOX_RELAY_REQUEST_TIMEOUT", "1s");
    let frozen = relay.start().await?;
    proxy.wait_for_held(1).await?;
    frozen.signal("STOP").await?;
    proxy.release();
    let awake = relay.start().await?;
    bed.until_nothing_is_pending().await?;
    frozen.signal("CONT").await?;
    bed.enqueue("tickets", r#"{"n": 401}"#, Some("g1")).await?;
    bed.until_nothing_is_pending().await?;
    frozen.stop().await.context("the frozen one")?;
    awake.stop().await?;
    let messages = bed.queues.contents(&queue).await?;
    ensure_each_once(numbers(&messages)?, 401)?;
    ensure_order_in_groups(&messages)
}
