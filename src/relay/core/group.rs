//! One group of the schedule: what of it is in memory, what was left in the table, and whether it may go.
//!
//! Pure; [`super::schedule`] moves groups about.

use std::collections::VecDeque;
use std::time::Duration;

use super::item::Item;
use crate::clock::Time;
use crate::message::{Lane, MessageId};

/// How long a deferred head that has fallen due may take to come, before its group is read without waiting for it.
pub(super) const HEAD_GRACE: Duration = Duration::from_secs(1);

/// A deferred head that is due later than this is asked about.
pub(super) const FAR: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing waits.
    Idle,
    /// In the list of ready groups.
    Ready,
    /// A request is under way.
    InFlight,
    /// Its head waits for a retry, and only the head is in memory.
    Delayed,
    /// What goes next waits in the table. Nothing is in memory.
    Deferred(Deferred),
    /// A message of it is dead or in quarantine and lets nothing go. Nothing is in memory.
    Blocked {
        /// The lowest such message that is known.
        by: MessageId,
    },
}

/// For what a group waits whose next message is in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deferred {
    /// For a message that is recorded as deferred, and is brought when it is due.
    Head {
        /// That message.
        id: MessageId,
        /// When it is due; `None` when nobody knows.
        due: Option<Time>,
    },
    /// For a time, after which the group is read on.
    Until(Time),
}

impl Deferred {
    /// Whether it is a message that waits for long, or nobody knows how long, so that somebody may let it go before.
    pub(super) fn is_far(self, now: Time) -> bool {
        matches!(self, Self::Head { due, .. } if due.is_none_or(|due| due > now + FAR))
    }

    /// When the group is read on by itself; a head that is recorded comes before that.
    pub(super) fn ends_at(self) -> Option<Time> {
        match self {
            Self::Head { due, .. } => due.map(|due| due + HEAD_GRACE),
            Self::Until(time) => Some(time),
        }
    }
}

/// The part of a group that was left in the table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rest {
    /// Everything up to here is in memory or done.
    pub(super) after: MessageId,
    /// The highest id that was seen and left.
    pub(super) upto: MessageId,
    /// What `upto` was when a read of the rest was asked for; `None` when none is wanted.
    pub(super) asked_upto: Option<MessageId>,
    /// The first of it, if that was seen to be deferred.
    pub(super) head: Option<Deferred>,
}

impl Rest {
    pub(super) fn new(after: MessageId, upto: MessageId) -> Self {
        Self { after, upto, asked_upto: None, head: None }
    }
}

#[derive(Debug)]
pub(super) struct Group {
    pub(super) lane: Lane,
    pub(super) state: State,
    pub(super) waiting: VecDeque<Item>,
    pub(super) rest: Option<Rest>,
    /// Whether a request with messages of it is under way, whatever has become of the group since.
    pub(super) is_in_flight: bool,
}

impl Group {
    pub(super) fn new(lane: Lane) -> Self {
        Self { lane, state: State::Idle, waiting: VecDeque::new(), rest: None, is_in_flight: false }
    }

    /// Items and bytes that count as read ahead. A delayed group does not count, or a few of them would keep the relay
    /// from reading what could go.
    pub(super) fn counted(&self) -> (usize, usize) {
        match self.state {
            State::Delayed => (0, 0),
            _ => (self.waiting.len(), self.waiting.iter().map(|item| item.entry.bytes()).sum()),
        }
    }

    /// Whether this is the deferred message that the group waits for.
    pub(super) fn waits_for(&self, id: MessageId) -> bool {
        matches!(self.state, State::Deferred(Deferred::Head { id: head, .. }) if head == id)
    }

    /// Whether a message has to stay in the table; remembers that it was seen.
    pub(super) fn leaves_in_table(&mut self, id: MessageId, window: usize) -> bool {
        if matches!(self.state, State::Blocked { .. }) {
            self.leave(id.previous(), id);
            return true;
        }
        if self.waits_for(id) {
            return false;
        }
        if let Some(rest) = &mut self.rest {
            if id > rest.after {
                rest.upto = rest.upto.max(id);
                return true;
            }
            return false;
        }
        let window = if self.state == State::Delayed { 1 } else { window };
        match self.waiting.back() {
            Some(last) if self.waiting.len() >= window && id > last.id() => {
                self.rest = Some(Rest::new(last.id(), id));
                true
            }
            _ => false,
        }
    }

    /// Some messages above `after`, up to `upto` at least, are in the table only.
    pub(super) fn leave(&mut self, after: MessageId, upto: MessageId) {
        match &mut self.rest {
            Some(rest) => {
                if after < rest.after {
                    // A read that is under way began too high.
                    rest.asked_upto = None;
                    rest.head = None;
                    rest.after = after;
                }
                rest.upto = rest.upto.max(upto);
            }
            None => self.rest = Some(Rest::new(after, upto)),
        }
    }

    /// Its next message waits in the table. Nothing may be in memory.
    pub(super) fn defer(&mut self, deferred: Deferred, after: MessageId) {
        self.state = State::Deferred(deferred);
        self.rest = Some(Rest::new(after, self.rest.map_or(after, |rest| rest.upto.max(after))));
    }

    /// It waits no longer for what was deferred, and is read on from there.
    pub(super) fn stop_deferring(&mut self) {
        if let State::Deferred(deferred) = self.state {
            self.state = State::Idle;
            if let Deferred::Head { id, .. } = deferred {
                self.leave(id.previous(), id);
            }
        }
    }

    /// A message holds up the group. All of it is left in the table; returns what was in memory.
    pub(super) fn block(&mut self, by: MessageId) -> Vec<Item> {
        self.stop_deferring();
        let before = if let State::Blocked { by } = self.state { by } else { MessageId::MAX };
        self.state = State::Blocked { by: before.min(by) };
        if let Some(rest) = &mut self.rest {
            rest.asked_upto = None;
        }
        let left: Vec<Item> = self.waiting.drain(..).collect();
        if let (Some(first), Some(last)) = (left.first(), left.last()) {
            self.leave(first.id().previous(), last.id());
        }
        left
    }

    /// Nothing holds it up any more. The message that did is read again with what follows it, if it is there.
    pub(super) fn unblock(&mut self) {
        if let State::Blocked { by } = self.state {
            self.state = State::Idle;
            self.leave(by.previous(), by);
        }
    }

    /// This message stands somewhere in the table, and what comes before it may be there as well.
    pub(super) fn start_over(&mut self, id: MessageId, read_to: MessageId) {
        match self.state {
            State::Blocked { .. } => self.leave(id.previous(), id),
            State::Deferred(_) if self.rest.is_some_and(|rest| id > rest.after) => self.leave(MessageId::MAX, id),
            _ => {
                self.stop_deferring();
                self.leave(read_to.min(id.previous()), id);
            }
        }
    }

    /// Puts a message where its id belongs; returns whether that is the head.
    pub(super) fn insert(&mut self, item: Item) -> bool {
        let id = item.id();
        let at = self.waiting.iter().rposition(|other| other.id() < id).map_or(0, |at| at + 1);
        self.waiting.insert(at, item);
        at == 0
    }

    /// The head has to wait. All but the head is left in the table; returns what was in memory of it.
    pub(super) fn delay(&mut self) -> Vec<Item> {
        self.state = State::Delayed;
        let Some(head) = self.waiting.front().map(Item::id) else {
            return Vec::new();
        };
        let left: Vec<Item> = self.waiting.drain(1..).collect();
        if let Some(last) = left.last() {
            let upto = last.id().max(self.rest.map_or(MessageId::NONE, |rest| rest.upto));
            self.rest = Some(Rest::new(head, upto));
        }
        left
    }

    /// Whether it runs low and the rest should be read now; if so, that is taken as begun.
    pub(super) fn begins_to_read_on(&mut self, window: usize) -> bool {
        match &mut self.rest {
            Some(rest)
                if rest.asked_upto.is_none()
                    && rest.head.is_none()
                    && !matches!(self.state, State::Delayed | State::Deferred(_) | State::Blocked { .. })
                    && self.waiting.len() <= window / 2 =>
            {
                rest.asked_upto = Some(rest.upto);
                true
            }
            _ => false,
        }
    }

    /// The rest was read behind `after` up to `last`, where a deferred head stopped it if there is one; `is_all` when that
    /// snapshot showed no more. Ignored unless the group still asks for just that: it may have been delayed or blocked
    /// meanwhile, and may have asked again since.
    pub(super) fn has_read_on(
        &mut self,
        after: MessageId,
        asked_upto: MessageId,
        last: Option<MessageId>,
        head: Option<Deferred>,
        is_all: bool,
    ) -> bool {
        let Some(rest) = &mut self.rest else { return false };
        if rest.after != after || rest.asked_upto != Some(asked_upto) {
            return false;
        }
        rest.asked_upto = None;
        rest.after = last.unwrap_or(after);
        rest.head = head;
        if head.is_some() {
            return true;
        }
        // Only a read that began after the last message was left can have seen all of them.
        if is_all && asked_upto == rest.upto {
            self.rest = None;
        }
        true
    }
}
