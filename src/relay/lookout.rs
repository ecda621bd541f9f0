//! The lookout: asks for all idle relays of the process whether anything may have come.
//!
//! It reads how far the sequence of message ids has got and whether a retry is due, which costs a fraction of a look. Idle
//! relays sleep until that changes. It is a hint: each relay sweeps once a second whatever the lookout says, so a lookout
//! that cannot reach the database, or is wrong, costs time and never a message.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::health::Pulse;
use crate::outbox::{Outbox, Watch};

/// How long to leave a database alone that does not answer.
const AFTER_FAILURE: Duration = Duration::from_millis(500);

/// Asks as long as somebody is idle.
#[derive(Debug)]
pub struct Lookout {
    outbox: Outbox,
    destinations: Vec<Arc<str>>,
    poll_interval: Duration,
    seen: watch::Sender<Option<Watch>>,
    idle: Arc<AtomicUsize>,
    pulse: Arc<Pulse>,
}

/// A relay's ear for what the lookout sees.
#[derive(Clone, Debug)]
pub struct Ear {
    seen: watch::Receiver<Option<Watch>>,
    idle: Arc<AtomicUsize>,
}

impl Lookout {
    /// A lookout for these destinations.
    pub fn new(outbox: Outbox, destinations: Vec<Arc<str>>, poll_interval: Duration, pulse: Arc<Pulse>) -> Self {
        let (seen, _) = watch::channel(None);
        Self { outbox, destinations, poll_interval, seen, idle: Arc::new(AtomicUsize::new(0)), pulse }
    }

    /// An ear for one relay.
    pub fn ear(&self) -> Ear {
        Ear { seen: self.seen.subscribe(), idle: Arc::clone(&self.idle) }
    }

    /// Asks until told to stop.
    pub async fn run(self, stop: CancellationToken) {
        let names: Vec<&str> = self.destinations.iter().map(AsRef::as_ref).collect();
        while !stop.is_cancelled() {
            self.pulse.tick();
            let mut pause = self.poll_interval.mul_f64(0.8 + 0.4 * fastrand::f64());
            if self.idle.load(Ordering::Relaxed) > 0 {
                match self.outbox.watch(&names).await {
                    Ok(watch) => {
                        self.seen.send_if_modified(|seen| seen.replace(watch) != Some(watch));
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
        self.idle.fetch_add(1, Ordering::Relaxed);
        let is_news = |seen: &Option<Watch>| seen.is_some_and(|seen| seen.last_id > settled_to || seen.is_due);
        let heard = tokio::time::timeout(limit, self.seen.wait_for(is_news)).await;
        self.idle.fetch_sub(1, Ordering::Relaxed);
        // An error inside means that the lookout is gone, which happens only when the process ends.
        heard.is_ok()
    }

    /// Whether the last answer, if there was one, says that nothing can have come above this id.
    pub(super) fn is_quiet(&self, settled_to: i64) -> bool {
        self.seen.borrow().is_none_or(|seen| seen.last_id <= settled_to && !seen.is_due)
    }
}
