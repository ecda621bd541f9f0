//! What the relay exposes: metrics that Prometheus accepts, probes, and the health check.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use tokio::io::AsyncWriteExt;

use support::eventually;
use support::postgres::free_port;
use support::proxy::Fault;
use support::relay::Relay;
use support::test_bed::TestBed;

#[tokio::test]
async fn metrics_pass_the_check_of_promtool() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.fifo("tickets").await?;
    bed.standard("audit").await?;
    bed.enqueue_many("tickets", 100, 10).await?;
    let relay = bed.relay().start().await?;
    bed.until_nothing_is_pending().await?;
    let (status, text) = relay.get("/metrics").await?;
    ensure!(status == 200 && text.len() > 1000, "{status} {text}");
    let mut promtool = tokio::process::Command::new("promtool");
    promtool.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = promtool
        .spawn()
        .context("promtool is not installed; it is in the Debian package prometheus: apt-get install prometheus")?;
    let mut input = child.stdin.take().context("no standard input")?;
    input.write_all(text.as_bytes()).await?;
    drop(input);
    let output = child.wait_with_output().await?;
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success() && said.trim().is_empty(), "promtool: {said}");
    Ok(())
}

#[tokio::test]
async fn metrics_count_what_happened() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.fifo("tickets").await?;
    bed.standard("audit").await?;
    bed.enqueue_many("tickets", 40, 40).await?;
    let relay = bed.relay().start().await?;
    bed.until_nothing_is_pending().await?;
    relay.wait_for_metric(r#"delivered_messages_total{destination="tickets"}"#, 40.0).await?;
    // The value appears once it was measured, which may be after everything is delivered.
    relay.wait_for_metric(r#"lag_seconds{destination="audit"}"#, 0.0).await?;
    let metrics = relay.metrics().await?;
    let tickets = |name: &str| metrics.get(&format!("{name}{{destination=\"tickets\"}}"));
    ensure!(tickets("requests_total")? == tickets("request_entries_count")?);
    ensure!(tickets("request_entries_sum")? == 40.0);
    ensure!(tickets("request_duration_seconds_count")? == tickets("requests_total")?);
    ensure!(tickets("delivery_latency_seconds_count")? == 40.0);
    ensure!(tickets("possible_duplicates_total")? == 0.0 && tickets("destination_up")? == 1.0);
    for name in ["delivered_messages_total", "requests_total", "possible_duplicates_total", "lag_seconds"] {
        ensure!(metrics.get(&format!("{name}{{destination=\"audit\"}}"))? == 0.0, "{name} of audit");
    }
    for name in ["retries_total", "dead_lettered_total", "request_failures_total"] {
        ensure!(metrics.sum(name) == 0.0, "{name}");
    }
    ensure!(metrics.get("database_up")? == 1.0 && metrics.get("backlog_probe_timestamp_seconds")? > 1.7e9);
    Ok(())
}

#[tokio::test]
async fn lag_and_backlog_are_measured_in_the_table() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    bed.fifo("tickets").await?;
    proxy.set(Fault::throttle());
    bed.enqueue_many("tickets", 30, 0).await?;
    bed.client.batch_execute("UPDATE outbox.messages SET enqueued_at = now() - interval '1 hour'").await?;
    bed.enqueue_many("tickets", 30, 0).await?;
    let dead = "INSERT INTO outbox.messages (destination, event_position, lane, status, dead_at, last_error)
        VALUES ('tickets', 1, 3, 'dead', now(), 'too large')";
    bed.client.batch_execute(dead).await?;
    let relay = bed.relay().start().await?;
    relay.wait_for_metric(r#"backlog_messages{destination="tickets"}"#, 60.0).await?;
    let metrics = relay.metrics().await?;
    ensure!(metrics.get(r#"lag_seconds{destination="tickets"}"#)? >= 3600.0);
    ensure!(metrics.get(r#"dead_messages{destination="tickets"}"#)? == 1.0);
    proxy.clear();
    bed.until_nothing_is_pending().await?;
    relay.wait_for_metric(r#"backlog_messages{destination="tickets"}"#, 0.0).await?;
    relay.wait_for_metric(r#"lag_seconds{destination="tickets"}"#, 0.0).await
}

#[tokio::test]
async fn the_health_check_asks_a_running_relay() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    bed.fifo("tickets").await?;
    let relay = bed.relay().start().await?;
    relay.wait_for_status("/readyz", 200).await?;
    ensure!(health(&bed, &relay, false).await? == Some(0) && health(&bed, &relay, true).await? == Some(0));
    proxy.set(Fault::throttle());
    bed.enqueue("tickets", "{}", None).await?;
    relay.wait_for_status("/readyz", 503).await?;
    ensure!(health(&bed, &relay, false).await? == Some(0), "alive, though its queue is down");
    ensure!(health(&bed, &relay, true).await? == Some(1), "ready, though its queue is down");
    Ok(())
}

async fn health(bed: &TestBed, relay: &Relay, ready: bool) -> Result<Option<i32>> {
    let arguments: &[&str] = if ready { &["healthcheck", "--ready"] } else { &["healthcheck"] };
    let ended = bed.relay().env("OUTBOX_RELAY_HTTP_LISTEN", relay.address()).output(arguments).await?;
    Ok(ended.code)
}

#[tokio::test]
async fn the_health_check_fails_if_no_relay_runs() -> Result<()> {
    let bed = TestBed::new().await?;
    let address = format!("0.0.0.0:{}", free_port()?);
    let ended = bed.relay().env("OUTBOX_RELAY_HTTP_LISTEN", &address).output(&["healthcheck"]).await?;
    ensure!(ended.code == Some(1) && ended.stderr.lines().count() == 1, "{ended:?}");
    ensure!(ended.stderr.contains("no relay answers"), "{ended:?}");
    Ok(())
}

#[tokio::test]
async fn unknown_paths_are_not_found() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.fifo("tickets").await?;
    let relay = bed.relay().start().await?;
    ensure!(relay.get("/nothing").await?.0 == 404);
    let (status, text) = relay.get("/").await?;
    ensure!(status == 200 && text.contains("href=\"metrics\""), "{status} {text}");
    Ok(())
}

#[tokio::test]
async fn logs_are_json_when_asked_for() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.fifo("tickets").await?;
    bed.enqueue_many("tickets", 3, 1).await?;
    let ended = bed.relay().env("OUTBOX_RELAY_LOG_FORMAT", "json").until_empty().await?;
    ended.ensure_success()?;
    ensure!(ended.stderr.lines().count() >= 2, "{}", ended.stderr);
    for line in ended.stderr.lines() {
        let value: serde_json::Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        ensure!(value["message"].is_string() && value["level"].is_string(), "{line}");
    }
    Ok(())
}

#[tokio::test]
async fn the_horizons_holder_is_found_among_snapshots_that_begin_at_the_same_transaction() -> Result<()> {
    let (bed, other) = (TestBed::new().await?, TestBed::new().await?);
    bed.standard("tickets").await?;
    let relay = bed.relay().start().await?;
    bed.enqueue_many("tickets", 10, 0).await?;
    bed.until_nothing_is_pending().await?;
    // All snapshots taken from now on begin at this transaction's id, in every database. The relay's sessions are older
    // than the holder's, so they would be found first if nothing else counted.
    other.client.batch_execute("BEGIN; SELECT pg_current_xact_id()").await?;
    let holder = bed.connect().await?;
    holder.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM outbox.events LIMIT 1").await?;
    let is_seen = || async {
        Ok(relay.metrics().await?.get(r#"horizon_age_seconds{kind="transaction"}"#).is_ok_and(|age| age > 2.0))
    };
    eventually("the holder's age is shown", is_seen).await?;
    relay.stop().await?;
    Ok(())
}
