//! What a claim leaves to the next one: messages that were in memory, groups with messages only in the table, and where
//! lanes have to be read again. [`super::parked`] has what is in the table while the claim lives. Pure.

use std::collections::HashMap;
use std::sync::Arc;

use super::crowd::Crowds;
use super::group::{Deferred, Group, Rest, State};
use super::item::Item;
use super::schedule::{Retry, Schedule};
use crate::clock::Time;
use crate::message::{Lane, MessageId};
use crate::reading::HeldGroup;

/// A group with messages left in the table when a claim ended. It is kept so that the next claim does not read or walk
/// those messages again before the group may go on. The knowledge stays valid if another relay has the lane in between:
/// what that relay delivered is not pending any more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ParkedGroup {
    /// The group.
    pub(super) group: Arc<str>,
    /// Its lane.
    pub(super) lane: Lane,
    /// Up to here nothing of the group is left except its deferred head.
    pub(super) after: MessageId,
    /// The highest id that was seen.
    pub(super) upto: MessageId,
    /// When it goes on.
    pub(super) goes_on: GoesOn,
}

impl ParkedGroup {
    /// Applies the answer to what holds the group up.
    pub(super) fn apply_hold(&mut self, held: &HeldGroup, now: Time) {
        match (self.goes_on, held.by, held.head) {
            (GoesOn::Now | GoesOn::After(Deferred::Until(_)), ..) => {}
            (_, Some(by), _) => {
                self.after = self.after.min(by.previous());
                self.goes_on = GoesOn::WithoutBlock(by);
            }
            (GoesOn::After(Deferred::Head { id, .. }), None, Some((head, wait))) if head == id => {
                self.goes_on = GoesOn::After(Deferred::Head { id, due: wait.map(|wait| now + wait) });
            }
            (GoesOn::WithoutBlock(id) | GoesOn::After(Deferred::Head { id, .. }), None, head) => {
                let first = head.map_or(id, |(head, _)| head.min(id));
                self.after = self.after.min(first.previous());
                self.upto = self.upto.max(first);
                self.goes_on = GoesOn::Now;
            }
        }
    }
}

/// When a group that was left in the table goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GoesOn {
    /// At once.
    Now,
    /// When the deferral is over.
    After(Deferred),
    /// When this message does not block it any more.
    WithoutBlock(MessageId),
}

impl GoesOn {
    /// When a claim would find something to send, as far as that depends on time.
    pub(super) fn at(self, now: Time) -> Option<Time> {
        match self {
            Self::Now => Some(now),
            Self::After(deferred) => deferred.ends_at(),
            Self::WithoutBlock(_) => None,
        }
    }

    /// Whether it waits for another message.
    pub(super) fn is_held(self) -> bool {
        matches!(self, Self::WithoutBlock(_) | Self::After(Deferred::Head { .. }))
    }

    /// Whether a claim would find something to send.
    pub(super) fn is_now(self, now: Time) -> bool {
        self.at(now).is_some_and(|at| at <= now)
    }

    /// Whether to ask what holds the group up.
    pub(super) fn is_doubtful(self, now: Time) -> bool {
        match self {
            Self::Now => false,
            Self::After(deferred) => deferred.is_far(now),
            Self::WithoutBlock(_) => true,
        }
    }
}

/// A message that was in memory when a claim ended.
#[derive(Debug)]
pub(super) struct Unsent {
    /// The message.
    pub(super) item: Item,
    /// When it was to be retried, if it waited for a retry.
    pub(super) until: Option<Time>,
    /// Whether nothing of its group comes before it.
    pub(super) is_head: bool,
}

/// What was not sent when a claim ended.
#[derive(Debug, Default)]
pub(super) struct Handover {
    /// Messages in memory.
    pub(super) items: Vec<Unsent>,
    /// Groups that were left in the table in part or whole.
    pub(super) parked: Vec<ParkedGroup>,
    /// Groups that are too many to be remembered individually.
    pub(super) crowds: Crowds,
    /// Lanes in which rescans from the bottom may have left something out.
    pub(super) emptied: Vec<Lane>,
}

impl Schedule {
    /// Takes over a group that an earlier claim left in the table.
    pub(super) fn take_over(&mut self, parked: &ParkedGroup) {
        let ParkedGroup { group: name, lane, after, upto, goes_on } = parked;
        let group = self.group(name, *lane);
        match goes_on {
            GoesOn::Now => {}
            GoesOn::After(deferred) => group.defer(*deferred, *after),
            GoesOn::WithoutBlock(by) => group.state = State::Blocked { by: *by },
        }
        group.extend_rest(*after, *upto);
        if let GoesOn::After(deferred) = goes_on {
            self.parked.note_end(*deferred, name);
        }
        self.requeue_or_drop(name);
    }

    /// Returns everything that was not sent, and forgets it. Nothing may be in flight.
    pub(super) fn hand_over(&mut self, now: Time) -> Handover {
        let mut crowds = std::mem::take(&mut self.parked.crowds);
        let emptied = crowds.take_emptied();
        let mut handover = Handover { crowds, emptied, ..Handover::default() };
        let (free, delayed, groups) = self.take_all();
        let mut waits: HashMap<Arc<str>, Time> = HashMap::new();
        let alone = |item, until| Unsent { item, until, is_head: true };
        handover.items.extend(free.into_iter().map(|item| alone(item, None)));
        for ((until, _), delayed) in delayed {
            match delayed {
                Retry::Item(item) => handover.items.push(alone(*item, Some(until))),
                Retry::Group(name) => drop(waits.insert(name, until)),
            }
        }
        for (name, group) in groups {
            let until = waits.get(&name).copied().filter(|_| group.state == State::BackingOff);
            handover.parked.extend(group.handed_over(name, until, now));
            let has_rest = group.rest_to_hand_over(until).is_some();
            let items = group.waiting.into_iter().enumerate();
            let items = items.map(|(index, item)| Unsent { item, until, is_head: index == 0 });
            // A message that was not charged is read again with the rest.
            handover.items.extend(items.filter(|left| !has_rest || left.item.charged_error.is_some()));
        }
        // Oldest first, and always in the same order: a hash map has none.
        handover.items.sort_unstable_by_key(|left| left.item.key());
        handover.parked.sort_unstable_by_key(|group| (group.after, group.upto));
        handover
    }
}

impl Group {
    /// The part that is only in the table after the claim. A group that waits for a retry is left as a whole: if the
    /// lane were set back for it, the lane would be read again and again for as long as the retry fails.
    fn rest_to_hand_over(&self, until: Option<Time>) -> Option<Rest> {
        let is_charged = self.waiting.front().is_some_and(|head| head.charged_error.is_some());
        let last = self.waiting.back().filter(|_| until.is_some() && !is_charged);
        self.rest.or_else(|| last.map(|last| Rest::new(last.id(), last.id())))
    }

    /// What the next claim has to know about the part that was left in the table.
    fn handed_over(&self, name: Arc<str>, until: Option<Time>, now: Time) -> Option<ParkedGroup> {
        let rest = self.rest_to_hand_over(until)?;
        // A failed head is recorded as deferred and found by that record; everything behind it is read again.
        let recorded = self.waiting.front().filter(|head| head.charged_error.is_some()).map(Item::id);
        let next = self.waiting.get(usize::from(recorded.is_some()));
        let after = next.map_or(rest.after, |item| rest.after.min(item.id().previous()));
        let (after, goes_on) = match (self.state, recorded, until) {
            // Nothing was seen behind the head.
            (State::Deferred(_), ..) if rest.upto <= rest.after => return None,
            (State::Blocked { by }, ..) => (after.min(by.previous()), GoesOn::WithoutBlock(by)),
            (State::Deferred(deferred), ..) => (after, GoesOn::After(deferred)),
            // Its retry may have fallen due since, but it is recorded all the same.
            (_, Some(id), until) => (after, GoesOn::After(Deferred::Head { id, due: Some(until.unwrap_or(now)) })),
            (_, None, Some(until)) => (after, GoesOn::After(Deferred::Until(until))),
            (_, None, None) => (after, GoesOn::Now),
        };
        Some(ParkedGroup { group: name, lane: self.lane, after, upto: rest.upto, goes_on })
    }
}
