//! The values that flow through the relay: what was read from the outbox, the outcomes, and the reasons for failures.
//!
//! No I/O and no decisions. [`crate::outbox`] makes messages, [`crate::relay`] moves them, [`crate::publisher`] turns them
//! into entries. [`crate::reading`] has the questions that return messages, and their answers.

mod accepts;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::clock::Time;

pub use accepts::{Accepts, ClaimCheck, DestinationKind, MAX_MESSAGE_BYTES, MAX_TOPIC_MESSAGE_BYTES, Service};

/// How many lanes a destination has. Fixed: `outbox.messages.lane` is `hash & 15`.
pub const LANES: usize = 16;

/// A fixed slice of a destination, 0 to 15; the unit that a relay claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lane(u8);

impl Lane {
    /// The lane of this number, if there is one.
    pub fn new(number: i16) -> Option<Self> {
        u8::try_from(number).ok().filter(|number| usize::from(*number) < LANES).map(Self)
    }

    /// All lanes, in order.
    pub fn all() -> impl DoubleEndedIterator<Item = Self> + Clone {
        (0..LANES as u8).map(Self)
    }

    /// Its number in PostgreSQL.
    pub fn number(self) -> i16 {
        i16::from(self.0)
    }

    /// Its index among all lanes.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// `outbox.messages.id`: the order of delivery within a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId(pub i64);

impl MessageId {
    /// Below every id that a message can have.
    pub const NONE: Self = Self(0);

    /// Above every id that a message can have.
    pub const MAX: Self = Self(i64::MAX);

    /// The id just below this one.
    #[must_use]
    pub fn previous(self) -> Self {
        Self(self.0.saturating_sub(1))
    }

    /// The id just above this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// `outbox.events.position`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventPosition(pub i64);

/// A transaction id of PostgreSQL, with its epoch (`xid8`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TransactionId(pub i64);

/// The position of a message in its destination: lane and id, in the order of the primary key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageKey {
    /// The lane, derived from the group by the database.
    pub lane: Lane,
    /// The id.
    pub id: MessageId,
}

/// Distinguishes a message from another one that had, or will have, the same key: after a failover that lost commits,
/// an id can be assigned again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// `outbox.messages.event_position`.
    pub event_position: EventPosition,
    /// `outbox.messages.enqueued_at`, to the microsecond that PostgreSQL keeps.
    pub enqueued_at: SystemTime,
}

/// SQS's number for a message that a FIFO queue accepted: up to 128 bits, and higher than those before it in its group
/// (SQS API reference, SendMessageBatchResultEntry, "SequenceNumber").
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct SequenceNumber {
    // Halves, because a u128 would make everything that holds one larger by its alignment.
    high: u64,
    low: u64,
}

impl SequenceNumber {
    /// Below every number that SQS gives.
    pub const NONE: Self = Self { high: 0, low: 0 };

    /// The number of these decimal digits, as SQS writes it; `None` if it is no such number.
    pub fn parse(digits: &str) -> Option<Self> {
        let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| digits.parse().ok()).flatten().map(Self::from_bits)
    }

    /// The number just above this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self::from_bits(self.bits().saturating_add(1))
    }

    fn from_bits(bits: u128) -> Self {
        Self { high: (bits >> 64) as u64, low: bits as u64 }
    }

    fn bits(self) -> u128 {
        u128::from(self.high) << 64 | u128::from(self.low)
    }
}

impl std::fmt::Display for SequenceNumber {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.bits().fmt(f)
    }
}

/// An event's delivery to one destination, as read from the outbox.
#[derive(Clone, Debug)]
pub struct Message {
    /// Lane and id.
    pub key: MessageKey,
    /// Identifies the message that has this key.
    pub origin: Origin,
    /// The ordering key; `None` means no order.
    pub group: Option<Arc<str>>,
    /// Failed attempts so far that were the fault of the message.
    pub attempts: i16,
    /// The number of the last copy that SQS accepted too early, before an earlier message of the group; another copy
    /// has to follow.
    pub superseded: Option<SequenceNumber>,
    /// Its age when it was read, by the database's clock, so that the clocks of hosts are never mixed.
    pub age_when_read: Duration,
    /// When it was read.
    pub read_at: Time,
    /// How long it still waits for a retry that was recorded earlier; `None` when it may go at once.
    pub wait: Option<Duration>,
    /// What holds it up: messages of its group that must go first, or one that blocks the group.
    pub hold: Option<Hold>,
    /// Its content.
    pub content: Content,
}

/// Why a message may not be sent although it is not deferred itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// A message of its group is dead or in quarantine and blocks the group.
    Group {
        /// The lowest such message.
        by: MessageId,
    },
    /// Deferred messages of its group come before it.
    Behind {
        /// The lowest deferred message.
        head: MessageId,
        /// The highest deferred message.
        last: MessageId,
        /// How long the lowest one waits; zero when it is due, `None` when that is not known.
        wait: Option<Duration>,
    },
}

/// The content of a message, as far as it was read.
#[derive(Clone, Debug)]
pub enum Content {
    /// Its event.
    Event(Event),
    /// The event it points to does not exist, which only an error of a writer can cause.
    Missing,
    /// It is larger than SQS accepts and stayed in the database.
    TooLarge {
        /// The size of body and metadata, or the stored size if that is enough to tell.
        bytes: u64,
    },
    /// PostgreSQL cannot read it.
    Unreadable {
        /// PostgreSQL's error.
        reason: String,
    },
    /// It was not read, because its group is held up.
    Held,
}

/// The immutable event that a message carries.
#[derive(Clone, Debug)]
pub struct Event {
    /// The id of the event, a UUID in text.
    pub event_id: String,
    /// The type of the event.
    pub event_type: String,
    /// Stream and version, when the event belongs to one.
    pub stream: Option<(String, i64)>,
    /// What is sent, never parsed: a JSON library would change numbers and key order.
    pub body: String,
    /// What the body is.
    pub form: BodyForm,
    /// `metadata::text`, a JSON object.
    pub metadata: String,
}

/// What a body is, by the column of `outbox.events` that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyForm {
    /// `payload`, as PostgreSQL prints it.
    Json,
    /// `body`, as it was written.
    Text,
    /// `body_bytes`, in base64 without line breaks.
    Base64,
}

/// The outcome of a message, which has to be written back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// SQS accepted it under this id.
    Delivered {
        /// SQS's MessageId.
        sqs_message_id: String,
        /// SQS's number for it, which only a FIFO queue gives.
        sequence_number: Option<SequenceNumber>,
    },
    /// SQS accepted it, but an earlier message of its group comes after it. So it stays pending, and a copy of it with
    /// another deduplication id is sent in its turn.
    Superseded {
        /// The number of the copy that came too early.
        sequence_number: SequenceNumber,
    },
    /// It failed by its own fault and waits in the table.
    Deferred {
        /// Failed attempts, this one included.
        attempts: i16,
        /// How long to wait from now on; `None` for a message that only waits behind another one of its group.
        wait: Option<Duration>,
        /// Why it failed.
        error: String,
    },
    /// It is dead.
    Dead {
        /// Failed attempts, this one included.
        attempts: i16,
        /// The kind of fault.
        kind: FaultKind,
        /// Why it is dead.
        error: String,
    },
}

/// An outcome and the message it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settlement {
    /// The message.
    pub key: MessageKey,
    /// Identifies the message that has this key.
    pub origin: Origin,
    /// Its group, if the queue keeps the order of groups.
    pub group: Option<Arc<str>>,
    /// Its outcome.
    pub outcome: Outcome,
}

impl Settlement {
    /// Whether SQS accepted the message, and no other copy has to follow.
    pub fn is_delivered(&self) -> bool {
        matches!(self.outcome, Outcome::Delivered { .. })
    }

    /// Whether the message is dead.
    pub fn is_dead(&self) -> bool {
        matches!(self.outcome, Outcome::Dead { .. })
    }

    /// Whether it may be recorded only while the claim lives. What SQS has accepted is a fact, whoever holds the lane.
    pub fn needs_claim(&self) -> bool {
        matches!(self.outcome, Outcome::Dead { .. } | Outcome::Deferred { .. })
    }

    /// Whether the message stays pending.
    pub fn stays(&self) -> bool {
        matches!(self.outcome, Outcome::Deferred { .. } | Outcome::Superseded { .. })
    }
}

/// A message that is set aside individually, so that it stops no other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quarantined {
    /// The message.
    pub key: MessageKey,
    /// Identifies the message that has this key.
    pub origin: Origin,
    /// Its group, which waits on a FIFO queue.
    pub group: Option<Arc<str>>,
    /// The outcome that could not be recorded; `None` for a message that cannot be read.
    pub outcome: Option<Outcome>,
    /// PostgreSQL's error.
    pub reason: String,
}

/// The cause of a failure. Each kind has its own policy.
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
    /// SQS cannot be reached, or the request never left this host; nothing was accepted.
    Outage,
    /// SQS failed with HTTP 5xx and may have accepted the request before it did.
    ServerError,
    /// The request may have been accepted: a timeout after sending, a reset, an unreadable answer.
    Ambiguous,
    /// The request itself was wrong, which is never the message's fault.
    Internal,
    /// The claim had ended before the request could be written.
    NotSent,
}

impl FaultKind {
    /// All kinds, so that every series of a metric can start at 0.
    pub const ALL: [Self; 9] = [
        Self::MessagePermanent,
        Self::MessageTransient,
        Self::Destination,
        Self::Throttle,
        Self::Outage,
        Self::ServerError,
        Self::Ambiguous,
        Self::Internal,
        Self::NotSent,
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
            Self::Internal => "internal",
            Self::NotSent => "not_sent",
        }
    }

    /// Whether a message is at fault, or may be.
    pub fn is_of_message(self) -> bool {
        matches!(self, Self::MessagePermanent | Self::MessageTransient)
    }

    /// Whether SQS may have accepted the entry although the answer does not say so.
    pub fn may_have_been_accepted(self) -> bool {
        matches!(self, Self::Ambiguous | Self::ServerError)
    }
}

/// A failure, with what an operator needs to know about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The kind of fault.
    pub kind: FaultKind,
    /// SQS's code, or the relay's own code if SQS gave none.
    pub code: String,
    /// The description of the failure.
    pub detail: String,
}

impl Fault {
    /// A fault from its parts.
    pub fn new(kind: FaultKind, code: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { kind, code: code.into(), detail: detail.into() }
    }

    /// The fault for readers who need no login: without what a program that gives credentials has said, which may be a
    /// secret.
    pub fn shown(&self) -> String {
        let whole = self.to_string();
        whole.split_once(PROGRAM_SAID).map_or(whole.clone(), |(before, _)| format!("{before}; see the log"))
    }
}

/// The AWS SDK writes what a `credential_process` has said behind this.
const PROGRAM_SAID: &str = ". Stderr: ";

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.detail.is_empty() { f.write_str(&self.code) } else { write!(f, "{}: {}", self.code, self.detail) }
    }
}
