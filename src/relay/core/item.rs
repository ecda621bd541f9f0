//! A message on its way to SQS and back.

use std::sync::Arc;
use std::time::Duration;

use super::limits::Reserved;
use crate::clock::Time;
use crate::message::{MessageId, MessageKey, Origin, Outcome, Settlement};
use crate::sqs::Entry;

/// A message on its way, with what is needed when it comes back.
#[derive(Debug)]
pub(in crate::relay) struct Item {
    /// What is sent.
    pub(in crate::relay) entry: Entry,
    /// Which message it is that has this key.
    pub(super) origin: Origin,
    /// The group whose order counts; `None` on a standard queue and for messages without a group.
    pub(super) group: Option<Arc<str>>,
    /// Failed attempts that were its own fault.
    pub(super) attempts: i16,
    /// Members of metadata that could not become attributes.
    pub(super) left_out: usize,
    /// How often it was sent again without being charged an attempt.
    pub(super) resends: i16,
    /// The last failed attempt if it was in this claim, so that it is recorded when the claim ends.
    pub(super) charged: Option<String>,
    /// Whether that is recorded already, because the retry comes after the claim.
    pub(super) is_recorded: bool,
    /// Age by the database's clock when it was read.
    pub(super) age_when_read: Duration,
    /// When it was read, by this process's clock.
    pub(super) read_at: Time,
    /// Whether it has to be sent without neighbours, because a request with it was refused as a whole.
    pub(super) is_alone: bool,
    /// The memory that it takes, given back with it.
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

    /// What became of it.
    pub(in crate::relay) fn settled(&self, outcome: Outcome) -> Settlement {
        Settlement { key: self.key(), origin: self.origin, group: self.group.clone(), outcome }
    }
}
