//! The lookout: asks for all idle relays of the process whether anything may have come.
//!
//! It reads how far the sequence of message ids has got and whether a retry is due, which costs a fraction of a look. Idle
//! relays sleep until that changes. It is a hint: each relay sweeps once a second whatever the lookout says, so a lookout
//! that cannot reach the database, or is wrong, costs time and never a message.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::health::Pulse;
use crate::outbox::{Outbox, Watch};

/// How long to leave a database alone that does not answer.
const AFTER_FAILURE: Duration = Duration::from_millis(500);

/// After so much time in which nothing came the lookout asks less often.
const QUIET_AFTER: Duration = Duration::from_secs(5);

/// How much less often. Waking up, not the question, is what an idle relay costs.
const QUIET_FACTOR: u32 = 4;

/// Asks as long as somebody is idle.
#[derive(Debug)]
pub struct Lookout {
    outbox: Outbox,
    destinations: Vec<Arc<str>>,
    poll_interval: Duration,
    seen: watch::Sender<Seen>,
    idle: Arc<AtomicUsize>,
    pulse: Arc<Pulse>,
}

/// The latest answer, and how many there have been.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    watch: Option<Watch>,
    answers: u64,
}

/// A relay's ear for what the lookout sees.
#[derive(Clone, Debug)]
pub struct Ear {
    seen: watch::Receiver<Seen>,
    idle: Arc<AtomicUsize>,
    /// The answer whose "a retry is due" has led to a look already. Nobody asks while all are busy, so the latest answer
    /// may be old, and would send the relay to look again and again.
    heeded: u64,
}

impl Lookout {
    /// A lookout for these destinations.
    pub fn new(outbox: Outbox, destinations: Vec<Arc<str>>, poll_interval: Duration, pulse: Arc<Pulse>) -> Self {
        let (seen, _) = watch::channel(Seen::default());
        Self { outbox, destinations, poll_interval, seen, idle: Arc::new(AtomicUsize::new(0)), pulse }
    }

    /// An ear for one relay.
    pub fn ear(&self) -> Ear {
        Ear { seen: self.seen.subscribe(), idle: Arc::clone(&self.idle), heeded: 0 }
    }

    /// Asks until told to stop.
    pub async fn run(self, stop: CancellationToken) {
        let names: Vec<&str> = self.destinations.iter().map(AsRef::as_ref).collect();
        let mut latest = None;
        let mut news_at = Instant::now();
        while !stop.is_cancelled() {
            self.pulse.tick();
            let is_quiet = news_at.elapsed() >= QUIET_AFTER;
            let interval = if is_quiet { self.poll_interval * QUIET_FACTOR } else { self.poll_interval };
            let mut pause = interval.mul_f64(0.8 + 0.4 * fastrand::f64());
            if self.idle.load(Ordering::Relaxed) > 0 {
                match self.outbox.watch(&names).await {
                    Ok(watch) => {
                        if latest.replace(watch) != Some(watch) || watch.is_due {
                            news_at = Instant::now();
                        }
                        self.seen.send_if_modified(|seen| {
                            seen.answers += 1;
                            seen.watch.replace(watch) != Some(watch) || watch.is_due
                        });
                    }
                    // The relays meet the same failure and report it.
                    Err(_) => pause = pause.max(AFTER_FAILURE),
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => {}
            }
        }
        self.pulse.finish();
    }
}

impl Ear {
    /// Waits until something may have come that is not settled up to this id, but not longer than the limit; returns
    /// whether something has.
    pub(super) async fn listen(&mut self, settled_to: i64, limit: Duration) -> bool {
        let listening = Listening::new(&self.idle);
        let heeded = self.heeded;
        let heard = tokio::time::timeout(limit, self.seen.wait_for(|seen| seen.is_news(settled_to, heeded))).await;
        drop(listening);
        // An error inside means that the lookout is gone, which happens only when the process ends.
        if let Ok(Ok(seen)) = &heard {
            self.heeded = seen.answers;
        }
        heard.is_ok()
    }

    /// Whether the last answer, if there was one, says that nothing can have come above this id. What it says of retries
    /// counts once: the look that follows sees them.
    pub(super) fn is_quiet(&mut self, settled_to: i64) -> bool {
        let seen = *self.seen.borrow();
        let is_news = seen.is_news(settled_to, self.heeded);
        self.heeded = seen.answers;
        !is_news
    }
}

impl Seen {
    fn is_news(&self, settled_to: i64, heeded: u64) -> bool {
        self.watch.is_some_and(|watch| watch.last_id > settled_to || (watch.is_due && self.answers > heeded))
    }
}

/// Counts as idle as long as it lives, so that a relay that stops listening for another reason is not counted for ever.
struct Listening<'a>(&'a AtomicUsize);

impl<'a> Listening<'a> {
    fn new(idle: &'a AtomicUsize) -> Self {
        idle.fetch_add(1, Ordering::Relaxed);
        Self(idle)
    }
}

impl Drop for Listening<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
