//! From where each lane is read: the cursor of the reads and the low bound behind it.
//!
//! A read starts above its lane's *cursor* and so never walks the index entries of delivered rows that vacuum could not
//! remove. But a transaction can take an id and commit after higher ids were read. So the cursor is only a promise, and
//! the *low bound* follows it: the gap between the two is swept for late rows until every transaction that was running
//! when the cursor passed has ended. Transaction ids tell: once a later snapshot's xmin has reached the next id of that
//! moment, all its writers are over. (The snapshot's own xmax would not do: a writer may run beyond it, see
//! [`Snapshot::xmax`].) A late row sets the cursor back below it, so that it is read together with what
//! follows it.
//!
//! A writer that stays open longer than [`PATIENCE`] is *overtaken*: the bound passes it, and its transaction id is
//! remembered. As soon as a snapshot shows that it has ended, each lane is *unswept*: it has to be swept from the bottom
//! before a FIFO queue gets anything more of it, because the next writer of its group may have committed right behind. So
//! order does not rest on time. (It does rest on writers having a transaction id before they take a message id, which any earlier write gives
//! them: a row lock, an event, a stream's version. That is also what makes them wait for each other.)
//!
//! Completeness rests on the sweep from the bottom, which the relay makes every second in any case.
//!
//! Pure: no I/O and no clock of its own.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::time::{Duration, Instant};

use super::{Climb, Look, Snapshot};
use crate::message::{LANES, Lane};

/// How long the low bound waits for a running transaction before it passes anyway.
const PATIENCE: Duration = Duration::from_secs(2);

/// An id that becomes the low bound once the writers of its moment have ended.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    id: i64,
    next_xid: i64,
    seen_at: Instant,
}

#[derive(Clone, Debug, Default)]
struct LaneBound {
    low: i64,
    cursor: i64,
    candidates: VecDeque<Candidate>,
    is_unswept: bool,
}

impl LaneBound {
    fn note(&mut self, candidate: Candidate) {
        match self.candidates.back_mut() {
            Some(last) if last.id >= candidate.id => {}
            // When no transaction began in between, the higher id serves for both.
            Some(last) if last.next_xid == candidate.next_xid => last.id = candidate.id,
            _ => self.candidates.push_back(candidate),
        }
    }

    /// Moves the bound up over what the snapshot settles; returns below which transaction writers were overtaken.
    fn settle(&mut self, upto: i64, snapshot: &Snapshot, now: Instant) -> Option<i64> {
        let mut overtaken = None;
        while let Some(first) = self.candidates.front().copied().filter(|first| first.id <= upto) {
            if first.next_xid > snapshot.xmin {
                if now.saturating_duration_since(first.seen_at) < PATIENCE {
                    break;
                }
                overtaken = Some(first.next_xid);
            }
            self.low = self.low.max(first.id);
            self.candidates.pop_front();
        }
        self.cursor = self.cursor.max(self.low);
        overtaken
    }
}

/// The cursors and low bounds of one destination's lanes.
#[derive(Clone, Debug)]
pub struct LowBounds {
    lanes: Vec<LaneBound>,
    /// The sequence's last value at the look before this one, see [`LowBounds::looked`].
    last_id: Option<i64>,
    overtaken: Overtaken,
    /// How often lanes have become unswept; a sweep that began before the last time has not seen all.
    marks: u64,
}

/// Transactions that had begun and not ended when a bound passed what they may have written.
#[derive(Clone, Debug, Default)]
struct Overtaken {
    /// Those that a snapshot listed.
    listed: BTreeSet<i64>,
    /// Those beyond that snapshot's xmax, which it does not list.
    beyond: Range<i64>,
}

impl Overtaken {
    fn add(&mut self, next_xid: i64, snapshot: &Snapshot) {
        self.listed.extend(snapshot.running_in(0..next_xid));
        let beyond = snapshot.xmax..next_xid;
        if self.beyond.is_empty() {
            self.beyond = beyond;
        } else if !beyond.is_empty() {
            self.beyond = self.beyond.start.min(beyond.start)..self.beyond.end.max(beyond.end);
        }
    }

    fn is_empty(&self) -> bool {
        self.listed.is_empty() && self.beyond.is_empty()
    }

    fn has_ended(&self, snapshot: &Snapshot) -> bool {
        let seen = self.beyond.start..self.beyond.end.min(snapshot.xmax);
        let ended_beyond = !seen.is_empty()
            && snapshot.running_in(seen.clone()).count() < usize::try_from(seen.end - seen.start).unwrap_or(0);
        ended_beyond || self.listed.iter().any(|xid| !snapshot.is_running(*xid))
    }

    /// Keeps those that still run.
    fn forget_ended(&mut self, snapshot: &Snapshot) {
        self.listed.retain(|xid| snapshot.is_running(*xid));
        self.listed.extend(snapshot.running_in(self.beyond.clone()));
        self.beyond.start = self.beyond.start.max(snapshot.xmax);
    }
}

impl Default for LowBounds {
    fn default() -> Self {
        Self {
            lanes: vec![LaneBound::default(); usize::try_from(LANES).unwrap_or(0)],
            last_id: None,
            overtaken: Overtaken::default(),
            marks: 0,
        }
    }
}

impl LowBounds {
    fn lane(&self, lane: Lane) -> &LaneBound {
        &self.lanes[usize::try_from(lane).unwrap_or(0)]
    }

    fn lane_mut(&mut self, lane: Lane) -> &mut LaneBound {
        &mut self.lanes[usize::try_from(lane).unwrap_or(0)]
    }

    /// Where everything starts after a [`Climb`]: what lies below a lane's floor was done, or belongs to writers that were
    /// running when the climb began. Those count as overtaken.
    pub fn start_from(&mut self, climb: &Climb) {
        for (lane, floor) in &climb.floors {
            let bound = self.lane_mut(*lane);
            bound.low = *floor;
            bound.cursor = *floor;
        }
        self.overtaken.add(climb.next_xid, &climb.snapshot);
    }

    /// All lanes with their low bounds, for a look.
    pub fn lows(&self) -> Vec<(Lane, i64)> {
        (0..LANES).map(|lane| (lane, self.lane(lane).low)).collect()
    }

    /// Below this id every lane is settled: nothing that is known to run can still commit a message there.
    pub fn lowest(&self) -> i64 {
        self.lanes.iter().map(|bound| bound.low).min().unwrap_or(0)
    }

    /// Where the next read of a lane starts.
    pub fn cursor(&self, lane: Lane) -> i64 {
        self.lane(lane).cursor
    }

    /// Below this id a lane is only looked at by sweeps from the bottom.
    pub fn low(&self, lane: Lane) -> i64 {
        self.lane(lane).low
    }

    /// Whether rows of a lane may still appear between the low bound and the cursor.
    pub fn has_gap(&self, lane: Lane) -> bool {
        self.lane(lane).cursor > self.lane(lane).low
    }

    /// A claim begins: nothing of the lane is in memory, so reading starts at the low bound.
    pub fn open(&mut self, lane: Lane) {
        let bound = self.lane_mut(lane);
        bound.cursor = bound.low;
        bound.candidates.clear();
    }

    /// A read returned the lane's messages up to `id`; all transactions that had begun to write then were below `next_xid`.
    pub fn read(&mut self, lane: Lane, id: i64, next_xid: i64, now: Instant) {
        let bound = self.lane_mut(lane);
        if id > bound.cursor {
            bound.cursor = id;
            bound.note(Candidate { id, next_xid, seen_at: now });
        }
    }

    /// A sweep has looked at everything from the low bound of each lane up to this id.
    pub fn swept(&mut self, lanes: &[(Lane, i64)], snapshot: &Snapshot, now: Instant) {
        for (lane, upto) in lanes {
            let overtaken = self.lane_mut(*lane).settle(*upto, snapshot, now);
            self.overtake(overtaken, snapshot);
        }
    }

    /// A look found nothing above the low bounds of the `empty` lanes. What the sequence had reached at the look *before*
    /// this one was taken by transactions below this look's `next_xid`, so it can become the bound.
    pub fn looked(&mut self, empty: &[Lane], look: &Look, now: Instant) {
        let (snapshot, next_xid) = (&look.snapshot, look.next_xid);
        let reached = self.last_id.replace(look.last_id);
        for lane in empty {
            let overtaken = self.lane_mut(*lane).settle(i64::MAX, snapshot, now);
            self.overtake(overtaken, snapshot);
            let bound = self.lane_mut(*lane);
            if let Some(id) = reached.filter(|id| *id > bound.low) {
                bound.note(Candidate { id, next_xid, seen_at: now });
            }
        }
    }

    fn overtake(&mut self, upto: Option<i64>, snapshot: &Snapshot) {
        if let Some(upto) = upto {
            self.overtaken.add(upto, snapshot);
        }
    }

    /// Whether some writer was overtaken and has not been seen to end.
    pub fn has_overtaken(&self) -> bool {
        !self.overtaken.is_empty()
    }

    /// Whether this snapshot shows the end of a writer that was overtaken, so that rows below the bounds may be new. Then
    /// all lanes are unswept.
    pub fn shows_late_rows(&mut self, snapshot: &Snapshot) -> bool {
        let shows = self.overtaken.has_ended(snapshot);
        if shows {
            self.marks += 1;
            self.lanes.iter_mut().for_each(|bound| bound.is_unswept = true);
            self.overtaken.forget_ended(snapshot);
        }
        shows
    }

    /// How often lanes have become unswept, to be given to [`LowBounds::swept_from_the_bottom`].
    pub fn marks(&self) -> u64 {
        self.marks
    }

    /// Whether a lane has to be swept from the bottom before more of it is read.
    pub fn is_unswept(&self, lane: Lane) -> bool {
        self.lane(lane).is_unswept
    }

    /// These lanes were swept from the bottom up, beginning when the count of marks was this, and were set back to what was
    /// found.
    pub fn swept_from_the_bottom(&mut self, lanes: &[Lane], marks: u64) {
        if marks == self.marks {
            lanes.iter().for_each(|lane| self.lane_mut(*lane).is_unswept = false);
        }
    }

    /// The highest id up to which anything was looked at.
    pub fn highest(&self) -> i64 {
        self.lanes.iter().map(|bound| bound.cursor).max().unwrap_or(0)
    }

    /// Messages of the lane from `id` on were left in the table and have to be read again.
    pub fn rewind(&mut self, lane: Lane, id: i64) {
        let bound = self.lane_mut(lane);
        bound.low = bound.low.min(id - 1);
        bound.cursor = bound.cursor.min(id - 1);
        bound.candidates.retain(|candidate| candidate.id < id);
    }

    /// Forgets everything: after a reconnect the database may be another one, with lower ids.
    pub fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod properties;
