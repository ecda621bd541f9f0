//! Stopping: requests in flight are awaited and recorded, and there is always a way to abort.

use anyhow::{Result, ensure};

use support::proxy::Fault;
use support::test_bed::{TestBed, ensure_each_once, numbers};

#[tokio::test]
async fn sigterm_in_mid_flight_duplicates_nothing() -> Result<()> {
    for signal in ["TERM", "INT"] {
        let bed = TestBed::new().await?;
        let proxy = bed.proxy().await?;
        let queue = bed.standard("audit").await?;
        bed.enqueue_many("audit", 100, 0).await?;
        proxy.set(Fault::HoldAnswer);
        let relay = bed.relay().env("OUTBOX_RELAY_MAX_IN_FLIGHT", "2").start().await?;
        proxy.wait_for_held(2).await?;
        relay.signal(signal).await?;
        relay.wait_for_log("draining").await?;
        proxy.release();
        let (status, log) = relay.wait().await?;
        ensure!(status.code() == Some(0), "SIG{signal}: {status}\n{log}");
        ensure!(bed.delivered().await? == 20 && proxy.entries_seen() == 20, "{} were sent", proxy.entries_seen());
        bed.relay().deliver_all().await?;
        ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, 100)?;
    }
    Ok(())
}

#[tokio::test]
async fn until_empty_that_was_told_to_stop_says_that_messages_are_left() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    bed.standard("audit").await?;
    bed.enqueue_many("audit", 100, 0).await?;
    proxy.set(Fault::HoldAnswer);
    let relay = bed.relay().env("OUTBOX_RELAY_MAX_IN_FLIGHT", "2").start_with(&["run", "--until-empty"]).await?;
    proxy.wait_for_held(2).await?;
    relay.terminate().await?;
    relay.wait_for_log("draining").await?;
    proxy.release();
    let (status, log) = relay.wait().await?;
    ensure!(bed.pending().await? == 80 && log.contains("outbox-relay ends"), "{log}");
    ensure!(
        status.code() == Some(1) && log.matches("stopped while messages were pending").count() == 1,
        "{status}\n{log}"
    );
    Ok(())
}

#[tokio::test]
async fn a_second_signal_aborts_at_once() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let queue = bed.fifo("tickets").await?;
    bed.enqueue_many("tickets", 10, 10).await?;
    proxy.set(Fault::HoldAnswer);
    let relay = bed.relay().env("OUTBOX_RELAY_REQUEST_TIMEOUT", "1m").env("OUTBOX_RELAY_DRAIN_TIMEOUT", "1h");
    let relay = relay.start().await?;
    proxy.wait_for_held(1).await?;
    relay.terminate().await?;
    relay.wait_for_log("draining").await?;
    relay.terminate().await?;
    // The request is still held, so the process can only end by giving it up.
    let (status, log) = relay.wait().await?;
    ensure!(status.code() == Some(1), "{status}\n{log}");
    ensure!(bed.pending().await? == 10);
    proxy.release();
    proxy.wait_until_quiet().await?;
    bed.relay().deliver_all().await?;
    ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, 10)
}

#[tokio::test]
async fn the_drain_timeout_ends_a_drain_that_takes_too_long() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    bed.fifo("tickets").await?;
    bed.enqueue_many("tickets", 10, 10).await?;
    proxy.set(Fault::HoldAnswer);
    let relay = bed.relay().env("OUTBOX_RELAY_REQUEST_TIMEOUT", "1m").env("OUTBOX_RELAY_DRAIN_TIMEOUT", "100ms");
    let relay = relay.start().await?;
    proxy.wait_for_held(1).await?;
    relay.terminate().await?;
    let (status, log) = relay.wait().await?;
    ensure!(status.code() == Some(1) && log.contains("not drained in time"), "{status}\n{log}");
    ensure!(bed.pending().await? == 10);
    Ok(())
}

#[tokio::test]
async fn an_idle_relay_leaves_when_told() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.fifo("tickets").await?;
    let relay = bed.relay().env("OUTBOX_RELAY_POLL_INTERVAL", "1m").start().await?;
    relay.wait_for_status("/readyz", 200).await?;
    let log = relay.stop().await?;
    ensure!(log.contains("outbox-relay ends"), "{log}");
    Ok(())
}

#[tokio::test]
async fn a_relay_whose_queue_is_halted_leaves_when_told() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    bed.fifo("tickets").await?;
    bed.enqueue_many("tickets", 10, 10).await?;
    proxy.set(Fault::throttle());
    let relay = bed.relay().env("OUTBOX_RELAY_RETRY_INITIAL", "1h").env("OUTBOX_RELAY_RETRY_MAX", "1h").start().await?;
    relay.wait_for_log("destination halted").await?;
    relay.stop().await?;
    ensure!(bed.pending().await? == 10);
    Ok(())
}

#[tokio::test]
async fn a_relay_whose_log_is_not_read_continues_and_stops_when_told() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.fifo("tickets").await?;
    let mut relay = bed.relay().start().await?;
    relay.close_log().await;
    bed.enqueue("tickets", "{}", None).await?;
    bed.until_nothing_is_pending().await?;
    relay.terminate().await?;
    let (status, _) = relay.wait().await?;
    ensure!(status.code() == Some(0), "{status}");
    Ok(())
}
