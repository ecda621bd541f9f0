//! From where each lane is read: the read position, and the low watermark behind it.
//!
//! A read starts above its lane's *position*, so it never walks the index entries of delivered rows that vacuum could
//! not remove. But a transaction can take an id and commit after higher ids were read. So the position is not final,
//! and the *low watermark* follows it: the gap between the two is rescanned until every transaction that may have taken
//! an id when the position passed has ended. Transaction ids show this: once a later snapshot's xmin has reached the
//! next transaction id of that moment, all writers of that moment have ended. (The snapshot's own xmax would not do: a
//! writer may be beyond it, see [`Snapshot::xmax`].) A late message sets the position back below it, so that it is read
//! together with what follows it.
//!
//! If some transaction runs for longer, the lock table says whether it is a writer of messages at all ([`Writers`]).
//! Reports, claims and other databases are not, and the watermark does not wait for them. A writer that stays open
//! longer than [`PATIENCE`] is *overtaken*: the watermark passes it, and its transaction id is remembered. As soon as a
//! snapshot shows that it has ended, each lane must be rescanned from the bottom before a FIFO queue gets anything more
//! of it, because the next writer of the same group may have committed right after it. So order does not depend on
//! time.
//!
//! Completeness depends on the rescan from the bottom ([`super::full_rescan`]), which the relay does every second in any case.
//! Pure: no I/O and no clock of its own.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use super::work::Baseline;
use crate::clock::Time;
use crate::message::{Lane, MessageId, TransactionId};
use crate::reading::{ByLane, Look, Snapshot, Writers};

/// How long the low watermark waits for a writer before it passes the writer.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// How long it waits before it asks which open transactions are writers.
const ASK_AFTER: Duration = Duration::from_millis(500);

/// An id that becomes the low watermark once all writers of its moment have ended.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    id: MessageId,
    next_xid: TransactionId,
    seen_at: Time,
}

#[derive(Clone, Debug, Default)]
struct Watermark {
    low: MessageId,
    position: MessageId,
    candidates: VecDeque<Candidate>,
    must_rescan: bool,
}

impl Watermark {
    /// Notes a candidate in the order of ids.
    fn note(&mut self, candidate: Candidate) {
        let at = self.candidates.partition_point(|other| other.id < candidate.id);
        if let Some(above) = self.candidates.get(at).copied() {
            if above.id > candidate.id {
                // An earlier claim read further up; the transactions that can still write above this id are known from
                // then.
                self.candidates.insert(at, Candidate { id: candidate.id, ..above });
            }
            return;
        }
        match self.candidates.back_mut() {
            // If no transaction began in between, the higher id serves for both. The time must be the later one: a
            // transaction that had begun before may have become a writer since the lock table was asked.
            Some(last) if last.next_xid == candidate.next_xid => *last = candidate,
            _ => self.candidates.push_back(candidate),
        }
    }
}

/// The transactions that may have written messages, as the lock table showed them at some moment.
#[derive(Clone, Debug)]
struct KnownWriters {
    asked_at: Time,
    answered_at: Time,
    transaction_ids: BTreeSet<TransactionId>,
}

impl KnownWriters {
    /// The writers that were still running in this snapshot and may yet commit an id below this candidate. `None` if
    /// the lock table was asked before the candidate was noted, or if the statement of the snapshot began before the
    /// answer: a writer that ended in between is in neither.
    fn blocking(&self, candidate: &Candidate, view: View<'_>) -> Option<Vec<TransactionId>> {
        let is_open = |id: &TransactionId| *id < candidate.next_xid && view.snapshot.is_running(*id);
        let is_about_both = self.asked_at > candidate.seen_at && self.answered_at <= view.began_at;
        is_about_both.then(|| self.transaction_ids.iter().copied().filter(is_open).collect())
    }
}

/// The view of a statement.
#[derive(Clone, Copy, Debug)]
pub(super) struct View<'a> {
    /// Shows which transactions had ended.
    pub(super) snapshot: &'a Snapshot,
    /// When the statement began.
    pub(super) began_at: Time,
}

/// Read positions and low watermarks of one destination's lanes.
#[derive(Clone, Debug, Default)]
pub(super) struct Watermarks {
    lanes: ByLane<Watermark>,
    /// The sequence's last value at the previous look, see [`Watermarks::looked`].
    sequence_at_last_look: Option<MessageId>,
    writers: Option<KnownWriters>,
    overtaken: BTreeSet<TransactionId>,
    /// How often overtaken writers were seen to have ended, or something may have been left out; a rescan that began in
    /// an earlier epoch has not seen everything.
    epoch: u64,
}

impl Watermarks {
    /// The state after the initial scan; `first` was read before the scan. Everything below a lane's floor was done, or
    /// belongs to writers that were running when the scan began. Those count as overtaken.
    pub(super) fn start(floors: &ByLane<MessageId>, first: &Baseline) -> Self {
        let overtaken = first.writers.transaction_ids.iter().copied().collect();
        let mut new = Self { overtaken, sequence_at_last_look: Some(first.last_id), ..Self::default() };
        for (lane, floor) in floors.iter() {
            new.lanes[lane].low = *floor;
            new.lanes[lane].position = *floor;
        }
        new
    }

    /// All lanes with their low watermarks, for a look.
    pub(super) fn lows(&self) -> Vec<(Lane, MessageId)> {
        self.lanes.iter().map(|(lane, mark)| (lane, mark.low)).collect()
    }

    /// Below this id every lane is settled: no running transaction can still commit a message there, except writers that
    /// were overtaken.
    pub(super) fn lowest(&self) -> MessageId {
        self.lanes.iter().map(|(_, mark)| mark.low).min().unwrap_or_default()
    }

    /// The highest id handed out by the time of the last look.
    pub(super) fn last_id(&self) -> MessageId {
        self.sequence_at_last_look.unwrap_or_default()
    }

    /// Where the next read of a lane starts.
    pub(super) fn position(&self, lane: Lane) -> MessageId {
        self.lanes[lane].position
    }

    /// Below this id only rescans from the bottom look at the lane.
    pub(super) fn low(&self, lane: Lane) -> MessageId {
        self.lanes[lane].low
    }

    /// Whether messages of a lane may still appear between the low watermark and the position.
    pub(super) fn has_gap(&self, lane: Lane) -> bool {
        self.lanes[lane].position > self.lanes[lane].low
    }

    /// A claim begins: nothing of the lane is in memory, so reading starts at the low watermark. The candidates stay;
    /// otherwise a writer that is open for long would hold the watermark back as long as claims are short.
    pub(super) fn open(&mut self, lane: Lane) {
        let mark = &mut self.lanes[lane];
        mark.position = mark.low;
    }

    /// A read returned the lane's messages up to `id`. All transactions that had begun to write then were below
    /// `next_xid`, and ids up to `sequence_now` had been handed out. An id above `sequence_now` was set by hand, and many ids
    /// below it will still be handed out; so only what the sequence had reached before can become the watermark.
    pub(super) fn read(
        &mut self,
        lane: Lane,
        id: MessageId,
        next_xid: TransactionId,
        sequence_now: MessageId,
        now: Time,
    ) {
        let mark = &mut self.lanes[lane];
        if id > mark.position {
            mark.position = id;
            let id = if id > sequence_now { self.sequence_at_last_look.unwrap_or_default() } else { id };
            if id > mark.low {
                mark.note(Candidate { id, next_xid, seen_at: now });
            }
        }
    }

    /// These lanes were rescanned from the low watermark up to these ids.
    pub(super) fn rescanned(&mut self, lanes: &[(Lane, MessageId)], view: View<'_>, now: Time) {
        for (lane, upto) in lanes {
            self.advance(*lane, *upto, view, now);
        }
    }

    /// A look found nothing above the low watermarks of the `empty` lanes. All ids up to the sequence's value at the
    /// *previous* look were taken by transactions below this look's `next_xid`, so that value can become the watermark.
    pub(super) fn looked(&mut self, empty: impl IntoIterator<Item = Lane>, look: &Look, now: Time) {
        let reached = self.sequence_at_last_look.replace(look.last_id);
        // Between claims only one question is under way at a time.
        let view = View { snapshot: &look.snapshot, began_at: now };
        for lane in empty {
            self.advance(lane, MessageId::MAX, view, now);
            let mark = &mut self.lanes[lane];
            if let Some(id) = reached.filter(|id| *id > mark.low) {
                mark.note(Candidate { id, next_xid: look.next_xid, seen_at: now });
            }
        }
    }

    /// Moves the low watermark up over everything that the snapshot settles.
    fn advance(&mut self, lane: Lane, upto: MessageId, view: View<'_>, now: Time) {
        let mark = &mut self.lanes[lane];
        while let Some(first) = mark.candidates.front().filter(|first| first.id <= upto) {
            if first.next_xid > view.snapshot.xmin {
                match self.writers.as_ref().and_then(|writers| writers.blocking(first, view)) {
                    Some(blocking) if blocking.is_empty() => {}
                    Some(blocking) if now.since(first.seen_at) >= PATIENCE => self.overtaken.extend(blocking),
                    _ => break,
                }
            }
            mark.low = mark.low.max(first.id);
            mark.candidates.pop_front();
        }
        mark.position = mark.position.max(mark.low);
    }

    /// Whether to ask the lock table which transactions are writers, because the watermark of a lane does not move.
    pub(super) fn wants_writers(&self, now: Time) -> bool {
        let is_answered = |candidate: &Candidate| {
            // A later answer adds nothing about writers that are still open after the patience is over.
            self.writers.as_ref().is_some_and(|writers| writers.asked_at > candidate.seen_at)
        };
        let wants = |candidate: &Candidate| now.since(candidate.seen_at) >= ASK_AFTER && !is_answered(candidate);
        self.lanes.iter().any(|(_, mark)| mark.candidates.front().is_some_and(wants))
    }

    /// The lock table's answer to a question asked at `asked_at`.
    pub(super) fn note_writers(&mut self, writers: Writers, asked_at: Time, answered_at: Time) {
        let transaction_ids = writers.transaction_ids.into_iter().collect();
        self.writers = Some(KnownWriters { asked_at, answered_at, transaction_ids });
    }

    /// Whether some writer was overtaken and has not been seen to end.
    pub(super) fn has_overtaken(&self) -> bool {
        !self.overtaken.is_empty()
    }

    /// Whether this snapshot shows that an overtaken writer has ended, so that there may be new messages below the
    /// watermarks. If so, all lanes have to be rescanned.
    pub(super) fn note_ended_writers(&mut self, snapshot: &Snapshot) -> bool {
        let before = self.overtaken.len();
        self.overtaken.retain(|id| snapshot.is_running(*id));
        let shows = self.overtaken.len() < before;
        if shows {
            self.epoch += 1;
            self.lanes.values_mut().for_each(|mark| mark.must_rescan = true);
        }
        shows
    }

    /// Rescans from the bottom may have left out something of these lanes.
    pub(super) fn mark_for_rescan(&mut self, lanes: &[Lane]) {
        self.epoch += u64::from(!lanes.is_empty());
        lanes.iter().for_each(|lane| self.lanes[*lane].must_rescan = true);
    }

    /// Grows with every reason to rescan; pass it to [`Watermarks::rescanned_from_the_bottom`].
    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether a lane has to be rescanned from the bottom before more of it is read.
    pub(super) fn must_rescan(&self, lane: Lane) -> bool {
        self.lanes[lane].must_rescan
    }

    /// This lane was rescanned from the bottom to the top, beginning in this epoch, and was set back to what was found.
    pub(super) fn rescanned_from_the_bottom(&mut self, lane: Lane, epoch: u64) {
        if epoch == self.epoch {
            self.lanes[lane].must_rescan = false;
        }
    }

    /// Messages of the lane from `id` on have to be read again.
    pub(super) fn rewind(&mut self, lane: Lane, id: MessageId) {
        let mark = &mut self.lanes[lane];
        mark.low = mark.low.min(id.previous());
        mark.position = mark.position.min(id.previous());
        mark.candidates.retain(|candidate| candidate.id < id);
    }
}

#[cfg(test)]
mod tests;
