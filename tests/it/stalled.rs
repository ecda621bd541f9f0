//! Nothing stands still unnoticed: if messages are due and nobody delivers them, every place that people look at says
//! so.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use outbox_relay::config::Flags;
use outbox_relay::message::MessageId;
use outbox_relay::outbox::Outbox;
use outbox_relay::reading::{ByLane, Order};

use support::test_bed::TestBed;

const STALLED: &str = "stalled{destination=\"tickets\"}";

#[tokio::test]
async fn a_session_that_holds_the_lanes_and_delivers_nothing_is_reported_until_it_ends() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.fifo("tickets").await?;
    let relay = bed.relay().start().await?;
    bed.enqueue_many("tickets", 10, 2).await?;
    bed.until_nothing_is_pending().await?;
    // A session that has locked the lanes by hand and stays open.
    let other = bed.connect().await?;
    other.batch_execute("BEGIN; SELECT FROM outbox.lanes FOR UPDATE").await?;
    bed.enqueue_many("tickets", 10, 2).await?;
    // Standing still is reported only after half a minute.
    let since = Instant::now();
    while relay.metrics().await?.get(STALLED)? == 0.0 {
        ensure!(since.elapsed() < Duration::from_secs(90), "nothing reports it:\n{}", relay.log());
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let log = relay.wait_for_log("without a known reason").await?;
    ensure!(log.contains("destination=tickets") && log.contains("hold all lanes with messages"), "{log}");
    let here = bed.relay().env("OUTBOX_RELAY_HTTP_LISTEN", relay.address());
    let status = here.output(&["status"]).await?;
    ensure!(status.stdout.contains("ready; stalled: relay of tickets for"), "{}", status.stdout);
    other.batch_execute("ROLLBACK").await?;
    bed.until_nothing_is_pending().await?;
    relay.wait_for_metric(STALLED, 0.0).await?;
    relay.wait_for_log("messages are delivered again").await?;
    let (_, says) = relay.get("/readyz").await?;
    ensure!(says == "ready\n", "{says}");
    relay.stop().await.map(drop)
}

#[tokio::test]
async fn a_message_that_may_go_is_measured_however_many_of_its_lane_are_held_up_before_it() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.fifo("tickets").await?;
    let only_held_and_one_behind = "
        SELECT outbox.enqueue('tickets', 'T', '{}', 'held') FROM generate_series(1, 300);
        UPDATE outbox.messages SET status = 'dead', dead_at = now(), last_error = 'by hand'
            WHERE id = (SELECT min(id) FROM outbox.messages);
        SELECT outbox.enqueue('tickets', 'T', '{}', 'g' || n) FROM generate_series(1, 200) AS n;
        DELETE FROM outbox.messages WHERE group_id <> 'held'
            AND lane <> (SELECT min(lane) FROM outbox.messages WHERE group_id = 'held')";
    bed.client.batch_execute(only_held_and_one_behind).await?;
    ensure!(bed.count("SELECT count(DISTINCT lane) FROM outbox.messages").await? == 1);
    ensure!(bed.count("SELECT count(*) FROM outbox.messages WHERE group_id <> 'held'").await? > 0);
    let flags = Flags::default().with("database-url", bed.url()).with("schema", bed.schema()?);
    let outbox = Outbox::new(&flags.database()?, 1)?;
    let floors = ByLane::all(MessageId::NONE);
    let ready_lag = outbox.backlog("tickets", &floors, Order::GroupsBlockedByDead).await?.ready_lag;
    ensure!(ready_lag > 0.0, "nothing seems to be due");
    let free = bed.client.execute("DELETE FROM outbox.messages WHERE group_id <> 'held'", &[]).await?;
    let ready_lag = outbox.backlog("tickets", &floors, Order::GroupsBlockedByDead).await?.ready_lag;
    ensure!(ready_lag == 0.0, "{free} messages are gone, but held-up ones seem to be due");
    Ok(())
}
