//! The end of a claim session: what SQS has accepted is recorded while the claim keeps others away, then the claim is
//! released.
//!
//! If the claim were released earlier, another relay would publish again what SQS accepted. A failed write is retried
//! for as long as the claim lives. Pure.

use std::time::Duration;

use super::destination::DestinationState;
use super::lease::{CloseReason, Lease};
use super::work::Work;
use crate::clock::Time;
use crate::outbox::OutboxError;
use crate::retry::Delays;

/// First and longest pause between attempts to write the last outcomes of a claim.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    NotBegun,
    Settling,
    Releasing,
    Over,
}

/// The state of ending a session.
#[derive(Debug)]
pub(super) struct Ending {
    stage: Stage,
    retry_at: Option<Time>,
    delays: Delays,
    /// Whether the claim is gone.
    is_lost: bool,
    /// Whether outcomes were dropped because the claim had ended.
    has_dropped: bool,
}

impl Default for Ending {
    fn default() -> Self {
        Self {
            stage: Stage::default(),
            retry_at: None,
            delays: Delays::new(RETRY.0, RETRY.1),
            is_lost: false,
            has_dropped: false,
        }
    }
}

impl Ending {
    /// Whether the end has begun, so that nothing new starts.
    pub(super) fn has_begun(&self) -> bool {
        self.stage != Stage::NotBegun
    }

    /// Whether the claim was released, or is gone.
    pub(super) fn is_over(&self) -> bool {
        self.stage == Stage::Over
    }

    /// Whether outcomes were dropped because the claim had ended.
    pub(super) fn has_dropped(&self) -> bool {
        self.has_dropped
    }

    /// Begins the end; true the first time.
    pub(super) fn begin(&mut self) -> bool {
        let is_first = !self.has_begun();
        if is_first {
            self.stage = Stage::Settling;
        }
        is_first
    }

    /// The claim's connection is gone.
    pub(super) fn lost(&mut self) {
        self.is_lost = true;
    }

    /// Once the claim has ended, only acceptances by SQS are written.
    pub(super) fn drop_late(&mut self, lease: &Lease, destination: &mut DestinationState, now: Time) {
        if self.is_lost || now >= lease.ends_at {
            self.has_dropped |= destination.outcomes.drop_what_needs_the_claim();
        }
    }

    /// When to try again.
    pub(super) fn wake_at(&self) -> Option<Time> {
        self.retry_at
    }

    /// Outcomes could not be written; returns whether to give up because the claim has ended.
    pub(super) fn failed(&mut self, lease: &Lease, rng: &mut fastrand::Rng, now: Time) -> bool {
        let is_over = self.is_lost || now >= lease.ends_at;
        self.retry_at = (!is_over).then(|| now + self.delays.next_delay(rng));
        is_over
    }

    /// The next step; nothing may be under way.
    pub(super) fn next(
        &mut self,
        lease: &Lease,
        is_broken: bool,
        destination: &mut DestinationState,
        now: Time,
    ) -> Option<Work> {
        if self.stage == Stage::Settling {
            if self.retry_at.is_some_and(|at| now < at) {
                return None;
            }
            self.retry_at = None;
            self.drop_late(lease, destination, now);
            let is_over = self.is_lost || now >= lease.ends_at;
            let is_hopeless = is_broken && is_over;
            if !destination.outcomes.is_empty() && !is_hopeless {
                return settle(lease, destination, now);
            }
            // What remains is written when the database is back, without the claim.
            self.has_dropped |= destination.outcomes.drop_what_needs_the_claim();
            // Do not wait for an answer of a failed database: dropping the claim ends it as well.
            if is_broken || self.is_lost {
                self.stage = Stage::Over;
            } else {
                self.stage = Stage::Releasing;
                return Some(Work::Release);
            }
        }
        None
    }

    /// The claim was released, or could not be released.
    pub(super) fn released(&mut self, error: Option<OutboxError>, closing: &mut Option<CloseReason>) {
        self.stage = Stage::Over;
        if let Some(error) = error
            && !matches!(closing, Some(CloseReason::Halted(_)))
        {
            *closing = Some(CloseReason::Broken(error));
        }
    }
}

fn settle(lease: &Lease, destination: &mut DestinationState, now: Time) -> Option<Work> {
    let messages = destination.outcomes.take_culprits(false);
    if !messages.is_empty() {
        return Some(Work::Quarantine { messages });
    }
    let settlements = destination.outcomes.take_due(&destination.write_rate, Duration::ZERO, true, now)?;
    Some(Work::Settle { settlements, proof: Some(lease.proof.clone()) })
}
