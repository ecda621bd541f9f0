//! What a destination takes: whether it keeps order, how large a message may be, and where larger bodies go.

use std::sync::Arc;

/// The largest message that a queue takes, body and attributes together: 1 MiB since August 2025 (SQS quotas, "Message
/// size").
pub const MAX_MESSAGE_BYTES: usize = 1_048_576;

/// The largest message that a topic takes, body and attributes together: 256 KiB (SNS quotas, "Message size").
pub const MAX_TOPIC_MESSAGE_BYTES: usize = 262_144;

/// Whether a queue or topic keeps order and drops duplicates, and what it does with groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DestinationKind {
    /// At least once, in any order; it is not told groups.
    Standard,
    /// The same, but told the group of each message, so that a group with many messages does not delay the others ("fair
    /// queues" in the SQS documentation).
    Fair,
    /// In order within a group, duplicates dropped within five minutes. Its name ends in `.fifo`.
    Fifo,
}

impl DestinationKind {
    /// The kind of the queue with this URL or the topic with this ARN, unless it is said to be fair. SQS and SNS require the
    /// suffix `.fifo` for FIFO queues and topics and refuse it for others.
    pub fn of(name: &str) -> Self {
        if name.ends_with(".fifo") { Self::Fifo } else { Self::Standard }
    }
}

/// A service of AWS that takes messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Service {
    /// Amazon SQS, with queues.
    Sqs,
    /// Amazon SNS, with topics.
    Sns,
}

impl Service {
    /// Its short name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sqs => "SQS",
            Self::Sns => "SNS",
        }
    }
}

/// What a destination takes, as far as composing, packing and order depend on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepts {
    /// Whose limits hold.
    pub service: Service,
    /// Whether it keeps order.
    pub kind: DestinationKind,
    /// Where bodies go that are too large for a message; `None` if such messages are dead.
    pub claim_check: Option<Arc<ClaimCheck>>,
}

/// The claim check of a destination: a large body is an object in a bucket of S3, and the message has its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimCheck {
    /// The bucket.
    pub bucket: String,
    /// What keys begin with.
    pub prefix: String,
    /// What keys end with, for this process. Objects of other relays have other keys: a consumer that deletes theirs takes
    /// nothing from a message that this one sends later.
    pub relay: String,
    /// Messages above this size go there, in bytes with attributes.
    pub above: usize,
    /// The largest body, in bytes.
    pub max_bytes: usize,
}

impl Accepts {
    /// What a queue of this kind takes.
    pub fn queue(kind: DestinationKind) -> Self {
        Self { service: Service::Sqs, kind, claim_check: None }
    }

    /// What a topic of this kind takes.
    pub fn topic(kind: DestinationKind) -> Self {
        Self { service: Service::Sns, kind, claim_check: None }
    }

    /// The largest sum over the entries of a request, bodies and attributes; it is also the limit of a single one (SQS,
    /// SendMessageBatch; SNS, PublishBatch).
    pub fn max_bytes(&self) -> usize {
        match self.service {
            Service::Sqs => MAX_MESSAGE_BYTES,
            Service::Sns => MAX_TOPIC_MESSAGE_BYTES,
        }
    }

    /// The largest body that goes to a bucket; 0 without a claim check.
    pub fn max_offloaded(&self) -> usize {
        self.claim_check.as_ref().map_or(0, |claim_check| claim_check.max_bytes)
    }

    /// The largest body that is read from the outbox, in bytes; a message with a larger one can never be sent.
    pub fn max_body_bytes(&self) -> usize {
        self.claim_check.as_ref().map_or(self.max_bytes(), |claim_check| claim_check.max_bytes.max(self.max_bytes()))
    }
}
