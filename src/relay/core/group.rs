//! One group of the schedule: what is in memory, what was left in the table, and whether it may go.
//!
//! ```text
//!               next_request                  answer: nothing is left in memory
//!   ┌── Ready ──────────────────▶ InFlight ─────────────────────────────────────▶ Idle
//!   │    ▲  ▲                        │  │                                          │
//!   │    │  │ answer: more is in     │  │ answer: an entry is tried again          │
//!   │    │  │ memory                 │  │ at a time                                │
//!   │    │  └────────────────────────┘  ▼                                          │
//!   │    │  the time has come       BackingOff (only the head is in memory)        │
//!   │    ├──────────────────────────────┘                                          │
//!   │    │  a message is admitted                                                  │
//!   │    ├─────────────────────────────────────────────────────────────────────────┤
//!   │    │  its head is due and admitted                 its next message is       │
//!   │    └─────────────────────────────── Deferred ◀──── deferred in the table ────┤
//!   │                                        └── is not deferred any more, or ────▶│
//!   │                                            does not come: read on            │
//!   └─▶ Blocked (from any state): a message of it is dead or in quarantine.        │
//!          └── nothing blocks it any more: read again from that message on ───────▶┘
//! ```
//!
//! What PostgreSQL says with each message decides between the last two: `Hold::Behind` names the lowest and the highest
//! deferred message of the group before this one, which make the group deferred; `Hold::Group` names a dead or quarantined
//! one, which blocks it. A deferred or blocked group is *held up*.
//!
//! The *rest* of a group is what was left in the table behind what is in memory. It is independent of the state, except that
//! only a group that is idle, ready or in flight reads on. Pure; [`super::schedule`] moves groups around.

use std::collections::VecDeque;
use std::time::Duration;

use super::item::Item;
use crate::clock::Time;
use crate::message::{Lane, MessageId};
use crate::publisher::Size;

/// How long after it falls due a deferred head may take to arrive before the group is read again from the head on.
pub(super) const HEAD_GRACE: Duration = Duration::from_secs(1);

/// The relay asks about a deferred head that is due later than this.
pub(super) const FAR: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing in memory waits; a rest in the table may.
    Idle,
    /// In the list of ready groups.
    Ready,
    /// A request is under way.
    InFlight,
    /// Its head waits for a retry. Only the head is in memory, and what came late before it.
    BackingOff,
    /// Its next message waits in the table. Nothing is in memory.
    Deferred(Deferred),
    /// A dead or quarantined message blocks it. Nothing is in memory.
    Blocked {
        /// The lowest such message that is known.
        by: MessageId,
    },
}

/// What a group waits for whose next message is in the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deferred {
    /// A message that is recorded as deferred and will be read when it is due.
    Head {
        /// That message.
        id: MessageId,
        /// When it is due; `None` when an operator holds it back without an end.
        due: Option<Time>,
    },
    /// A time after which the group is read on.
    Until(Time),
}

impl Deferred {
    /// Whether it waits for a message for long or for an unknown time, so that an operator may release it before.
    pub(super) fn is_far(self, now: Time) -> bool {
        matches!(self, Self::Head { due, .. } if due.is_none_or(|due| due > now + FAR))
    }

    /// When the group is read on in any case; a recorded head arrives before that.
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
    /// The highest id that was seen and left in the table.
    pub(super) upto: MessageId,
    /// The value of `upto` when a read of the rest was asked for; `None` when no read is wanted.
    pub(super) asked_upto: Option<MessageId>,
    /// The first message of the rest, if it is known to be deferred.
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
    /// Whether a request with messages of the group is under way, whatever the state of the group is now.
    pub(super) is_in_flight: bool,
}

impl Group {
    pub(super) fn new(lane: Lane) -> Self {
        Self { lane, state: State::Idle, waiting: VecDeque::new(), rest: None, is_in_flight: false }
    }

    /// Items and bytes that count as read ahead. A delayed group does not count; otherwise a few of them would keep the
    /// relay from reading messages that could go.
    pub(super) fn counted(&self) -> (usize, usize) {
        match self.state {
            State::BackingOff => (0, 0),
            _ => (self.waiting.len(), self.waiting.iter().map(|item| item.entry.memory_bytes()).sum()),
        }
    }

    /// Whether the group waits for this deferred message.
    pub(super) fn waits_for(&self, id: MessageId) -> bool {
        matches!(self.state, State::Deferred(Deferred::Head { id: head, .. }) if head == id)
    }

    /// Whether a message has to stay in the table; remembers that it was seen.
    pub(super) fn keep_in_table_if_full(&mut self, id: MessageId, window: usize) -> bool {
        if matches!(self.state, State::Blocked { .. }) {
            self.extend_rest(id.previous(), id);
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
        let window = if self.state == State::BackingOff { 1 } else { window };
        match self.waiting.back() {
            Some(last) if self.waiting.len() >= window && id > last.id() => {
                self.rest = Some(Rest::new(last.id(), id));
                true
            }
            _ => false,
        }
    }

    /// Some messages above `after`, up to at least `upto`, are only in the table.
    pub(super) fn extend_rest(&mut self, after: MessageId, upto: MessageId) {
        match &mut self.rest {
            Some(rest) => {
                if after < rest.after {
                    // A read that is under way started too high.
                    rest.asked_upto = None;
                    rest.head = None;
                    rest.after = after;
                }
                rest.upto = rest.upto.max(upto);
            }
            None => self.rest = Some(Rest::new(after, upto)),
        }
    }

    /// One more message, up to `upto`, is known to be in the table, behind where the rest begins.
    pub(super) fn extend_rest_to(&mut self, upto: MessageId) {
        if let Some(rest) = &mut self.rest {
            rest.upto = rest.upto.max(upto);
        }
    }

    /// The group's next message waits in the table. Nothing may be in memory.
    pub(super) fn defer(&mut self, deferred: Deferred, after: MessageId) {
        self.state = State::Deferred(deferred);
        self.rest = Some(Rest::new(after, self.rest.map_or(after, |rest| rest.upto.max(after))));
    }

    /// The group stops waiting for the deferred message and is read on from it.
    pub(super) fn stop_deferring(&mut self) {
        if let State::Deferred(deferred) = self.state {
            self.state = State::Idle;
            if let Deferred::Head { id, .. } = deferred {
                self.extend_rest(id.previous(), id);
            }
        }
    }

    /// A message blocks the group. All its messages are left in the table; returns those that were in memory.
    pub(super) fn block(&mut self, by: MessageId) -> Vec<Item> {
        self.stop_deferring();
        let by = if let State::Blocked { by: before } = self.state { before.min(by) } else { by };
        self.state = State::Blocked { by };
        self.leave_everything()
    }

    /// Leaves all messages in the table while the group is blocked; returns those that were in memory.
    pub(super) fn leave_everything(&mut self) -> Vec<Item> {
        if let Some(rest) = &mut self.rest {
            rest.asked_upto = None;
        }
        let left: Vec<Item> = self.waiting.drain(..).collect();
        if let (Some(first), Some(last)) = (left.first(), left.last()) {
            self.extend_rest(first.id().previous(), last.id());
        }
        left
    }

    /// Nothing blocks the group any more. The message that did is read again with what follows it, if it still exists.
    pub(super) fn unblock(&mut self) {
        if let State::Blocked { by } = self.state {
            self.state = State::Idle;
            self.extend_rest(by.previous(), by);
        }
    }

    /// This message is somewhere in the table, and messages before it may be there as well.
    pub(super) fn start_over(&mut self, id: MessageId, read_to: MessageId) {
        match self.state {
            State::Blocked { .. } => self.extend_rest(id.previous(), id),
            State::Deferred(_) if self.rest.is_some_and(|rest| id > rest.after) => self.extend_rest_to(id),
            _ => {
                self.stop_deferring();
                self.extend_rest(read_to.min(id.previous()), id);
            }
        }
    }

    /// Inserts a message by its id; returns whether it is the head.
    pub(super) fn insert(&mut self, item: Item) -> bool {
        let id = item.id();
        let at = self.waiting.iter().rposition(|other| other.id() < id).map_or(0, |at| at + 1);
        self.waiting.insert(at, item);
        at == 0
    }

    /// The head has to wait. All messages but those that go together with it are left in the table; returns those that
    /// were in memory.
    pub(super) fn back_off(&mut self) -> Vec<Item> {
        self.state = State::BackingOff;
        let kept = self.goes_together().0;
        let Some(last_kept) = self.waiting.get(kept.saturating_sub(1)).map(Item::id) else {
            return Vec::new();
        };
        let left: Vec<Item> = self.waiting.drain(kept..).collect();
        if let Some(last) = left.last() {
            let upto = last.id().max(self.rest.map_or(MessageId::NONE, |rest| rest.upto));
            self.rest = Some(Rest::new(last_kept, upto));
        }
        left
    }

    /// How many messages go in one request with the head, itself included, because nobody knows which of them SQS has
    /// accepted; and their sizes.
    pub(super) fn goes_together(&self) -> (usize, Size) {
        let mut size = self.waiting.front().map_or_else(Size::default, |head| head.entry.size());
        let mut entries = usize::from(!self.waiting.is_empty());
        for item in self.waiting.iter().skip(1).take_while(|item| item.is_unsure && !item.is_alone) {
            entries += 1;
            size = size + item.entry.size();
        }
        (entries, size)
    }

    /// Whether the group runs low and its rest should be read now; if so, the read counts as asked for.
    pub(super) fn start_read_on(&mut self, window: usize) -> bool {
        match &mut self.rest {
            Some(rest)
                if rest.asked_upto.is_none()
                    && rest.head.is_none()
                    && !matches!(self.state, State::BackingOff | State::Deferred(_) | State::Blocked { .. })
                    && self.waiting.len() <= window / 2 =>
            {
                rest.asked_upto = Some(rest.upto);
                true
            }
            _ => false,
        }
    }

    /// The rest was read from `after` to `last`, and stopped at `head` if a deferred message was met; `is_all` says
    /// that the snapshot showed no more. The answer is ignored unless the group still asks for exactly that: it may
    /// have been delayed or blocked meanwhile, and may have asked again since.
    pub(super) fn finish_read_on(
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
