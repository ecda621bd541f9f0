//! A claim session: everything that happens while a claim is held.
//!
//! Reading, publishing and settling go on at the same time. Each turn notices what has changed and says what is to begin. The
//! session closes after a few seconds, when nothing is left, or when something fails. Then nothing new is sent, what is in
//! flight is awaited and settled, and only then is the claim released ([`super::ending`]). [`super::apply`] takes what came of
//! the work. Pure.

use std::time::Duration;

use super::ending::Ending;
use super::flight::Flight;
use super::intake::Intake;
use super::item::Item;
use super::lease::{Closing, Lease};
use super::outcomes::{WAIT, WAIT_BUSY};
use super::questions::{HeldCheck, Widening};
use super::schedule::{Schedule, Shape};
use super::standing::Standing;
use super::work::Work;
use crate::clock::Time;
use crate::message::{Lane, Outcome};
use crate::outbox::Claimed;

/// A session with nothing to do ends after this time: no transaction stays open while it is quiet.
const IDLE_GRACE: Duration = Duration::from_millis(50);

/// One claim's work.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) lease: Lease,
    lanes: Vec<Lane>,
    pub(super) intake: Intake,
    pub(super) schedule: Schedule,
    pub(super) flight: Flight,
    pub(super) closing: Option<Closing>,
    pub(super) ending: Ending,
    pub(super) held_check: HeldCheck,
    pub(super) widening: Widening,
    /// Works that have begun and not come back.
    pub(super) under_way: usize,
    pub(super) is_asking_writers: bool,
    pub(super) active_at: Time,
    is_saturated: bool,
}

/// How a session ended.
#[derive(Debug)]
pub(super) struct Ended {
    /// Why.
    pub(super) closing: Closing,
    /// Whether more was waiting than could be sent.
    pub(super) is_saturated: bool,
    /// How many lanes were held.
    pub(super) held: usize,
    /// Whether something was not recorded because the claim was over, so that what is remembered may be wrong.
    pub(super) has_dropped: bool,
}

impl Session {
    /// A claim was taken. Returns what is to begin at once.
    pub(super) fn new(claimed: &Claimed, standing: &mut Standing, now: Time) -> (Self, Option<Work>) {
        let request_timeout = standing.tuning.request_timeout;
        let lease = Lease::new(claimed, request_timeout, now);
        let extend = lease.is_extending.then(|| Lease::extension(claimed, request_timeout, now));
        let shape = Shape::new(standing.tuning.request_size, standing.tuning.fifo_mode);
        let shape = Shape { max_parked: standing.max_parked, ..shape };
        let mut schedule = Schedule::new(shape);
        schedule.parked.crowds = std::mem::take(&mut standing.knowledge.crowds);
        let mut session = Self {
            lease,
            lanes: Vec::new(),
            intake: Intake::new(now),
            schedule,
            flight: Flight::default(),
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
        session.open(&lanes, standing, now);
        (session, extend)
    }

    /// The lanes held.
    pub(super) fn lanes(&self) -> &[Lane] {
        &self.lanes
    }

    /// Lanes are held: reading begins, from what is remembered of them.
    pub(super) fn open(&mut self, lanes: &[Lane], standing: &mut Standing, now: Time) {
        self.lanes.extend_from_slice(lanes);
        for lane in lanes {
            standing.knowledge.watermarks.open(*lane);
            self.schedule.parked.crowds.begin_again(*lane);
        }
        self.intake.open(lanes, now);
        let schedule = &mut self.schedule;
        standing.knowledge.parked.retain(|parked| {
            let is_here = lanes.contains(&parked.lane);
            if is_here {
                schedule.take_over(parked);
            }
            !is_here
        });
        self.active_at = now;
    }

    /// A graver reason replaces a lighter one.
    pub(super) fn close(&mut self, closing: Closing) {
        let gravity = self.closing.as_ref().map_or(0, Closing::gravity);
        if closing.gravity() > gravity {
            self.closing = Some(closing);
        }
    }

    /// What is to begin now.
    pub(super) fn due(&mut self, standing: &mut Standing, now: Time) -> Vec<Work> {
        self.schedule.wake(now);
        self.notice(standing, now);
        let mut work = Vec::new();
        if self.closing.is_none() {
            work.extend(self.ask(standing, now));
            work.extend(self.intake.due(&mut self.schedule, standing, &self.lease.proof, now));
            let expects_more = self.intake.expects_more();
            work.extend(self.flight.due(&mut self.schedule, standing, expects_more, self.lease.use_until, now));
        }
        if !self.ending.has_begun() {
            work.extend(self.settle(standing, now));
        }
        self.under_way += work.len();
        if self.closing.is_some() && self.under_way == 0 {
            let next = self.end(standing, now);
            self.under_way += usize::from(next.is_some());
            work.extend(next);
        }
        work
    }

    /// When to look again, if nothing comes back before.
    pub(super) fn wake_at(&self, standing: &Standing) -> Option<Time> {
        if self.ending.has_begun() {
            return self.ending.wake_at();
        }
        let settle = standing.outcomes.due_at(self.settle_after());
        if self.closing.is_some() {
            return settle;
        }
        let expects_more = self.intake.expects_more();
        let all = [
            (!self.lease.is_extending).then_some(self.lease.use_until),
            self.is_quiet().then_some(self.active_at + IDLE_GRACE),
            self.widening.due_at(&self.lanes),
            (standing.order().is_kept() && standing.outcomes.dying() == 0).then(|| self.held_check.due_at()),
            self.intake.wake_at(&self.schedule, standing),
            self.flight.wake_at(standing, expects_more),
            self.schedule.next_wake(),
            settle,
        ];
        all.into_iter().flatten().min()
    }

    /// Whether everything was read, and nothing of it can be sent under this claim.
    fn is_quiet(&self) -> bool {
        self.schedule.only_waits_beyond(self.lease.use_until)
            && self.intake.has_nothing_more()
            && !self.lease.is_extending
    }

    fn notice(&mut self, standing: &Standing, now: Time) {
        if self.closing.is_some() {
            return;
        }
        // A backlog in few groups is left in the table and not in the reads; then the requests tell.
        let most_are_out = self.flight.requests() >= standing.tuning.max_in_flight && self.schedule.has_ready();
        self.is_saturated = self.intake.was_full() || most_are_out;
        if now >= self.lease.use_until && !self.lease.is_extending {
            self.close(Closing::Time);
        } else if self.is_quiet() && now.since(self.active_at) >= IDLE_GRACE {
            self.close(Closing::Idle);
        }
    }

    /// Questions that are asked now and then.
    fn ask(&mut self, standing: &Standing, now: Time) -> Vec<Work> {
        let mut work: Vec<Work> = self.widening.due(&self.lanes, now).into_iter().collect();
        // A death that is not recorded yet is not in the table either, and its group would be taken for free.
        if standing.order().is_kept() && standing.outcomes.dying() == 0 {
            let deaths = standing.outcomes.deaths();
            work.extend(self.held_check.due(self.schedule.doubtful(now), standing.order(), deaths, now));
        }
        if !self.is_asking_writers && standing.knowledge.watermarks.wants_writers(now) {
            self.is_asking_writers = true;
            work.push(Work::Writers { asked_at: now });
        }
        work
    }

    fn settle_after(&self) -> Duration {
        if self.intake.was_full() { WAIT_BUSY } else { WAIT }
    }

    fn settle(&mut self, standing: &mut Standing, now: Time) -> Option<Work> {
        for item in self.schedule.take_charged() {
            defer(&item, None, standing, now);
        }
        if matches!(self.closing, Some(Closing::Broken(_))) {
            return None;
        }
        self.ending.drop_late(&self.lease, standing, now);
        let messages = standing.outcomes.take_culprits(false);
        if !messages.is_empty() {
            return Some(Work::SetAside { messages });
        }
        let is_quiet = self.flight.requests() == 0;
        let settlements = standing.outcomes.take_due(&standing.write_rate, self.settle_after(), is_quiet, now)?;
        Some(Work::Settle { settlements, proof: Some(self.lease.proof.clone()) })
    }

    /// Everything has come back: what is left is recorded, and the claim given back.
    fn end(&mut self, standing: &mut Standing, now: Time) -> Option<Work> {
        if self.ending.begin() {
            self.leave(standing, now);
        }
        let is_broken = matches!(self.closing, Some(Closing::Broken(_)));
        self.ending.next(&self.lease, is_broken, standing, now)
    }

    /// Records what waits for a retry, and remembers what stays in the table.
    fn leave(&mut self, standing: &mut Standing, now: Time) {
        let handover = self.schedule.hand_over(now);
        for left in handover.items {
            let key = left.item.key();
            if left.item.charged.is_some() && left.is_head {
                if !left.item.is_recorded {
                    let wait = left.until.map_or(Duration::ZERO, |until| until.since(now));
                    defer(&left.item, Some(wait), standing, now);
                }
            } else {
                defer(&left.item, None, standing, now);
                standing.knowledge.watermarks.rewind(key.lane, key.id);
            }
        }
        standing.knowledge.crowds = handover.crowds;
        standing.knowledge.watermarks.doubt(&handover.half_seen);
        standing.knowledge.park(handover.parked, standing.max_parked);
    }

    /// How the session ended, once it has.
    pub(super) fn ended(&mut self) -> Option<Ended> {
        if !self.ending.is_over() || self.under_way > 0 {
            return None;
        }
        let closing = self.closing.take().unwrap_or(Closing::Time);
        let is_saturated = self.is_saturated && matches!(closing, Closing::Time);
        Some(Ended { closing, is_saturated, held: self.lanes.len(), has_dropped: self.ending.has_dropped() })
    }
}

/// Records a failed attempt.
pub(super) fn defer(item: &Item, wait: Option<Duration>, standing: &mut Standing, now: Time) {
    if let Some(error) = item.charged.clone() {
        let outcome = Outcome::Deferred { attempts: item.attempts, wait, error };
        standing.outcomes.push(item.settled(outcome), now);
    }
}
