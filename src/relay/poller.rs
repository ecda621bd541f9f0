//! The poller: it asks, for all idle relays of the process, whether there may be new work.
//!
//! It reads the current value of the message id sequence, whether a retry has fallen due, and whether an operator has
//! changed something. That costs a fraction of a look. Idle relays sleep until the answer changes. The answer is only a
//! hint: each relay rescans once a second in any case, so a poller that is wrong or cannot reach the database costs
//! latency but never a message. It also tells the [`Timer`] when the next scheduled messages fall due, which nothing else
//! looks at; so it asks when no relay is idle, too.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::timer::{NextDue, Timer};
use crate::health::Heartbeat;
use crate::outbox::{Outbox, OutboxError};
use crate::reading::Watch;

/// The pause after the database failed to answer.
const AFTER_FAILURE: Duration = Duration::from_millis(500);

/// The poller asks less often after nothing new has come for this long.
const QUIET_AFTER: Duration = Duration::from_secs(5);

/// The factor by which it then asks less often. The cost of an idle relay is the wake-up, not the query.
const QUIET_FACTOR: u32 = 4;

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
    next_due: watch::Sender<NextDue>,
    /// Told when scheduled messages have become pending.
    news: Arc<Notify>,
    idle: Arc<AtomicUsize>,
    heartbeat: Arc<Heartbeat>,
    /// Whether it was logged that the question fails.
    is_logged: bool,
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
        let ((seen, _), (next_due, _)) = (watch::channel(None), watch::channel(NextDue::new()));
        let (news, idle) = (Arc::new(Notify::new()), Arc::new(AtomicUsize::new(0)));
        Self { outbox, destinations, poll_interval, seen, next_due, news, idle, heartbeat, is_logged: false }
    }

    /// The timer of the same destinations.
    pub fn timer(&self, heartbeat: Arc<Heartbeat>) -> Timer {
        let (outbox, news) = (self.outbox.clone(), Arc::clone(&self.news));
        Timer::new(outbox, &self.destinations, self.next_due.subscribe(), news, heartbeat)
    }

    /// A signal for one relay.
    pub fn signal(&self) -> WorkSignal {
        WorkSignal { seen: self.seen.subscribe(), idle: Arc::clone(&self.idle), is_idle: false }
    }

    /// Asks until told to stop.
    pub async fn run(mut self, stop: CancellationToken) {
        let (mut news_at, mut due_at) = (Instant::now(), Instant::now());
        while !stop.is_cancelled() {
            self.heartbeat.tick();
            let is_slow = news_at.elapsed() >= QUIET_AFTER || self.idle.load(Ordering::Relaxed) == 0;
            let interval = if is_slow { self.poll_interval * QUIET_FACTOR } else { self.poll_interval };
            let mut pause = interval.mul_f64(0.8 + 0.4 * fastrand::f64());
            let began_at = Instant::now();
            let asks_for_due = began_at >= due_at;
            let answer = self.ask(asks_for_due).await;
            if asks_for_due {
                due_at = Instant::now() + began_at.elapsed() * (DUE_SHARE - 1);
            }
            match answer {
                Ok(watch) => {
                    self.is_logged = false;
                    let is_news = self.seen.send_if_modified(|seen| seen.replace(watch) != Some(watch));
                    if is_news {
                        news_at = Instant::now();
                    }
                }
                Err(error) => {
                    pause = pause.max(AFTER_FAILURE);
                    // The relays meet every other failure, and report it.
                    if error.is_denied() && !std::mem::replace(&mut self.is_logged, true) {
                        tracing::warn!(%error, "new and scheduled messages cannot be looked for; relays look once a second");
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.news.notified() => {}
                () = stop.cancelled() => {}
            }
        }
        self.heartbeat.finish();
    }

    async fn ask(&self, asks_for_due: bool) -> Result<Watch, OutboxError> {
        if asks_for_due {
            let names: Vec<&str> = self.destinations.iter().map(AsRef::as_ref).collect();
            let (watch, scheduled_in) = self.outbox.watch(&names).await?;
            let now = Instant::now();
            let next_due = scheduled_in.into_iter().map(|left| now.checked_add(left?)).collect();
            self.next_due.send_if_modified(|before| std::mem::replace(before, next_due) != *before);
            return Ok(watch);
        }
        let before = self.seen.borrow().and_then(|seen| seen.latest_due);
        Ok(Watch { latest_due: before, ..self.outbox.watch(&[]).await?.0 })
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
