//! What of a claim's groups is in the table only: the rest of a hot group, a head that waits for a retry, a group that a dead
//! message holds up, and what a claim leaves to the next one.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::{Delayed, Schedule};
use crate::message::{Lane, MessageKey};
use crate::outbox::DueElsewhere;
use crate::relay::group::{Group, Item, Rest, State};

/// Where to read on in a group.
#[derive(Clone, Debug)]
pub(in crate::relay) struct ReadOn {
    /// The group.
    pub(in crate::relay) group: Arc<str>,
    /// Its lane, and the last id in memory.
    pub(in crate::relay) after: MessageKey,
    /// The highest id that was known to be left.
    upto: i64,
    /// How many sweeps had been applied when this was asked.
    sweeps: u64,
    /// How many messages there is room for.
    pub(in crate::relay) most: usize,
}

/// A group of which messages were left in the table when a claim ended. Remembered, so that the next claim neither reads
/// nor walks them again until the group may go on. It stays true if another relay has the lane in between: what that relay
/// has delivered is not pending any more.
#[derive(Clone, Debug)]
pub(in crate::relay) struct Remembered {
    /// The group.
    pub(in crate::relay) group: Arc<str>,
    /// Its lane.
    pub(in crate::relay) lane: Lane,
    /// Nothing of the group up to here is left but recorded retries.
    pub(in crate::relay) after: i64,
    /// The highest id that was seen.
    pub(in crate::relay) upto: i64,
    /// When it goes on.
    pub(in crate::relay) goes_on: GoesOn,
}

/// When a group that was left in the table goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::relay) enum GoesOn {
    /// At once.
    Now,
    /// When its head may be tried again.
    At(Instant),
    /// When nothing of it is dead any more.
    Unblocked,
}

impl GoesOn {
    /// Whether a claim would find something to send.
    pub(in crate::relay) fn is_now(self, now: Instant) -> bool {
        match self {
            Self::Now => true,
            Self::At(until) => until <= now,
            Self::Unblocked => false,
        }
    }
}

/// A message that was in memory when a claim ended.
#[derive(Debug)]
pub(in crate::relay) struct Leftover {
    /// The message.
    pub(in crate::relay) item: Item,
    /// When it was to be tried again, if it waited for a retry.
    pub(in crate::relay) until: Option<Instant>,
    /// Whether nothing of its group comes before it.
    pub(in crate::relay) is_head: bool,
}

/// What was not sent when a claim ended.
#[derive(Debug, Default)]
pub(in crate::relay) struct Leftovers {
    /// Messages in memory.
    pub(in crate::relay) items: Vec<Leftover>,
    /// Groups that were left in part or whole.
    pub(in crate::relay) remembered: Vec<Remembered>,
}

impl Schedule {
    /// Groups of which messages were left in the table. A sweep leaves them out.
    pub(in crate::relay) fn groups_with_rest(&self) -> Vec<(Lane, Arc<str>)> {
        let has_rest = self.groups.iter().filter(|(_, group)| group.rest.is_some());
        has_rest.map(|(name, group)| (group.lane, Arc::clone(name))).collect()
    }

    /// The lanes of groups that a sweep has left out and that were read to their end since, by a read that may have seen
    /// less than the sweep. What the sweep shows of these lanes is worth nothing.
    pub(in crate::relay) fn no_longer_left(&self, left_out: &[(Lane, Arc<str>)]) -> Vec<Lane> {
        let has_rest = |name| self.groups.get(name).is_some_and(|group| group.rest.is_some());
        left_out.iter().filter(|(_, name)| !has_rest(name)).map(|(lane, _)| *lane).collect()
    }

    /// A sweep was applied, which left out the groups with a rest. So a read of one of them that was under way cannot be
    /// the last: it may have seen less than the sweep.
    pub(in crate::relay) fn has_swept(&mut self) {
        self.sweeps += 1;
    }

    /// Whether this message of the group has to stay in the table for now; then that is remembered.
    pub(in crate::relay) fn leaves_in_table(&mut self, name: &Arc<str>, id: i64) -> bool {
        self.groups.get_mut(name).is_some_and(|group| group.leaves_in_table(id, self.limits.window))
    }

    /// The head of this group waits in the table for a retry.
    pub(in crate::relay) fn defer(&mut self, name: &Arc<str>, head: MessageKey, due: Instant) {
        let group = self.groups.entry(Arc::clone(name)).or_insert_with(|| Group::new(head.lane));
        match group.state {
            State::Idle => group.defer(head.id, due),
            // When it goes on, it is from there.
            State::Blocked => group.leave(head.id - 1, head.id),
            _ => {}
        }
    }

    /// A message of this group was redriven, or came late, and others may come before it that are not in memory: the group
    /// is read from below it, or from where its lane was read to, whichever is lower.
    pub(in crate::relay) fn start_over(&mut self, name: &Arc<str>, message: MessageKey, read_to: i64) {
        if self.knows(message.id) {
            return;
        }
        let group = self.groups.entry(Arc::clone(name)).or_insert_with(|| Group::new(message.lane));
        group.start_over(message.id, read_to);
        self.look_after(name);
    }

    /// Groups with a rest are read in their turn, due or not; of those whose head waits in the table only that is due.
    pub(in crate::relay) fn due_elsewhere(&self) -> DueElsewhere {
        let mut elsewhere = DueElsewhere::default();
        for (name, group) in self.groups.iter().filter(|(_, group)| group.rest.is_some()) {
            let is_deferred = matches!(group.state, State::Deferred(_));
            if is_deferred { &mut elsewhere.redriven } else { &mut elsewhere.all }.push(Arc::clone(name));
        }
        elsewhere
    }

    /// Asks for more of a group that runs low, and lets go of one that has nothing left.
    pub(super) fn look_after(&mut self, name: &Arc<str>) {
        let Some(group) = self.groups.get_mut(name) else { return };
        if group.begins_to_read_on(self.limits.window) {
            self.to_read_on.push_back(Arc::clone(name));
        } else if group.state == State::Idle && group.rest.is_none() {
            self.groups.remove(name);
        }
    }

    /// An earlier claim left messages of this group in the table.
    pub(in crate::relay) fn remember(&mut self, remembered: &Remembered) {
        let group = self.groups.entry(Arc::clone(&remembered.group)).or_insert_with(|| Group::new(remembered.lane));
        let (after, upto) = match (group.state, group.rest) {
            // A head that waits in the table is itself the place to go on from, if nothing may be left before it.
            (State::Deferred(_), Some(rest)) if remembered.after + 1 >= rest.after => (rest.after, rest.after),
            (State::Deferred(_), Some(rest)) => {
                group.state = State::Idle;
                (remembered.after, rest.after)
            }
            (_, Some(rest)) => (rest.after.min(remembered.after), rest.upto),
            (_, None) => (remembered.after, remembered.after),
        };
        group.rest = Some(Rest::new(after, upto.max(remembered.upto)));
        self.look_after(&remembered.group);
    }

    /// A message of this group is dead, and what follows has to wait for an operator. Whatever is in memory of the group
    /// is forgotten and stays in the table, and so does what comes back from a request.
    pub(in crate::relay) fn block(&mut self, name: &Arc<str>, dead: MessageKey) {
        let group = self.groups.entry(Arc::clone(name)).or_insert_with(|| Group::new(dead.lane));
        let before = group.counted();
        if group.state == State::Delayed {
            self.delayed.retain(|_, delayed| !matches!(delayed, Delayed::Group(other) if other == name));
        }
        let left = group.block(dead.id);
        self.leave_all(left);
        self.recount(name, before);
    }

    /// The blocked groups.
    pub(in crate::relay) fn blocked(&self) -> Vec<(Lane, Arc<str>)> {
        let blocked = self.groups.iter().filter(|(_, group)| group.state == State::Blocked);
        blocked.map(|(name, group)| (group.lane, Arc::clone(name))).collect()
    }

    /// Nothing of this group is dead any more: it goes on, from the message that was dead if that was redriven.
    pub(in crate::relay) fn unblock(&mut self, name: &Arc<str>) {
        if let Some(group) = self.groups.get_mut(name).filter(|group| group.state == State::Blocked) {
            group.unblock();
            self.look_after(name);
        }
    }

    /// The next group that runs low and has more in the table; the answer goes to [`Schedule::read_on`].
    pub(in crate::relay) fn next_to_read_on(&mut self) -> Option<ReadOn> {
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
    pub(in crate::relay) fn read_on(
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

    /// Gives back everything that was not sent and forgets it. Nothing may be in flight.
    pub(in crate::relay) fn take_leftovers(&mut self) -> Leftovers {
        let Self { free, groups, delayed, .. } = std::mem::replace(self, Self::new(self.limits));
        let mut leftovers = Leftovers::default();
        let mut waits: HashMap<Arc<str>, Instant> = HashMap::new();
        let alone = |item, until| Leftover { item, until, is_head: true };
        leftovers.items.extend(free.into_iter().map(|item| alone(item, None)));
        for ((until, _), delayed) in delayed {
            match delayed {
                Delayed::Item(item) => leftovers.items.push(alone(*item, Some(until))),
                Delayed::Group(name) => drop(waits.insert(name, until)),
            }
        }
        for (name, group) in groups {
            let until = waits.get(&name).copied();
            leftovers.remembered.extend(group.remembered(name, until));
            let has_rest = group.rest.is_some();
            let items = group.waiting.into_iter().enumerate();
            let items = items.map(|(index, item)| Leftover { item, until, is_head: index == 0 });
            // What was not charged is read again with the rest.
            leftovers.items.extend(items.filter(|left| !has_rest || left.item.charged.is_some()));
        }
        leftovers
    }
}

impl Group {
    /// What the next claim has to know of the part that was left in the table.
    fn remembered(&self, name: Arc<str>, until: Option<Instant>) -> Option<Remembered> {
        let rest = self.rest?;
        // A head that failed is recorded as such and found where it is recorded; everything behind it is read again.
        let is_recorded = self.waiting.front().is_some_and(|head| head.charged.is_some());
        let next = self.waiting.get(usize::from(is_recorded));
        let after = next.map_or(rest.after, |item| rest.after.min(item.key().id - 1));
        let (after, goes_on) = match (self.state, until) {
            // Nothing was seen behind the head.
            (State::Deferred(_), _) if rest.upto <= rest.after => return None,
            (State::Blocked, _) => (after.min(self.dead - 1), GoesOn::Unblocked),
            (State::Deferred(until), _) | (_, Some(until)) => (after, GoesOn::At(until)),
            (_, None) => (after, GoesOn::Now),
        };
        Some(Remembered { group: name, lane: self.lane, after, upto: rest.upto, goes_on })
    }
}
