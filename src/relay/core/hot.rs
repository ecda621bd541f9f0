//! Hot groups: the groups that `OUTBOX_RELAY_FIFO_MODE` limits.
//!
//! A group has one request under way, with one of its messages in strict mode and up to ten in batched mode. What is
//! written faster than that waits, however little else there is to do. Twice a second the schedule says which groups
//! wait for nothing but their own request ([`super::schedule::Schedule::limited`]). A group that did so nearly always
//! for ten seconds is *hot*.
//!
//! Samples that a halt, a pause, a failing database or other relays keep apart say nothing together, so they are
//! dropped. Pure: a bounded number of groups is remembered, and a message costs one look into a map.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::clock::Time;
use crate::message::MessageId;

/// How often the schedule is asked.
const SAMPLE_EVERY: Duration = Duration::from_millis(500);

/// The samples that count: those of ten seconds.
const SAMPLES: usize = 20;

/// In so many of them a group has to be limited before it counts as hot. A claim that begins has not read every group
/// yet, so a few samples miss.
const ENOUGH: u32 = 18;

/// A group that was not limited in as many samples in a row is not hot any more, and is forgotten.
const RECENT: u32 = 0b1111;

/// With a longer pause between two samples, those before it do not count. It is longer than the change from one claim
/// to the next takes while SQS answers within seconds.
const LONGEST_GAP: Duration = Duration::from_secs(5);

/// The next message of a limited group has waited for longer than this; a shorter wait is nothing to tell.
pub(super) const LATE: Duration = Duration::from_secs(1);

/// How many groups are remembered; if there are more, those with the oldest messages come first.
const MAX_GROUPS: usize = 1000;

/// How many groups are named.
const NAMED: usize = 3;

/// How long nothing is told again of groups that become hot.
const TELL_AGAIN: Duration = Duration::from_secs(600);

/// A group that waits for nothing but its own request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Limited {
    /// Its name.
    pub(super) group: Arc<str>,
    /// The next message that waits.
    pub(super) head: MessageId,
}

/// The hot groups at a moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(in crate::relay) struct Hot {
    /// How many there are.
    pub(in crate::relay) groups: usize,
    /// The messages a second that SQS accepts of each, on average.
    pub(in crate::relay) per_second: f64,
}

/// What the last samples say of one group.
#[derive(Debug)]
struct Track {
    /// One bit for each sample, the latest is the lowest: whether it was limited.
    limited: u32,
    /// How many of its messages SQS accepted after each of the last samples.
    accepted: [u32; SAMPLES],
    /// The next message that waited in the last sample in which it was limited.
    head: MessageId,
    is_hot: bool,
}

impl Track {
    fn new(head: MessageId) -> Self {
        Self { limited: 0, accepted: [0; SAMPLES], head, is_hot: false }
    }
}

/// The groups of one destination that are or may become hot.
#[derive(Debug, Default)]
pub(super) struct HotGroups {
    groups: HashMap<Arc<str>, Track>,
    /// The times of the samples that count.
    samples: VecDeque<Time>,
    /// The place of the current sample in [`Track::accepted`].
    place: usize,
    hot: Hot,
    /// Whether those that are hot now have been told.
    is_told: bool,
    told_at: Option<Time>,
}

impl HotGroups {
    /// Whether the schedule should be asked.
    pub(super) fn is_due(&self, now: Time) -> bool {
        self.samples.back().is_none_or(|last| now.since(*last) >= SAMPLE_EVERY)
    }

    /// The hot groups according to the last sample.
    pub(super) fn hot(&self) -> Hot {
        self.hot
    }

    /// SQS accepted a message of this group.
    pub(super) fn accepted(&mut self, group: &str) {
        if let Some(track) = self.groups.get_mut(group) {
            track.accepted[self.place] += 1;
        }
    }

    /// The groups that are limited now, those with the oldest messages first.
    pub(super) fn sample(&mut self, limited: Vec<Limited>, now: Time) {
        self.expire(now);
        if self.samples.len() == SAMPLES {
            self.samples.pop_front();
        }
        self.samples.push_back(now);
        self.place = (self.place + 1) % SAMPLES;
        for track in self.groups.values_mut() {
            track.limited <<= 1;
            track.accepted[self.place] = 0;
        }
        for Limited { group, head } in limited {
            let is_one_too_many = self.groups.len() >= MAX_GROUPS && !self.groups.contains_key(&group);
            if !is_one_too_many {
                let track = self.groups.entry(group).or_insert_with(|| Track::new(head));
                track.limited |= 1;
                track.head = head;
            }
        }
        self.groups.retain(|_, track| track.limited & RECENT != 0);
        for track in self.groups.values_mut() {
            track.is_hot |= (track.limited & COUNTED).count_ones() >= ENOUGH;
        }
        self.hot = self.measure(now);
        self.is_told &= self.hot.groups > 0;
    }

    fn measure(&self, now: Time) -> Hot {
        let tracks = || self.groups.values().filter(|track| track.is_hot);
        let groups = tracks().count();
        let accepted: u32 = tracks().flat_map(|track| track.accepted).sum();
        let time = self.samples.front().map_or(Duration::ZERO, |first| now.since(*first));
        if groups == 0 || time.is_zero() {
            return Hot::default();
        }
        Hot { groups, per_second: f64::from(accepted) / time.as_secs_f64() / groups as f64 }
    }

    /// The names of those to tell, those with the oldest messages first; `None` if there is nothing new to tell.
    pub(super) fn tell(&mut self, now: Time) -> Option<Vec<Arc<str>>> {
        let is_soon = self.told_at.is_some_and(|told_at| now.since(told_at) < TELL_AGAIN);
        if self.hot.groups == 0 || self.is_told || is_soon {
            return None;
        }
        self.is_told = true;
        self.told_at = Some(now);
        let mut hot: Vec<_> = self.groups.iter().filter(|(_, track)| track.is_hot).collect();
        hot.sort_unstable_by_key(|(name, track)| (track.head, Arc::clone(name)));
        Some(hot.into_iter().take(NAMED).map(|(name, _)| Arc::clone(name)).collect())
    }

    /// If the last sample is too long ago, nothing is known.
    pub(super) fn expire(&mut self, now: Time) {
        if self.samples.back().is_some_and(|last| now.since(*last) > LONGEST_GAP) {
            self.forget();
        }
    }

    /// Something else limits the destination now.
    pub(super) fn forget(&mut self) {
        *self = Self { told_at: self.told_at, ..Self::default() };
    }

    /// Another mode is set; what it does for the groups is news.
    pub(super) fn begin_again(&mut self) {
        *self = Self::default();
    }
}

/// The samples that count, as bits.
const COUNTED: u32 = (1 << SAMPLES) - 1;

#[cfg(test)]
mod tests;
