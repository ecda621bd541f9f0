//! How the schedule treats groups that have messages only in the table: it leaves messages there, reads on, blocks and
//! unblocks. [`super::super::parked`] has the bookkeeping, and [`super::super::handover`] what a claim leaves to the
//! next one.

use std::sync::Arc;

use super::{Retry, Schedule};
use crate::clock::Time;
use crate::message::{Hold, Lane, MessageId, MessageKey};
use crate::reading::{GroupPosition, HeldGroup, Range};
use crate::relay::core::group::{Deferred, FAR, Group, Rest, State};
use crate::relay::core::item::Item;
use crate::relay::core::parked::ReadOnAnswer;
use crate::relay::core::work::ReadOn;

impl Schedule {
    /// The group, which is remembered individually from now on.
    pub(in crate::relay::core) fn group(&mut self, name: &Arc<str>, lane: Lane) -> &mut Group {
        let from = self.parked.crowds.remove(lane, name);
        let group = self.groups.entry(Arc::clone(name)).or_insert_with(|| Group::new(lane));
        if let Some(from) = from {
            group.extend_rest(from.previous(), from);
        }
        group
    }

    /// The groups of these lanes that are remembered individually.
    pub(in crate::relay::core) fn groups_of<'a>(&'a self, lanes: &'a [Lane]) -> impl Iterator<Item = &'a Arc<str>> {
        self.groups.iter().filter(|(_, group)| lanes.contains(&group.lane)).map(|(name, _)| name)
    }

    /// Groups with messages left in the table within these ranges, each with the id above which they were left.
    pub(in crate::relay::core) fn waiting_in_table(&self, ranges: &[Range]) -> Vec<(Arc<str>, MessageId)> {
        let is_there = |lane: Lane, rest: &Rest| {
            let is_in = |range: &Range| rest.upto > range.above && rest.after < range.upto;
            rest.upto > rest.after && ranges.iter().any(|range| range.lane == lane && is_in(range))
        };
        let waits = |(name, group): (&Arc<str>, &Group)| {
            let rest = group.rest.filter(|rest| is_there(group.lane, rest))?;
            Some((Arc::clone(name), rest.after))
        };
        self.groups.iter().filter_map(waits).collect()
    }

    /// Whether this message belongs to a group's part that was left in the table.
    pub(in crate::relay::core) fn is_left(&self, key: MessageKey, group: Option<&Arc<str>>) -> bool {
        let Some(name) = group else { return false };
        // If nothing is known behind a deferred head, any message may be there.
        let has_rest = |group: &Group| group.rest.is_some_and(|rest| key.id > rest.after && rest.upto > rest.after);
        self.groups.get(name).is_some_and(has_rest)
    }

    /// Nothing holds up this message. If its group is in the crowd, the group leaves it and goes on; returns whether it
    /// did.
    pub(in crate::relay::core) fn take_from_crowd(&mut self, key: MessageKey, group: Option<&Arc<str>>) -> bool {
        let Some(name) = group.filter(|name| self.parked.crowds.has(key.lane, name)) else { return false };
        self.group(name, key.lane).extend_rest(key.id.previous(), key.id);
        self.requeue_or_drop(name);
        true
    }

    /// Whether this message has to stay in the table for now; if so, that is remembered. `hold` is what the database
    /// said of the group.
    pub(in crate::relay::core) fn keep_in_table_if_held(
        &mut self,
        name: &Arc<str>,
        key: MessageKey,
        hold: Option<Hold>,
        now: Time,
    ) -> bool {
        let is_one_too_many = || self.groups.len() >= self.shape.max_parked && !self.groups.contains_key(name);
        if hold.is_some() && (self.parked.crowds.has(key.lane, name) || is_one_too_many()) {
            self.parked.crowds.join(name, key);
            return true;
        }
        if self.take_from_crowd(key, Some(name)) {
            return true;
        }
        match hold {
            Some(Hold::Group { by }) => self.block(name, MessageKey { lane: key.lane, id: by }),
            // A head that is in memory, or was just settled, goes first anyway. If there are several, the others are
            // read in order.
            Some(Hold::Behind { head, last, .. }) if self.knows(MessageKey { lane: key.lane, id: head }) => {
                if head != last {
                    self.read_behind(name, key, head);
                    return true;
                }
            }
            Some(Hold::Behind { head, wait, .. }) => {
                self.wait_behind(name, key, Deferred::Head { id: head, due: wait.map(|wait| now + wait) }, head);
                return true;
            }
            None => self.notice_that_nothing_is_deferred(name),
        }
        self.groups.get_mut(name).is_some_and(|group| group.keep_in_table_if_full(key.id, self.shape.window))
    }

    /// A message of this group has to wait behind a deferred message that is in the table.
    fn wait_behind(&mut self, name: &Arc<str>, key: MessageKey, deferred: Deferred, head: MessageId) {
        let group = self.group(name, key.lane);
        let becomes_head = match group.state {
            State::Idle => group.waiting.is_empty() && group.rest.is_none(),
            State::Deferred(Deferred::Head { id: known, .. }) => head < known,
            _ => false,
        };
        let is_deferred = matches!(group.state, State::Deferred(Deferred::Head { .. }));
        if becomes_head {
            group.defer(deferred, head);
        }
        if becomes_head || is_deferred {
            group.extend_rest_to(key.id);
        } else {
            // The messages in memory go first, and then the head is read together with what follows it.
            group.extend_rest(head.previous(), key.id);
        }
        if becomes_head {
            self.parked.note_end(deferred, name);
        }
        self.requeue_or_drop(name);
    }

    /// A message of this group must wait behind others in the table that come after `after`.
    fn read_behind(&mut self, name: &Arc<str>, key: MessageKey, after: MessageId) {
        self.group(name, key.lane).extend_rest(after, key.id);
        self.requeue_or_drop(name);
    }

    /// If the group waits for a deferred message in the table, the database says that there is none any more.
    fn notice_that_nothing_is_deferred(&mut self, name: &Arc<str>) {
        if let Some(group) = self.groups.get_mut(name)
            && matches!(group.state, State::Deferred(Deferred::Head { .. }))
        {
            group.stop_deferring();
            self.requeue_or_drop(name);
        }
    }

    /// A deferred message is due and is the head of its group. Messages behind it up to `read_to` may have been passed
    /// over.
    pub(in crate::relay::core) fn admit_head(&mut self, item: Item, read_to: MessageId) {
        let (key, group) = (item.key(), item.group.clone());
        // A rescan may have left out the messages behind it.
        let was_crowded = self.parked.crowds.was_crowded(key.lane);
        if let Some(name) = group.filter(|_| was_crowded) {
            self.group(&name, key.lane).extend_rest(key.id, read_to.max(key.id));
        }
        self.admit(item);
    }

    /// A message of this group became pending again or came late, and messages before it may not be in memory. So the
    /// group is read from below it, or from where its lane was read to, whichever is lower. Returns whether it is read
    /// now.
    pub(in crate::relay::core) fn start_over(
        &mut self,
        name: &Arc<str>,
        message: MessageKey,
        read_to: MessageId,
    ) -> bool {
        if self.knows(message) {
            return false;
        }
        let group = self.group(name, message.lane);
        group.start_over(message.id, read_to);
        let waits = matches!(group.state, State::Blocked { .. } | State::Deferred(_) | State::BackingOff);
        self.requeue_or_drop(name);
        !waits
    }

    /// Groups whose due messages must not be returned by the read of retries: those with a rest, whose messages are
    /// read in order, and those whose head waits for long, because the head goes before any other. The database itself
    /// knows which groups are blocked.
    pub(in crate::relay::core) fn groups_excluded_from_due(&self, now: Time) -> Vec<Arc<str>> {
        let is_elsewhere = |group: &Group| match group.state {
            State::Blocked { .. } => false,
            State::Deferred(deferred @ Deferred::Head { .. }) => deferred.is_far(now),
            _ => group.rest.is_some(),
        };
        self.groups.iter().filter(|(_, group)| is_elsewhere(group)).map(|(name, _)| Arc::clone(name)).collect()
    }

    /// Asks for more of a group that runs low, and drops one that has nothing left. If the group's next message is
    /// deferred, the group waits for it.
    pub(in crate::relay::core) fn requeue_or_drop(&mut self, name: &Arc<str>) {
        let Some(group) = self.groups.get_mut(name) else { return };
        let is_empty = group.state == State::Idle && group.waiting.is_empty();
        // Defer from where the rest begins, not from the head: rescans left out messages that were committed late
        // before the head.
        if let Some((head, after)) = group.rest.and_then(|rest| Some((rest.head?, rest.after))).filter(|_| is_empty) {
            group.defer(head, after);
            self.parked.note_end(head, name);
            return;
        }
        if group.start_read_on(self.shape.window) {
            self.parked.to_read_on.push_back(Arc::clone(name));
        } else if group.state == State::Idle && group.rest.is_none() {
            self.groups.remove(name);
        }
    }

    /// A message blocks this group. The group's messages in memory are forgotten and stay in the table, and so are
    /// those that come back from a request.
    pub(in crate::relay::core) fn block(&mut self, name: &Arc<str>, by: MessageKey) {
        let group = self.group(name, by.lane);
        let (before, was_delayed) = (group.counted(), group.state == State::BackingOff);
        let left = group.block(by.id);
        if was_delayed {
            self.retries.retain(|_, delayed| !matches!(delayed, Retry::Group(other) if other == name));
        }
        self.forget_unsent(left);
        self.recount(name, before);
    }

    /// Nothing that is not recorded holds this group up any more; returns whether it goes on.
    pub(in crate::relay::core) fn unblock(&mut self, name: &Arc<str>) -> bool {
        let Some(group) = self.groups.get_mut(name) else { return false };
        // A request under way may still bring a message back; then the group is asked about again later.
        let was_blocked = matches!(group.state, State::Blocked { .. }) && !group.is_in_flight;
        if was_blocked {
            group.unblock();
            self.requeue_or_drop(name);
        }
        was_blocked
    }

    /// The blocked groups.
    pub(in crate::relay::core) fn blocked(&self) -> impl Iterator<Item = &Arc<str>> {
        let is_blocked = |group: &Group| matches!(group.state, State::Blocked { .. });
        self.groups.iter().filter(move |(_, group)| is_blocked(group)).map(|(name, _)| name)
    }

    /// The groups to ask about: those that are blocked, and those whose deferred head waits for long.
    pub(in crate::relay::core) fn doubtful(&self, now: Time) -> impl Iterator<Item = &Arc<str>> {
        let is_doubtful = move |group: &Group| match group.state {
            State::Blocked { .. } => true,
            State::Deferred(deferred) => deferred.is_far(now),
            _ => false,
        };
        self.groups.iter().filter(move |(_, group)| is_doubtful(group)).map(|(name, _)| name)
    }

    /// Applies the answer about a group that is held up; returns whether it goes on. If so, it goes on from the message
    /// that held it up, if that message still exists.
    pub(in crate::relay::core) fn apply_hold(&mut self, held: &HeldGroup, now: Time) -> bool {
        let is_known = match self.groups.get(&held.group).map(|group| (group.lane, group.state)) {
            Some((lane, State::Blocked { by })) => self.knows(MessageKey { lane, id: by }),
            _ => false,
        };
        let Some(group) = self.groups.get_mut(&held.group) else { return false };
        match (group.state, held.by, held.head) {
            (State::Blocked { .. }, Some(_), _) => return false,
            // The message that blocks it is not recorded yet, or something of the group may still arrive: ask again
            // later.
            (State::Blocked { .. }, ..) if is_known || group.is_in_flight => return false,
            (State::Blocked { .. }, None, _) => group.unblock(),
            (State::Deferred(Deferred::Head { .. }), Some(by), _) => {
                let key = MessageKey { lane: group.lane, id: by };
                self.block(&held.group, key);
                return false;
            }
            (State::Deferred(Deferred::Head { id, due }), None, Some((head, wait))) if head == id => {
                let heard = wait.map(|wait| now + wait);
                // Clocks drift, so only a clearly different time counts as a change.
                if heard.is_none() != due.is_none() || heard.zip(due).is_some_and(|(heard, due)| heard + FAR < due) {
                    let deferred = Deferred::Head { id, due: heard };
                    group.state = State::Deferred(deferred);
                    self.parked.note_end(deferred, &held.group);
                }
                return false;
            }
            (State::Deferred(Deferred::Head { .. }), None, head) => {
                group.stop_deferring();
                if let Some((head, _)) = head {
                    group.extend_rest(head.previous(), head);
                }
            }
            _ => return false,
        }
        self.requeue_or_drop(&held.group);
        true
    }

    /// The next groups that run low and have more in the table, where lanes were read to these ids; the answers go to
    /// [`Schedule::read_on`]. Below the position of a lane everything is known. Above it, a message of the group may
    /// have been committed late, before what follows in its rest; so a rest that begins there has to wait.
    pub(in crate::relay::core) fn next_to_read_on(
        &mut self,
        limit: usize,
        read_to: &impl Fn(Lane) -> MessageId,
    ) -> Vec<ReadOn> {
        self.parked.no_longer_too_early(read_to);
        let mut wanted = Vec::new();
        while wanted.len() < limit {
            let Some(name) = self.parked.to_read_on.pop_front() else { break };
            let Some(group) = self.groups.get(&name) else { continue };
            // A group that was delayed meanwhile does not ask any more.
            if let Some((rest, upto)) = group.rest.and_then(|rest| Some((rest, rest.asked_upto?))) {
                if rest.after > read_to(group.lane) {
                    self.parked.too_early[group.lane].insert((rest.after, name));
                    continue;
                }
                let after = MessageKey { lane: group.lane, id: rest.after };
                // The rest of the lane may be long and contain nothing of this group.
                let read_upto = upto.max(read_to(group.lane));
                let position = GroupPosition { group: name, after, upto: read_upto, limit: self.shape.window };
                wanted.push(ReadOn { position, upto });
            }
        }
        wanted
    }

    /// These groups were not read after all and ask again.
    pub(in crate::relay::core) fn not_read_on(&mut self, wanted: &[ReadOn]) {
        for ReadOn { position, upto } in wanted {
            if let Some(group) = self.groups.get_mut(&position.group)
                && let Some(rest) = &mut group.rest
                && rest.after == position.after.id
                && rest.asked_upto == Some(*upto)
            {
                rest.asked_upto = None;
            }
            self.requeue_or_drop(&position.group);
        }
    }

    /// A group's next messages were read.
    pub(in crate::relay::core) fn read_on(&mut self, from: &ReadOn, read: ReadOnAnswer) {
        let name = &from.position.group;
        let ReadOnAnswer { items, last, head, is_all } = read;
        let group = self.groups.get_mut(name);
        let is_wanted =
            group.is_some_and(|group| group.finish_read_on(from.position.after.id, from.upto, last, head, is_all));
        if is_wanted {
            items.into_iter().for_each(|item| self.admit(item));
        }
        self.requeue_or_drop(name);
    }
}
