//! The relays: each has its own proxy, and is killed, stopped and frozen at random.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use tokio_util::sync::CancellationToken;

use crate::chronicle::Chronicle;
use crate::destinations::names;
use support::relay::{Command, Relay};

/// The longest that a relay works before the next thing happens to it.
const WORKS_FOR: Duration = Duration::from_secs(8);

/// The longest that a relay is frozen: longer than its claim lives.
const FROZEN_FOR: Duration = Duration::from_secs(9);

/// The longest time until a killed relay is restarted.
const GONE_FOR: Duration = Duration::from_secs(2);

/// The pause between two reads of the metrics.
const LOOK: Duration = Duration::from_millis(250);

/// What a relay logs when it cannot wait any longer for what is in flight.
const NOT_DRAINED: &str = "not drained in time";

/// The position of a relay: what is done to it, and the record of its processes.
#[derive(Debug)]
pub struct Place {
    pub number: usize,
    pub command: Command,
    pub chronicle: Arc<Chronicle>,
    pub dice: Rng,
    /// Everything its processes logged.
    pub log: String,
    /// Entries to standard queues that its processes reported as possibly sent twice.
    pub possible_duplicates: Counters,
}

/// Counters of a relay's processes, one after the other. They begin anew with each process, and when a destination is
/// taken up again.
#[derive(Debug, Default)]
pub struct Counters {
    /// The last value of each.
    last: HashMap<&'static str, f64>,
    before: f64,
}

impl Counters {
    pub fn sum(&self) -> f64 {
        self.before + self.last.values().sum::<f64>()
    }

    fn see(&mut self, name: &'static str, value: f64) {
        let last = self.last.insert(name, value).unwrap_or_default();
        if value < last {
            self.before += last;
        }
    }

    fn begin_anew(&mut self) {
        self.before += self.last.drain().map(|(_, last)| last).sum::<f64>();
    }
}

impl Place {
    /// Runs relays one after the other until it is calm, and the last of them until the end.
    pub async fn keep(mut self, calm: CancellationToken, end: CancellationToken) -> Result<Place> {
        let mut relay = self.start().await?;
        loop {
            let works_for = WORKS_FOR.mul_f64(self.dice.f64());
            self.watch(&relay, works_for, &calm).await;
            if calm.is_cancelled() {
                break;
            }
            relay = match self.dice.u32(..10) {
                0..4 => self.kill(relay).await?,
                4..7 => self.replace(relay).await?,
                _ => self.freeze(relay).await?,
            };
        }
        self.watch(&relay, Duration::MAX, &end).await;
        self.log.push_str(&relay.stop().await.context("a relay at the end")?);
        Ok(self)
    }

    async fn start(&mut self) -> Result<Relay> {
        let relay = self.command.start().await?;
        self.possible_duplicates.begin_anew();
        self.chronicle.note(&format!("relay {} starts as {}", self.number, relay.process_id()?));
        Ok(relay)
    }

    async fn kill(&mut self, relay: Relay) -> Result<Relay> {
        self.chronicle.begin("relay killed", &format!("({})", self.number));
        let killed_at = Instant::now();
        self.log.push_str(&relay.log());
        relay.kill().await?;
        self.chronicle.disturb(Some(self.number), killed_at);
        tokio::time::sleep(GONE_FOR.mul_f64(self.dice.f64())).await;
        self.start().await
    }

    /// SIGTERM, as at a rollout: it drains and the next one takes over.
    async fn replace(&mut self, relay: Relay) -> Result<Relay> {
        self.chronicle.begin("relay stopped", &format!("({})", self.number));
        let stopped_at = Instant::now();
        relay.terminate().await?;
        let (status, log) = relay.wait().await?;
        self.log.push_str(&log);
        if status.code() != Some(0) {
            ensure!(log.contains(NOT_DRAINED), "relay {} ended with {status}:\n{log}", self.number);
            self.chronicle.disturb(Some(self.number), stopped_at);
        }
        self.start().await
    }

    async fn freeze(&mut self, relay: Relay) -> Result<Relay> {
        let frozen_for = FROZEN_FOR.mul_f64(self.dice.f64());
        self.chronicle.begin("relay frozen", &format!("({}) for {frozen_for:.1?}", self.number));
        let frozen_at = Instant::now();
        relay.signal("STOP").await?;
        tokio::time::sleep(frozen_for).await;
        relay.signal("CONT").await?;
        self.chronicle.disturb(Some(self.number), frozen_at);
        Ok(relay)
    }

    /// Lets a relay work and reads its metrics until the time is over or the token is cancelled.
    async fn watch(&mut self, relay: &Relay, time: Duration, until: &CancellationToken) {
        let started = Instant::now();
        let (mut looked_at, mut undrained) = (started, times_not_drained(relay));
        while started.elapsed() < time && !until.is_cancelled() {
            if let Ok(Ok(metrics)) = tokio::time::timeout(LOOK, relay.metrics()).await {
                for name in names(|kind| !kind.is_fifo()) {
                    if let Ok(count) = metrics.get(&format!("possible_duplicates_total{{destination=\"{name}\"}}")) {
                        self.possible_duplicates.see(name, count);
                    }
                }
            }
            // A relay drains when destinations change, and goes on without what it could not settle in time.
            let times = times_not_drained(relay);
            if times > undrained {
                self.chronicle.disturb(Some(self.number), looked_at);
            }
            (looked_at, undrained) = (Instant::now(), times);
            let pause = LOOK.min(time.saturating_sub(started.elapsed()));
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = until.cancelled() => {}
            }
        }
    }
}

/// How often this process has given up waiting for what was in flight.
fn times_not_drained(relay: &Relay) -> usize {
    relay.log().matches(NOT_DRAINED).count()
}
