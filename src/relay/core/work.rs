//! What the core wants done, and what came of it: the leaf types between decisions and I/O.
//!
//! The core returns [`Work`] and takes [`Completion`]s; `relay/session.rs` does the work against PostgreSQL and SQS, and the
//! property tests against a simulation of both. Nothing is decided here and nothing is done.

use std::sync::Arc;
use std::time::Duration;

use super::item::Item;
use super::limits::Reserved;
use crate::clock::Time;
use crate::message::{Lane, MessageId, Quarantined, Settlement};
use crate::outbox::{Claimed, OutboxError, Pending, Settled};
use crate::reading::{
    Batch, ByLane, ClaimProof, DueRequest, GroupPosition, HeldGroup, Incarnation, Look, Order, ReadAnswer, ReadRequest,
    Rescan, Rescanned, Writers,
};
use crate::sqs::Published;

/// The answer of the database to a question.
pub(in crate::relay) type Answer<T> = Result<T, OutboxError>;

/// Something to be done. Each ends in a [`Completion`].
#[derive(Debug)]
pub(in crate::relay) enum Work {
    /// See that the schema is there and can be seen, and make the destination's lanes.
    Prepare,
    /// Find out what is needed before the first scan.
    FirstLook,
    /// Look at ids again.
    Rescan(RescanWork),
    /// Look which lanes have something.
    Look { lows: Vec<(Lane, MessageId)>, order: Order, longest_delay: Duration },
    /// Ask the lock table who may still commit messages.
    Writers { asked_at: Time },
    /// Ask what holds these groups up.
    CheckHeld { groups: Vec<Arc<str>>, order: Order, deaths: u64 },
    /// See whether anything is left for `--until-empty`.
    CheckPending { order: Order },
    /// Take lanes, and have the server end the claim by itself if it hears nothing for so long.
    Claim { lanes: Vec<Lane>, most: usize, limit: Duration },
    /// Have the server wait longer before it ends the claim.
    Extend { use_for: Duration, limit: Duration, asked_at: Time },
    /// Take more lanes under the same claim.
    Widen { lanes: Vec<Lane>, most: usize },
    /// Read messages.
    Read(Box<ReadWork>),
    /// Read messages whose retry is due.
    ReadDue { request: DueRequest, statement: u64, memory: Reserved },
    /// Send a request, unless it is later than `until` when it could be written.
    Publish { items: Vec<Item>, until: Time, memory: Reserved },
    /// Write outcomes back, those that need the claim under its proof.
    Settle { settlements: Vec<Settlement>, proof: Option<ClaimProof> },
    /// Put messages into quarantine.
    SetAside { messages: Vec<Quarantined> },
    /// End the claim.
    Release,
}

/// Where to read on in a group.
#[derive(Clone, Debug)]
pub(in crate::relay) struct ReadOn {
    /// The group, its lane, the last id in memory and how many messages there is room for.
    pub(super) position: GroupPosition,
    /// The highest id that was known to be left.
    pub(super) upto: MessageId,
}

/// A look at ids, and what is needed to apply it.
#[derive(Debug)]
pub(in crate::relay) struct RescanWork {
    pub(in crate::relay) rescan: Rescan,
    pub(in crate::relay) proof: Option<ClaimProof>,
    pub(in crate::relay) statement: u64,
}

/// A read, and what is needed to apply it.
#[derive(Debug)]
pub(in crate::relay) struct ReadWork {
    pub(in crate::relay) request: ReadRequest,
    /// The groups of the request.
    pub(in crate::relay) groups: Vec<ReadOn>,
    pub(in crate::relay) began_at: Time,
    pub(in crate::relay) statement: u64,
    pub(in crate::relay) memory: Reserved,
}

/// What is known before the first scan.
#[derive(Clone, Debug)]
pub(in crate::relay) struct FirstLook {
    /// Of each lane; a lane that is missing has to be made.
    pub(in crate::relay) incarnations: ByLane<Option<Incarnation>>,
    /// The highest message id handed out so far, seen before the writers.
    pub(in crate::relay) last_id: MessageId,
    /// Who may still commit ids up to that.
    pub(in crate::relay) writers: Writers,
}

/// What came of some work.
#[derive(Debug)]
pub(in crate::relay) enum Completion {
    Prepared(Answer<()>),
    FirstLooked(Answer<FirstLook>),
    /// Nothing when the server cut it short.
    Rescanned(RescanWork, Answer<Option<Rescanned>>),
    Looked(Answer<Look>),
    Writers {
        asked_at: Time,
        answer: Answer<Writers>,
    },
    HeldChecked {
        deaths: u64,
        answer: Answer<Vec<HeldGroup>>,
    },
    PendingChecked(Answer<Pending>),
    Claimed(Answer<Option<Claimed>>),
    Extended {
        use_for: Duration,
        limit: Duration,
        asked_at: Time,
        answer: Answer<()>,
    },
    Widened(Answer<Vec<(Lane, Incarnation)>>),
    Read(Box<ReadWork>, Answer<ReadAnswer>),
    DueRead {
        statement: u64,
        memory: Reserved,
        answer: Answer<Batch>,
    },
    Published {
        items: Vec<Item>,
        published: Published,
    },
    Settled {
        settlements: Vec<Settlement>,
        took: Duration,
        answer: Answer<Settled>,
    },
    SetAside {
        messages: Vec<Quarantined>,
        answer: Answer<()>,
    },
    Released(Answer<()>),
    /// The connection that held the claim is gone.
    ClaimLost,
}
