//! The work that the core asks for, and its results: the leaf types between decisions and I/O.
//!
//! The core returns [`Work`] and takes [`Completion`]s. `relay/executor.rs` does the work against PostgreSQL and SQS,
//! and the property tests do it against a simulation of both. This file decides nothing and does nothing.

use std::sync::Arc;
use std::time::Duration;

use super::item::Item;
use super::limits::Reserved;
use crate::clock::Time;
use crate::message::{Lane, MessageId, Quarantined, Settlement};
use crate::outbox::{Claimed, OutboxError, Pending, Settled};
use crate::publisher::Published;
use crate::reading::{
    Batch, ByLane, ClaimProof, DueRequest, GroupPosition, HeldGroup, Incarnation, Look, Lookup, Order, ReadAnswer,
    ReadRequest, Rescan, Rescanned, Writers,
};

/// The answer of the database to a question.
pub(in crate::relay) type Answer<T> = Result<T, OutboxError>;

/// A piece of work. Each ends in a [`Completion`].
#[derive(Debug)]
pub(in crate::relay) enum Work {
    /// Check that the schema exists and is visible, and create the destination's lanes.
    Prepare,
    /// Read what the initial scan needs.
    ReadBaseline,
    /// Rescan ranges of ids.
    Rescan(RescanWork),
    /// Look which lanes have something to do.
    Look { lows: Vec<(Lane, MessageId)>, order: Order, longest_delay: Duration },
    /// Ask the lock table who may still commit messages.
    Writers { asked_at: Time },
    /// Ask what holds these groups up.
    CheckHeld { groups: Vec<Arc<str>>, order: Order, deaths: u64 },
    /// Check whether anything is left for `--until-empty`.
    CheckPending { order: Order },
    /// Claim lanes. The server ends the claim by itself after it has heard nothing for `idle_timeout`.
    Claim { lanes: Vec<Lane>, max_lanes: usize, idle_timeout: Duration },
    /// Ask the server to wait longer before it ends the claim.
    Extend { use_for: Duration, idle_timeout: Duration, asked_at: Time },
    /// Claim more lanes in the same transaction.
    Widen { lanes: Vec<Lane>, max_lanes: usize },
    /// Read messages.
    Read(Box<ReadWork>),
    /// Read messages whose retry is due.
    ReadDue { request: DueRequest, statement: u64, memory: Reserved },
    /// Send a request, unless it cannot be written before `until`.
    Publish { items: Vec<Item>, until: Time, memory: Reserved },
    /// Record outcomes; those that need the claim are recorded under its proof.
    Settle { settlements: Vec<Settlement>, proof: Option<ClaimProof> },
    /// Put messages into quarantine.
    Quarantine { messages: Vec<Quarantined> },
    /// End the claim.
    Release,
}

/// Where to continue reading a group.
#[derive(Clone, Debug)]
pub(in crate::relay) struct ReadOn {
    /// The group, its lane, the last id in memory and how many messages there is room for.
    pub(super) position: GroupPosition,
    /// The highest id of the group that is known to be left in the table.
    pub(super) upto: MessageId,
}

/// A rescan, and what is needed to apply its answer.
#[derive(Debug)]
pub(in crate::relay) struct RescanWork {
    pub(in crate::relay) rescan: Rescan,
    pub(in crate::relay) proof: Option<ClaimProof>,
    pub(in crate::relay) statement: u64,
}

/// A read, and what is needed to apply its answer.
#[derive(Debug)]
pub(in crate::relay) struct ReadWork {
    pub(in crate::relay) request: ReadRequest,
    /// The groups of the request.
    pub(in crate::relay) groups: Vec<ReadOn>,
    pub(in crate::relay) began_at: Time,
    pub(in crate::relay) statement: u64,
    pub(in crate::relay) memory: Reserved,
}

/// What the initial scan starts from.
#[derive(Clone, Debug)]
pub(in crate::relay) struct Baseline {
    /// By lane; `None` means that the lane's row is missing and must be created.
    pub(in crate::relay) incarnations: ByLane<Option<Incarnation>>,
    /// The highest message id handed out so far, read before the writers.
    pub(in crate::relay) last_id: MessageId,
    /// The transactions that may still commit ids up to that.
    pub(in crate::relay) writers: Writers,
}

/// The result of a piece of work.
#[derive(Debug)]
pub(in crate::relay) enum Completion {
    Prepared(Answer<()>),
    BaselineRead(Answer<Baseline>),
    /// `None` when the server cut it short.
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
        idle_timeout: Duration,
        asked_at: Time,
        answer: Answer<()>,
    },
    Widened(Answer<Vec<(Lane, Incarnation)>>),
    Read(Box<ReadWork>, Answer<ReadAnswer>),
    DueRead {
        statement: u64,
        memory: Reserved,
        /// As it was asked.
        lookup: Lookup,
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
    Quarantined {
        messages: Vec<Quarantined>,
        answer: Answer<()>,
    },
    Released(Answer<()>),
    /// The connection that held the claim is gone.
    ClaimLost,
}
