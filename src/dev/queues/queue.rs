//! One queue: what is sent, what is in flight, what may be received. A function of its state, the request and the time.
//!
//! Times are milliseconds since 1970. A message is in flight from its reception until its visibility timeout ends or it is
//! deleted. In a FIFO queue a group with a message in flight gives nothing else.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use sha2::{Digest as _, Sha256};

use super::deduplication::{Deduplication, First};
use super::digest;
use super::message::Draft;
use super::refusal::{self, Refusal};
use super::settings::Settings;

/// What a message costs besides its content, roughly.
const OVERHEAD: usize = 512;

/// What a known deduplication id costs, roughly.
const KNOWN_ID: usize = 200;

/// The answer to a message that was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) message_id: String,
    /// FIFO only.
    pub(super) sequence_number: Option<String>,
    /// It has the deduplication id of an earlier message and was dropped.
    pub(super) is_copy: bool,
}

/// A message that was received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Received {
    pub(super) message_id: String,
    pub(super) handle: String,
    pub(super) draft: Draft,
    pub(super) sent_at: u64,
    pub(super) first_received_at: u64,
    pub(super) times: u32,
    pub(super) sequence_number: Option<String>,
}

/// How many messages there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) visible: usize,
    pub(super) in_flight: usize,
    pub(super) delayed: usize,
}

/// A message in the queue.
#[derive(Clone, Debug)]
struct Stored {
    message_id: String,
    draft: Draft,
    sent_at: u64,
    /// It cannot be received before.
    visible_at: u64,
    first_received_at: u64,
    times: u32,
}

impl Stored {
    fn is_in_flight(&self, now: u64) -> bool {
        self.times > 0 && self.visible_at > now
    }
}

/// A queue.
#[derive(Clone, Debug)]
pub(super) struct Queue {
    pub(super) settings: Settings,
    pub(super) created_at: u64,
    /// In the order in which they were sent.
    messages: BTreeMap<u64, Stored>,
    /// Those that were received; not all of them are still in flight.
    received: BTreeSet<u64>,
    next: u64,
    deduplication: Deduplication,
    bytes: usize,
}

impl Queue {
    pub(super) fn new(settings: Settings, now: u64) -> Self {
        Self {
            settings,
            created_at: now,
            messages: BTreeMap::new(),
            received: BTreeSet::new(),
            next: 1,
            deduplication: Deduplication::default(),
            bytes: 0,
        }
    }

    /// Memory in use, roughly.
    pub(super) fn bytes(&mut self, now: u64) -> usize {
        self.deduplication.forget(now);
        self.bytes + self.deduplication.len() * KNOWN_ID
    }

    /// Takes a message, or drops a copy of one. `message_id` is for a new one.
    pub(super) fn send(&mut self, draft: Draft, message_id: String, now: u64) -> Result<Sent, Refusal> {
        if draft.bytes() > self.settings.max_bytes {
            let rule = format!("message must be shorter than {} bytes", self.settings.max_bytes);
            return Err(Refusal::value("MessageBody", "(not shown)", &rule));
        }
        let deduplication = self.deduplication_of(&draft)?;
        let scope = draft.group.clone().filter(|_| self.settings.deduplicates_per_group);
        if let Some(id) = &deduplication
            && let Some(First { message_id, number }) = self.deduplication.first(scope.as_deref(), id, now)
        {
            return Ok(Sent { message_id, sequence_number: self.sequence_number(number), is_copy: true });
        }
        let number = self.next;
        self.next += 1;
        if let Some(id) = &deduplication {
            self.deduplication.note(scope.as_deref(), id, First { message_id: message_id.clone(), number }, now);
        }
        self.bytes += draft.bytes() + OVERHEAD;
        let visible_at = now + draft.delay.map_or(self.settings.delay, |seconds| seconds * 1000);
        let draft = Draft { deduplication, ..draft };
        let stored =
            Stored { message_id: message_id.clone(), draft, sent_at: now, visible_at, first_received_at: 0, times: 0 };
        self.messages.insert(number, stored);
        Ok(Sent { message_id, sequence_number: self.sequence_number(number), is_copy: false })
    }

    /// Receives up to `most` messages, which are in flight for `visibility` from now on.
    pub(super) fn receive(&mut self, most: usize, visibility: u64, now: u64) -> Vec<Received> {
        self.received.retain(|number| self.messages.get(number).is_some_and(|stored| stored.is_in_flight(now)));
        let group_of = |number: &u64| self.messages.get(number).and_then(|stored| stored.draft.group.clone());
        let is_fifo = self.settings.is_fifo;
        let mut blocked: HashSet<String> =
            if is_fifo { self.received.iter().filter_map(group_of).collect() } else { HashSet::new() };
        let mut chosen = Vec::new();
        for (number, stored) in &self.messages {
            if chosen.len() == most {
                break;
            }
            let group = stored.draft.group.as_ref().filter(|_| is_fifo);
            if group.is_some_and(|group| blocked.contains(group)) {
                continue;
            }
            if stored.visible_at <= now {
                chosen.push(*number);
            } else if let Some(group) = group {
                // What is delayed holds up what is behind it.
                blocked.insert(group.clone());
            }
        }
        chosen.into_iter().filter_map(|number| self.take(number, visibility, now)).collect()
    }

    fn take(&mut self, number: u64, visibility: u64, now: u64) -> Option<Received> {
        let sequence_number = self.sequence_number(number);
        let stored = self.messages.get_mut(&number)?;
        stored.times += 1;
        stored.visible_at = now + visibility;
        if stored.times == 1 {
            stored.first_received_at = now;
        }
        self.received.insert(number);
        Some(Received {
            message_id: stored.message_id.clone(),
            handle: format!("{number}.{}.{}", stored.times, stored.message_id),
            draft: stored.draft.clone(),
            sent_at: stored.sent_at,
            first_received_at: stored.first_received_at,
            times: stored.times,
            sequence_number,
        })
    }

    /// Deletes a received message. One that is gone already is no mistake.
    pub(super) fn delete(&mut self, handle: &str, now: u64) -> Result<(), Refusal> {
        let Handle { number, times, message_id } = Handle::read(handle)?;
        let Some(stored) = self.messages.get(&number).filter(|stored| stored.message_id == message_id) else {
            return Ok(());
        };
        if stored.times != times || !stored.is_in_flight(now) {
            if self.settings.is_fifo {
                return Err(Refusal::value("ReceiptHandle", format!("{handle:?}"), "the receipt handle has expired"));
            }
            if stored.times != times {
                // SQS accepts it, and the message may stay.
                return Ok(());
            }
        }
        self.bytes -= stored.draft.bytes() + OVERHEAD;
        self.received.remove(&number);
        self.messages.remove(&number);
        Ok(())
    }

    /// Changes how long a received message is in flight from now on.
    pub(super) fn change_visibility(&mut self, handle: &str, visibility: u64, now: u64) -> Result<(), Refusal> {
        let Handle { number, times, message_id } = Handle::read(handle)?;
        let found = self.messages.get_mut(&number).filter(|stored| stored.message_id == message_id);
        match found.filter(|stored| stored.times == times && stored.is_in_flight(now)) {
            Some(stored) => {
                stored.visible_at = now + visibility;
                Ok(())
            }
            None => Err(Refusal::new(refusal::NOT_IN_FLIGHT, "The message referred to isn't in flight.")),
        }
    }

    /// Deletes everything. Deduplication ids stay known.
    pub(super) fn purge(&mut self) {
        self.messages.clear();
        self.received.clear();
        self.bytes = 0;
    }

    pub(super) fn counts(&self, now: u64) -> Counts {
        let mut counts = Counts::default();
        for stored in self.messages.values() {
            match stored {
                _ if stored.visible_at <= now => counts.visible += 1,
                _ if stored.times > 0 => counts.in_flight += 1,
                _ => counts.delayed += 1,
            }
        }
        counts
    }

    /// The deduplication id, and whether the draft has what this kind of queue needs.
    fn deduplication_of(&self, draft: &Draft) -> Result<Option<String>, Refusal> {
        if !self.settings.is_fifo {
            return match draft.deduplication {
                // A group is taken: it turns on fair queues.
                None => Ok(None),
                Some(_) => Err(Refusal::value("MessageDeduplicationId", "(set)", "a standard queue does not take it")),
            };
        }
        if draft.group.is_none() {
            return Err(Refusal::missing("MessageGroupId"));
        }
        if draft.delay.is_some_and(|delay| delay > 0) {
            return Err(Refusal::value("DelaySeconds", "(set)", "a FIFO queue delays all messages or none"));
        }
        match &draft.deduplication {
            Some(id) => Ok(Some(id.clone())),
            None if self.settings.has_content_deduplication => Ok(Some(format!("{:x}", Sha256::digest(&draft.body)))),
            None => {
                let rule = "the queue should either have ContentBasedDeduplication enabled or MessageDeduplicationId provided explicitly";
                Err(Refusal::new(refusal::BAD_VALUE, rule))
            }
        }
    }

    /// Twenty digits, in order.
    fn sequence_number(&self, number: u64) -> Option<String> {
        self.settings.is_fifo.then(|| format!("{:020}", 18_000_000_000_000_000_000_u64 + number * 256))
    }
}

/// A receipt handle, taken apart.
struct Handle<'a> {
    number: u64,
    times: u32,
    message_id: &'a str,
}

impl<'a> Handle<'a> {
    fn read(text: &'a str) -> Result<Self, Refusal> {
        let mut parts = text.splitn(3, '.');
        let read = || {
            let (number, times) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
            Some(Self { number, times, message_id: parts.next()? })
        };
        let mut read = read;
        let sentence = "The input receipt handle is invalid.";
        read().ok_or_else(|| Refusal::new(refusal::BAD_HANDLE, sentence))
    }
}

/// Digests of what was sent, for the answer.
pub(super) fn digests(draft: &Draft) -> (String, Option<String>, Option<String>) {
    (digest::of_text(&draft.body), digest::of_attributes(&draft.attributes), digest::of_attributes(&draft.system))
}

#[cfg(test)]
mod tests;
