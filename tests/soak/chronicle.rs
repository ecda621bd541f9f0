//! What was done to the system, and when: every fault, and the times at which a relay may have forgotten SQS's answers.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::destinations::Kind;

/// How long a relay may still send what it read before the server was lost: its claim, and a request's way.
const READ_BEFORE: Duration = Duration::from_secs(6);

/// What a relay had sent and not yet recorded in this time may legitimately be sent again.
#[derive(Debug, Clone, Copy)]
pub struct Disturbance {
    /// The relay it happened to; `None` for all.
    pub relay: Option<usize>,
    pub from: Instant,
    pub until: Instant,
}

/// A record of everything that is done on purpose.
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
    redriven: Vec<(Kind, u64)>,
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

    /// Notes something that is no fault, for readers of the chronicle.
    pub fn note(&self, line: &str) {
        self.notes().lines.push(format!("{:>8.3} s  {line}", self.clock.elapsed().as_secs_f64()));
    }

    /// From that moment until now one relay, or all, may have forgotten SQS's answers.
    pub fn disturb(&self, relay: Option<usize>, from: Instant) {
        self.notes().disturbances.push(Disturbance { relay, from, until: Instant::now() });
    }

    /// The database may have lost what was committed between that moment and now.
    pub fn lose(&self, from: Instant) {
        self.notes().losses.push((from, Instant::now()));
    }

    /// Whether the database may have lost what was committed at this time.
    pub fn may_have_lost(&self, committed_at: Instant) -> bool {
        self.notes().losses.iter().any(|(from, until)| (*from..=*until).contains(&committed_at))
    }

    /// Whether what was sent at this time may follow from rows that the database has lost.
    pub fn may_have_lost_its_cause(&self, sent_at: Instant) -> bool {
        self.notes().losses.iter().any(|(from, until)| (*from..=*until + READ_BEFORE).contains(&sent_at))
    }

    /// The message of this ticket to a standard queue was declared dead by hand, perhaps while in flight, and sent again.
    pub fn redriven(&self, kind: Kind, ticket: u64) {
        self.notes().redriven.push((kind, ticket));
    }

    /// Tickets sent again by hand to a queue, each as often as that was done.
    pub fn tickets_redriven(&self, kind: Kind) -> Vec<u64> {
        self.notes().redriven.iter().filter(|(of, _)| *of == kind).map(|(_, ticket)| *ticket).collect()
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
