//! The values that flow through the relay: what is read from the outbox, what became of it, and why it failed.
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
        /// How long to wait from now on; `None` for one that only waits its turn behind another of its group.
        wait: Option<Duration>,
        /// Why it failed.
        error: String,
    },
    /// It was given up.
    Dead {
        /// Failed attempts, this one included.
        attempts: i16,
        /// Whose fault it was.
        kind: FaultKind,
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

/// Whose fault a failure was. Each kind has its own conduct.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// The message can never be accepted: characters, size, an empty body.
    MessagePermanent,
    /// The entry failed, and another attempt may succeed: SQS's per-entry InternalError, an unknown code.
    MessageTransient,
    /// The queue cannot be used by anyone here: missing, access denied, key, credentials.
    Destination,
    /// SQS asks for fewer requests.
    Throttle,
    /// SQS cannot be reached; nothing was accepted.
    Outage,
    /// SQS failed with HTTP 5xx and may have accepted the request before it did.
    ServerError,
    /// The request may have been accepted: a timeout after sending, a reset, an unreadable answer.
    Ambiguous,
    /// The request itself was wrong, which is never the message's fault.
    Ours,
}

impl FaultKind {
    /// All kinds, so that every series of a metric can be born at 0.
    pub const ALL: [Self; 8] = [
        Self::MessagePermanent,
        Self::MessageTransient,
        Self::Destination,
        Self::Throttle,
        Self::Outage,
        Self::ServerError,
        Self::Ambiguous,
        Self::Ours,
    ];

    /// The value of the metric label `reason`.
    pub fn reason(self) -> &'static str {
        match self {
            Self::MessagePermanent => "message_permanent",
            Self::MessageTransient => "message_transient",
            Self::Destination => "destination",
            Self::Throttle => "throttle",
            Self::Outage => "outage",
            Self::ServerError => "server_error",
            Self::Ambiguous => "ambiguous",
            Self::Ours => "ours",
        }
    }

    /// Whether SQS may have accepted the entry although the answer does not say so.
    pub fn may_have_been_accepted(self) -> bool {
        matches!(self, Self::Ambiguous | Self::ServerError)
    }
}

/// A failure with what an operator needs to know of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Whose fault it was.
    pub kind: FaultKind,
    /// SQS's code, or a word of ours where SQS gave none.
    pub code: String,
    /// The sentence that goes with it.
    pub detail: String,
}

impl Fault {
    /// A fault from its parts.
    pub fn new(kind: FaultKind, code: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { kind, code: code.into(), detail: detail.into() }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.detail.is_empty() { f.write_str(&self.code) } else { write!(f, "{}: {}", self.code, self.detail) }
    }
}
