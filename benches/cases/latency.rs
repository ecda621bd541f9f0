//! From the commit to SQS's acceptance, at a steady rate of writing, with TLS and without.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{begin, scaled};
use crate::ground::{DESTINATION, Ground, micros_since_1970};
use crate::report::{Aim, Outcome};
use crate::stand_in::{ByWire, Wire};

/// Sessions that write.
const WRITERS: u64 = 4;

pub async fn run(ground: &Ground, scale: f64) -> Result<Outcome> {
    let mut outcome = begin("latency", "commit to acceptance with default settings, SQS 0 ms, for 20 seconds");
    for rate in [100, 1_000, 5_000] {
        let seconds = scaled(20, scale);
        let measured = ByWire {
            https: at_rate(ground, rate, seconds, Wire::Https).await?,
            plain: at_rate(ground, rate, seconds, Wire::Plain).await?,
        };
        let name = |what: &str| format!("{rate}/s, {what}");
        outcome.add(name("committed"), measured.map(|measured| measured.committed), "messages/s");
        let percentile = |part: f64| measured.map(|measured| measured.percentile(part));
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
        outcome.add(name("the relay's share of a core"), measured.map(|measured| measured.cpu * 100.0), "%");
    }
    Ok(outcome)
}

/// A steady rate of writing, to an existing outbox.
pub(super) struct Load<'a> {
    pub(super) database: &'a str,
    /// Each transaction writes a message to each.
    pub(super) destinations: &'a [&'a str],
    /// The queue of all destinations.
    pub(super) queue: &'a str,
    /// How the relay reaches SQS.
    pub(super) wire: Wire,
    /// Transactions a second.
    pub(super) rate: u64,
    /// How long nothing is measured at first: a starting relay scans the outbox once.
    pub(super) before: u64,
    pub(super) seconds: u64,
}

pub(super) struct Measured {
    committed: f64,
    /// Microseconds, ascending.
    latencies: Vec<u64>,
    cpu: f64,
}

impl Measured {
    /// The milliseconds that this fraction of the messages did not exceed.
    pub(super) fn percentile(&self, part: f64) -> f64 {
        self.latencies[((self.latencies.len() - 1) as f64 * part) as usize] as f64 / 1000.0
    }
}

async fn at_rate(ground: &Ground, rate: u64, seconds: u64, wire: Wire) -> Result<Measured> {
    let client = ground.empty("latency").await?;
    let (destinations, queue) = (&[DESTINATION], "tickets");
    let load = Load { database: "latency", destinations, queue, wire, rate, before: 2, seconds };
    let measured = load.measure(ground).await?;
    drop(client);
    Ok(measured)
}

impl Load<'_> {
    /// Lets a separate relay deliver what is written meanwhile.
    pub(super) async fn measure(&self, ground: &Ground) -> Result<Measured> {
        let count = self.destinations.len() as u64;
        let (unmeasured, transactions) = (self.rate * self.before, self.rate * (self.before + self.seconds));
        let total = count * transactions;
        ground.stand_in.reset(Duration::ZERO, total).await?;
        let mut command = ground.command(self.database, self.queue, self.wire);
        let url = ground.stand_in.queue(self.wire, self.queue);
        let pairs: Vec<String> = self.destinations.iter().map(|name| format!("{name}={url}")).collect();
        command.env("OUTBOX_RELAY_DESTINATIONS", pairs.join(",")).arg("run");
        let relay = ground.start(&mut command)?;
        let (before, started) = (relay.used()?, Instant::now());
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..WRITERS {
            let client = ground.connect(self.database).await?;
            let destinations = self.destinations.iter().map(|&name| name.to_owned()).collect();
            writers.spawn(write(client, destinations, writer, self.rate, transactions, started));
        }
        let mut committed_at = vec![None; total as usize + 1];
        while let Some(written) = writers.join_next().await {
            for (number, at) in written??.into_iter().filter(|(number, _)| *number > unmeasured) {
                for destination in 0..count {
                    committed_at[(destination * transactions + number) as usize] = Some(at);
                }
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
        // SQS may have accepted the message before the writer learns of its own commit.
        let pairs = committed_at.iter().zip(&accepted_at);
        let latency = |(committed, accepted): (&Option<u64>, &u64)| Some(accepted.saturating_sub((*committed)?));
        let mut latencies: Vec<u64> = pairs.filter_map(latency).collect();
        latencies.sort_unstable();
        Ok(Measured { committed: total as f64 / elapsed, latencies, cpu })
    }
}

/// A message to each destination in one transaction; $1 the destinations, $2 a number from 1, $3 the group, $4 how many
/// numbers each destination has.
const WRITE: &str = "SELECT outbox.enqueue(
        d.name, 'TicketPurchased',
        jsonb_build_object('n', $2::bigint + (d.number - 1) * $4::bigint, 'ticket', repeat('x', 416)), $3)
    FROM unnest($1::text[]) WITH ORDINALITY AS d (name, number)";

/// Writes every fourth number from 1 when its time has come; returns when each commit was confirmed.
async fn write(
    client: tokio_postgres::Client,
    destinations: Vec<String>,
    writer: u64,
    rate: u64,
    transactions: u64,
    started: Instant,
) -> Result<Vec<(u64, u64)>> {
    let statement = client.prepare(WRITE).await?;
    let mut committed = Vec::new();
    for number in (1..=transactions).filter(|number| number % WRITERS == writer) {
        let due = started + Duration::from_secs_f64(number as f64 / rate as f64);
        tokio::time::sleep_until(due.into()).await;
        let group = format!("g{}", number % 1000);
        client.query(&statement, &[&destinations, &(number as i64), &group, &(transactions as i64)]).await?;
        committed.push((number, micros_since_1970()?));
    }
    Ok(committed)
}
