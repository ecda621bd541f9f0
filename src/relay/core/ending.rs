//! The end of a claim session: what SQS has accepted is written while the claim keeps others away, then the claim is released.
//!
//! Should it be released before, another relay would publish again what was accepted. A failure is tried again for as long as
//! the claim lives. Pure.

use std::time::Duration;

use super::lease::{Closing, Lease};
use super::standing::Standing;
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

/// How far the end of a session has come.
#[derive(Debug)]
pub(super) struct Ending {
    stage: Stage,
    retry_at: Option<Time>,
    delays: Delays,
    /// Whether the claim is gone.
    is_lost: bool,
    /// Whether outcomes were dropped because the claim was over.
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
    /// Whether nothing new is begun any more.
    pub(super) fn has_begun(&self) -> bool {
        self.stage != Stage::NotBegun
    }

    /// Whether the claim was given back, or is gone.
    pub(super) fn is_over(&self) -> bool {
        self.stage == Stage::Over
    }

    /// Whether outcomes were dropped because the claim was over.
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

    /// Once the claim is over, only what SQS accepted is written.
    pub(super) fn drop_late(&mut self, lease: &Lease, standing: &mut Standing, now: Time) {
        if self.is_lost || now >= lease.ends_at {
            self.has_dropped |= standing.outcomes.drop_what_needs_the_claim();
        }
    }

    /// When to try again.
    pub(super) fn wake_at(&self) -> Option<Time> {
        self.retry_at
    }

    /// Outcomes could not be written; says whether to give up, because the claim is over.
    pub(super) fn failed(&mut self, lease: &Lease, dice: &mut fastrand::Rng, now: Time) -> bool {
        let is_over = self.is_lost || now >= lease.ends_at;
        self.retry_at = (!is_over).then(|| now + self.delays.next_delay(dice));
        is_over
    }

    /// The next step; nothing may be under way.
    pub(super) fn next(&mut self, lease: &Lease, is_broken: bool, standing: &mut Standing, now: Time) -> Option<Work> {
        if self.stage == Stage::Settling {
            if self.retry_at.is_some_and(|at| now < at) {
                return None;
            }
            self.retry_at = None;
            self.drop_late(lease, standing, now);
            let is_over = self.is_lost || now >= lease.ends_at;
            let is_hopeless = is_broken && is_over;
            if !standing.outcomes.is_empty() && !is_hopeless {
                return settle(lease, standing, now);
            }
            // They are written when the database is back, and the claim is not.
            self.has_dropped |= standing.outcomes.drop_what_needs_the_claim();
            // Of a database that failed nobody waits for an answer: dropping the claim ends it as well.
            if is_broken || self.is_lost {
                self.stage = Stage::Over;
            } else {
                self.stage = Stage::Releasing;
                return Some(Work::Release);
            }
        }
        None
    }

    /// The claim was given back, or could not be.
    pub(super) fn released(&mut self, error: Option<OutboxError>, closing: &mut Option<Closing>) {
        self.stage = Stage::Over;
        if let Some(error) = error
            && !matches!(closing, Some(Closing::Halted(_)))
        {
            *closing = Some(Closing::Broken(error));
        }
    }
}

fn settle(lease: &Lease, standing: &mut Standing, now: Time) -> Option<Work> {
    let messages = standing.outcomes.take_culprits(false);
    if !messages.is_empty() {
        return Some(Work::SetAside { messages });
    }
    let settlements = standing.outcomes.take_due(&standing.write_rate, Duration::ZERO, true, now)?;
    Some(Work::Settle { settlements, proof: Some(lease.proof.clone()) })
}
