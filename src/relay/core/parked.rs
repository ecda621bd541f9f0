//! The groups that a claim has only in the table: the rest of a hot group, a group whose deferred head must go first, a
//! group that a dead message blocks. [`super::schedule`] decides what becomes of them, and [`super::handover`] has what
//! a claim leaves to the next one.
//!
//! Nothing is asked about groups before they are read: each message that is read says whether its group is held up. A
//! limited number of groups is remembered individually; the others form a [`super::crowd`].

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use super::crowd::Crowds;
use super::group::Deferred;
use super::item::Item;
use crate::clock::Time;
use crate::message::{Lane, MessageId};
use crate::reading::ByLane;

/// How many groups that wait in the table are remembered one by one.
pub(super) const MAX_PARKED: usize = 10_000;

/// The answer to a read of the rest of a group.
#[derive(Debug, Default)]
pub(super) struct ReadOnAnswer {
    /// Messages that can be sent.
    pub(super) items: Vec<Item>,
    /// The last message that was read, whatever became of it.
    pub(super) last: Option<MessageId>,
    /// The deferred message behind them.
    pub(super) head: Option<Deferred>,
    /// Whether that snapshot showed no more.
    pub(super) is_all: bool,
}

/// Bookkeeping of the groups that wait in the table.
#[derive(Debug, Default)]
pub(super) struct Parked {
    pub(super) to_read_on: VecDeque<Arc<str>>,
    /// Groups whose rest begins above the read position of their lane, by where it begins.
    pub(super) too_early: ByLane<BTreeSet<(MessageId, Arc<str>)>>,
    /// Groups that go on by themselves, by time.
    ends: BTreeSet<(Time, Arc<str>)>,
    pub(super) crowds: Crowds,
}

impl Parked {
    /// Whether some group has something to be read.
    pub(super) fn wants_to_read_on(&self) -> bool {
        !self.to_read_on.is_empty() || self.too_early.iter().any(|(_, groups)| !groups.is_empty())
    }

    /// Whether some group may be read on, where lanes were read to these ids.
    pub(super) fn may_read_on(&self, read_to: &impl Fn(Lane) -> MessageId) -> bool {
        let is_ready = |(lane, groups): (Lane, &BTreeSet<(MessageId, Arc<str>)>)| {
            groups.first().is_some_and(|(after, _)| *after <= read_to(lane))
        };
        !self.to_read_on.is_empty() || self.too_early.iter().any(is_ready)
    }

    /// Groups whose rest began above the read position of their lane, and does so no longer, ask again.
    pub(super) fn no_longer_too_early(&mut self, read_to: &impl Fn(Lane) -> MessageId) {
        for lane in Lane::all() {
            while let Some((after, name)) = self.too_early[lane].pop_first() {
                if after > read_to(lane) {
                    self.too_early[lane].insert((after, name));
                    break;
                }
                self.to_read_on.push_back(name);
            }
        }
    }

    /// When the next group goes on by itself.
    pub(super) fn next_end(&self) -> Option<Time> {
        self.ends.first().map(|(end, _)| *end)
    }

    /// Groups whose time has come.
    pub(super) fn take_ended(&mut self, now: Time) -> Vec<Arc<str>> {
        let mut ended = Vec::new();
        while self.ends.first().is_some_and(|(end, _)| *end <= now) {
            ended.extend(self.ends.pop_first().map(|(_, name)| name));
        }
        ended
    }

    pub(super) fn note_end(&mut self, deferred: Deferred, name: &Arc<str>) {
        if let Some(end) = deferred.ends_at() {
            self.ends.insert((end, Arc::clone(name)));
        }
    }
}
