//! How long a claim may be used, and why its use ends. Pure.

use std::time::Duration;

use super::work::Work;
use crate::clock::Time;
use crate::message::Fault;
use crate::outbox::{Claimed, OutboxError};
use crate::reading::ClaimProof;

/// How long a claim is used before it is given back, so that lanes can move to other relays. With the request timeout on top
/// it stays below the ten seconds within which a frozen relay's lanes must be free again.
pub(super) const USE_FOR: Duration = Duration::from_millis(3500);

/// A database whose answer to the claim took longer than this gets a longer claim: by so many times what it took, at most.
const SLOW: Duration = Duration::from_millis(100);
const EXTEND_BY: u32 = 8;
const MAX_EXTENSION: Duration = Duration::from_secs(60);

/// Why a session closes.
#[derive(Debug)]
pub(super) enum Closing {
    /// It held its lanes long enough.
    Time,
    /// Nothing is left to do.
    Idle,
    /// The process drains, or an operator has paused the destination.
    Told,
    /// The destination cannot take messages now.
    Halted(Fault),
    /// The database failed, or the claim is gone.
    Broken(OutboxError),
}

impl Closing {
    pub(super) fn gravity(&self) -> u8 {
        match self {
            Self::Time | Self::Idle | Self::Told => 1,
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
    /// The server ends the claim no earlier than this, should it hear nothing.
    pub(super) ends_at: Time,
    /// Whether the server was asked to wait longer, and has not answered.
    pub(super) is_extending: bool,
}

/// What the server is told when a claim is taken: how long it waits for a silent holder, with time for the last requests.
pub(super) fn claim_limit(request_timeout: Duration) -> Duration {
    USE_FOR + request_timeout
}

impl Lease {
    pub(super) fn new(claimed: &Claimed, request_timeout: Duration, now: Time) -> Self {
        Self {
            proof: claimed.proof.clone(),
            use_until: claimed.asked_at + USE_FOR,
            ends_at: claimed.asked_at + claim_limit(request_timeout),
            is_extending: now.since(claimed.asked_at) > SLOW,
        }
    }

    /// What a slow server is asked for: a claim under which some questions and answers fit.
    pub(super) fn extension(claimed: &Claimed, request_timeout: Duration, now: Time) -> Work {
        let took = now.since(claimed.asked_at);
        let use_for = USE_FOR + (took * EXTEND_BY).min(MAX_EXTENSION);
        // The last outcomes are written, behind what is under way then, and the claim released while the server still waits.
        Work::Extend { use_for, limit: use_for + request_timeout + took * 6, asked_at: now }
    }
}
