//! How long a claim may be used, and why its use ends. Pure.

use std::time::Duration;

use super::work::Work;
use crate::clock::Time;
use crate::message::Fault;
use crate::outbox::{Claimed, OutboxError};
use crate::reading::ClaimProof;

/// How long a claim is used before it is released, so that lanes can move to other relays. Together with the request
/// timeout it stays below the ten seconds within which the lanes of a frozen relay must be free again, unless the database is
/// slow ([`SLOW`]).
pub(super) const USE_FOR: Duration = Duration::from_millis(3500);

/// If the database took longer than this to answer the claim, the claim is extended by a multiple of that time, up to a
/// limit.
const SLOW: Duration = Duration::from_millis(100);
const EXTEND_BY: u32 = 8;
const MAX_EXTENSION: Duration = Duration::from_secs(60);

/// If nothing could be sent in half of the time, and a read has taken longer than this, the claim is extended by a
/// multiple of the time so far. Otherwise the claim would end when the messages are there, and the next one would read
/// the same.
const SLOW_READ: Duration = Duration::from_secs(1);
const EXTEND_FOR_READ_BY: u32 = 2;

/// Why a session closes.
#[derive(Debug)]
pub(super) enum CloseReason {
    /// It held its lanes long enough.
    Time,
    /// Nothing is left to do.
    Idle,
    /// The process drains, or an operator has paused the destination.
    Stopping,
    /// The destination cannot take messages now.
    Halted(Fault),
    /// The database failed, or the claim is gone.
    Broken(OutboxError),
}

impl CloseReason {
    pub(super) fn gravity(&self) -> u8 {
        match self {
            Self::Time | Self::Idle | Self::Stopping => 1,
            Self::Halted(_) => 2,
            Self::Broken(_) => 3,
        }
    }
}

/// How long the claim may be used.
#[derive(Debug)]
pub(super) struct Lease {
    /// The claim's transaction.
    pub(super) proof: ClaimProof,
    /// Nothing is sent after this.
    pub(super) use_until: Time,
    /// If the server hears nothing, it ends the claim at this time or later.
    pub(super) ends_at: Time,
    /// Whether the server was asked to wait longer and has not answered yet.
    pub(super) is_extending: bool,
    /// When to ask for more time if nothing could be sent by then; `None` if it was extended often enough.
    extend_at: Option<Time>,
    claimed_at: Time,
    /// How long the server took to answer the claim.
    took: Duration,
}

/// How long the server waits for a silent holder of the claim; it includes time for the last requests.
pub(super) fn claim_idle_timeout(request_timeout: Duration) -> Duration {
    USE_FOR + request_timeout
}

impl Lease {
    pub(super) fn new(claimed: &Claimed, request_timeout: Duration, now: Time) -> Self {
        Self {
            proof: claimed.proof.clone(),
            use_until: claimed.asked_at + USE_FOR,
            ends_at: claimed.asked_at + claim_idle_timeout(request_timeout),
            is_extending: now.since(claimed.asked_at) > SLOW,
            extend_at: Some(claimed.asked_at + USE_FOR / 2),
            claimed_at: claimed.asked_at,
            took: now.since(claimed.asked_at),
        }
    }

    /// The extension asked of a slow server: time for several statements under the claim.
    pub(super) fn extension(&self, request_timeout: Duration, now: Time) -> Work {
        self.extend_by((self.took * EXTEND_BY).min(MAX_EXTENSION), request_timeout, now)
    }

    /// When to extend the claim for a read that began at this time, if nothing was sent before.
    pub(super) fn extend_for_read_at(&self, began_at: Time) -> Option<Time> {
        self.extend_at.filter(|_| !self.is_extending).map(|at| at.max(began_at + SLOW_READ))
    }

    /// The extension for a slow read.
    pub(super) fn extend_for_read(&mut self, request_timeout: Duration, now: Time) -> Work {
        self.is_extending = true;
        let more = now.since(self.claimed_at) * EXTEND_FOR_READ_BY;
        self.extend_by(more.min(MAX_EXTENSION), request_timeout, now)
    }

    fn extend_by(&self, more: Duration, request_timeout: Duration, now: Time) -> Work {
        let use_for = USE_FOR + more;
        // The limit leaves time to finish what is under way, write the last outcomes and release the claim.
        Work::Extend { use_for, idle_timeout: use_for + request_timeout + self.took * 6, asked_at: now }
    }

    /// The server has agreed.
    pub(super) fn extended(&mut self, use_for: Duration, idle_timeout: Duration, asked_at: Time) {
        self.use_until = asked_at + use_for;
        self.ends_at = asked_at + idle_timeout;
        let may_again = asked_at.since(self.claimed_at) < MAX_EXTENSION;
        self.extend_at = may_again.then(|| asked_at + use_for / 2);
    }
}
