//! Groups that are held up and too many to remember one by one: per lane a set of hashes, and the lowest message.
//!
//! They are kept from claim to claim, so that their messages are not read over and over. A group leaves its crowd when
//! something of it may go: its deferred head falls due, or a message of it that nothing holds up is read, or is found
//! by a rescan (rescans leave out held-up messages). Then the group is read from the crowd's lowest message on. Pure.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeSet, HashSet};
use std::hash::BuildHasher as _;
use std::ops::Bound;

use crate::message::{Lane, MessageId, MessageKey};
use crate::reading::ByLane;

#[derive(Clone, Debug, Default)]
struct Crowd {
    /// The hashes of the group names.
    groups: HashSet<u64>,
    /// The lowest message seen of these groups.
    from: Option<MessageId>,
    /// The messages of these groups that were read above the low watermark.
    seen: BTreeSet<MessageId>,
}

/// The crowds of all lanes.
#[derive(Clone, Debug, Default)]
pub(super) struct Crowds {
    hasher: RandomState,
    lanes: ByLane<Crowd>,
}

impl Crowds {
    /// Whether this group belongs to the crowd.
    pub(super) fn has(&self, lane: Lane, name: &str) -> bool {
        let groups = &self.lanes[lane].groups;
        !groups.is_empty() && groups.contains(&self.hasher.hash_one(name))
    }

    /// Whether the lane has a crowd.
    pub(super) fn is_crowded(&self, lane: Lane) -> bool {
        !self.lanes[lane].groups.is_empty()
    }

    /// Whether the lane has a crowd, or had one recently: rescans since then may have left out what stands behind a
    /// deferred message.
    pub(super) fn was_crowded(&self, lane: Lane) -> bool {
        self.lanes[lane].from.is_some()
    }

    /// Adds the group of this held-up message.
    pub(super) fn join(&mut self, name: &str, key: MessageKey) {
        let hash = self.hasher.hash_one(name);
        let crowd = &mut self.lanes[key.lane];
        crowd.groups.insert(hash);
        crowd.seen.insert(key.id);
        crowd.from = Some(crowd.from.map_or(key.id, |from| from.min(key.id)));
    }

    /// Whether this message of the gap was read while its group was held up.
    pub(super) fn has_seen(&self, key: MessageKey) -> bool {
        self.lanes[key.lane].seen.contains(&key.id)
    }

    /// How many messages above this one were read of groups in the crowd.
    pub(super) fn seen_above(&self, lane: Lane, id: MessageId) -> usize {
        self.lanes[lane].seen.range((Bound::Excluded(id), Bound::Unbounded)).count()
    }

    /// The low watermark has passed these messages, so rescans leave them out from now on.
    pub(super) fn pass(&mut self, lane: Lane, low: MessageId) {
        let seen = &mut self.lanes[lane].seen;
        if seen.first().is_some_and(|first| *first <= low) {
            *seen = seen.split_off(&low.next());
        }
    }

    /// The lane is read again from the low watermark on.
    pub(super) fn begin_again(&mut self, lane: Lane) {
        self.lanes[lane].seen.clear();
    }

    /// Removes a group that is remembered individually from now on. Returns the lowest message that may belong to it,
    /// if it was in the crowd.
    pub(super) fn remove(&mut self, lane: Lane, name: &str) -> Option<MessageId> {
        let crowd = &mut self.lanes[lane];
        let was_there = !crowd.groups.is_empty() && crowd.groups.remove(&self.hasher.hash_one(name));
        crowd.from.filter(|_| was_there)
    }

    /// Lanes whose crowd has become empty; rescans may have left out messages of those lanes.
    pub(super) fn take_emptied(&mut self) -> Vec<Lane> {
        let has_left =
            |(lane, crowd): (Lane, &Crowd)| (crowd.groups.is_empty() && crowd.from.is_some()).then_some(lane);
        let left: Vec<Lane> = self.lanes.iter().filter_map(has_left).collect();
        left.iter().for_each(|lane| self.lanes[*lane] = Crowd::default());
        left
    }
}
