//! What the loops say about themselves, for the probes: that they still tick, and what they can reach.
//!
//! Written by the loops, read by [`crate::http`]. Nothing is decided here.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A loop that has not ticked for this long hangs. Every wait in a loop is bounded well below it: a request may take
/// `OUTBOX_RELAY_REQUEST_TIMEOUT` (at most 60 s) and a statement 30 s.
pub const HANGING: Duration = Duration::from_secs(120);

/// One loop's sign of life.
#[derive(Debug)]
pub struct Pulse {
    name: String,
    started: Instant,
    last_tick_millis: AtomicU64,
    finished: AtomicBool,
}

impl Pulse {
    /// The loop is alive; a step that failed counts as well.
    pub fn tick(&self) {
        let millis = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_tick_millis.store(millis, Ordering::Relaxed);
    }

    /// The loop ended as it should and will not tick again.
    pub fn finish(&self) {
        self.finished.store(true, Ordering::Relaxed);
    }

    fn silent_for(&self) -> Duration {
        let last = Duration::from_millis(self.last_tick_millis.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(last)
    }
}

/// Whether a dependency answered when it was last asked.
#[derive(Debug)]
pub struct Reachable {
    name: String,
    up: AtomicBool,
}

impl Reachable {
    /// Records the last answer; returns whether that is a change.
    pub fn set(&self, up: bool) -> bool {
        self.up.swap(up, Ordering::Relaxed) != up
    }
}

/// Everything the probes ask about.
#[derive(Debug, Default)]
pub struct Health {
    pulses: Mutex<Vec<std::sync::Arc<Pulse>>>,
    dependencies: Mutex<Vec<std::sync::Arc<Reachable>>>,
}

impl Health {
    /// A new loop's pulse; counts as a tick.
    pub fn pulse(&self, name: impl Into<String>) -> std::sync::Arc<Pulse> {
        let pulse = std::sync::Arc::new(Pulse {
            name: name.into(),
            started: Instant::now(),
            last_tick_millis: AtomicU64::new(0),
            finished: AtomicBool::new(false),
        });
        lock(&self.pulses).push(std::sync::Arc::clone(&pulse));
        pulse
    }

    /// A dependency, not reachable until somebody says so.
    pub fn dependency(&self, name: impl Into<String>) -> std::sync::Arc<Reachable> {
        let reachable = std::sync::Arc::new(Reachable { name: name.into(), up: AtomicBool::new(false) });
        lock(&self.dependencies).push(std::sync::Arc::clone(&reachable));
        reachable
    }

    /// The loops that hang; empty when the process is alive.
    pub fn hanging(&self) -> Vec<String> {
        let hangs = |pulse: &&std::sync::Arc<Pulse>| {
            !pulse.finished.load(Ordering::Relaxed) && pulse.silent_for() > HANGING
        };
        lock(&self.pulses).iter().filter(hangs).map(|pulse| pulse.name.clone()).collect()
    }

    /// The dependencies that did not answer; empty when the process is ready.
    pub fn unreachable(&self) -> Vec<String> {
        let is_down = |reachable: &&std::sync::Arc<Reachable>| !reachable.up.load(Ordering::Relaxed);
        lock(&self.dependencies).iter().filter(is_down).map(|reachable| reachable.name.clone()).collect()
    }
}

/// A poisoned lock means that another thread panicked while it pushed to a list, which leaves the list whole.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dependency_is_unreachable_until_it_answered() {
        let health = Health::default();
        let database = health.dependency("database");
        assert_eq!(health.unreachable(), ["database"]);
        assert!(database.set(true));
        assert!(!database.set(true), "no change");
        assert!(health.unreachable().is_empty());
    }

    #[test]
    fn a_fresh_loop_does_not_hang() {
        let health = Health::default();
        health.pulse("janitor").tick();
        assert!(health.hanging().is_empty());
    }
}
