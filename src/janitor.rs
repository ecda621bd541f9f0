//! The janitor: periodic duties that no delivery waits for. It measures the backlog and prunes what was delivered.
//!
//! Both are bounded in what they cost: a probe counts up to a limit and pauses twenty times as long as it took; a prune
//! deletes in small chunks. A failure is left for the next round; the relays report the database's
//! state.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio_util::sync::CancellationToken;

use crate::health::Pulse;
use crate::message::{LANES, Lane};
use crate::metrics::{DestinationMetrics, Metrics};
use crate::outbox::{Outbox, OutboxError};

/// How often the backlog is measured.
const PROBE_EVERY: Duration = Duration::from_secs(2);

/// A probe may take one part in so many of the time.
const PROBE_SHARE: u32 = 20;

/// Rows deleted in one statement: a few milliseconds of locks and WAL.
const CHUNK: i64 = 1000;

/// The longest pause between two rounds of pruning.
const PRUNE_EVERY: Duration = Duration::from_secs(60);

/// The shortest.
const PRUNE_AT_MOST_EVERY: Duration = Duration::from_secs(1);

/// Pause between two chunks, so that pruning a large remainder leaves room for deliveries.
const CHUNK_PAUSE: Duration = Duration::from_millis(20);

/// What the janitor looks after.
#[derive(Debug)]
pub struct Janitor {
    /// The tables.
    pub outbox: Outbox,
    /// Names and series of the destinations.
    pub destinations: Vec<(Arc<str>, DestinationMetrics)>,
    /// For the time of the last probe.
    pub metrics: Arc<Metrics>,
    /// How long delivered messages are kept; zero when they are deleted at delivery.
    pub retention: Duration,
    /// Sign of life.
    pub pulse: Arc<Pulse>,
}

impl Janitor {
    /// Does its rounds until told to stop.
    pub async fn run(self, stop: CancellationToken) {
        let mut next_probe = Instant::now();
        let mut next_prune = Instant::now();
        while !stop.is_cancelled() {
            self.pulse.tick();
            let now = Instant::now();
            if now >= next_probe {
                let took = self.probe().await;
                next_probe = now + PROBE_EVERY.max(took * PROBE_SHARE);
            }
            if now >= next_prune {
                self.prune(&stop).await;
                next_prune = now + (self.retention / 10).clamp(PRUNE_AT_MOST_EVERY, PRUNE_EVERY);
            }
            let wake = next_probe.min(next_prune).max(Instant::now() + Duration::from_millis(10));
            tokio::select! {
                () = tokio::time::sleep_until(wake.min(Instant::now() + PROBE_EVERY).into()) => {}
                () = stop.cancelled() => {}
            }
        }
        self.pulse.finish();
    }

    /// Measures all destinations; returns how long that took.
    async fn probe(&self) -> Duration {
        let started = Instant::now();
        match self.measure().await {
            Ok(()) => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                self.metrics.backlog_probe.set(now.as_secs_f64());
            }
            // Where the database cannot be used at all, the relays say so.
            Err(error @ (OutboxError::Connect { .. } | OutboxError::NotMigrated { .. })) => {
                tracing::debug!(error = %error, "the backlog cannot be measured");
            }
            Err(error) => tracing::warn!(error = %error, "the backlog cannot be measured; trying again"),
        }
        started.elapsed()
    }

    async fn measure(&self) -> Result<(), OutboxError> {
        for (name, metrics) in &self.destinations {
            let backlog = self.outbox.backlog(name).await?;
            metrics.lag.set(backlog.lag);
            metrics.backlog.set(backlog.messages);
            metrics.dead.set(backlog.dead);
        }
        Ok(())
    }

    async fn prune(&self, stop: &CancellationToken) {
        if self.retention.is_zero() {
            return;
        }
        // Each relay starts elsewhere, so that several of them seldom meet.
        let first = fastrand::i16(0..LANES);
        for (name, _) in &self.destinations {
            for lane in (0..LANES).map(|lane| (lane + first) % LANES) {
                if let Err(error) = self.prune_lane(name, lane, stop).await {
                    tracing::debug!(destination = %name, error = %error, "pruning is put off");
                    return;
                }
            }
        }
    }

    async fn prune_lane(&self, name: &str, lane: Lane, stop: &CancellationToken) -> Result<(), OutboxError> {
        loop {
            self.pulse.tick();
            let deleted = self.outbox.prune(name, lane, self.retention, CHUNK).await?;
            if deleted < CHUNK.unsigned_abs() || stop.is_cancelled() {
                return Ok(());
            }
            tokio::time::sleep(CHUNK_PAUSE).await;
        }
    }
}
