//! What was done to the system, and when: every fault, and the moments at which a relay may have forgotten what SQS said.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What a relay had sent and not yet recorded in this time may rightly be sent again.
#[derive(Debug, Clone, Copy)]
pub struct Disturbance {
    /// The relay it happened to; none when it happened to all.
    pub relay: Option<usize>,
    pub from: Instant,
    pub until: Instant,
}

/// Notes of all that is done on purpose.
#[derive(Debug)]
pub struct Chronicle {
    clock: Instant,
    notes: Mutex<Notes>,
}

#[derive(Debug, Default)]
struct Notes {
    lines: Vec<String>,
    counts: BTreeMap<&'static str, u32>,
    disturbances: Vec<Disturbance>,
    losses: Vec<(Instant, Instant)>,
    redriven: Vec<u64>,
}

impl Chronicle {
    pub fn new(clock: Instant) -> Chronicle {
        Chronicle { clock, notes: Mutex::default() }
    }

    /// A fault of this kind begins.
    pub fn begin(&self, kind: &'static str, details: &str) {
        let mut notes = self.notes();
        *notes.counts.entry(kind).or_default() += 1;
        let line = format!("{:>8.3} s  {kind} {details}", self.clock.elapsed().as_secs_f64());
        notes.lines.push(line.trim_end().to_owned());
    }

    /// Something that is no fault, for those who read about one.
    pub fn note(&self, line: &str) {
        self.notes().lines.push(format!("{:>8.3} s  {line}", self.clock.elapsed().as_secs_f64()));
    }

    /// From that moment until now one relay, or all, may have forgotten what SQS said.
    pub fn disturb(&self, relay: Option<usize>, from: Instant) {
        self.notes().disturbances.push(Disturbance { relay, from, until: Instant::now() });
    }

    /// What was committed from that moment until now, the database may have lost.
    pub fn lose(&self, from: Instant) {
        self.notes().losses.push((from, Instant::now()));
    }

    /// Whether the database may have lost what was committed at a moment.
    pub fn may_have_lost(&self, committed_at: Instant) -> bool {
        self.notes().losses.iter().any(|(from, until)| (*from..=*until).contains(&committed_at))
    }

    /// Somebody gave up the message of this ticket to the standard queue, perhaps on its way, and had it sent again.
    pub fn redriven(&self, ticket: u64) {
        self.notes().redriven.push(ticket);
    }

    /// Tickets sent again by hand, each as often as that was done.
    pub fn tickets_redriven(&self) -> Vec<u64> {
        self.notes().redriven.clone()
    }

    pub fn elapsed(&self) -> Duration {
        self.clock.elapsed()
    }

    /// Faults so far.
    pub fn faults(&self) -> u32 {
        self.notes().counts.values().sum()
    }

    /// How often each kind of fault was made.
    pub fn counts(&self) -> BTreeMap<&'static str, u32> {
        self.notes().counts.clone()
    }

    /// In the order of their beginning.
    pub fn disturbances(&self) -> Vec<Disturbance> {
        let mut disturbances = self.notes().disturbances.clone();
        disturbances.sort_by_key(|disturbance| disturbance.from);
        disturbances
    }

    pub fn text(&self) -> String {
        self.notes().lines.join("\n") + "\n"
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
