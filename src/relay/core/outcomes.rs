//! Outcomes that wait to be written back, and what to do when PostgreSQL refuses one of them.
//!
//! If a transaction fails because of a row (a constraint, a trigger, a privilege), its outcomes are written again in
//! halves until the culprits are isolated. Culprits are set aside once others were written or nothing else is left, so
//! that no row stops others. If very many are refused and none is written, the database counts as failed. Pure.

use std::collections::VecDeque;
use std::time::Duration;

use super::limits::WriteRate;
use crate::clock::Time;
use crate::message::{MessageKey, Quarantined, Settlement};
use crate::outbox::{OutboxError, Settled};

/// Outcomes are written when there are this many, or when the oldest has waited [`WAIT`] or, with a backlog, [`WAIT_BUSY`].
const ENOUGH: usize = 500;

/// See [`ENOUGH`].
pub(super) const WAIT: Duration = Duration::from_millis(5);

/// The same while more is waiting than one read returns. Otherwise one of several relays would settle few at a time,
/// and a statement costs as much as a hundred rows.
pub(super) const WAIT_BUSY: Duration = Duration::from_millis(20);

/// This many culprits without one written outcome are not culprits: the database writes nothing. The number exceeds a
/// batch (see [`ENOUGH`]), because a batch may be of one group, and PostgreSQL may refuse everything about that group.
const MAX_CULPRITS: usize = 2 * ENOUGH;

/// An outcome that could not be written even alone, and why.
#[derive(Debug)]
struct Culprit {
    settlement: Settlement,
    reason: String,
}

/// Outcomes that are not recorded yet.
#[derive(Debug, Default)]
pub(super) struct Outcomes {
    waiting: VecDeque<Settlement>,
    oldest: Option<Time>,
    /// How many are being written.
    writing: usize,
    /// Parts of a refused batch; the next one is last.
    parts: Vec<Vec<Settlement>>,
    culprits: Vec<Culprit>,
    /// Culprits that are being set aside.
    quarantining: Vec<MessageKey>,
    /// The number of culprits since the last outcome was written.
    refused_in_a_row: usize,
    /// The number of dead messages that are not recorded yet, and of all deaths so far.
    dying: usize,
    deaths: u64,
    /// How many messages were delivered or given up so far.
    decided: u64,
}

/// The result of writing outcomes.
#[derive(Debug)]
pub(super) enum Written {
    /// They are recorded, by this relay or by another.
    Done(Vec<Settlement>, Settled),
    /// A row was refused; the others are tried without it.
    Divided,
    /// The database failed; all outcomes wait.
    Failed(OutboxError),
}

impl Outcomes {
    /// Adds the outcome of a message.
    pub(super) fn push(&mut self, settlement: Settlement, now: Time) {
        if settlement.is_dead() {
            self.dying += 1;
            self.deaths += 1;
        }
        self.decided += u64::from(settlement.is_dead() || settlement.is_delivered());
        self.waiting.push_back(settlement);
        self.oldest.get_or_insert(now);
    }

    /// How many messages were sent and are not written back.
    pub(super) fn under_way(&self) -> usize {
        let parts: usize = self.parts.iter().map(Vec::len).sum();
        self.waiting.len() + self.writing + parts + self.culprits.len() + self.quarantining.len()
    }

    /// Whether nothing is left to be written or set aside.
    pub(super) fn is_empty(&self) -> bool {
        self.under_way() == 0
    }

    /// Dead messages that are not recorded yet.
    pub(super) fn dying(&self) -> usize {
        self.dying
    }

    /// Whether a dead message of this group is not recorded yet.
    pub(super) fn is_dying(&self, group: &str) -> bool {
        let culprits = self.culprits.iter().map(|culprit| &culprit.settlement);
        let all = self.waiting.iter().chain(self.parts.iter().flatten()).chain(culprits);
        let is_of_group = |settlement: &Settlement| settlement.is_dead() && settlement.group.as_deref() == Some(group);
        // One that is being set aside may be of this group.
        self.dying > 0 && (!self.quarantining.is_empty() || all.into_iter().any(is_of_group))
    }

    /// How many messages have died; an answer that predates the last death is ignored.
    pub(super) fn deaths(&self) -> u64 {
        self.deaths
    }

    /// How many messages were delivered or given up so far.
    pub(super) fn decided(&self) -> u64 {
        self.decided
    }

    /// Whether something is being written or set aside. Only one statement runs at a time: of two outcomes of a message
    /// the later counts.
    fn is_busy(&self) -> bool {
        self.writing > 0 || !self.quarantining.is_empty()
    }

    /// When the oldest waiting outcome has waited this long.
    pub(super) fn due_at(&self, wait: Duration) -> Option<Time> {
        self.oldest.filter(|_| !self.is_busy()).map(|oldest| oldest + wait)
    }

    /// What to write now, if a write is due: there is enough, the oldest has waited long enough, or nothing more will
    /// come soon.
    pub(super) fn take_due(
        &mut self,
        rate: &WriteRate,
        wait: Duration,
        is_quiet: bool,
        now: Time,
    ) -> Option<Vec<Settlement>> {
        if self.is_busy() {
            return None;
        }
        if let Some(part) = self.parts.pop() {
            self.writing = part.len();
            return Some(part);
        }
        let has_waited = self.oldest.is_some_and(|oldest| now.since(oldest) >= wait);
        if self.waiting.is_empty() || !(is_quiet || has_waited || self.waiting.len() >= ENOUGH) {
            return None;
        }
        let limit = self.waiting.len().min(rate.max_written());
        let batch: Vec<Settlement> = self.waiting.drain(..limit).collect();
        self.oldest = self.oldest.filter(|_| !self.waiting.is_empty());
        self.writing = batch.len();
        Some(batch)
    }

    /// Applies the answer to a write.
    pub(super) fn written(
        &mut self,
        settlements: Vec<Settlement>,
        answer: Result<Settled, OutboxError>,
        now: Time,
    ) -> Written {
        self.writing = 0;
        match answer {
            Ok(settled) => {
                self.refused_in_a_row = 0;
                self.dying -= settlements.iter().filter(|settlement| settlement.is_dead()).count().min(self.dying);
                Written::Done(settlements, settled)
            }
            Err(error) if error.is_about_a_row() => self.divide(settlements, error, now),
            Err(error) => {
                self.put_back(settlements, now);
                Written::Failed(error)
            }
        }
    }

    fn divide(&mut self, mut settlements: Vec<Settlement>, error: OutboxError, now: Time) -> Written {
        if settlements.len() > 1 {
            let second = settlements.split_off(settlements.len() / 2);
            self.parts.extend([second, settlements]);
            return Written::Divided;
        }
        let reason = error.to_string();
        self.culprits.extend(settlements.into_iter().map(|settlement| Culprit { settlement, reason: reason.clone() }));
        self.refused_in_a_row += 1;
        if self.refused_in_a_row < MAX_CULPRITS {
            return Written::Divided;
        }
        self.put_back(Vec::new(), now);
        Written::Failed(error)
    }

    /// Puts everything that was not written back before what came meanwhile: of two outcomes of a message the later
    /// counts. Culprits come last, so that the next attempt starts with others.
    fn put_back(&mut self, settlements: Vec<Settlement>, now: Time) {
        let culprits = self.culprits.drain(..).map(|culprit| culprit.settlement);
        let parts = self.parts.drain(..).rev().flatten();
        let all: Vec<Settlement> = settlements.into_iter().chain(parts).chain(culprits).collect();
        all.into_iter().rev().for_each(|settlement| self.waiting.push_front(settlement));
        if !self.waiting.is_empty() {
            self.oldest.get_or_insert(now);
        }
    }

    /// Messages to set aside now, because others were written or nothing else is left to write.
    pub(super) fn take_culprits(&mut self, others_were_written: bool) -> Vec<Quarantined> {
        let is_all = self.parts.is_empty() && self.waiting.is_empty() && !self.is_busy();
        if self.culprits.is_empty() || !(others_were_written || is_all) {
            return Vec::new();
        }
        let culprits = std::mem::take(&mut self.culprits);
        self.quarantining = culprits.iter().map(|culprit| culprit.settlement.key).collect();
        culprits.into_iter().map(Culprit::into_quarantined).collect()
    }

    /// Applies the answer to setting messages aside, culprits or others. If it failed, the outcomes wait again, for
    /// messages that have one.
    pub(super) fn quarantined(&mut self, messages: &[Quarantined], is_done: bool, now: Time) {
        self.quarantining.retain(|key| !messages.iter().any(|message| message.key == *key));
        let outcomes = messages.iter().filter_map(|message| {
            let Quarantined { key, origin, group, outcome, .. } = message.clone();
            Some(Settlement { key, origin, group, outcome: outcome? })
        });
        let outcomes: Vec<Settlement> = outcomes.collect();
        if is_done {
            self.dying -= outcomes.iter().filter(|settlement| settlement.is_dead()).count().min(self.dying);
        } else {
            self.put_back(outcomes, now);
        }
    }

    /// Without the claim, only what SQS has accepted may be written. Another relay may hold the lanes and has already
    /// asked which groups have to wait; it would go on with groups that are held up now. Returns whether anything was
    /// dropped.
    pub(super) fn drop_what_needs_the_claim(&mut self) -> bool {
        let before = self.under_way();
        self.waiting.retain(|settlement| !settlement.needs_claim());
        self.parts.iter_mut().for_each(|part| part.retain(|settlement| !settlement.needs_claim()));
        self.parts.retain(|part| !part.is_empty());
        self.culprits.retain(|culprit| !culprit.settlement.needs_claim());
        self.oldest = self.oldest.filter(|_| !self.waiting.is_empty());
        self.dying = 0;
        self.under_way() < before
    }
}

impl Culprit {
    fn into_quarantined(self) -> Quarantined {
        let stays = self.settlement.stays();
        let Settlement { key, origin, group, outcome } = self.settlement;
        // If the outcome of a pending message cannot be recorded, the message waits in quarantine.
        let outcome = (!stays).then_some(outcome);
        Quarantined { key, origin, group, outcome, reason: self.reason }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::message::{EventPosition, Lane, MessageId, Origin, Outcome};

    fn delivered(id: i64) -> Settlement {
        Settlement {
            key: MessageKey { lane: Lane::new(1).unwrap(), id: MessageId(id) },
            origin: Origin { event_position: EventPosition(id), enqueued_at: SystemTime::UNIX_EPOCH },
            group: None,
            outcome: Outcome::Delivered { sqs_message_id: id.to_string(), sequence_number: None },
        }
    }

    /// Simulates a database that refuses some rows; returns the ids written, the ids set aside, and whether nothing is
    /// left.
    fn run(count: i64, refuses: impl Fn(i64) -> bool) -> (Vec<i64>, Vec<i64>, bool) {
        let now = Time::default();
        let mut outcomes = Outcomes::default();
        (0..count).for_each(|id| outcomes.push(delivered(id), now));
        let (mut written, mut aside) = (Vec::new(), Vec::new());
        while let Some(batch) = outcomes.take_due(&WriteRate::default(), WAIT, true, now) {
            let is_refused = batch.iter().any(|settlement| refuses(settlement.key.id.0));
            let answer = if is_refused { Err(OutboxError::of_code("P0001")) } else { Ok(Settled::default()) };
            let is_written = match outcomes.written(batch, answer, now) {
                Written::Done(settlements, _) => {
                    written.extend(settlements.iter().map(|settlement| settlement.key.id.0));
                    true
                }
                Written::Divided => false,
                Written::Failed(_) => return (written, aside, false),
            };
            let messages = outcomes.take_culprits(is_written);
            aside.extend(messages.iter().map(|message| message.key.id.0));
            outcomes.quarantined(&messages, true, now);
        }
        written.sort_unstable();
        aside.sort_unstable();
        (written, aside, outcomes.is_empty())
    }

    #[test]
    fn refused_neighbours_are_set_aside_and_all_others_are_written() {
        for refused in [1, 9, 10, 11, 100, 499, 500] {
            let (written, aside, is_over) = run(600, |id| (50..50 + refused).contains(&id));
            assert!(is_over, "with {refused}");
            assert_eq!(aside, (50..50 + refused).collect::<Vec<_>>());
            assert_eq!(written.len() as i64, 600 - refused);
        }
    }

    #[test]
    fn a_group_that_is_refused_entirely_is_set_aside_even_if_nothing_else_is_there() {
        let (written, aside, is_over) = run(40, |_| true);
        assert_eq!((written.len(), aside.len(), is_over), (0, 40, true));
    }

    #[test]
    fn if_very_many_are_refused_and_none_is_written_the_database_counts_as_failed() {
        let (written, aside, is_over) = run(3 * MAX_CULPRITS as i64, |_| true);
        assert_eq!((written.len(), aside.len(), is_over), (0, 0, false));
    }
    #[test]
    fn setting_a_message_aside_starts_no_second_write() {
        let now = Time::default();
        let mut outcomes = Outcomes::default();
        outcomes.push(delivered(1), now);
        assert!(outcomes.take_due(&WriteRate::default(), WAIT, true, now).is_some());
        let Settlement { key, origin, group, .. } = delivered(2);
        let unreadable = Quarantined { key, origin, group, outcome: None, reason: "unreadable".to_owned() };
        outcomes.quarantined(&[unreadable], true, now);
        outcomes.push(delivered(3), now);
        assert!(outcomes.take_due(&WriteRate::default(), WAIT, true, now).is_none(), "two statements at once");
        outcomes.written(vec![delivered(1)], Ok(Settled::default()), now);
        assert!(outcomes.take_due(&WriteRate::default(), WAIT, true, now).is_some());
    }
}
