//! The core of a relay: every decision, and nothing else. No I/O, no clock, no task.
//!
//! [`Core::due`] says what is to be done now, [`Core::apply`] takes what came of it, [`Core::wake_at`] says when to look again.
//! `relay/session.rs` does the work against PostgreSQL and SQS; the property tests do it against a simulation of both, so
//! that they run the code that ships.
//!
//! This file decides between claims: prepare, scan, look, rest, claim. Under a claim [`session`] decides: [`intake`] what to
//! read, [`admit`] what becomes of it, [`schedule`] what may go next, [`verdict`] what an answer means. Read them in this order.

mod admit;
mod apply;
mod between;
mod breaker;
mod crowd;
mod ending;
mod first_scan;
mod flight;
mod gap;
mod group;
mod handover;
mod intake;
mod item;
mod keys;
mod lease;
mod limits;
mod outcomes;
mod parked;
mod positions;
mod questions;
mod scan;
mod schedule;
mod session;
mod standing;
mod statements;
mod verdict;
mod watermark;
pub(in crate::relay) mod work;

#[cfg(test)]
mod properties;

use std::time::Duration;

use crate::clock::Time;
use crate::config::Tuning;
use crate::health::Activity;
use crate::message::{Fault, QueueKind};
use crate::outbox::OutboxError;
use crate::reading::{Order, Watch};

pub(in crate::relay) use admit::compose_item;
pub use limits::{MemoryBudget, MemoryShare};
pub(in crate::relay) use schedule::{Schedule, Shape};
pub(in crate::relay) use standing::Report;

use between::Between;
use lease::Closing;
use session::{Ended as SessionEnded, Session};
use standing::Standing;
use work::{Completion, Work};

/// How long `run --until-empty` waits for a database or a queue that does not work, before it gives up.
const UNTIL_EMPTY_PATIENCE: Duration = Duration::from_secs(60);

/// When a relay ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// Never; it drains when told to.
    Drained,
    /// When nothing of the destination is pending.
    Empty,
}

/// How a relay ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ended {
    /// Messages that SQS accepted.
    pub delivered: u64,
    /// Messages given up.
    pub dead: u64,
    /// Messages set aside.
    pub quarantined: u64,
    /// Whether messages are left pending because they wait behind dead ones, or behind some in quarantine.
    pub is_blocked: bool,
    /// Whether it was told to drain before it had seen that nothing is pending.
    pub is_cut_short: bool,
}

/// Why `--until-empty` did not get there.
#[derive(Debug)]
pub(super) enum GaveUp {
    /// The database does not work, and waiting did not help.
    Database(OutboxError),
    /// The queue does not work, and waiting did not help.
    Halted(Fault),
    /// An operator has paused the destination, and waiting did not help.
    Paused,
}

/// What operators have decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Control {
    /// Nobody knows yet: the relay may have started during a pause.
    Unknown,
    /// Nothing is to be published.
    Paused,
    /// As usual.
    Running,
}

/// One destination's decisions, from the first question to the last outcome.
#[derive(Debug)]
pub(super) struct Core {
    until: Until,
    standing: Standing,
    between: Between,
    session: Option<Session>,
    control: Control,
    is_draining: bool,
    /// Since when a database, a queue or a pause has kept everything from going on.
    failing_since: Option<Time>,
    ended: Ended,
    outcome: Option<Result<Ended, GaveUp>>,
}

impl Core {
    /// A relay that has not looked at anything yet.
    pub(super) fn new(
        kind: QueueKind,
        tuning: Tuning,
        until: Until,
        memory: MemoryShare,
        dice: fastrand::Rng,
        now: Time,
    ) -> Self {
        Self {
            until,
            standing: Standing::new(kind, tuning, memory, dice, now),
            between: Between::new(now),
            session: None,
            control: Control::Unknown,
            is_draining: false,
            failing_since: None,
            ended: Ended { is_cut_short: true, ..Ended::default() },
            outcome: None,
        }
    }

    /// Operators have decided something.
    pub(super) fn control(&mut self, control: Control, now: Time) {
        if control != self.control {
            self.control = control;
            if control == Control::Running {
                self.failing_since = None;
            }
            self.between.look_again(now);
        }
    }

    /// Other settings are in force.
    pub(super) fn adjust(&mut self, tuning: Tuning, now: Time) {
        self.standing.adjust(tuning);
        // An operator may just have shortened a pause.
        self.between.look_again(now);
    }

    /// The process drains: what is in flight is finished and recorded, nothing new begins.
    pub(super) fn drain(&mut self) {
        self.is_draining = true;
    }

    /// What was seen of all destinations of the process.
    pub(super) fn watched(&mut self, watch: Watch, now: Time) {
        let news = self.between.watched(watch, self.standing.knowledge.watermarks.lowest());
        if news.has_acted {
            self.standing.knowledge.scan.hurry(now);
            if let Some(session) = &mut self.session {
                session.held_check.hurry(now);
            }
            self.between.hurry(now);
        }
        if news.has_come {
            self.between.wake(now);
        }
    }

    /// What is to be done now.
    pub(super) fn due(&mut self, now: Time) -> Vec<Work> {
        if self.outcome.is_some() {
            return Vec::new();
        }
        if let Some(session) = &mut self.session {
            if self.is_draining || self.control == Control::Paused {
                session.close(Closing::Told);
            }
            let work = session.due(&mut self.standing, now);
            if !work.is_empty() {
                return work;
            }
            let Some(ended) = session.ended() else { return Vec::new() };
            self.session = None;
            self.session_ended(ended, now);
        }
        self.next(now).into_iter().collect()
    }

    /// When to look again, if nothing comes back before.
    pub(super) fn wake_at(&self, now: Time) -> Time {
        let at = match &self.session {
            Some(session) => session.wake_at(&self.standing),
            None => self.between_wake_at(now),
        };
        let latest = now + HEARTBEAT;
        at.map_or(latest, |at| at.min(latest))
    }

    /// How it ended, once it has.
    pub(super) fn outcome(&mut self) -> Option<Result<Ended, GaveUp>> {
        self.outcome.take()
    }

    /// What metrics, logs and probes should know.
    pub(super) fn reports(&mut self) -> Vec<Report> {
        let reports = std::mem::take(&mut self.standing.reports);
        for report in &reports {
            match report {
                Report::Recorded(settlements) => {
                    self.ended.delivered += settlements.iter().filter(|one| one.is_delivered()).count() as u64;
                    self.ended.dead += settlements.iter().filter(|one| one.is_dead()).count() as u64;
                }
                Report::Quarantined(messages) => self.ended.quarantined += messages.len() as u64,
                _ => {}
            }
        }
        reports
    }

    /// Lanes held, requests in flight, and requests that may be.
    pub(super) fn gauges(&self) -> (usize, usize, usize) {
        let lanes = self.session.as_ref().map_or(0, |session| session.lanes().len());
        let in_flight = self.session.as_ref().map_or(0, |session| session.flight.requests());
        (lanes, in_flight, self.standing.concurrency.limit())
    }

    /// What holds up groups of the queue.
    pub(super) fn order(&self) -> Order {
        self.standing.order()
    }

    /// What it is doing.
    pub(super) fn activity(&self) -> Activity {
        match &self.session {
            _ if self.control != Control::Running => Activity::Paused,
            _ if self.standing.breaker.halted().is_some() => Activity::Halted,
            Some(session) => Activity::Delivering {
                lanes: session.lanes().len(),
                known: session.schedule.known(),
                in_flight: session.flight.requests(),
                is_closing: session.closing.is_some(),
            },
            None => self.between.activity(),
        }
    }

    /// The connection that held the claim is gone.
    pub(super) fn claim_lost(&mut self, now: Time) {
        if let Some(session) = &mut self.session {
            session.apply(Completion::ClaimLost, &mut self.standing, now);
        }
    }

    /// Whether a claim that was taken is still in use.
    pub(super) fn needs_claim(&self) -> bool {
        self.session.is_some() || self.between.is_giving_back()
    }

    /// The database must not be used.
    pub(super) fn database_is_unsuitable(&mut self, error: OutboxError, now: Time) {
        match &mut self.session {
            Some(session) => session.close(Closing::Broken(error)),
            None if self.between.is_prepared() => self.database_failed(error, now),
            // It has found that out by itself.
            None => {}
        }
    }

    /// Whether it was told to drain.
    pub(super) fn is_draining(&self) -> bool {
        self.is_draining
    }

    /// Takes what came of some work.
    pub(super) fn apply(&mut self, completion: Completion, now: Time) -> Option<Work> {
        match &mut self.session {
            Some(session) => session.apply(completion, &mut self.standing, now),
            None => self.answered(completion, now),
        }
    }

    fn session_ended(&mut self, ended: SessionEnded, now: Time) {
        let SessionEnded { closing, is_saturated, held, has_dropped } = ended;
        if has_dropped {
            self.between.forget(&mut self.standing, now);
        }
        self.between.share_lanes(held, is_saturated);
        match closing {
            Closing::Time | Closing::Told => self.go_on(false, now),
            Closing::Idle => self.go_on(true, now),
            Closing::Halted(fault) => self.halted(fault, now),
            Closing::Broken(error) => self.database_failed(error, now),
        }
    }

    fn halted(&mut self, fault: Fault, now: Time) {
        self.standing.concurrency.halted(fault.kind);
        let pause = self.standing.breaker.halt(fault.clone(), &mut self.standing.dice);
        self.standing.report(Report::Halted(fault.clone()));
        self.between.pause_until(now + pause);
        self.give_up_after(GaveUp::Halted(fault), now);
    }

    fn database_failed(&mut self, error: OutboxError, now: Time) {
        let is_final = error.is_final();
        let unsettled = self.standing.outcomes.under_way();
        self.between.failed(&mut self.standing, now);
        if is_final && self.until == Until::Empty {
            self.outcome = Some(Err(GaveUp::Database(error)));
            return;
        }
        self.standing.report(Report::DatabaseFailed { error: error.clone(), unsettled });
        self.give_up_after(GaveUp::Database(error), now);
    }

    fn give_up_after(&mut self, why: GaveUp, now: Time) {
        let since = *self.failing_since.get_or_insert(now);
        if self.until == Until::Empty && now.since(since) >= UNTIL_EMPTY_PATIENCE {
            self.outcome = Some(Err(why));
        }
    }
}

/// The shell looks up at least this often, to notice that the claim is gone.
const HEARTBEAT: Duration = Duration::from_millis(100);
