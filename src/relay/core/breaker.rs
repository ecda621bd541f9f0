//! The circuit breaker of one destination: whether the destination may be used, and how it is probed while halted.
//!
//! While a destination is halted, one request goes out at a time, with growing pauses. The first request that mostly
//! succeeds ends the halt. The state is kept from claim to claim, so a queue that never answers is detected however
//! short the claims are. Pure.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use crate::clock::Time;
use crate::message::{Fault, FaultKind, MessageKey};
use crate::retry::Delays;

/// The longest pause while SQS throttles or cannot be reached: that ends by itself, and then every second counts. A
/// fault that somebody has to fix is probed less and less often, up to `OUTBOX_RELAY_RETRY_MAX`.
const LONGEST_BRIEF_PAUSE: Duration = Duration::from_secs(5);

/// The destination counts as down after this many failed requests in a row.
const FAILURES_IN_A_ROW: u32 = 3;

/// How long an answer counts as recent.
const LATELY: Duration = Duration::from_secs(30);

/// How many recent requests are considered.
const MAX_ANSWERS: usize = 64;

/// With fewer entries than this, no statement about most of them is made.
const MIN_ENTRIES: u32 = 10;

/// With fewer failing messages than this, no statement about most entries is made, however often they are retried.
const MIN_FAILING: usize = 5;

/// How many failed messages are remembered until something else succeeds.
const MAX_SUSPECTS: usize = 1000;

/// The results of a request's entries.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    /// Entries that SQS accepted.
    pub(super) accepted: u32,
    /// Entries that SQS refused because of their content, so SQS works.
    pub(super) refused: u32,
    /// Entries that failed by the receiver's fault.
    pub(super) failed: u32,
}

/// The result of a request, and the messages that failed in it.
#[derive(Debug)]
struct Answer {
    at: Time,
    tally: Tally,
    failed: Vec<MessageKey>,
}

/// Whether a destination is halted, and what its recent answers show.
#[derive(Debug)]
pub(super) struct Breaker {
    halted: Option<Fault>,
    delays: Delays,
    brief_delays: Delays,
    failures_in_a_row: u32,
    answers: VecDeque<Answer>,
    /// The messages that failed in these answers, with the number of failures.
    failing: HashMap<MessageKey, usize>,
    /// The number of entries accepted so far.
    accepted: u64,
    /// Messages that failed, each with the number of entries accepted before its failure.
    suspects: HashMap<MessageKey, u64>,
}

impl Breaker {
    /// A destination counts as working until it fails.
    pub(super) fn new(first: Duration, longest: Duration) -> Self {
        let (delays, brief_delays) = Self::delays(first, longest);
        Self {
            halted: None,
            delays,
            brief_delays,
            failures_in_a_row: 0,
            answers: VecDeque::new(),
            failing: HashMap::new(),
            accepted: 0,
            suspects: HashMap::new(),
        }
    }

    fn delays(first: Duration, longest: Duration) -> (Delays, Delays) {
        let brief = longest.min(LONGEST_BRIEF_PAUSE);
        (Delays::new(first.min(longest), longest), Delays::new(first.min(brief), brief))
    }

    /// Other pauses are configured; they start again from the shortest.
    pub(super) fn set_delays(&mut self, first: Duration, longest: Duration) {
        (self.delays, self.brief_delays) = Self::delays(first, longest);
    }

    /// Why the destination is halted; while it is, only one request may be under way.
    pub(super) fn halted(&self) -> Option<&Fault> {
        self.halted.as_ref()
    }

    /// Halts the destination; returns how long to wait before the next probe.
    pub(super) fn halt(&mut self, fault: Fault, rng: &mut fastrand::Rng) -> Duration {
        let pause = match fault.kind {
            FaultKind::Throttle
            | FaultKind::Outage
            | FaultKind::ServerError
            | FaultKind::Ambiguous
            | FaultKind::MessageTransient
            | FaultKind::NotSent => self.brief_delays.next_delay(rng),
            FaultKind::Destination | FaultKind::Internal | FaultKind::MessagePermanent => self.delays.next_delay(rng),
        };
        self.halted = Some(fault);
        pause
    }

    /// Records a request's answer, and the messages that failed in it by the receiver's fault. Returns whether it ends
    /// the halt.
    pub(super) fn note(&mut self, tally: Tally, failed: Vec<MessageKey>, now: Time) -> bool {
        self.accepted += u64::from(tally.accepted);
        let is_answered = tally.accepted + tally.refused > 0;
        self.failures_in_a_row = if is_answered { 0 } else { self.failures_in_a_row.saturating_add(1) };
        if tally.accepted + tally.failed > 0 {
            failed.iter().for_each(|key| *self.failing.entry(*key).or_default() += 1);
            self.answers.push_back(Answer { at: now, tally, failed });
        }
        while self.answers.len() > MAX_ANSWERS
            || self.answers.front().is_some_and(|answer| now.since(answer.at) > LATELY)
        {
            self.forget_first();
        }
        let is_over = self.halted.is_some() && tally.accepted + tally.refused > tally.failed;
        if is_over {
            self.halted = None;
            self.delays.reset();
            self.brief_delays.reset();
            // Failures before the halt say nothing about what comes after it.
            self.answers.clear();
            self.failing.clear();
        }
        is_over
    }

    fn forget_first(&mut self) {
        for key in self.answers.pop_front().into_iter().flat_map(|answer| answer.failed) {
            if let Some(times) = self.failing.get_mut(&key) {
                *times -= 1;
                if *times == 0 {
                    self.failing.remove(&key);
                }
            }
        }
    }

    /// Whether most recent entries failed by the receiver's fault, and not just the same few messages repeatedly.
    pub(super) fn mostly_fails(&self) -> bool {
        let tallies = || self.answers.iter().map(|answer| answer.tally);
        let (accepted, failed): (u32, u32) =
            (tallies().map(|tally| tally.accepted).sum(), tallies().map(|tally| tally.failed).sum());
        failed > accepted && failed + accepted >= MIN_ENTRIES && self.failing.len() >= MIN_FAILING
    }

    /// The destination has answered, and the answer says nothing else.
    pub(super) fn answered(&mut self) {
        self.failures_in_a_row = 0;
    }

    /// Whether enough requests in a row failed.
    pub(super) fn fails_in_a_row(&self) -> bool {
        self.failures_in_a_row >= FAILURES_IN_A_ROW
    }

    /// Whether enough requests in a row failed, or the probe of a halted destination did, so that it counts as down.
    pub(super) fn is_down(&self) -> bool {
        self.fails_in_a_row() || (self.halted.is_some() && self.failures_in_a_row > 0)
    }

    /// A message failed by the receiver's fault, and nothing else of its request succeeded. Returns whether SQS has
    /// accepted other messages since the message last failed; then the failure is the message's own.
    pub(super) fn note_suspect(&mut self, key: MessageKey) -> bool {
        if self.suspects.len() >= MAX_SUSPECTS && !self.suspects.contains_key(&key) {
            // Drop the suspects whose failure proves nothing: other messages have been accepted since.
            let accepted = self.accepted;
            self.suspects.retain(|_, before| *before == accepted);
            if self.suspects.len() >= MAX_SUSPECTS {
                return false;
            }
        }
        self.suspects.insert(key, self.accepted).is_some_and(|before| before < self.accepted)
    }

    /// A message is finished.
    pub(super) fn forget(&mut self, key: MessageKey) {
        if !self.suspects.is_empty() {
            self.suspects.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Lane, MessageId};

    const ALL: Tally = Tally { accepted: 10, refused: 0, failed: 0 };
    const NONE: Tally = Tally { accepted: 0, refused: 0, failed: 10 };
    const NOTHING: Tally = Tally { accepted: 0, refused: 0, failed: 0 };

    fn breaker() -> Breaker {
        Breaker::new(Duration::from_millis(200), Duration::from_secs(60))
    }

    fn fault(kind: FaultKind) -> Fault {
        Fault::new(kind, "Code", "")
    }

    fn key(id: i64) -> MessageKey {
        MessageKey { lane: Lane::new(0).unwrap(), id: MessageId(id) }
    }

    fn keys(ids: std::ops::RangeInclusive<i64>) -> Vec<MessageKey> {
        ids.map(key).collect()
    }

    #[test]
    fn three_failed_requests_in_a_row_are_an_outage() {
        let mut breaker = breaker();
        let now = Time::default();
        for _ in 0..2 {
            breaker.note(NOTHING, Vec::new(), now);
            assert!(!breaker.is_down());
        }
        breaker.note(NOTHING, Vec::new(), now);
        assert!(breaker.is_down());
        breaker.note(ALL, Vec::new(), now);
        assert!(!breaker.is_down());
    }

    #[test]
    fn a_halt_ends_with_a_request_that_mostly_gets_through() {
        let mut breaker = breaker();
        let now = Time::default();
        breaker.halt(fault(FaultKind::Outage), &mut fastrand::Rng::with_seed(1));
        assert!(!breaker.note(NONE, keys(1..=10), now) && breaker.is_down(), "the probe failed");
        assert!(
            !breaker.note(Tally { accepted: 4, refused: 0, failed: 6 }, keys(1..=6), now) && breaker.halted().is_some()
        );
        assert!(breaker.note(ALL, Vec::new(), now) && breaker.halted().is_none());
        assert!(!breaker.note(ALL, Vec::new(), now), "reported once");
    }

    #[test]
    fn only_recent_answers_count_towards_mostly_failing() {
        let mut breaker = breaker();
        let now = Time::default();
        breaker.note(ALL, Vec::new(), now);
        breaker.note(NONE, keys(1..=10), now);
        assert!(!breaker.mostly_fails());
        breaker.note(NONE, keys(1..=10), now);
        assert!(breaker.mostly_fails());
        breaker.note(ALL, Vec::new(), now + LATELY + Duration::from_secs(1));
        assert!(!breaker.mostly_fails());
        let mut few = super::tests::breaker();
        few.note(Tally { accepted: 0, refused: 0, failed: 1 }, keys(1..=1), now);
        assert!(!few.mostly_fails(), "one entry is too few");
        for _ in 0..20 {
            few.note(Tally { accepted: 0, refused: 0, failed: 1 }, keys(1..=1), now);
            few.note(Tally { accepted: 0, refused: 0, failed: 1 }, keys(2..=2), now);
        }
        assert!(!few.mostly_fails(), "two messages that are retried again and again are too few");
        few.note(ALL, Vec::new(), now + LATELY + Duration::from_secs(1));
        assert!(few.failing.is_empty(), "old answers are forgotten");
    }

    #[test]
    fn a_message_that_fails_alone_is_charged_only_when_others_got_through_since() {
        let mut breaker = breaker();
        let now = Time::default();
        assert!(!breaker.note_suspect(key(1)));
        assert!(!breaker.note_suspect(key(1)), "nothing was accepted since");
        breaker.note(ALL, Vec::new(), now);
        assert!(breaker.note_suspect(key(1)));
        assert!(!breaker.note_suspect(key(1)));
        breaker.note(ALL, Vec::new(), now);
        breaker.forget(key(1));
        assert!(!breaker.note_suspect(key(1)), "it starts over");
    }

    #[test]
    fn a_fault_that_passes_by_itself_is_probed_within_five_seconds() {
        let mut breaker = breaker();
        let mut rng = fastrand::Rng::with_seed(1);
        let mut longest =
            |breaker: &mut Breaker, kind| (0..200).map(|_| breaker.halt(fault(kind), &mut rng)).max().unwrap();
        assert!(longest(&mut breaker, FaultKind::Outage) <= LONGEST_BRIEF_PAUSE);
        assert!(longest(&mut breaker, FaultKind::Destination) > LONGEST_BRIEF_PAUSE);
    }

    #[test]
    fn suspects_are_bounded_and_outdated_ones_make_room() {
        let mut breaker = breaker();
        for id in 0..2 * MAX_SUSPECTS as i64 {
            breaker.note_suspect(key(id));
        }
        assert_eq!(breaker.suspects.len(), MAX_SUSPECTS);
        breaker.note(ALL, Vec::new(), Time::default());
        assert!(!breaker.note_suspect(key(-1)));
        assert_eq!(breaker.suspects.len(), 1);
    }
}
