//! The schedule: which message may go next. Pure; the order of groups is decided here and nowhere else.
//!
//! A group has at most one request in flight. What failed goes back to the front of its group, and nothing later of the
//! group goes out before it. Other groups are not concerned. A group with more than a window of messages keeps the rest in
//! the table: the schedule remembers where it stopped and asks for more when it runs low, so that neither a hot group nor a
//! blocked one fills the memory.
//!
//! [`left`] is about what stays in the table. Messages without order (a standard queue, or no group) take part as groups of one without the bookkeeping.

mod left;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use super::group::{Group, Item, State};
use crate::sqs::Load;
pub(super) use left::{GoesOn, Leftover, Leftovers, ReadOn, Remembered};

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
    /// Messages with a failed attempt that were left in the table.
    charged: Vec<Item>,
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
            charged: Vec::new(),
        }
    }

    /// Whether a message is in memory: waiting, in flight, or not settled yet.
    pub(super) fn knows(&self, id: i64) -> bool {
        self.known.contains(&id)
    }

    /// Remembers a message that is settled without being sent. If its group waited for it, that goes on.
    pub(super) fn pass_over(&mut self, id: i64, group: Option<&Arc<str>>) {
        self.known.insert(id);
        let Some(name) = group else { return };
        if let Some(group) = self.groups.get_mut(name)
            && matches!(group.state, State::Deferred(_))
            && group.rest.is_some_and(|rest| rest.after == id)
        {
            group.state = State::Idle;
            self.look_after(name);
        }
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

    /// Takes a message in, or leaves it in the table when its group has enough in memory. `until` is the time of a retry
    /// that was recorded earlier.
    pub(super) fn admit(&mut self, mut item: Item, until: Option<Instant>) {
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
        let (key, lane) = (item.key(), item.key().lane);
        let group = self.groups.entry(Arc::clone(&name)).or_insert_with(|| Group::new(lane));
        if group.leaves_in_table(id, self.limits.window) {
            self.known.remove(&id);
            return;
        }
        // One that comes before the head that waits in the table: what follows it is read in order, the head included.
        if matches!(group.state, State::Deferred(_)) && group.rest.is_some_and(|rest| id < rest.after) {
            self.known.remove(&id);
            self.start_over(&name, key, id);
            return;
        }
        item.not_before = until;
        let before = group.counted();
        let is_head = group.insert(item);
        match (group.state, until) {
            (State::Idle | State::Ready, Some(until)) if is_head => {
                // An entry in the list of ready groups may stay behind; it is passed over when its turn comes.
                self.delayed.insert((until, id), Delayed::Group(Arc::clone(&name)));
                let left = group.delay();
                self.leave_all(left);
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
                    && (next.not_before.is_none() || items.len() == before)
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
        // A recorded retry that came in its turn waits when it is the head.
        let recorded = group.waiting.front_mut().and_then(|head| Some((head.not_before.take()?, head.key().id)));
        match wait.max(recorded) {
            _ if group.state == State::Blocked => {
                let left = group.block(i64::MAX);
                self.leave_all(left);
            }
            Some(key) => {
                self.delayed.insert(key, Delayed::Group(Arc::clone(name)));
                let left = group.delay();
                self.leave_all(left);
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

    /// These stay in the table for now. What failed is handed out once more, to be recorded.
    fn leave_all(&mut self, items: Vec<Item>) {
        for item in items {
            self.known.remove(&item.key().id);
            if item.charged.is_some() && !item.is_recorded {
                self.charged.push(item);
            }
        }
    }

    /// Messages with a failed attempt that were left in the table since this was asked last.
    pub(super) fn take_charged(&mut self) -> Vec<Item> {
        std::mem::take(&mut self.charged)
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
