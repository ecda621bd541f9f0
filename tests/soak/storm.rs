//! Faults of the queues and of the database, drawn from the seed.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use fastrand::Rng;
use tokio_util::sync::CancellationToken;

use crate::chronicle::Chronicle;
use crate::shop;
use crate::support::postgres::{Cluster, StopMode};
use crate::support::proxy::{Choice, Fault, Proxy, Rule};

/// After its session or server has gone a relay may send for this long before it notices.
const NOTICE: Duration = Duration::from_secs(1);

/// The longest that one fault of a queue lasts, and the longest that there is none.
const QUEUE_FAULT: Duration = Duration::from_secs(4);
const QUEUE_PAUSE: Duration = Duration::from_secs(3);

/// The longest that nothing happens to the database.
const DATABASE_PAUSE: Duration = Duration::from_secs(15);

/// The longest that a report or a backup keeps its snapshot.
const LONG_READ: Duration = Duration::from_secs(12);

/// Where the queues' faults come from.
#[derive(Debug)]
pub struct Queues {
    pub proxies: Vec<Arc<Proxy>>,
    pub urls: [String; 2],
    pub chronicle: Arc<Chronicle>,
    pub dice: Rng,
}

impl Queues {
    /// One fault after the other until it is calm; then there is none.
    pub async fn trouble(mut self, calm: CancellationToken) -> Result<()> {
        while !calm.is_cancelled() {
            pause(&calm, QUEUE_PAUSE.mul_f64(self.dice.f64())).await;
            // Either relay's own way to SQS, or SQS for both.
            let struck: Vec<Arc<Proxy>> = match self.dice.usize(..4) {
                chosen @ 0..2 => self.proxies.get(chosen).into_iter().cloned().collect(),
                _ => self.proxies.clone(),
            };
            let (kind, refuses, seed) = (self.dice.usize(..KINDS.len()), self.dice.u32(..12) == 0, self.dice.u64(..));
            let url = self.urls[self.dice.usize(..2)].clone();
            for proxy in &struck {
                if refuses {
                    proxy.refuse_connections().await?;
                } else {
                    proxy.script([KINDS[kind].1(&url, seed)]);
                }
            }
            let name = if refuses { "connections refused" } else { KINDS[kind].0 };
            self.chronicle.begin(name, &format!("for {} of the relays", struck.len()));
            pause(&calm, QUEUE_FAULT.mul_f64(self.dice.f64())).await;
            for proxy in &struck {
                proxy.clear();
                proxy.accept_connections().await?;
            }
        }
        Ok(())
    }
}

type Kind = (&'static str, fn(&str, u64) -> Rule);

/// From a queue's URL and a seed.
const KINDS: [Kind; 11] = [
    ("entries failed", |_, seed| Rule::new(fail_entries(0.05, seed))),
    ("many entries failed", |_, seed| Rule::new(fail_entries(0.4, seed))),
    ("throttled", |_, _| Rule::new(Fault::throttle())),
    ("throttled at times", |_, seed| Rule::new(Fault::throttle()).chance(0.3, seed)),
    ("503", |_, seed| Rule::new(Fault::status(503)).chance(0.5, seed)),
    ("queue missing", |url, _| Rule::new(Fault::queue_missing()).queue(url)),
    ("access denied", |url, _| Rule::new(Fault::access_denied()).queue(url)),
    ("cut before forwarding", |_, seed| Rule::new(Fault::CutBeforeForward).chance(0.3, seed)),
    ("cut after forwarding", |_, seed| Rule::new(Fault::CutAfterForward).chance(0.3, seed)),
    ("slow", |_, seed| Rule::new(Fault::Delay(Duration::from_millis(seed % 500)))),
    ("slower than the timeout", |_, seed| Rule::new(Fault::Delay(Duration::from_secs(4))).chance(0.1, seed)),
];

fn fail_entries(probability: f64, seed: u64) -> Fault {
    Fault::FailEntries { which: Choice::chance(probability, seed), code: "InternalError", sender_fault: false }
}

/// Where the database's faults come from.
#[derive(Debug)]
pub struct Database {
    pub cluster: Arc<Cluster>,
    pub url: String,
    pub chronicle: Arc<Chronicle>,
    pub dice: Rng,
}

impl Database {
    /// One fault after the other until it is calm; then the database works.
    pub async fn trouble(mut self, calm: CancellationToken) -> Result<()> {
        while !calm.is_cancelled() {
            pause(&calm, DATABASE_PAUSE.mul_f64(self.dice.f64())).await;
            if calm.is_cancelled() {
                return Ok(());
            }
            match self.dice.u32(..10) {
                0..2 => self.restart("PostgreSQL crashed", StopMode::Immediate).await?,
                2..4 => self.restart("PostgreSQL restarted", StopMode::Fast).await?,
                4..6 => self.read_for_long(&calm).await?,
                6..8 => self.end_sessions("one session ended", "LIMIT 1").await?,
                _ => self.end_sessions("all sessions ended", "").await?,
            }
        }
        Ok(())
    }

    async fn restart(&mut self, name: &'static str, mode: StopMode) -> Result<()> {
        self.chronicle.begin(name, "");
        let began_at = Instant::now();
        let (cluster, down_for) = (Arc::clone(&self.cluster), Duration::from_secs_f64(self.dice.f64()));
        let restarted = tokio::task::spawn_blocking(move || {
            cluster.stop(mode)?;
            std::thread::sleep(down_for);
            cluster.start_again()
        });
        restarted.await??;
        tokio::time::sleep(NOTICE).await;
        self.chronicle.disturb(None, began_at);
        Ok(())
    }

    async fn end_sessions(&mut self, name: &'static str, limit: &str) -> Result<()> {
        self.chronicle.begin(name, "");
        let began_at = Instant::now();
        let client = shop::connect(&self.url).await?;
        let query = format!(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE application_name LIKE 'outbox-relay%' ORDER BY random() {limit}"
        );
        client.execute(&query, &[]).await?;
        tokio::time::sleep(NOTICE).await;
        self.chronicle.disturb(None, began_at);
        Ok(())
    }

    /// A snapshot that vacuum has to respect.
    async fn read_for_long(&mut self, calm: &CancellationToken) -> Result<()> {
        self.chronicle.begin("long transaction", "");
        let client = shop::connect(&self.url).await?;
        client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT FROM outbox.messages LIMIT 1").await?;
        pause(calm, LONG_READ.mul_f64(self.dice.f64())).await;
        client.batch_execute("COMMIT").await?;
        Ok(())
    }
}

async fn pause(calm: &CancellationToken, time: Duration) {
    tokio::select! {
        () = tokio::time::sleep(time) => {}
        () = calm.cancelled() => {}
    }
}
