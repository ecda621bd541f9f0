//! The schedule: which message may go next. The order within groups is decided here and nowhere else. Pure.
//!
//! A group has at most one request in flight. A failed message goes back to the front of its group, and no later
//! message of the group is sent before it. Other groups are not affected. If a group has more than a window of
//! messages, the rest stays in the table: the schedule remembers where it stopped and asks for more when the group runs
//! low. So neither a hot group nor a blocked one fills the memory.
//!
//! [`parking`] handles what stays in the table. Messages without order (a standard queue, or no group) are treated as
//! groups of one, without the bookkeeping.

mod parking;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use super::group::{Deferred, Group, State};
use super::hot::{LATE, Limited};
use super::item::Item;
use super::keys::KeySet;
use super::parked::{MAX_PARKED, Parked};
use crate::clock::Time;
use crate::config::FifoMode;
use crate::message::{MessageId, MessageKey};
use crate::publisher::Load;

/// Messages of one group in memory in strict mode: a hot group sends one at a time and is read on when half of them are
/// gone.
const STRICT_WINDOW: usize = 20;

/// Messages of one group in memory in batched mode.
const BATCHED_WINDOW: usize = 100;

/// How many messages of a group go out at once, and how many wait in memory.
#[derive(Clone, Copy, Debug)]
pub(in crate::relay) struct ScheduleLimits {
    /// Entries of a request.
    pub(super) request_size: usize,
    /// Entries of one group in one request: 1 keeps the order whichever entries fail.
    pub(super) per_group: usize,
    /// Messages of one group in memory.
    pub(super) window: usize,
    /// How many groups that wait in the table are remembered one by one.
    pub(super) max_parked: usize,
    /// Bytes of a request.
    pub(super) request_bytes: usize,
}

impl ScheduleLimits {
    /// The shape that is configured.
    pub(in crate::relay) fn new(request_size: usize, request_bytes: usize, fifo_mode: FifoMode) -> Self {
        let (per_group, window) = match fifo_mode {
            FifoMode::Strict => (1, STRICT_WINDOW),
            FifoMode::Batched => (request_size, BATCHED_WINDOW),
        };
        Self { request_size, per_group, window, max_parked: MAX_PARKED, request_bytes }
    }
}

#[derive(Debug)]
pub(super) enum Retry {
    Item(Box<Item>),
    Group(Arc<str>),
}

/// The messages of a claim that are not settled yet.
#[derive(Debug)]
pub(in crate::relay) struct Schedule {
    pub(super) shape: ScheduleLimits,
    free: VecDeque<Item>,
    pub(super) groups: HashMap<Arc<str>, Group>,
    ready: VecDeque<Arc<str>>,
    pub(super) retries: BTreeMap<(Time, MessageId), Retry>,
    pub(super) parked: Parked,
    known: KeySet,
    waiting: usize,
    waiting_bytes: usize,
    /// Messages with a failed attempt that were left in the table.
    unrecorded: Vec<Item>,
}

impl Schedule {
    /// An empty schedule.
    pub(in crate::relay) fn new(shape: ScheduleLimits) -> Self {
        Self {
            shape,
            free: VecDeque::new(),
            groups: HashMap::new(),
            ready: VecDeque::new(),
            retries: BTreeMap::new(),
            parked: Parked::default(),
            known: KeySet::default(),
            waiting: 0,
            waiting_bytes: 0,
            unrecorded: Vec::new(),
        }
    }

    /// Whether a message is in memory: waiting, in flight, or not settled yet.
    pub(super) fn knows(&self, key: MessageKey) -> bool {
        self.known.contains(&key)
    }

    /// Marks a message as known that is settled without being sent. If its group waited for it, the group goes on.
    pub(super) fn pass_over(&mut self, key: MessageKey, group: Option<&Arc<str>>) {
        self.known.insert(key);
        let Some(name) = group else { return };
        // The messages behind it may go now.
        self.take_from_crowd(MessageKey { id: key.id.next(), ..key }, Some(name));
        if let Some(group) = self.groups.get_mut(name)
            && group.waits_for(key.id)
        {
            group.state = State::Idle;
            self.requeue_or_drop(name);
        }
    }

    /// The message is settled in the table.
    pub(in crate::relay) fn forget(&mut self, key: MessageKey) {
        self.known.remove(&key);
    }

    /// How many messages are in memory.
    pub(super) fn known(&self) -> usize {
        self.known.len()
    }

    /// Messages that wait to be sent.
    pub(super) fn waiting(&self) -> usize {
        self.waiting
    }

    /// The bytes of these messages in memory, with bodies that go to a bucket.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.waiting_bytes
    }

    /// Admits a message, or leaves it in the table when its group has enough in memory.
    pub(in crate::relay) fn admit(&mut self, item: Item) {
        let key = item.key();
        if !self.known.insert(key) {
            return;
        }
        let Some(name) = item.group.clone() else {
            self.count(1, item.entry.memory_bytes());
            self.free.push_back(item);
            return;
        };
        let window = self.shape.window;
        let group = self.group(&name, key.lane);
        if group.keep_in_table_if_full(key.id, window) {
            self.known.remove(&key);
            self.requeue_or_drop(&name);
            return;
        }
        // A message before the part that waits in the table: the messages that follow it must be read in order.
        let is_before = group.rest.is_some_and(|rest| key.id <= rest.after);
        if matches!(group.state, State::Deferred(_)) && is_before && !group.waits_for(key.id) {
            self.known.remove(&key);
            self.start_over(&name, key, key.id);
            return;
        }
        let before = group.counted();
        group.insert(item);
        if matches!(group.state, State::Idle | State::Deferred(_)) {
            group.state = State::Ready;
            self.ready.push_back(Arc::clone(&name));
        }
        self.recount(&name, before);
    }

    /// Whether a full request could be made now.
    pub(super) fn can_fill_a_request(&self) -> bool {
        let size = self.shape.request_size;
        if self.free.len() + self.ready.len() >= size || self.waiting_bytes >= self.shape.request_bytes {
            return true;
        }
        let has_enough = |group: &Group| group.waiting.len() >= size;
        self.shape.per_group > 1 && self.ready.iter().any(|name| self.groups.get(name).is_some_and(has_enough))
    }

    /// Whether anything could be sent now.
    pub(super) fn has_ready(&self) -> bool {
        !self.free.is_empty() || !self.ready.is_empty()
    }

    /// The next request: as many entries as fit, in order within each group. `None` when nothing may go.
    pub(in crate::relay) fn next_request(&mut self) -> Option<Vec<Item>> {
        let mut items = Vec::with_capacity(self.shape.request_size);
        let mut load = Load::new(self.shape.request_size, self.shape.request_bytes);
        while !load.is_full() {
            if let Some(front) = self.free.front() {
                if !takes(&load, &items, front) {
                    break;
                }
                load.add(front.entry.size());
                items.extend(self.free.pop_front());
            } else if let Some(name) = self.ready.front() {
                let Some(group) = self.groups.get_mut(name).filter(|group| group.state == State::Ready) else {
                    self.ready.pop_front();
                    continue;
                };
                let (entries, size) = group.goes_together();
                let is_whole = load.entries() == 0 || load.fits_together(entries, size);
                if !is_whole || !group.waiting.front().is_some_and(|front| takes(&load, &items, front)) {
                    break;
                }
                group.state = State::InFlight;
                group.is_in_flight = true;
                self.ready.pop_front();
                take_of_group(group, self.shape.per_group, &mut load, &mut items);
            } else {
                break;
            }
        }
        for item in &items {
            self.waiting -= 1;
            self.waiting_bytes -= item.entry.memory_bytes();
        }
        (!items.is_empty()).then_some(items)
    }

    /// A request came back: `done` will be settled, and `again` is sent again, at once or at the given time.
    pub(in crate::relay) fn finish(&mut self, done: &[Item], again: Vec<(Item, Option<Time>)>) {
        let mut concerned: BTreeMap<Arc<str>, Option<(Time, MessageId)>> = BTreeMap::new();
        for item in done {
            if let Some(name) = &item.group {
                concerned.entry(Arc::clone(name)).or_default();
            }
        }
        for (item, until) in again {
            let (id, bytes) = (item.id(), item.entry.memory_bytes());
            match (item.group.clone(), until) {
                (None, Some(until)) => drop(self.retries.insert((until, id), Retry::Item(Box::new(item)))),
                (None, None) => {
                    self.free.push_front(item);
                    self.count(1, bytes);
                }
                (Some(name), until) => {
                    let lane = item.key().lane;
                    self.group(&name, lane).insert(item);
                    self.count(1, bytes);
                    let wait = concerned.entry(name).or_default();
                    *wait = (*wait).max(until.map(|until| (until, id)));
                }
            }
        }
        for (name, wait) in concerned {
            self.set_free(&name, wait);
        }
    }

    /// A group has no request in flight any more; it waits, or goes on.
    fn set_free(&mut self, name: &Arc<str>, wait: Option<(Time, MessageId)>) {
        let Some(group) = self.groups.get_mut(name) else { return };
        group.is_in_flight = false;
        let before = group.counted();
        match wait {
            _ if matches!(group.state, State::Blocked { .. }) => {
                let left = group.leave_everything();
                self.forget_unsent(left);
            }
            Some(key) => {
                self.retries.insert(key, Retry::Group(Arc::clone(name)));
                let left = group.back_off();
                self.forget_unsent(left);
            }
            None if group.waiting.is_empty() => group.state = State::Idle,
            None => {
                group.state = State::Ready;
                self.ready.push_back(Arc::clone(name));
            }
        }
        self.recount(name, before);
        self.requeue_or_drop(name);
    }

    /// Makes ready what has waited long enough.
    pub(in crate::relay) fn wake(&mut self, now: Time) {
        while let Some(first) = self.retries.first_entry() {
            if first.key().0 > now {
                break;
            }
            match first.remove() {
                Retry::Item(item) => {
                    self.count(1, item.entry.memory_bytes());
                    self.free.push_back(*item);
                }
                Retry::Group(name) => {
                    if let Some(group) = self.groups.get_mut(&name).filter(|group| group.state == State::BackingOff) {
                        let before = group.counted();
                        group.state = State::Ready;
                        self.ready.push_back(Arc::clone(&name));
                        self.recount(&name, before);
                    }
                }
            }
        }
        for name in self.parked.take_ended(now) {
            let is_over = |deferred: Deferred| deferred.ends_at().is_some_and(|end| end <= now);
            if let Some(group) = self.groups.get_mut(&name)
                && matches!(group.state, State::Deferred(deferred) if is_over(deferred))
            {
                group.stop_deferring();
                self.requeue_or_drop(&name);
            }
        }
    }

    /// Whether everything in memory waits for a retry that is not due before this time. What is settled is still known
    /// for a while.
    pub(super) fn only_waits_beyond(&self, time: Time) -> bool {
        let delayed = |retry: &Retry| match retry {
            Retry::Item(_) => 1,
            Retry::Group(name) => self.groups.get(name).map_or(0, |group| group.waiting.len()),
        };
        self.waiting == 0
            && self.next_wake().is_none_or(|wake| wake >= time)
            && !self.parked.wants_to_read_on()
            && self.retries.values().map(delayed).sum::<usize>() == self.known.len()
    }

    /// When the next retry is due, or the next group that waits for one goes on.
    pub(super) fn next_wake(&self) -> Option<Time> {
        let delayed = self.retries.first_key_value().map(|(key, _)| key.0);
        delayed.into_iter().chain(self.parked.next_end()).min()
    }

    /// The groups whose next message waits for nothing but the answer to the group's own request, or for that request
    /// to fill up, and does so for long; those with the oldest messages first. It is assumed that more requests may go.
    pub(super) fn limited(&self, now: Time) -> Vec<Limited> {
        let waits = |(name, group): (&Arc<str>, &Group)| {
            let goes_on = matches!(group.state, State::InFlight | State::Ready);
            let head = group.waiting.front().filter(|head| goes_on && head.age(now) > LATE)?;
            Some(Limited { group: Arc::clone(name), head: head.id() })
        };
        let mut limited: Vec<Limited> = self.groups.iter().filter_map(waits).collect();
        limited.sort_unstable_by_key(|limited| limited.head);
        limited
    }

    /// These messages stay in the table for now. Those with a failed attempt are kept once more, to record the attempt.
    pub(super) fn forget_unsent(&mut self, items: Vec<Item>) {
        for item in items {
            self.known.remove(&item.key());
            if item.charged_error.is_some() && !item.is_recorded {
                self.unrecorded.push(item);
            }
        }
    }

    /// Messages with a failed attempt that were left in the table since the last call.
    pub(super) fn take_unrecorded(&mut self) -> Vec<Item> {
        std::mem::take(&mut self.unrecorded)
    }

    /// Updates the totals after a change of one group.
    pub(super) fn recount(&mut self, name: &Arc<str>, before: (usize, usize)) {
        let after = self.groups.get(name).map_or((0, 0), Group::counted);
        self.waiting = self.waiting + after.0 - before.0;
        self.waiting_bytes = self.waiting_bytes + after.1 - before.1;
    }

    fn count(&mut self, items: usize, bytes: usize) {
        self.waiting += items;
        self.waiting_bytes += bytes;
    }

    /// Takes everything that waits in memory, at the end of a claim: messages without order, delayed retries, and the
    /// groups. Nothing may be in flight.
    pub(super) fn take_all(&mut self) -> All {
        let Self { free, retries, groups, .. } = std::mem::replace(self, Self::new(self.shape));
        (free, retries, groups)
    }
}

/// Messages without order, delayed messages, and the groups.
type All = (VecDeque<Item>, BTreeMap<(Time, MessageId), Retry>, HashMap<Arc<str>, Group>);

/// Takes as many messages of a group as may go together; the first is known to fit.
fn take_of_group(group: &mut Group, limit: usize, load: &mut Load, items: &mut Vec<Item>) {
    let before = items.len();
    while items.len() - before < limit
        && let Some(next) = group.waiting.front()
        && takes(load, items, next)
    {
        let is_last = next.is_last_of_group;
        load.add(next.entry.size());
        items.extend(group.waiting.pop_front());
        if is_last {
            break;
        }
    }
}

/// An entry that must be sent alone fills a request by itself.
fn takes(load: &Load, taken: &[Item], next: &Item) -> bool {
    let may_join = taken.last().is_none_or(|last| !last.is_alone && !next.is_alone);
    may_join && load.fits(next.entry.size())
}

#[cfg(test)]
mod tests;
