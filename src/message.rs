//! The values that flow through the relay: what is read from the outbox, and what became of it.
//!
//! No I/O lives here and no decision; [`crate::outbox`] makes messages, [`crate::relay`] moves them, [`crate::sqs`] turns
//! them into entries.

use std::sync::Arc;
use std::time::{Duration, Instant};

/// How many lanes a destination has. Fixed: `outbox.messages.lane` is `hash & 15`.
pub const LANES: i16 = 16;

/// A fixed slice of a destination, 0 to 15; the unit that a relay claims.
pub type Lane = i16;

/// Where a message stands in its destination: lane and id, the order in which the primary key keeps them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageKey {
    /// The lane, derived from the group by the database.
    pub lane: Lane,
    /// The id, which is the order of delivery within a group.
    pub id: i64,
}

/// An event's delivery to one destination, as read from the outbox.
#[derive(Clone, Debug)]
pub struct Message {
    /// Lane and id.
    pub key: MessageKey,
    /// The ordering key; `None` asks for no order.
    pub group: Option<Arc<str>>,
    /// Failed attempts so far that were the message's own fault.
    pub attempts: i16,
    /// Age at the time of reading by the database's clock, so that clocks of hosts never mix.
    pub age_when_read: Duration,
    /// When it was read, by this process's monotonic clock.
    pub read_at: Instant,
    /// How long it still has to wait for a retry that was recorded earlier; `None` when it may go at once.
    pub wait: Option<Duration>,
    /// What it carries; `None` when the row it points to does not exist, which only a writer's error can cause.
    pub event: Option<Event>,
}

/// The immutable fact that a message carries.
#[derive(Clone, Debug)]
pub struct Event {
    /// Identity of the fact, a UUID in text.
    pub event_id: String,
    /// Name of the fact.
    pub event_type: String,
    /// Stream and version, when the event belongs to one.
    pub stream: Option<(String, i64)>,
    /// `payload::text`, never parsed: a JSON library would change numbers and key order.
    pub payload: String,
    /// `metadata::text`, a JSON object.
    pub metadata: String,
}

/// What became of a message and has to be written back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// SQS accepted it under this id.
    Delivered {
        /// SQS's MessageId.
        sqs_message_id: String,
    },
    /// It failed by its own fault and waits in the table.
    Deferred {
        /// Failed attempts, this one included.
        attempts: i16,
        /// How long to wait from now on.
        wait: Duration,
        /// Why it failed.
        error: String,
    },
    /// It was given up.
    Dead {
        /// Failed attempts, this one included.
        attempts: i16,
        /// Why it was given up.
        error: String,
    },
}

/// An outcome and the message it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settlement {
    /// The message.
    pub key: MessageKey,
    /// What became of it.
    pub outcome: Outcome,
}

/// Whether a queue keeps order and drops duplicates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueKind {
    /// At least once, in any order.
    Standard,
    /// In order within a group, duplicates dropped within five minutes. The name of its URL ends in `.fifo`.
    Fifo,
}

impl QueueKind {
    /// The kind of the queue behind a URL. SQS requires the suffix `.fifo` for FIFO queues and refuses it for others.
    pub fn of(queue_url: &str) -> Self {
        if queue_url.ends_with(".fifo") { Self::Fifo } else { Self::Standard }
    }
}
