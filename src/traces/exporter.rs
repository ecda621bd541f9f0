//! The exporter: one task that sends spans to the collector, a batch at a time. Nothing waits for it but the end of the
//! process, and that not for long.

use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus::IntCounter;
use tokio::time::{sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::collector::{Collector, Sent};
use super::queue::Queue;
use crate::config::Batching;
use crate::retry::Delays;

/// Ceilings of the first and of all delays before the same spans are sent again.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// However long a collector wants to be left alone.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// A trouble that lasts is logged this often.
const REPEAT: Duration = Duration::from_secs(300);

/// Sends what waits in the queue.
#[derive(Debug)]
pub(super) struct Exporter {
    collector: Collector,
    queue: Arc<Queue>,
    batching: Batching,
    exported: IntCounter,
    dropped: IntCounter,
    delays: Delays,
    dice: fastrand::Rng,
    log: Log,
}

impl Exporter {
    /// Counts what the collector takes and what it does not.
    pub(super) fn new(
        collector: Collector,
        queue: Arc<Queue>,
        batching: Batching,
        (exported, dropped): (IntCounter, IntCounter),
    ) -> Self {
        let (delays, dice) = (Delays::new(RETRY.0, RETRY.1), fastrand::Rng::new());
        Self { collector, queue, batching, exported, dropped, delays, dice, log: Log::default() }
    }

    /// Exports until told to stop, and then what is left, as long as the collector takes it.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        while !stop.is_cancelled() {
            tokio::select! {
                () = self.due() => {}
                () = stop.cancelled() => break,
            }
            self.export_next(&stop).await;
        }
        while self.queue.oldest().is_some() && self.export_next(&stop).await {}
    }

    /// Completes when a batch is full, or when the oldest span has waited long enough.
    async fn due(&self) {
        while !self.queue.has_batch() {
            let old_enough = async {
                match self.queue.oldest() {
                    Some(oldest) => sleep_until((oldest + self.batching.delay).into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.queue.changed() => {}
                () = old_enough => return,
            }
        }
    }

    /// Exports one batch; returns whether the collector took it.
    async fn export_next(&mut self, stop: &CancellationToken) -> bool {
        let batch = self.queue.take();
        let spans = batch.len();
        let is_taken = self.export(batch, stop).await;
        self.queue.done(spans);
        self.log.full(self.queue.dropped());
        is_taken
    }

    async fn export(&mut self, batch: Vec<Vec<u8>>, stop: &CancellationToken) -> bool {
        let spans = batch.len() as u64;
        let body = self.collector.request(batch);
        let give_up = Instant::now() + self.batching.export_timeout;
        loop {
            let (why, retry_after) = match self.collector.send(body.clone()).await {
                Sent::Accepted { rejected, says } => {
                    let rejected = rejected.min(spans);
                    self.exported.inc_by(spans - rejected);
                    self.dropped.inc_by(rejected);
                    self.log.accepted(self.collector.place(), rejected, &says);
                    self.delays.reset();
                    return true;
                }
                Sent::Refused { why } => {
                    self.dropped.inc_by(spans);
                    self.log.refused(self.collector.place(), spans, &why);
                    return false;
                }
                Sent::Failed { why, retry_after } => (why, retry_after),
            };
            self.log.failed(self.collector.place(), &why);
            let wait = retry_after.unwrap_or_else(|| self.delays.next_delay(&mut self.dice)).min(LONGEST_WAIT);
            let is_last = stop.is_cancelled() || Instant::now() + wait >= give_up;
            if is_last {
                self.dropped.inc_by(spans);
            }
            // The next attempt, with these spans or with others, comes no earlier, but for a last one at the end.
            tokio::select! {
                () = sleep(wait) => {}
                () = stop.cancelled() => {}
            }
            if is_last {
                return false;
            }
        }
    }
}

/// What was said of troubles, so that the same one is not said again and again.
#[derive(Debug, Default)]
pub(super) struct Log {
    /// When it was last said that spans cannot be exported; `None` if they can.
    failing: Option<Instant>,
    refused: Option<Instant>,
    full: Option<Instant>,
    /// The spans for which the queue was full, when that was last said.
    dropped: u64,
}

impl Log {
    fn failed(&mut self, collector: &str, error: &str) {
        if is_time(&mut self.failing) {
            tracing::warn!(collector, error, "spans cannot be exported; trying again, and delivery goes on");
        }
    }

    fn refused(&mut self, collector: &str, spans: u64, error: &str) {
        if is_time(&mut self.refused) {
            tracing::warn!(collector, spans, error, "the collector refuses spans, which are dropped; delivery goes on");
        }
    }

    fn accepted(&mut self, collector: &str, rejected: u64, says: &str) {
        if self.failing.take().is_some() {
            tracing::info!(collector, "spans are exported again");
        }
        if rejected > 0 || !says.is_empty() {
            self.refused(collector, rejected, says);
        } else {
            self.refused = None;
        }
    }

    /// So many were dropped so far because the queue was full.
    fn full(&mut self, dropped: u64) {
        let spans = dropped - self.dropped;
        // While it fails, that is what is said.
        if spans > 0 && self.failing.is_none() && is_time(&mut self.full) {
            self.dropped = dropped;
            tracing::warn!(spans, "spans were dropped, because they come faster than the collector takes them");
        }
    }
}

/// Whether something is to be said now, because it was not said before or not for long.
fn is_time(last: &mut Option<Instant>) -> bool {
    let is_time = last.is_none_or(|last| last.elapsed() >= REPEAT);
    if is_time {
        *last = Some(Instant::now());
    }
    is_time
}
