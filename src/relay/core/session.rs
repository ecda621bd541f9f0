//! A claim session: everything that happens while a claim is held.
//!
//! Reading, publishing and settling go on at the same time. Each turn checks what has changed and returns the work to
//! start. The session closes after a few seconds, when nothing is left to do, or when something fails. Then it sends
//! nothing new, waits for the requests in flight, records their outcomes, and only then releases the claim
//! ([`super::ending`]). [`super::apply`] applies the results of the work. Pure.

use std::time::Duration;

use super::destination::{DestinationState, Report};
use super::ending::Ending;
use super::in_flight::InFlight;
use super::intake::Intake;
use super::item::Item;
use super::lease::{CloseReason, Lease};
use super::outcomes::{WAIT, WAIT_BUSY};
use super::questions::{HeldCheck, Widening};
use super::schedule::{Schedule, ScheduleLimits};
use super::work::Work;
use crate::clock::Time;
use crate::message::{Lane, Outcome};
use crate::outbox::Claimed;

/// A session with nothing to do ends after this time, so that no transaction stays open while the queue is quiet.
const IDLE_GRACE: Duration = Duration::from_millis(50);

/// One claim's work.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) lease: Lease,
    pub(super) intake: Intake,
    pub(super) schedule: Schedule,
    pub(super) in_flight: InFlight,
    pub(super) closing: Option<CloseReason>,
    pub(super) ending: Ending,
    pub(super) held_check: HeldCheck,
    pub(super) widening: Widening,
    /// Pieces of work that have started and not finished.
    pub(super) under_way: usize,
    pub(super) is_asking_writers: bool,
    pub(super) active_at: Time,
    is_saturated: bool,
}

/// How a session ended.
#[derive(Debug)]
pub(super) struct SessionSummary {
    /// Why.
    pub(super) closing: CloseReason,
    /// Whether more messages were waiting than could be sent.
    pub(super) is_saturated: bool,
    /// How many lanes were held.
    pub(super) lanes_held: usize,
    /// Whether an outcome was dropped because the claim had ended, so that what is remembered may be wrong.
    pub(super) has_dropped: bool,
}

impl Session {
    /// Starts with a claim that was taken. Returns the work to start at once.
    pub(super) fn new(claimed: &Claimed, destination: &mut DestinationState, now: Time) -> (Self, Option<Work>) {
        let request_timeout = destination.tuning.request_timeout;
        let lease = Lease::new(claimed, request_timeout, now);
        let extend = lease.is_extending.then(|| lease.extension(request_timeout, now));
        let (size, bytes) = (destination.tuning.request_size, destination.accepts.max_bytes());
        let shape = ScheduleLimits::new(size, bytes, destination.tuning.fifo_mode);
        let shape = ScheduleLimits {
            max_parked: destination.max_parked,
            window: shape.window.min(destination.max_window),
            ..shape
        };
        let mut schedule = Schedule::new(shape);
        schedule.parked.crowds = std::mem::take(&mut destination.knowledge.crowds);
        let mut session = Self {
            lease,
            intake: Intake::new(now),
            schedule,
            in_flight: InFlight::default(),
            closing: None,
            ending: Ending::default(),
            held_check: HeldCheck::new(now),
            widening: Widening::new(claimed.asked_at),
            under_way: usize::from(extend.is_some()),
            is_asking_writers: false,
            active_at: now,
            is_saturated: false,
        };
        let lanes: Vec<Lane> = claimed.lanes.iter().map(|(lane, _)| *lane).collect();
        session.open(&lanes, destination, now);
        (session, extend)
    }

    /// The lanes held.
    pub(super) fn lanes(&self) -> &[Lane] {
        &self.intake.open
    }

    /// Starts reading lanes that were claimed, from what is remembered of them.
    pub(super) fn open(&mut self, lanes: &[Lane], destination: &mut DestinationState, now: Time) {
        for lane in lanes {
            destination.knowledge.watermarks.open(*lane);
            self.schedule.parked.crowds.begin_again(*lane);
        }
        self.intake.open(lanes, now);
        let schedule = &mut self.schedule;
        destination.knowledge.parked.retain(|parked| {
            let is_here = lanes.contains(&parked.lane);
            if is_here {
                schedule.take_over(parked);
            }
            !is_here
        });
        self.active_at = now;
    }

    /// Closes the session. A graver reason replaces a lesser one.
    pub(super) fn close(&mut self, closing: CloseReason) {
        let gravity = self.closing.as_ref().map_or(0, CloseReason::gravity);
        if closing.gravity() > gravity {
            self.closing = Some(closing);
        }
    }

    /// The work to start now.
    pub(super) fn due(&mut self, destination: &mut DestinationState, now: Time) -> Vec<Work> {
        self.schedule.wake(now);
        self.check_close(destination, now);
        let mut work = Vec::new();
        if self.closing.is_none() {
            work.extend(self.extend_for_read(destination, now));
            work.extend(self.ask(destination, now));
            work.extend(self.intake.due(&mut self.schedule, destination, &self.lease.proof, now));
            let expects_more = self.intake.expects_more();
            work.extend(self.in_flight.due(&mut self.schedule, destination, expects_more, self.lease.use_until, now));
            self.sample_hot_groups(destination, now);
        }
        if !self.ending.has_begun() {
            work.extend(self.plan_settle(destination, now));
        }
        self.under_way += work.len();
        if self.closing.is_some() && self.under_way == 0 {
            let next = self.end(destination, now);
            self.under_way += usize::from(next.is_some());
            work.extend(next);
        }
        work
    }

    /// When to call again if no result comes before.
    pub(super) fn wake_at(&self, destination: &DestinationState) -> Option<Time> {
        if self.ending.has_begun() {
            return self.ending.wake_at();
        }
        let settle = destination.outcomes.due_at(self.settle_after());
        if self.closing.is_some() {
            return settle;
        }
        let expects_more = self.intake.expects_more();
        let all = [
            (!self.lease.is_extending).then_some(self.lease.use_until),
            self.extend_for_read_at(),
            self.is_quiet().then_some(self.active_at + IDLE_GRACE),
            self.widening.due_at(self.lanes()),
            (destination.order().is_kept() && destination.outcomes.dying() == 0).then(|| self.held_check.due_at()),
            self.intake.wake_at(&self.schedule, destination),
            self.in_flight.wake_at(destination, expects_more),
            self.schedule.next_wake(),
            settle,
        ];
        all.into_iter().flatten().min()
    }

    /// Whether everything was read, and none of it can be sent under this claim.
    fn is_quiet(&self) -> bool {
        self.schedule.only_waits_beyond(self.lease.use_until)
            && self.intake.has_nothing_more()
            && !self.lease.is_extending
    }

    fn check_close(&mut self, destination: &DestinationState, now: Time) {
        if self.closing.is_some() {
            return;
        }
        // The backlog of few groups stays in the table and does not fill the reads; then the number of requests shows
        // it.
        let most_are_out = self.in_flight.requests() >= destination.tuning.max_in_flight && self.schedule.has_ready();
        self.is_saturated = self.intake.was_full() || most_are_out;
        if now >= self.lease.use_until && !self.lease.is_extending {
            self.close(CloseReason::Time);
        } else if self.is_quiet() && now.since(self.active_at) >= IDLE_GRACE {
            self.close(CloseReason::Idle);
        }
    }

    /// When to ask for more time because of a slow read, if nothing was sent yet.
    fn extend_for_read_at(&self) -> Option<Time> {
        let began_at = self.intake.reading_since().filter(|_| !self.in_flight.has_sent())?;
        self.lease.extend_for_read_at(began_at)
    }

    fn extend_for_read(&mut self, destination: &DestinationState, now: Time) -> Option<Work> {
        let is_due = self.extend_for_read_at().is_some_and(|at| now >= at);
        is_due.then(|| self.lease.extend_for_read(destination.tuning.request_timeout, now))
    }

    /// Questions that are asked periodically.
    fn ask(&mut self, destination: &DestinationState, now: Time) -> Vec<Work> {
        let mut work: Vec<Work> = self.widening.due(&self.intake.open, now).into_iter().collect();
        // A death that is not recorded yet is not in the table, so its group would be taken for unblocked.
        if destination.order().is_kept() && destination.outcomes.dying() == 0 {
            let deaths = destination.outcomes.deaths();
            work.extend(self.held_check.due(self.schedule.doubtful(now), destination.order(), deaths, now));
        }
        if !self.is_asking_writers && destination.knowledge.watermarks.wants_writers(now) {
            self.is_asking_writers = true;
            work.push(Work::Writers { asked_at: now });
        }
        work
    }

    /// Notes which groups wait for nothing but their own request: all others wait for less if more requests may go.
    fn sample_hot_groups(&self, destination: &mut DestinationState, now: Time) {
        if !destination.hot.is_due(now) {
            return;
        }
        let may_send_more = self.in_flight.may_send_more(destination);
        let limited = if may_send_more { self.schedule.limited(now) } else { Vec::new() };
        destination.hot.sample(limited, now);
        if let Some(names) = destination.hot.tell(now) {
            let (hot, mode) = (destination.hot.hot(), destination.tuning.fifo_mode);
            destination.report(Report::Hot { hot, names, mode });
        }
    }

    fn settle_after(&self) -> Duration {
        if self.intake.was_full() { WAIT_BUSY } else { WAIT }
    }

    fn plan_settle(&mut self, destination: &mut DestinationState, now: Time) -> Option<Work> {
        for item in self.schedule.take_unrecorded() {
            defer(&item, None, destination, now);
        }
        if matches!(self.closing, Some(CloseReason::Broken(_))) {
            return None;
        }
        self.ending.drop_late(&self.lease, destination, now);
        let messages = destination.outcomes.take_culprits(false);
        if !messages.is_empty() {
            return Some(Work::Quarantine { messages });
        }
        let is_quiet = self.in_flight.requests() == 0;
        let settlements = destination.outcomes.take_due(&destination.write_rate, self.settle_after(), is_quiet, now)?;
        Some(Work::Settle { settlements, proof: Some(self.lease.proof.clone()) })
    }

    /// Everything has come back: records what is left, then releases the claim.
    fn end(&mut self, destination: &mut DestinationState, now: Time) -> Option<Work> {
        if self.ending.begin() {
            self.hand_over(destination, now);
        }
        let is_broken = matches!(self.closing, Some(CloseReason::Broken(_)));
        self.ending.next(&self.lease, is_broken, destination, now)
    }

    /// Records what waits for a retry, and remembers what stays in the table.
    fn hand_over(&mut self, destination: &mut DestinationState, now: Time) {
        let handover = self.schedule.hand_over(now);
        for left in handover.items {
            let key = left.item.key();
            if left.item.charged_error.is_some() && left.is_head {
                if !left.item.is_recorded {
                    let wait = left.until.map_or(Duration::ZERO, |until| until.since(now));
                    defer(&left.item, Some(wait), destination, now);
                }
            } else {
                defer(&left.item, None, destination, now);
                destination.knowledge.watermarks.rewind(key.lane, key.id);
            }
        }
        destination.knowledge.crowds = handover.crowds;
        destination.knowledge.watermarks.mark_for_rescan(&handover.emptied);
        destination.knowledge.park(handover.parked, destination.max_parked);
    }

    /// How the session ended, once it has ended.
    pub(super) fn ended(&mut self) -> Option<SessionSummary> {
        if !self.ending.is_over() || self.under_way > 0 {
            return None;
        }
        let closing = self.closing.take().unwrap_or(CloseReason::Time);
        let is_saturated = self.is_saturated && matches!(closing, CloseReason::Time);
        Some(SessionSummary {
            closing,
            is_saturated,
            lanes_held: self.lanes().len(),
            has_dropped: self.ending.has_dropped(),
        })
    }
}

/// Records a failed attempt. With `wait` the message is deferred; without it, it stays readable at once.
pub(super) fn defer(item: &Item, wait: Option<Duration>, destination: &mut DestinationState, now: Time) {
    if let Some(error) = item.charged_error.clone() {
        let outcome = Outcome::Deferred { attempts: item.attempts, wait, error };
        destination.outcomes.push(item.with_outcome(outcome), now);
    }
}

#[cfg(test)]
mod tests;
