//! A message on its way to SQS and back.

use std::sync::Arc;
use std::time::Duration;

use super::limits::Reserved;
use crate::clock::Time;
use crate::message::{MessageId, MessageKey, Origin, Outcome, Settlement};
use crate::publisher::Entry;

/// A message on its way, with what is needed when its answer comes.
#[derive(Debug)]
pub(in crate::relay) struct Item {
    /// What is sent.
    pub(in crate::relay) entry: Entry,
    /// Identifies the message that has this key, should the key be reused.
    pub(super) origin: Origin,
    /// The group whose order is kept; `None` on a standard queue and for messages without a group.
    pub(super) group: Option<Arc<str>>,
    /// Failed attempts that were the fault of the message.
    pub(super) attempts: i16,
    /// Members of metadata that could not become attributes.
    pub(super) dropped_attributes: usize,
    /// How often it was sent again without being charged an attempt.
    pub(super) resends: i16,
    /// The error of the last failed attempt, if it was under this claim; it is recorded when the claim ends.
    pub(super) charged_error: Option<String>,
    /// Whether that failure is recorded already, because the retry was due only after the claim.
    pub(super) is_recorded: bool,
    /// Its age when it was read, by the database's clock.
    pub(super) age_when_read: Duration,
    /// When it was read, by this process's clock.
    pub(super) read_at: Time,
    /// Whether it must be sent alone, because a request that contained it was refused as a whole.
    pub(super) is_alone: bool,
    /// Whether no later message of its group may be in its request, because it has failed in one that SQS accepted in
    /// part.
    pub(super) is_last_of_group: bool,
    /// Whether SQS may have accepted it in a request whose answer is not known. It is sent again together with those of its
    /// group that were in that request: one answer then shows in which order they are.
    pub(super) is_unsure: bool,
    /// How often another copy was sent because of its number.
    pub(super) repairs_by_number: u8,
    /// The memory reserved for it, released together with it.
    pub(super) _memory: Reserved,
}

impl Item {
    /// Lane and id.
    pub(in crate::relay) fn key(&self) -> MessageKey {
        self.entry.key()
    }

    pub(super) fn id(&self) -> MessageId {
        self.key().id
    }

    /// Its age.
    pub(super) fn age(&self, now: Time) -> Duration {
        self.age_when_read + now.since(self.read_at)
    }

    /// Its settlement with this outcome.
    pub(in crate::relay) fn with_outcome(&self, outcome: Outcome) -> Settlement {
        Settlement { key: self.key(), origin: self.origin, group: self.group.clone(), outcome }
    }
}
