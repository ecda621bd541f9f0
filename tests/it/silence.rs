//! The connection to PostgreSQL goes silent without being closed: every wait of the relay ends by itself.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use support::cluster;
use support::proxy::{Fault, Proxy};
use support::relay::{Command, Relay, ensure_reported_at_most_once_a_second};
use support::test_bed::{TestBed, enqueue_range, ensure_each, numbers};
use support::wire_cut::WireCut;

async fn wire() -> Result<WireCut> {
    WireCut::start(cluster()?.port()).await
}

fn through(wire: &WireCut, bed: &TestBed) -> Command {
    bed.relay().env("DATABASE_URL", wire.url(bed.url())).env("OUTBOX_RELAY_REQUEST_TIMEOUT", "1s")
}

/// The limits are the relay's own: a statement 10 s, a connection 10 s, then a pause of at most 5 s.
fn ensure_within(limit: Duration, since: Instant, what: &str) -> Result<()> {
    ensure!(since.elapsed() < limit, "{what} took {:?} instead of at most {limit:?}", since.elapsed());
    Ok(())
}

/// A hundred messages are delivered, and SQS has accepted a hundred more when the connection goes silent.
async fn silenced(bed: &TestBed, proxy: &Proxy, wire: &WireCut) -> Result<Relay> {
    let relay = through(wire, bed).start().await?;
    bed.enqueue_many("audit", 100, 0).await?;
    bed.until_nothing_is_pending().await?;
    proxy.set(Fault::HoldAnswer);
    enqueue_range(&bed.client, "audit", 101..=200, 0).await?;
    proxy.wait_for_held(1).await?;
    wire.go_silent();
    proxy.release();
    Ok(relay)
}

#[tokio::test]
async fn a_relay_whose_sessions_went_silent_makes_new_ones() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let queue = bed.standard("audit").await?;
    let wire = WireCut::start(cluster()?.port()).await?;
    let relay = silenced(&bed, &proxy, &wire).await?;
    let since = Instant::now();
    wire.serve_new_connections();
    bed.until_nothing_is_pending().await?;
    ensure_within(Duration::from_secs(20), since, "coming back")?;
    ensure_reported_at_most_once_a_second(&relay.stop().await?)?;
    ensure_each(numbers(&bed.queues.contents(&queue).await?)?, 200)
}

#[tokio::test]
async fn a_relay_is_back_soon_after_a_silent_database_answers_new_sessions() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let queue = bed.standard("audit").await?;
    let wire = WireCut::start(cluster()?.port()).await?;
    let relay = silenced(&bed, &proxy, &wire).await?;
    relay.wait_for_log("the database cannot be used").await?;
    ensure!(relay.get("/livez").await?.0 == 200, "not alive because its database is silent");
    let since = Instant::now();
    wire.serve_new_connections();
    bed.until_nothing_is_pending().await?;
    ensure_within(Duration::from_secs(20), since, "coming back")?;
    ensure_reported_at_most_once_a_second(&relay.stop().await?)?;
    ensure_each(numbers(&bed.queues.contents(&queue).await?)?, 200)
}

#[tokio::test]
async fn the_lanes_of_a_relay_that_fell_silent_go_to_another() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let queue = bed.standard("audit").await?;
    let wire = WireCut::start(cluster()?.port()).await?;
    let _silent = silenced(&bed, &proxy, &wire).await?;
    let since = Instant::now();
    let other = bed.relay().start().await?;
    bed.until_nothing_is_pending().await?;
    // The claim ends automatically 3.5 s plus the request timeout after its last statement.
    ensure_within(Duration::from_secs(12), since, "taking over")?;
    other.stop().await?;
    ensure_each(numbers(&bed.queues.contents(&queue).await?)?, 200)
}

#[tokio::test]
async fn a_relay_that_fell_silent_while_settling_holds_nothing_up() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.standard("audit").await?;
    let wire = WireCut::start(cluster()?.port()).await?;
    // The rows are marked and locked, and the COMMIT never arrives.
    wire.go_silent_after("SET status = 'delivered'");
    let _silent = through(&wire, &bed).start().await?;
    bed.enqueue_many("audit", 100, 0).await?;
    wire.wait_until_silent().await?;
    let since = Instant::now();
    let other = bed.relay().start().await?;
    bed.until_nothing_is_pending().await?;
    ensure_within(Duration::from_secs(15), since, "taking over")?;
    ensure_reported_at_most_once_a_second(&other.stop().await?)?;
    ensure_each(numbers(&bed.queues.contents(&queue).await?)?, 100)
}
