//! One group of the schedule: what of it is in memory, what was left in the table, and whether it may go.
//!
//! Pure; [`super::schedule`] moves groups about.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::message::{Fault, Lane, Message, MessageKey, QueueKind};
use crate::sqs::{Composed, Entry, compose};

/// A message on its way, with what is needed when it comes back.
#[derive(Debug)]
pub(super) struct Item {
    /// What is sent.
    pub(super) entry: Entry,
    /// The group whose order counts; `None` on a standard queue and for messages without a group.
    pub(super) group: Option<Arc<str>>,
    /// Failed attempts that were its own fault.
    pub(super) attempts: i16,
    /// Members of metadata that could not become attributes.
    pub(super) left_out: usize,
    /// How often it was sent again because nobody knows whether SQS accepted it.
    pub(super) resends: i16,
    /// The last such failure if it was in this claim, so that it is recorded when the claim ends.
    pub(super) charged: Option<String>,
    /// Whether that is recorded already, because the retry comes after the claim.
    pub(super) is_recorded: bool,
    /// When a recorded retry is due that was read in its turn; looked at when the message has become the head.
    pub(super) not_before: Option<Instant>,
    /// Age by the database's clock when it was read.
    pub(super) age_when_read: Duration,
    /// When it was read, by this process's clock.
    pub(super) read_at: Instant,
    /// Whether it has to be sent without neighbours, because a request with it was refused as a whole.
    pub(super) is_alone: bool,
}

impl Item {
    /// Composes a message that is sent for the first time under this claim.
    ///
    /// # Errors
    ///
    /// A permanent fault when SQS can never accept it.
    pub(super) fn of(message: Message, kind: QueueKind) -> Result<Item, Fault> {
        let group = message.group.clone().filter(|_| kind == QueueKind::Fifo);
        let Message { attempts, age_when_read, read_at, .. } = message;
        let Composed { entry, left_out } = compose(message, kind)?;
        Ok(Item {
            entry,
            group,
            left_out,
            attempts,
            resends: 0,
            charged: None,
            is_recorded: false,
            not_before: None,
            age_when_read,
            read_at,
            is_alone: false,
        })
    }

    /// Lane and id.
    pub(super) fn key(&self) -> MessageKey {
        self.entry.key()
    }
}

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
    /// Its head waits in the table until this time, and is brought when it is due. Nothing is in memory.
    Deferred(Instant),
    /// A message of it is dead, and nothing goes before that one was redriven or discarded. Nothing is in memory.
    Blocked,
}

/// The part of a group that was left in the table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rest {
    /// Everything up to here is in memory or done.
    pub(super) after: i64,
    /// The highest id that was seen and left.
    pub(super) upto: i64,
    /// What `upto` was when a read of the rest was asked for; `None` when none is wanted.
    pub(super) asked_upto: Option<i64>,
}

impl Rest {
    pub(super) fn new(after: i64, upto: i64) -> Self {
        Self { after, upto, asked_upto: None }
    }
}

#[derive(Debug)]
pub(super) struct Group {
    pub(super) lane: Lane,
    pub(super) state: State,
    pub(super) waiting: VecDeque<Item>,
    pub(super) rest: Option<Rest>,
    /// The lowest message known to be dead, while the group is blocked.
    pub(super) dead: i64,
}

impl Group {
    pub(super) fn new(lane: Lane) -> Self {
        Self { lane, state: State::Idle, waiting: VecDeque::new(), rest: None, dead: i64::MAX }
    }

    /// Items and bytes that count as read ahead. A delayed group does not count, or a few of them would keep the relay
    /// from reading what could go.
    pub(super) fn counted(&self) -> (usize, usize) {
        match self.state {
            State::Delayed => (0, 0),
            _ => (self.waiting.len(), self.waiting.iter().map(|item| item.entry.bytes()).sum()),
        }
    }

    /// Whether a message has to stay in the table; remembers that it was seen.
    pub(super) fn leaves_in_table(&mut self, id: i64, window: usize) -> bool {
        if self.state == State::Blocked {
            self.leave(id - 1, id);
            return true;
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
            Some(last) if self.waiting.len() >= window && id > last.key().id => {
                self.rest = Some(Rest::new(last.key().id, id));
                true
            }
            _ => false,
        }
    }

    /// Some messages above `after`, up to `upto` at least, are in the table only.
    pub(super) fn leave(&mut self, after: i64, upto: i64) {
        let rest = self.rest.get_or_insert(Rest::new(after, upto));
        rest.after = rest.after.min(after);
        rest.upto = rest.upto.max(upto);
    }

    /// Its head waits in the table, and nothing goes before it is due.
    pub(super) fn defer(&mut self, head: i64, due: Instant) {
        self.state = State::Deferred(due);
        self.rest = Some(Rest::new(head, self.rest.map_or(head, |rest| rest.upto)));
    }

    /// A message is dead and holds up the group. All of it is left in the table; returns what was in memory.
    pub(super) fn block(&mut self, dead: i64) -> Vec<Item> {
        self.state = State::Blocked;
        self.dead = self.dead.min(dead);
        if let Some(rest) = &mut self.rest {
            rest.asked_upto = None;
        }
        let left: Vec<Item> = self.waiting.drain(..).collect();
        if let (Some(first), Some(last)) = (left.first(), left.last()) {
            self.leave(first.key().id - 1, last.key().id);
        }
        left
    }

    /// The dead message was redriven or discarded. It is read again with what follows it, if it is there.
    pub(super) fn unblock(&mut self) {
        self.state = State::Idle;
        let dead = std::mem::replace(&mut self.dead, i64::MAX);
        self.leave(dead - 1, dead);
    }

    /// This message stands somewhere in the table, and what comes before it may be there as well.
    pub(super) fn start_over(&mut self, id: i64, read_to: i64) {
        match (self.state, &mut self.rest) {
            (State::Blocked, _) => self.leave(id - 1, id),
            (State::Deferred(_), Some(rest)) if id > rest.after => rest.upto = rest.upto.max(id),
            (state, rest) => {
                let after = read_to.min(id - 1);
                if rest.as_ref().is_some_and(|rest| after < rest.after) {
                    // A read that is under way began too high.
                    *rest = rest.map(|rest| Rest { asked_upto: None, ..rest });
                }
                if matches!(state, State::Deferred(_)) {
                    self.state = State::Idle;
                }
                self.leave(after, id);
            }
        }
    }

    /// Puts a message where its id belongs; returns whether that is the head.
    pub(super) fn insert(&mut self, item: Item) -> bool {
        let id = item.key().id;
        let at = self.waiting.iter().rposition(|other| other.key().id < id).map_or(0, |at| at + 1);
        self.waiting.insert(at, item);
        at == 0
    }

    /// The head has to wait. All but the head is left in the table; returns what was in memory of it.
    pub(super) fn delay(&mut self) -> Vec<Item> {
        self.state = State::Delayed;
        let Some(head) = self.waiting.front().map(|item| item.key().id) else {
            return Vec::new();
        };
        let left: Vec<Item> = self.waiting.drain(1..).collect();
        if let Some(last) = left.last() {
            let upto = last.key().id.max(self.rest.map_or(0, |rest| rest.upto));
            self.rest = Some(Rest::new(head, upto));
        }
        left
    }

    /// Whether it runs low and the rest should be read now; if so, that is taken as begun.
    pub(super) fn begins_to_read_on(&mut self, window: usize) -> bool {
        match &mut self.rest {
            Some(rest)
                if rest.asked_upto.is_none()
                    && !matches!(self.state, State::Delayed | State::Deferred(_) | State::Blocked)
                    && self.waiting.len() <= window / 2 =>
            {
                rest.asked_upto = Some(rest.upto);
                true
            }
            _ => false,
        }
    }

    /// The rest was read behind `after` up to `last`; `is_all` when that snapshot showed no more. Ignored unless the group
    /// still asks for just that: it may have been delayed in the meantime and have given messages back that come before,
    /// and it may have asked again since.
    pub(super) fn has_read_on(&mut self, after: i64, asked_upto: i64, last: Option<i64>, is_all: bool) -> bool {
        let Some(rest) = &mut self.rest else { return false };
        if rest.after != after || rest.asked_upto != Some(asked_upto) {
            return false;
        }
        rest.asked_upto = None;
        rest.after = last.unwrap_or(after);
        // Only a read that began after the last message was left can have seen all of them.
        if is_all && asked_upto == rest.upto {
            self.rest = None;
        }
        true
    }
}
