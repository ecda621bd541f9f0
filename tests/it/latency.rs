//! Progress does not depend on the speed of any answer: latencies of the database and of SQS, both kinds of queue, both
//! modes, dead messages that block and that do not.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;

use support::chosen_major;
use support::postgres::{Cluster, Options};
use support::proxy::Fault;
use support::relay::Relay;
use support::test_bed::TestBed;
use support::wire_cut::WireCut;

/// Milliseconds added to each round trip, up to two seconds. A relay once stood still with 30, 55 and 500.
const DATABASE: [u64; 6] = [0, 30, 55, 150, 500, 2000];
const SQS: [u64; 2] = [0, 2000];

/// The time limit for everything here: only progress matters, not speed.
const PATIENCE: Duration = Duration::from_secs(400);

/// The mode of FIFO queues, and what a dead message does to its group.
const SETTINGS: [(&str, &str); 2] = [("strict", "block"), ("batched", "skip")];

/// Waits until a count is 0.
async fn wait_for(bed: &TestBed, relay: &Relay, count: &str) -> Result<()> {
    let since = Instant::now();
    while bed.count(count).await? > 0 {
        ensure!(since.elapsed() < PATIENCE, "{count} is not 0:\n{}", relay.log());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

/// Delivers a few groups with a few messages, beside a dead message that blocks a group, and messages without order.
/// Returns the median latency of each kind of queue, in seconds.
async fn deliver(
    bed: &TestBed,
    port: u16,
    database: u64,
    sqs: u64,
    (mode, on_dead): (&str, &str),
) -> Result<(f64, f64)> {
    let proxy = bed.proxy().await?;
    bed.fifo("tickets").await?;
    bed.standard("audit").await?;
    let wire = WireCut::with_delay(port, Duration::from_millis(database)).await?;
    let too_large = format!("{{\"n\": 0, \"pad\": \"{}\"}}", "x".repeat(1_100_000));
    bed.enqueue("tickets", &too_large, Some("dead")).await?;
    bed.enqueue("tickets", "{\"n\": 1}", Some("dead")).await?;
    proxy.set(Fault::Delay(Duration::from_millis(sqs)));
    let relay = bed.relay().env("DATABASE_URL", wire.url(bed.url()));
    let relay = relay.env("OUTBOX_RELAY_FIFO_MODE", mode).env("OUTBOX_RELAY_ON_DEAD", on_dead).start().await?;
    wait_for(bed, &relay, "SELECT 1 - count(*) FROM outbox.messages_dead").await?;
    bed.enqueue_many("tickets", 20, 5).await?;
    bed.enqueue_many("audit", 20, 0).await?;
    let left = if on_dead == "block" { 1 } else { 0 };
    let of_dead = "group_id IS NOT DISTINCT FROM 'dead'";
    wait_for(bed, &relay, &format!("SELECT count(*) - {left} FROM outbox.messages_pending")).await?;
    ensure!(bed.count(&format!("SELECT count(*) FROM outbox.messages_pending WHERE {of_dead}")).await? == left);
    let log = relay.stop().await?;
    ensure!(!log.contains("without a known reason"), "{log}");
    let half = |name: &str| {
        format!(
            "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY extract(epoch FROM delivered_at - enqueued_at))::float8
            FROM outbox.messages_delivered WHERE destination = '{name}' AND NOT {of_dead}"
        )
    };
    let p50 = async |name| anyhow::Ok(bed.client.query_one(&half(name), &[]).await?.try_get::<_, f64>(0)?);
    Ok((p50("tickets").await?, p50("audit").await?))
}

#[tokio::test]
async fn messages_are_delivered_with_two_seconds_to_the_database_and_two_seconds_to_sqs() -> Result<()> {
    // All at once, because it is nearly all waiting, and on a separate cluster.
    let cluster = Cluster::start(&Options { major: chosen_major(), ..Options::default() })?;
    let all = DATABASE.iter().flat_map(|database| SQS.map(|sqs| (*database, sqs)));
    let cluster = &cluster;
    let cell = |(database, sqs): (u64, u64)| async move {
        let both = SETTINGS.map(|settings| async move {
            let bed = TestBed::beside(cluster).await?;
            let p50 = deliver(&bed, cluster.port(), database, sqs, settings).await;
            p50.with_context(|| format!("{database} ms, SQS {sqs} ms, {settings:?}"))
        });
        anyhow::Ok((database, sqs, try_join_all(both).await?))
    };
    let all = try_join_all(all.map(cell)).await?;
    println!("database  SQS      fifo strict, block   fifo batched, skip   standard");
    for (database, sqs, p50) in all {
        let [(strict, standard), (batched, _)] = p50[..] else { anyhow::bail!("two settings") };
        println!("{database:>5} ms {sqs:>5} ms {strict:>12.3} s {batched:>18.3} s {standard:>15.3} s");
    }
    Ok(())
}
