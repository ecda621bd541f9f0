//! From the commit to SQS's acceptance, at a steady rate of writing.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{begin, scaled};
use crate::ground::{DESTINATION, Ground, Running, micros_since_1970};
use crate::report::{Aim, Outcome};

/// Sessions that write.
const WRITERS: u64 = 4;

pub async fn run(ground: &Ground, scale: f64) -> Result<Outcome> {
    let mut outcome = begin("latency", "commit to acceptance with default settings, SQS 0 ms, for 20 seconds");
    for rate in [100, 1_000, 5_000] {
        let seconds = scaled(20, scale);
        let measured = at_rate(ground, rate, seconds).await?;
        let name = |what: &str| format!("{rate}/s, {what}");
        outcome.add(name("committed"), measured.committed, "messages/s");
        let mut latencies = measured.latencies;
        latencies.sort_unstable();
        let percentile = |part: f64| latencies[((latencies.len() - 1) as f64 * part) as usize] as f64 / 1000.0;
        match rate {
            1_000 => {
                outcome.aim(name("p50"), percentile(0.5), "ms", Aim::AtMost(10.0));
                outcome.aim(name("p99"), percentile(0.99), "ms", Aim::AtMost(30.0));
            }
            _ => {
                outcome.add(name("p50"), percentile(0.5), "ms");
                outcome.add(name("p99"), percentile(0.99), "ms");
            }
        }
        outcome.add(name("p99.9"), percentile(0.999), "ms");
        outcome.add(name("the relay's share of a core"), measured.cpu * 100.0, "%");
    }
    Ok(outcome)
}

struct Measured {
    committed: f64,
    /// Microseconds.
    latencies: Vec<u64>,
    cpu: f64,
}

async fn at_rate(ground: &Ground, rate: u64, seconds: u64) -> Result<Measured> {
    let client = ground.empty("latency").await?;
    let total = rate * seconds;
    ground.stand_in.reset(Duration::ZERO, total).await?;
    let relay = Running::start(ground.command("latency", "tickets").arg("run"))?;
    // A relay that starts looks through the outbox once; that is not what is measured.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (before, started) = (relay.used()?, Instant::now());
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        writers.spawn(write(ground.connect("latency").await?, writer, rate, total, started));
    }
    let mut committed_at = vec![0; total as usize + 1];
    while let Some(written) = writers.join_next().await {
        for (number, at) in written?? {
            committed_at[number as usize] = at;
        }
    }
    let elapsed = started.elapsed().as_secs_f64();
    let cpu = (relay.used()?.cpu - before.cpu) / elapsed;
    let patience = Instant::now();
    while ground.stand_in.counts().await?.entries < total {
        ensure!(patience.elapsed() < Duration::from_secs(60), "not everything arrived");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    relay.stop().await?;
    let accepted_at = ground.stand_in.accepted().await?;
    let pairs = committed_at.iter().zip(&accepted_at).skip(1);
    // The relay may be faster than the writer hears of its own commit.
    let latencies = pairs.map(|(committed, accepted)| accepted.saturating_sub(*committed)).collect();
    drop(client);
    Ok(Measured { committed: total as f64 / elapsed, latencies, cpu })
}

/// Writes every fourth number when its time has come, one message a transaction; says when each commit was confirmed.
async fn write(
    client: tokio_postgres::Client,
    writer: u64,
    rate: u64,
    total: u64,
    started: Instant,
) -> Result<Vec<(u64, u64)>> {
    let query = "SELECT outbox.enqueue($1, 'TicketPurchased', jsonb_build_object('n', $2::bigint, 'ticket', repeat('x', 416)), $3)";
    let statement = client.prepare(query).await?;
    let mut committed = Vec::new();
    for number in (1..=total).filter(|number| number % WRITERS == writer) {
        let due = started + Duration::from_secs_f64(number as f64 / rate as f64);
        tokio::time::sleep_until(due.into()).await;
        let group = format!("g{}", number % 1000);
        client.query_one(&statement, &[&DESTINATION, &(number as i64), &group]).await?;
        committed.push((number, micros_since_1970()?));
    }
    Ok(committed)
}
