//! The core of a relay: all its decisions and nothing else. No I/O, no clock, no tasks.
//!
//! [`Core::due`] returns the work to do now, [`Core::apply`] takes its results, and [`Core::wake_at`] says when to call
//! again. The loop in `relay/mod.rs` calls them; `relay/executor.rs` does the work against PostgreSQL and SQS. The property
//! tests do it against a simulation of both, so they run the core that ships.
//!
//! While no claim is held, [`between`] decides: its `steps.rs` plans the next question, its `answers.rs` applies the
//! answer. Under a claim [`session`] decides. Functions called `plan_…` create work, `on_…` take a result, `apply_…`
//! change state. Methods of [`Core`] are here and in [`between`], those of a session in [`session`] and [`apply`], those of
//! the schedule in [`schedule`], its `parking.rs` and [`handover`].
//!
//! To read it, in this order: [`work`] (what is asked and answered), [`item`], [`destination`] (what outlives a claim),
//! [`group`], [`schedule`] and [`parked`] (which message may go next), [`in_flight`], [`verdict`], [`breaker`],
//! [`sequences`] and [`repair`] (what an answer of SQS means), [`outcomes`] (how it is written back), [`watermark`],
//! [`intake`] and [`admit`] (what to read and how late commits are found, with `docs/late-commits.md`),
//! [`full_rescan`], [`session`], [`apply`] and [`ending`], [`between`], and last [`handover`],
//! [`crowd`] and [`hot`].

mod admit;
mod apply;
mod between;
mod breaker;
mod crowd;
mod destination;
mod ending;
mod full_rescan;
mod group;
mod handover;
mod hot;
mod in_flight;
mod initial_scan;
mod intake;
mod item;
mod keys;
mod lease;
mod limits;
mod outcomes;
mod parked;
mod positions;
mod questions;
mod read_memory;
mod repair;
mod rescan_request;
mod schedule;
mod sequences;
mod session;
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
use crate::message::{Accepts, Fault};
use crate::outbox::OutboxError;
use crate::reading::{Order, Watch};

pub(in crate::relay) use destination::Report;
pub(in crate::relay) use hot::Hot;
pub(in crate::relay) use item::Item;
pub(in crate::relay) use limits::Reserved;
pub use limits::{MemoryBudget, MemoryShare};

use between::BetweenClaims;
use destination::DestinationState;
use lease::CloseReason;
use session::{Session, SessionSummary};
use work::{Completion, Work};

/// How long `run --until-empty` waits for a database or a queue that does not work before it gives up.
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
pub struct RunSummary {
    /// Messages that SQS accepted.
    pub delivered: u64,
    /// Messages given up.
    pub dead: u64,
    /// Messages set aside.
    pub quarantined: u64,
    /// Whether messages are left pending because they wait behind dead ones, or behind some in quarantine.
    pub is_blocked: bool,
    /// Whether it was told to drain before it had established that nothing is pending.
    pub is_cut_short: bool,
}

/// Why `--until-empty` gave up.
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
    /// Not known yet: the relay may have started during a pause.
    Unknown,
    /// Nothing is to be published.
    Paused,
    /// As usual.
    Running,
}

/// The decisions for one destination, from the first question to the last outcome.
#[derive(Debug)]
pub(super) struct Core {
    until: Until,
    destination: DestinationState,
    between: BetweenClaims,
    session: Option<Session>,
    control: Control,
    is_draining: bool,
    /// Since when a database failure, a halted queue or a pause has prevented progress.
    failing_since: Option<Time>,
    summary: RunSummary,
    result: Option<Result<RunSummary, GaveUp>>,
}

impl Core {
    /// A relay that has not looked at anything yet.
    pub(super) fn new(
        accepts: Accepts,
        tuning: Tuning,
        until: Until,
        memory: MemoryShare,
        rng: fastrand::Rng,
        now: Time,
    ) -> Self {
        Self {
            until,
            destination: DestinationState::new(accepts, tuning, memory, rng, now),
            between: BetweenClaims::new(now),
            session: None,
            control: Control::Unknown,
            is_draining: false,
            failing_since: None,
            summary: RunSummary { is_cut_short: true, ..RunSummary::default() },
            result: None,
        }
    }

    /// Operators have decided something.
    pub(super) fn control(&mut self, control: Control, now: Time) {
        if control != self.control {
            self.control = control;
            self.destination.hot.forget();
            if control == Control::Running {
                self.failing_since = None;
            }
            self.between.look_again(now);
        }
    }

    /// The settings have changed.
    pub(super) fn adjust(&mut self, tuning: Tuning, now: Time) {
        self.destination.adjust(tuning);
        // An operator may have shortened a pause.
        self.between.look_again(now);
    }

    /// The process drains: requests in flight are finished and recorded, and nothing new starts.
    pub(super) fn drain(&mut self) {
        self.is_draining = true;
    }

    /// The poller has seen something new in the database.
    pub(super) fn watched(&mut self, watch: Watch, now: Time) {
        let news = self.between.watched(watch, self.destination.knowledge.watermarks.lowest());
        if news.has_acted {
            self.destination.knowledge.full_rescan.hurry(now);
            if let Some(session) = &mut self.session {
                session.held_check.hurry(now);
            }
            self.between.hurry(now);
        }
        if news.has_come {
            self.between.wake(now);
        }
    }

    /// The work to do now.
    pub(super) fn due(&mut self, now: Time) -> Vec<Work> {
        if self.result.is_some() {
            return Vec::new();
        }
        self.destination.hot.expire(now);
        if let Some(session) = &mut self.session {
            if self.is_draining || self.control == Control::Paused {
                session.close(CloseReason::Stopping);
            }
            let work = session.due(&mut self.destination, now);
            if !work.is_empty() {
                return work;
            }
            let Some(ended) = session.ended() else { return Vec::new() };
            self.session = None;
            self.session_ended(ended, now);
        }
        self.next(now).into_iter().collect()
    }

    /// When to call again if no result comes before.
    pub(super) fn wake_at(&self, now: Time) -> Time {
        let at = match &self.session {
            Some(session) => session.wake_at(&self.destination),
            None => self.between_wake_at(now),
        };
        let latest = now + HEARTBEAT;
        at.map_or(latest, |at| at.min(latest))
    }

    /// How it ended, once it has ended.
    pub(super) fn result(&mut self) -> Option<Result<RunSummary, GaveUp>> {
        self.result.take()
    }

    /// The reports for metrics, logs and probes.
    pub(super) fn reports(&mut self) -> Vec<Report> {
        let reports = std::mem::take(&mut self.destination.reports);
        for report in &reports {
            match report {
                Report::Recorded(settlements) => {
                    self.summary.delivered += settlements.iter().filter(|one| one.is_delivered()).count() as u64;
                    self.summary.dead += settlements.iter().filter(|one| one.is_dead()).count() as u64;
                }
                Report::Quarantined(messages) => self.summary.quarantined += messages.len() as u64,
                _ => {}
            }
        }
        reports
    }

    /// The lanes held, the requests in flight, and their limit.
    pub(super) fn gauges(&self) -> (usize, usize, usize) {
        let lanes = self.session.as_ref().map_or(0, |session| session.lanes().len());
        let in_flight = self.session.as_ref().map_or(0, |session| session.in_flight.requests());
        (lanes, in_flight, self.destination.concurrency.limit())
    }

    /// The groups that the FIFO mode limits.
    pub(super) fn hot(&self) -> Hot {
        self.destination.hot.hot()
    }

    /// Which kinds of row hold up groups of the queue.
    pub(super) fn order(&self) -> Order {
        self.destination.order()
    }

    /// What it is doing.
    pub(super) fn activity(&self) -> Activity {
        match &self.session {
            _ if self.control != Control::Running => Activity::Paused,
            _ if self.destination.breaker.halted().is_some() => Activity::Halted,
            Some(session) => Activity::Delivering {
                lanes: session.lanes().len(),
                known: session.schedule.known(),
                in_flight: session.in_flight.requests(),
                is_closing: session.closing.is_some(),
            },
            None => self.between.activity(),
        }
    }

    /// The connection that held the claim is gone.
    pub(super) fn claim_lost(&mut self, now: Time) {
        if let Some(session) = &mut self.session {
            session.apply(Completion::ClaimLost, &mut self.destination, now);
        }
    }

    /// Whether a claim that was taken is still in use.
    pub(super) fn needs_claim(&self) -> bool {
        self.session.is_some() || self.between.is_giving_back()
    }

    /// The database must not be used.
    pub(super) fn database_is_unsuitable(&mut self, error: OutboxError, now: Time) {
        match &mut self.session {
            Some(session) => session.close(CloseReason::Broken(error)),
            None if self.between.is_prepared() => self.database_failed(error, now),
            // Before the database is prepared, the relay finds this out by itself.
            None => {}
        }
    }

    /// Whether it was told to drain.
    pub(super) fn is_draining(&self) -> bool {
        self.is_draining
    }

    /// Applies the result of a piece of work.
    pub(super) fn apply(&mut self, completion: Completion, now: Time) -> Option<Work> {
        match &mut self.session {
            Some(session) => session.apply(completion, &mut self.destination, now),
            None => self.answered(completion, now),
        }
    }

    fn session_ended(&mut self, ended: SessionSummary, now: Time) {
        let SessionSummary { closing, is_saturated, lanes_held, has_dropped } = ended;
        if has_dropped {
            self.between.forget(&mut self.destination, now);
        }
        self.between.share_lanes(lanes_held, is_saturated);
        match closing {
            CloseReason::Time | CloseReason::Stopping => self.go_on(false, now),
            CloseReason::Idle => self.go_on(true, now),
            CloseReason::Halted(fault) => self.halted(fault, now),
            CloseReason::Broken(error) => self.database_failed(error, now),
        }
    }

    fn halted(&mut self, fault: Fault, now: Time) {
        self.destination.concurrency.halted(fault.kind);
        self.destination.hot.forget();
        let pause = self.destination.breaker.halt(fault.clone(), &mut self.destination.rng);
        self.destination.report(Report::Halted(fault.clone()));
        self.between.pause_until(now + pause);
        self.give_up_after(GaveUp::Halted(fault), now);
    }

    fn database_failed(&mut self, error: OutboxError, now: Time) {
        let is_final = error.is_final();
        self.destination.hot.forget();
        let unsettled = self.destination.outcomes.under_way();
        self.between.failed(&mut self.destination, now);
        if is_final && self.until == Until::Empty {
            self.result = Some(Err(GaveUp::Database(error)));
            return;
        }
        self.destination.report(Report::DatabaseFailed { error: error.clone(), unsettled });
        self.give_up_after(GaveUp::Database(error), now);
    }

    fn give_up_after(&mut self, why: GaveUp, now: Time) {
        let since = *self.failing_since.get_or_insert(now);
        if self.until == Until::Empty && now.since(since) >= UNTIL_EMPTY_PATIENCE {
            self.result = Some(Err(why));
        }
    }
}

/// The longest sleep: `Relay::run` checks at least this often whether the claim is gone.
const HEARTBEAT: Duration = Duration::from_millis(100);
