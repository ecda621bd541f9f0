//! The poller: it asks, for all idle relays of the process, whether there may be new work.
//!
//! It reads the current value of the message id sequence, whether a retry has fallen due, and whether an operator has
//! changed something. That costs a fraction of a look. Idle relays sleep until the answer changes. The answer is only a
//! hint: each relay rescans once a second in any case, so a poller that is wrong or cannot reach the database costs
//! latency but never a message.
//!
//! It also makes scheduled messages pending when they fall due; the relays know nothing of them before.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::health::Heartbeat;
use crate::outbox::{Outbox, OutboxError};
use crate::reading::Watch;

/// The pause after the database failed to answer.
const AFTER_FAILURE: Duration = Duration::from_millis(500);

/// The poller asks less often after nothing new has come for this long.
const QUIET_AFTER: Duration = Duration::from_secs(5);

/// The factor by which it then asks less often. The cost of an idle relay is the wake-up, not the query.
const QUIET_FACTOR: u32 = 4;

/// How many scheduled messages become pending in one statement.
const DUE_CHUNK: i64 = 1000;

/// The queries for due retries and scheduled messages may take at most one part in this many of the time. They walk dead
/// rows that vacuum could not remove.
const DUE_SHARE: u32 = 4;

/// Asks for all relays of the process.
#[derive(Debug)]
pub struct Poller {
    outbox: Outbox,
    destinations: Vec<Arc<str>>,
    poll_interval: Duration,
    seen: watch::Sender<Option<Watch>>,
    idle: Arc<AtomicUsize>,
    heartbeat: Arc<Heartbeat>,
}

/// One relay's view of the poller.
#[derive(Debug)]
pub struct WorkSignal {
    seen: watch::Receiver<Option<Watch>>,
    idle: Arc<AtomicUsize>,
    is_idle: bool,
}

impl Poller {
    /// A poller for these destinations.
    pub fn new(
        outbox: Outbox,
        destinations: Vec<Arc<str>>,
        poll_interval: Duration,
        heartbeat: Arc<Heartbeat>,
    ) -> Self {
        let (seen, _) = watch::channel(None);
        Self { outbox, destinations, poll_interval, seen, idle: Arc::new(AtomicUsize::new(0)), heartbeat }
    }

    /// A signal for one relay.
    pub fn signal(&self) -> WorkSignal {
        WorkSignal { seen: self.seen.subscribe(), idle: Arc::clone(&self.idle), is_idle: false }
    }

    /// Asks until told to stop.
    pub async fn run(self, stop: CancellationToken) {
        let (mut news_at, mut due_at, mut is_logged) = (Instant::now(), Instant::now(), false);
        while !stop.is_cancelled() {
            self.heartbeat.tick();
            // While no relay is idle, only operators and scheduled messages matter.
            let is_slow = news_at.elapsed() >= QUIET_AFTER || self.idle.load(Ordering::Relaxed) == 0;
            let interval = if is_slow { self.poll_interval * QUIET_FACTOR } else { self.poll_interval };
            let mut pause = interval.mul_f64(0.8 + 0.4 * fastrand::f64());
            let began_at = Instant::now();
            let asks_for_due = began_at >= due_at;
            match self.ask(asks_for_due).await {
                Ok((watch, scheduled_in)) => {
                    if asks_for_due {
                        due_at = Instant::now() + began_at.elapsed() * (DUE_SHARE - 1);
                    }
                    let is_news = self.seen.send_if_modified(|seen| seen.replace(watch) != Some(watch));
                    if is_news {
                        news_at = Instant::now();
                    }
                    pause = self.enqueue_due(scheduled_in, pause, &mut is_logged).await;
                }
                // The relays meet the same failure and report it.
                Err(_) => pause = pause.max(AFTER_FAILURE),
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => {}
            }
        }
        self.heartbeat.finish();
    }

    /// Makes scheduled messages pending if the next one has fallen due. Returns how long to pause: at most until it does,
    /// and not at all if there is something new for the relays.
    async fn enqueue_due(&self, scheduled_in: Option<Duration>, pause: Duration, is_logged: &mut bool) -> Duration {
        match scheduled_in {
            None => return pause,
            Some(left) if !left.is_zero() => return pause.min(left),
            Some(_) => {}
        }
        let mut enqueued = 0;
        for destination in &self.destinations {
            match self.outbox.enqueue_due(destination, DUE_CHUNK).await {
                Ok(count) => enqueued += count,
                Err(error) => {
                    if !std::mem::replace(is_logged, true) {
                        tracing::warn!(%destination, %error, "scheduled messages that are due cannot be enqueued; trying again");
                    }
                    return pause.max(AFTER_FAILURE);
                }
            }
        }
        *is_logged = false;
        // If there was nothing, another relay is doing it, or somebody holds the rows.
        if enqueued > 0 { Duration::ZERO } else { pause }
    }

    async fn ask(&self, asks_for_due: bool) -> Result<(Watch, Option<Duration>), OutboxError> {
        if asks_for_due {
            let names: Vec<&str> = self.destinations.iter().map(AsRef::as_ref).collect();
            return self.outbox.watch(&names).await;
        }
        let before = self.seen.borrow().and_then(|seen| seen.latest_due);
        let (watch, _) = self.outbox.watch(&[]).await?;
        Ok((Watch { latest_due: before, ..watch }, None))
    }
}

impl WorkSignal {
    /// Says whether this relay is waiting for new work.
    pub(super) fn set_idle(&mut self, is_idle: bool) {
        if is_idle != self.is_idle {
            self.is_idle = is_idle;
            if is_idle {
                self.idle.fetch_add(1, Ordering::Relaxed);
            } else {
                self.idle.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    /// Waits for an answer that differs from the last one.
    pub(super) async fn changed(&mut self) -> Watch {
        loop {
            // An error means that the poller is gone, which happens only when the process ends.
            if self.seen.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            if let Some(watch) = *self.seen.borrow_and_update() {
                return watch;
            }
        }
    }
}

impl Drop for WorkSignal {
    fn drop(&mut self) {
        self.set_idle(false);
    }
}
