//! The schedule: which message may go next. Pure; the order of groups is decided here and nowhere else.
//!
//! A group has at most one request in flight. What failed goes back to the front of its group, and nothing later of the
//! group goes out before it. Other groups are not concerned. A group with more than a window of messages keeps the rest in
//! the table: the schedule remembers where it stopped and asks for more when it runs low, so that neither a hot group nor a
//! blocked one fills the memory.
//!
//! Messages without order (a standard queue, or no group) take part as groups of one without the bookkeeping.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use super::group::{Group, Item, Rest, State};
use crate::message::{Lane, MessageKey};
use crate::sqs::Load;

/// How many messages of a group go out at once, and how many wait in memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Entries of a request.
    pub(super) request_size: usize,
    /// Entries of one group in one request: 1 keeps the order whatever fails.
    pub(super) per_group: usize,
    /// Messages of one group in memory.
    pub(super) window: usize,
}

#[derive(Debug)]
enum Delayed {
    Item(Box<Item>),
    Group(Arc<str>),
}

/// Where to read on in a group.
#[derive(Clone, Debug)]
pub(super) struct ReadOn {
    /// The group.
    pub(super) group: Arc<str>,
    /// Its lane, and the last id in memory.
    pub(super) after: MessageKey,
    /// The highest id that was known to be left.
    upto: i64,
    /// How many sweeps had been applied when this was asked.
    sweeps: u64,
    /// How many messages there is room for.
    pub(super) most: usize,
}

/// A group of which messages were left in the table when a claim ended. Remembered, so that the next claim neither reads
/// nor walks them again until the group may go on. It stays true if another relay has the lane in between: what that relay
/// has delivered is not pending any more.
#[derive(Clone, Debug)]
pub(super) struct Remembered {
    /// The group.
    pub(super) group: Arc<str>,
    /// Its lane.
    pub(super) lane: Lane,
    /// Nothing of the group up to here is left but recorded retries.
    pub(super) after: i64,
    /// The highest id that was seen.
    pub(super) upto: i64,
    /// When it goes on.
    pub(super) goes_on: GoesOn,
}

/// When a group that was left in the table goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GoesOn {
    /// At once.
    Now,
    /// When its head may be tried again.
    At(Instant),
    /// When nothing of it is dead any more.
    Unblocked,
}

impl GoesOn {
    /// Whether a claim would find something to send.
    pub(super) fn is_now(self, now: Instant) -> bool {
        match self {
            Self::Now => true,
            Self::At(until) => until <= now,
            Self::Unblocked => false,
        }
    }
}

/// What was not sent when a claim ended.
#[derive(Debug, Default)]
pub(super) struct Leftovers {
    /// Messages in memory, with the time that those waiting for a retry were to be tried again.
    pub(super) items: Vec<(Item, Option<Instant>)>,
    /// Groups that were left in part or whole.
    pub(super) remembered: Vec<Remembered>,
}

/// The messages of a claim that are not settled yet.
#[derive(Debug)]
pub(super) struct Schedule {
    limits: Limits,
    free: VecDeque<Item>,
    groups: HashMap<Arc<str>, Group>,
    ready: VecDeque<Arc<str>>,
    delayed: BTreeMap<(Instant, i64), Delayed>,
    to_read_on: VecDeque<Arc<str>>,
    sweeps: u64,
    known: HashSet<i64>,
    waiting: usize,
    waiting_bytes: usize,
}

impl Schedule {
    /// An empty schedule.
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            free: VecDeque::new(),
            groups: HashMap::new(),
            ready: VecDeque::new(),
            delayed: BTreeMap::new(),
            to_read_on: VecDeque::new(),
            sweeps: 0,
            known: HashSet::new(),
            waiting: 0,
            waiting_bytes: 0,
        }
    }

    /// Whether a message is in memory: waiting, in flight, or not settled yet.
    pub(super) fn knows(&self, id: i64) -> bool {
        self.known.contains(&id)
    }

    /// Remembers a message that is settled without being sent; returns false when it is known already.
    pub(super) fn note(&mut self, id: i64) -> bool {
        self.known.insert(id)
    }

    /// The message is settled in the table.
    pub(super) fn forget(&mut self, id: i64) {
        self.known.remove(&id);
    }

    /// How many messages are in memory.
    pub(super) fn known(&self) -> usize {
        self.known.len()
    }

    /// Messages that wait to be sent.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Their bytes.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    /// Groups of which messages were left in the table. A sweep leaves them out.
    pub(super) fn groups_with_rest(&self) -> Vec<(Lane, Arc<str>)> {
        let has_rest = self.groups.iter().filter(|(_, group)| group.rest.is_some());
        has_rest.map(|(name, group)| (group.lane, Arc::clone(name))).collect()
    }

    /// The lanes of groups that a sweep has left out and that were read to their end since, by a read that may have seen
    /// less than the sweep. What the sweep shows of these lanes is worth nothing.
    pub(super) fn no_longer_left(&self, left_out: &[(Lane, Arc<str>)]) -> Vec<Lane> {
        let has_rest = |name| self.groups.get(name).is_some_and(|group| group.rest.is_some());
        left_out.iter().filter(|(_, name)| !has_rest(name)).map(|(lane, _)| *lane).collect()
    }

    /// A sweep was applied, which left out the groups with a rest. So a read of one of them that was under way cannot be
    /// the last: it may have seen less than the sweep.
    pub(super) fn has_swept(&mut self) {
        self.sweeps += 1;
    }

    /// Whether this message of the group has to stay in the table for now; then that is remembered.
    pub(super) fn leaves_in_table(&mut self, name: &Arc<str>, id: i64) -> bool {
        self.groups.get_mut(name).is_some_and(|group| group.leaves_in_table(id, self.limits.window))
    }

    /// Takes a message in, or leaves it in the table when its group has enough in memory. `until` is the time of a retry
    /// that was recorded earlier.
    pub(super) fn admit(&mut self, item: Item, until: Option<Instant>) {
        let id = item.key().id;
        if !self.known.insert(id) {
            return;
        }
        let bytes = item.entry.bytes();
        let Some(name) = item.group.clone() else {
            match until {
                Some(until) => drop(self.delayed.insert((until, id), Delayed::Item(Box::new(item)))),
                None => {
                    self.free.push_back(item);
                    self.count(1, bytes);
                }
            }
            return;
        };
        let lane = item.key().lane;
        let group = self.groups.entry(Arc::clone(&name)).or_insert_with(|| Group::new(lane));
        if group.leaves_in_table(id, self.limits.window) {
            self.known.remove(&id);
            return;
        }
        let before = group.counted();
        let is_head = group.insert(item);
        match (group.state, until) {
            (State::Idle | State::Ready, Some(until)) if is_head => {
                // An entry in the list of ready groups may stay behind; it is passed over when its turn comes.
                self.delayed.insert((until, id), Delayed::Group(Arc::clone(&name)));
                let left = group.delay();
                self.forget_all(&left);
            }
            (State::Deferred(_), Some(until)) => {
                group.state = State::Delayed;
                self.delayed.insert((until, id), Delayed::Group(Arc::clone(&name)));
            }
            (State::Idle | State::Deferred(_), _) => {
                group.state = State::Ready;
                self.ready.push_back(Arc::clone(&name));
            }
            _ => {}
        }
        self.recount(&name, before);
    }

    /// The head of this group waits in the table for a retry.
    pub(super) fn defer(&mut self, name: &Arc<str>, head: MessageKey, due: Instant) {
        let group = self.groups.entry(Arc::clone(name)).or_insert_with(|| Group::new(head.lane));
        if group.state == State::Idle {
            group.defer(head.id, due);
        }
    }

    /// Whether a full request could be made now.
    pub(super) fn can_fill_a_request(&self) -> bool {
        let size = self.limits.request_size;
        if self.free.len() + self.ready.len() >= size || self.waiting_bytes >= crate::sqs::MAX_BYTES {
            return true;
        }
        let has_enough = |group: &Group| group.waiting.len() >= size;
        self.limits.per_group > 1 && self.ready.iter().any(|name| self.groups.get(name).is_some_and(has_enough))
    }

    /// Whether anything could be sent now.
    pub(super) fn has_ready(&self) -> bool {
        !self.free.is_empty() || !self.ready.is_empty()
    }

    /// The next request: as many entries as fit, in order within each group. `None` when nothing may go.
    pub(super) fn next_request(&mut self) -> Option<Vec<Item>> {
        let mut items = Vec::with_capacity(self.limits.request_size);
        let mut load = Load::new(self.limits.request_size);
        while !load.is_full() {
            if let Some(front) = self.free.front() {
                if !takes(&load, &items, front) {
                    break;
                }
                items.extend(self.free.pop_front());
            } else if let Some(name) = self.ready.front().cloned() {
                let Some(group) = self.groups.get_mut(&name).filter(|group| group.state == State::Ready) else {
                    self.ready.pop_front();
                    continue;
                };
                let Some(front) = group.waiting.front() else { break };
                if !takes(&load, &items, front) {
                    break;
                }
                group.state = State::InFlight;
                self.ready.pop_front();
                let before = items.len();
                while items.len() - before < self.limits.per_group
                    && let Some(next) = group.waiting.front()
                    && takes(&load, &items, next)
                {
                    load.add(next.entry.bytes());
                    items.extend(group.waiting.pop_front());
                }
                continue;
            } else {
                break;
            }
            let Some(taken) = items.last() else { break };
            load.add(taken.entry.bytes());
        }
        for item in &items {
            self.waiting -= 1;
            self.waiting_bytes -= item.entry.bytes();
        }
        (!items.is_empty()).then_some(items)
    }

    /// A request came back: `done` will be settled, `again` has to be sent again, at once or at a time.
    pub(super) fn finish(&mut self, done: &[Item], again: Vec<(Item, Option<Instant>)>) {
        let mut blocked: HashMap<Arc<str>, Option<(Instant, i64)>> = HashMap::new();
        for item in done {
            if let Some(name) = &item.group {
                blocked.entry(Arc::clone(name)).or_default();
            }
        }
        for (item, until) in again {
            let (id, bytes) = (item.key().id, item.entry.bytes());
            match (item.group.clone(), until) {
                (None, Some(until)) => drop(self.delayed.insert((until, id), Delayed::Item(Box::new(item)))),
                (None, None) => {
                    self.free.push_front(item);
                    self.count(1, bytes);
                }
                (Some(name), until) => {
                    let lane = item.key().lane;
                    let group = self.groups.entry(Arc::clone(&name)).or_insert_with(|| Group::new(lane));
                    group.insert(item);
                    self.count(1, bytes);
                    let wait = blocked.entry(name).or_default();
                    *wait = (*wait).max(until.map(|until| (until, id)));
                }
            }
        }
        for (name, wait) in blocked {
            self.release(&name, wait);
        }
    }

    fn release(&mut self, name: &Arc<str>, wait: Option<(Instant, i64)>) {
        let Some(group) = self.groups.get_mut(name) else { return };
        let before = group.counted();
        match wait {
            _ if group.state == State::Blocked => {
                let left = group.block(i64::MAX);
                self.forget_all(&left);
            }
            Some(key) => {
                self.delayed.insert(key, Delayed::Group(Arc::clone(name)));
                let left = group.delay();
                self.forget_all(&left);
            }
            None if group.waiting.is_empty() => group.state = State::Idle,
            None => {
                group.state = State::Ready;
                self.ready.push_back(Arc::clone(name));
            }
        }
        self.recount(name, before);
        self.look_after(name);
    }

    /// Asks for more of a group that runs low, and lets go of one that has nothing left.
    fn look_after(&mut self, name: &Arc<str>) {
        let Some(group) = self.groups.get_mut(name) else { return };
        if group.begins_to_read_on(self.limits.window) {
            self.to_read_on.push_back(Arc::clone(name));
        } else if group.state == State::Idle && group.rest.is_none() {
            self.groups.remove(name);
        }
    }

    /// An earlier claim left messages of this group in the table.
    pub(super) fn remember(&mut self, remembered: &Remembered) {
        let group = self.groups.entry(Arc::clone(&remembered.group)).or_insert_with(|| Group::new(remembered.lane));
        // A head that waits in the table is itself the place to go on from.
        let after = match (group.state, group.rest) {
            (State::Deferred(_), Some(rest)) => rest.after,
            _ => remembered.after,
        };
        group.rest = Some(Rest::new(after, remembered.upto.max(after)));
        self.look_after(&remembered.group);
    }

    /// A message of this group is dead, and what follows has to wait for an operator. Whatever is in memory of the group
    /// is forgotten and stays in the table, and so does what comes back from a request.
    pub(super) fn block(&mut self, name: &Arc<str>, dead: MessageKey) {
        let group = self.groups.entry(Arc::clone(name)).or_insert_with(|| Group::new(dead.lane));
        let before = group.counted();
        if group.state == State::Delayed {
            self.delayed.retain(|_, delayed| !matches!(delayed, Delayed::Group(other) if other == name));
        }
        let left = group.block(dead.id);
        self.forget_all(&left);
        self.recount(name, before);
    }

    /// The blocked groups.
    pub(super) fn blocked(&self) -> Vec<(Lane, Arc<str>)> {
        let blocked = self.groups.iter().filter(|(_, group)| group.state == State::Blocked);
        blocked.map(|(name, group)| (group.lane, Arc::clone(name))).collect()
    }

    /// Nothing of this group is dead any more: it goes on, from the message that was dead if that was redriven.
    pub(super) fn unblock(&mut self, name: &Arc<str>) {
        if let Some(group) = self.groups.get_mut(name).filter(|group| group.state == State::Blocked) {
            group.unblock();
            self.look_after(name);
        }
    }

    /// The next group that runs low and has more in the table; the answer goes to [`Schedule::read_on`].
    pub(super) fn next_to_read_on(&mut self) -> Option<ReadOn> {
        loop {
            let name = self.to_read_on.pop_front()?;
            let Some(group) = self.groups.get(&name) else { continue };
            // A group that was delayed since does not ask any more.
            let Some((rest, upto)) = group.rest.and_then(|rest| rest.asked_upto.map(|upto| (rest, upto))) else {
                continue;
            };
            let after = MessageKey { lane: group.lane, id: rest.after };
            let (sweeps, most) = (self.sweeps, self.limits.window);
            return Some(ReadOn { group: name, after, upto, sweeps, most });
        }
    }

    /// A group's next messages were read; `is_all` when there were no more under that snapshot.
    pub(super) fn read_on(
        &mut self,
        from: &ReadOn,
        items: Vec<(Item, Option<Instant>)>,
        last: Option<i64>,
        is_all: bool,
    ) {
        let is_all = is_all && from.sweeps == self.sweeps;
        let group = self.groups.get_mut(&from.group);
        let is_wanted = group.is_some_and(|group| group.has_read_on(from.after.id, from.upto, last, is_all));
        if is_wanted {
            items.into_iter().for_each(|(item, until)| self.admit(item, until));
        }
        self.look_after(&from.group);
    }

    /// Makes ready what has waited long enough.
    pub(super) fn wake(&mut self, now: Instant) {
        while let Some(first) = self.delayed.first_entry() {
            if first.key().0 > now {
                break;
            }
            match first.remove() {
                Delayed::Item(item) => {
                    self.count(1, item.entry.bytes());
                    self.free.push_back(*item);
                }
                Delayed::Group(name) => {
                    if let Some(group) = self.groups.get_mut(&name).filter(|group| group.state == State::Delayed) {
                        let before = group.counted();
                        group.state = State::Ready;
                        self.ready.push_back(Arc::clone(&name));
                        self.recount(&name, before);
                    }
                }
            }
        }
    }

    /// Whether everything in memory waits for a retry that is not due before this time.
    pub(super) fn only_waits_beyond(&self, time: Instant) -> bool {
        self.waiting == 0 && self.delayed.len() == self.known.len() && self.next_wake().is_none_or(|wake| wake >= time)
    }

    /// When the next retry is due.
    pub(super) fn next_wake(&self) -> Option<Instant> {
        self.delayed.first_key_value().map(|(key, _)| key.0)
    }

    /// Gives back everything that was not sent and forgets it. Nothing may be in flight.
    pub(super) fn take_leftovers(&mut self) -> Leftovers {
        let Self { free, groups, delayed, .. } = std::mem::replace(self, Self::new(self.limits));
        let mut leftovers = Leftovers::default();
        let mut waits: HashMap<Arc<str>, Instant> = HashMap::new();
        leftovers.items.extend(free.into_iter().map(|item| (item, None)));
        for ((until, _), delayed) in delayed {
            match delayed {
                Delayed::Item(item) => leftovers.items.push((*item, Some(until))),
                Delayed::Group(name) => drop(waits.insert(name, until)),
            }
        }
        for (name, group) in groups {
            let until = waits.get(&name).copied();
            if let Some(rest) = group.rest {
                let first_uncharged = group.waiting.iter().find(|item| item.charged.is_none());
                let after = first_uncharged.map_or(rest.after, |item| rest.after.min(item.key().id - 1));
                if matches!(group.state, State::Deferred(_)) && rest.upto <= rest.after {
                    // Nothing was seen behind the head, and the head is found where it is recorded.
                    continue;
                }
                let (after, goes_on) = match (group.state, until) {
                    (State::Blocked, _) => (after.min(group.dead - 1), GoesOn::Unblocked),
                    (State::Deferred(until), _) | (_, Some(until)) => (after, GoesOn::At(until)),
                    (_, None) => (after, GoesOn::Now),
                };
                leftovers.remembered.push(Remembered {
                    group: name,
                    lane: group.lane,
                    after,
                    upto: rest.upto,
                    goes_on,
                });
                let charged = group.waiting.into_iter().filter(|item| item.charged.is_some());
                leftovers.items.extend(charged.map(|item| (item, until)));
            } else {
                leftovers.items.extend(group.waiting.into_iter().map(|item| (item, until)));
            }
        }
        leftovers
    }

    fn forget_all(&mut self, items: &[Item]) {
        for item in items {
            self.known.remove(&item.key().id);
        }
    }

    /// Brings the totals up to date after a change of one group.
    fn recount(&mut self, name: &Arc<str>, before: (usize, usize)) {
        let after = self.groups.get(name).map_or((0, 0), Group::counted);
        self.waiting = self.waiting + after.0 - before.0;
        self.waiting_bytes = self.waiting_bytes + after.1 - before.1;
    }

    fn count(&mut self, items: usize, bytes: usize) {
        self.waiting += items;
        self.waiting_bytes += bytes;
    }
}

/// An entry that must be alone starts a request and ends it.
fn takes(load: &Load, taken: &[Item], next: &Item) -> bool {
    let may_join = taken.last().is_none_or(|last| !last.is_alone && !next.is_alone);
    may_join && load.fits(next.entry.bytes())
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
