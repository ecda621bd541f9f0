//! From where each lane is read: the read position, and the low watermark behind it.
//!
//! A read starts above its lane's *position* and so never walks the index entries of delivered rows that vacuum could not
//! remove. But a transaction can take an id and commit after higher ids were read. So the position is only a promise, and
//! the *low watermark* follows it: the gap between the two is looked at again until every transaction that may have taken an
//! id when the position passed has ended. Transaction ids tell: once a later snapshot's xmin has reached the next id of that
//! moment, all its writers are over. (The snapshot's own xmax would not do: a writer may run beyond it, see
//! [`Snapshot::xmax`].) A late message sets the position back below it, so that it is read together with what follows it.
//!
//! Where some transaction runs for longer, the lock table says whether it is a writer of messages at all
//! ([`Writers`]): reports, claims and other databases are not, and nobody waits for them. A writer that stays open longer than
//! [`PATIENCE`] is *overtaken*: the watermark passes it, and its transaction id is remembered. As soon as a snapshot shows
//! that it has ended, each lane has to be rescanned from the bottom before a FIFO queue gets anything more of it, because the
//! next writer of its group may have committed right behind. So order does not rest on time.
//!
//! Completeness rests on the rescan from the bottom ([`super::scan`]), which the relay makes every second in any case.
//! Pure: no I/O and no clock of its own.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use super::work::FirstLook;
use crate::clock::Time;
use crate::message::{Lane, MessageId, TransactionId};
use crate::reading::{ByLane, Look, Snapshot, Writers};

/// How long the low watermark waits for a writer before it passes anyway.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

/// How long it waits before it asks whether somebody is a writer at all.
const ASK_AFTER: Duration = Duration::from_millis(500);

/// An id that becomes the low watermark once the writers of its moment have ended.
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
                // An earlier claim got further up; whoever could still write above this one is known from then.
                self.candidates.insert(at, Candidate { id: candidate.id, ..above });
            }
            return;
        }
        match self.candidates.back_mut() {
            // When no transaction began in between, the higher id serves for both; but one that had begun before may have
            // become a writer since the lock table was asked.
            Some(last) if last.next_xid == candidate.next_xid => *last = candidate,
            _ => self.candidates.push_back(candidate),
        }
    }
}

/// Which transactions may have written messages, as the lock table said at some moment.
#[derive(Clone, Debug)]
struct KnownWriters {
    asked_at: Time,
    answered_at: Time,
    transaction_ids: BTreeSet<TransactionId>,
}

impl KnownWriters {
    /// The writers that had not ended in this snapshot and may have committed an id below this candidate's since; `None` if they
    /// were asked for before it was noted, or if the statement of the snapshot began before the answer: who ended in between is
    /// in neither.
    fn blocking(&self, candidate: &Candidate, view: View<'_>) -> Option<Vec<TransactionId>> {
        let is_open = |id: &TransactionId| *id < candidate.next_xid && view.snapshot.is_running(*id);
        let is_about_both = self.asked_at > candidate.seen_at && self.answered_at <= view.began_at;
        is_about_both.then(|| self.transaction_ids.iter().copied().filter(is_open).collect())
    }
}

/// What a statement saw.
#[derive(Clone, Copy, Debug)]
pub(super) struct View<'a> {
    /// What had ended by then.
    pub(super) snapshot: &'a Snapshot,
    /// When the statement was begun.
    pub(super) began_at: Time,
}

/// Read positions and low watermarks of one destination's lanes.
#[derive(Clone, Debug, Default)]
pub(super) struct Watermarks {
    lanes: ByLane<Watermark>,
    /// The sequence's last value at the look before this one, see [`Watermarks::looked`].
    last_id: Option<MessageId>,
    writers: Option<KnownWriters>,
    overtaken: BTreeSet<TransactionId>,
    /// How often writers that were overtaken were seen to have ended, or something may have been left out; a rescan that began
    /// before has not seen all.
    epoch: u64,
}

impl Watermarks {
    /// Where everything starts after the first scan, before which this was seen: what lies below a lane's floor was done, or
    /// belongs to writers that were running when the scan began. Those count as overtaken.
    pub(super) fn start(floors: &ByLane<MessageId>, first: &FirstLook) -> Self {
        let overtaken = first.writers.transaction_ids.iter().copied().collect();
        let mut new = Self { overtaken, last_id: Some(first.last_id), ..Self::default() };
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

    /// Below this id every lane is settled: nothing that is known to run can still commit a message there.
    pub(super) fn lowest(&self) -> MessageId {
        self.lanes.iter().map(|(_, mark)| mark.low).min().unwrap_or_default()
    }

    /// The highest id that was handed out when this was asked last.
    pub(super) fn last_id(&self) -> MessageId {
        self.last_id.unwrap_or_default()
    }

    /// Where the next read of a lane starts.
    pub(super) fn position(&self, lane: Lane) -> MessageId {
        self.lanes[lane].position
    }

    /// Below this id a lane is only looked at by rescans from the bottom.
    pub(super) fn low(&self, lane: Lane) -> MessageId {
        self.lanes[lane].low
    }

    /// Whether messages of a lane may still appear between the low watermark and the position.
    pub(super) fn has_gap(&self, lane: Lane) -> bool {
        self.lanes[lane].position > self.lanes[lane].low
    }

    /// A claim begins: nothing of the lane is in memory, so reading starts at the low watermark. The candidates stay, or a writer
    /// that is open for long would hold the watermark back as long as claims are short.
    pub(super) fn open(&mut self, lane: Lane) {
        let mark = &mut self.lanes[lane];
        mark.position = mark.low;
    }

    /// A read returned the lane's messages up to `id`; all transactions that had begun to write then were below `next_xid`, and
    /// ids up to `last_id` had been handed out. An id above that is somebody's own, and many will be handed out below it; so
    /// only what the sequence had reached before can become the watermark.
    pub(super) fn read(&mut self, lane: Lane, id: MessageId, next_xid: TransactionId, last_id: MessageId, now: Time) {
        let mark = &mut self.lanes[lane];
        if id > mark.position {
            mark.position = id;
            let id = if id > last_id { self.last_id.unwrap_or_default() } else { id };
            if id > mark.low {
                mark.note(Candidate { id, next_xid, seen_at: now });
            }
        }
    }

    /// These lanes were looked at again from the low watermark up to these ids.
    pub(super) fn rescanned(&mut self, lanes: &[(Lane, MessageId)], view: View<'_>, now: Time) {
        for (lane, upto) in lanes {
            self.settle(*lane, *upto, view, now);
        }
    }

    /// A look found nothing above the low watermarks of the `empty` lanes. What the sequence had reached at the look *before*
    /// this one was taken by transactions below this look's `next_xid`, so it can become the watermark.
    pub(super) fn looked(&mut self, empty: impl IntoIterator<Item = Lane>, look: &Look, now: Time) {
        let reached = self.last_id.replace(look.last_id);
        // Between claims one question follows the other.
        let view = View { snapshot: &look.snapshot, began_at: now };
        for lane in empty {
            self.settle(lane, MessageId::MAX, view, now);
            let mark = &mut self.lanes[lane];
            if let Some(id) = reached.filter(|id| *id > mark.low) {
                mark.note(Candidate { id, next_xid: look.next_xid, seen_at: now });
            }
        }
    }

    /// Moves the low watermark up over what the snapshot settles.
    fn settle(&mut self, lane: Lane, upto: MessageId, view: View<'_>, now: Time) {
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

    /// Whether the lock table should be asked who the writers are, because the watermark of a lane stands still.
    pub(super) fn wants_writers(&self, now: Time) -> bool {
        let is_told = |candidate: &Candidate| {
            // Of those that are still open after the patience is over a later answer tells no more.
            self.writers.as_ref().is_some_and(|writers| writers.asked_at > candidate.seen_at)
        };
        let wants = |candidate: &Candidate| now.since(candidate.seen_at) >= ASK_AFTER && !is_told(candidate);
        self.lanes.iter().any(|(_, mark)| mark.candidates.front().is_some_and(wants))
    }

    /// The lock table's answer to a question that was asked at this time.
    pub(super) fn note_writers(&mut self, writers: Writers, asked_at: Time, answered_at: Time) {
        let transaction_ids = writers.transaction_ids.into_iter().collect();
        self.writers = Some(KnownWriters { asked_at, answered_at, transaction_ids });
    }

    /// Whether some writer was overtaken and has not been seen to end.
    pub(super) fn has_overtaken(&self) -> bool {
        !self.overtaken.is_empty()
    }

    /// Whether this snapshot shows the end of a writer that was overtaken, so that messages below the watermarks may be new.
    /// Then all lanes have to be rescanned.
    pub(super) fn shows_late(&mut self, snapshot: &Snapshot) -> bool {
        let before = self.overtaken.len();
        self.overtaken.retain(|id| snapshot.is_running(*id));
        let shows = self.overtaken.len() < before;
        if shows {
            self.epoch += 1;
            self.lanes.values_mut().for_each(|mark| mark.must_rescan = true);
        }
        shows
    }

    /// Looks from the bottom may have left something of these lanes out.
    pub(super) fn doubt(&mut self, lanes: &[Lane]) {
        self.epoch += u64::from(!lanes.is_empty());
        lanes.iter().for_each(|lane| self.lanes[*lane].must_rescan = true);
    }

    /// Grows with every reason to rescan; to be given to [`Watermarks::rescanned_from_the_bottom`].
    pub(super) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Whether a lane has to be rescanned from the bottom before more of it is read.
    pub(super) fn must_rescan(&self, lane: Lane) -> bool {
        self.lanes[lane].must_rescan
    }

    /// This lane was rescanned from the bottom up, beginning in this epoch, and was set back to what was found.
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
