//! Decides what to ask next between claims. Pure.

use std::sync::Arc;
use std::time::Duration;

use super::super::handover::ParkedGroup;
use super::super::work::{RescanWork, Work};
use super::super::{Control, Core, GaveUp, Until};
use super::{FIRST_CONTROL, PAUSED_EVERY, Plan, Question, Turn};
use crate::clock::Time;
use crate::message::{DestinationKind, LANES, Lane};
use crate::reading::{Range, Rescan};
use crate::relay::core::lease::claim_idle_timeout;

impl Core {
    /// The next question, if none is under way.
    pub(in crate::relay::core) fn next(&mut self, now: Time) -> Option<Work> {
        if self.between.asking.is_some() {
            return None;
        }
        if !self.destination.outcomes.is_empty() {
            return if self.between.pause.expire(now) { self.plan_settle(now) } else { None };
        }
        if self.is_draining {
            self.result = Some(Ok(self.summary));
            return None;
        }
        if !self.between.pause.expire(now) {
            return None;
        }
        if !self.between.is_prepared {
            return self.ask(Question::Prepare, Work::Prepare);
        }
        let is_late = now.since(self.between.started_at) >= FIRST_CONTROL;
        match self.control {
            Control::Unknown if !is_late => return None,
            Control::Unknown | Control::Paused => return self.idle_paused(now),
            Control::Running => {}
        }
        if let Some(work) = self.between.initial_scan.next() {
            return self.ask(Question::InitialScan, work);
        }
        match self.between.plan.clone() {
            Plan::Idle => self.idle(now),
            Plan::Look => self.plan_look(now),
            Plan::Claim(ready) => self.plan_claim(&ready),
            Plan::CheckPending => {
                let order = self.destination.order();
                self.ask(Question::Pending, Work::CheckPending { order })
            }
        }
    }

    pub(super) fn ask(&mut self, question: Question, work: Work) -> Option<Work> {
        self.between.asking = Some(question);
        Some(work)
    }

    /// Writes the deliveries that a claim could not write: SQS has accepted those messages, whoever holds their lanes
    /// now.
    fn plan_settle(&mut self, now: Time) -> Option<Work> {
        let outcomes = &mut self.destination.outcomes;
        outcomes.drop_what_needs_the_claim();
        let messages = outcomes.take_culprits(false);
        if !messages.is_empty() {
            return self.ask(Question::Quarantine, Work::Quarantine { messages });
        }
        let settlements = outcomes.take_due(&self.destination.write_rate, Duration::ZERO, true, now)?;
        self.ask(Question::Settle, Work::Settle { settlements, proof: None })
    }

    /// Asks the database something even while the destination is paused, so that an outage is noticed.
    fn idle_paused(&mut self, now: Time) -> Option<Work> {
        self.between.pause.hard = Some(now + PAUSED_EVERY);
        self.give_up_after(GaveUp::Paused, now);
        match self.until {
            Until::Drained => self.ask(Question::PausedProbe, Work::Prepare),
            Until::Empty => {
                let order = self.destination.order();
                self.ask(Question::Pending, Work::CheckPending { order })
            }
        }
    }

    fn must_rescan(&self) -> bool {
        let watermarks = &self.destination.knowledge.watermarks;
        self.destination.accepts.kind == DestinationKind::Fifo && Lane::all().any(|lane| watermarks.must_rescan(lane))
    }

    fn idle(&mut self, now: Time) -> Option<Work> {
        let knowledge = &self.destination.knowledge;
        let goes_on = knowledge.parked.iter().any(|group| group.goes_on.is_now(now));
        let is_doubtful = knowledge.parked.iter().any(|group| group.goes_on.is_doubtful(now));
        if goes_on || (is_doubtful && now >= self.between.held_check.due_at()) {
            self.between.plan = Plan::Look;
            return self.plan_look(now);
        }
        self.rescan_if_due(now)
    }

    fn plan_look(&mut self, now: Time) -> Option<Work> {
        loop {
            let (work, next) = match self.between.turn {
                Turn::Rescan => (self.rescan_if_nobody_waits(now), Turn::HeldCheck),
                Turn::HeldCheck => (self.plan_held_check(now), Turn::Writers),
                Turn::Writers => (self.plan_writers(now), Turn::Look),
                Turn::Look => (self.plan_lane_look(), Turn::Rescan),
            };
            self.between.turn = next;
            if work.is_some() || next == Turn::Rescan {
                return work;
            }
        }
    }

    fn rescan_if_due(&mut self, now: Time) -> Option<Work> {
        let is_due = now >= self.destination.knowledge.full_rescan.due_at() || self.must_rescan();
        if is_due { self.plan_rescan(now) } else { None }
    }

    /// While one claim follows another, the claims rescan all lanes beside their reads; a rescan here would delay
    /// messages.
    fn rescan_if_nobody_waits(&mut self, now: Time) -> Option<Work> {
        let covers_all = self.between.has_found && self.between.share.max_lanes == LANES;
        if covers_all && !self.must_rescan() { None } else { self.rescan_if_due(now) }
    }

    fn plan_held_check(&mut self, now: Time) -> Option<Work> {
        let order = self.destination.order();
        if !order.is_kept() {
            return None;
        }
        let parked = &self.destination.knowledge.parked;
        let doubtful = parked.iter().filter(|group| group.goes_on.is_doubtful(now)).map(|group| &group.group);
        let work = self.between.held_check.due(doubtful, order, self.destination.outcomes.deaths(), now)?;
        self.ask(Question::HeldGroups, work)
    }

    fn plan_writers(&mut self, now: Time) -> Option<Work> {
        let is_wanted = self.destination.knowledge.watermarks.wants_writers(now);
        if is_wanted { self.ask(Question::Writers, Work::Writers { asked_at: now }) } else { None }
    }

    fn plan_lane_look(&mut self) -> Option<Work> {
        let lows = self.destination.knowledge.watermarks.lows();
        self.between.heeded_due = self.between.watch.and_then(|watch| watch.latest_due);
        let (order, longest_delay) = (self.destination.order(), self.destination.tuning.retry_max);
        self.ask(Question::Look, Work::Look { lows, order, longest_delay })
    }

    /// One chunk of a rescan of all lanes from the bottom, for messages that were committed below a low watermark.
    pub(super) fn plan_rescan(&mut self, now: Time) -> Option<Work> {
        let order = self.destination.order();
        let knowledge = &mut self.destination.knowledge;
        let watermarks = &knowledge.watermarks;
        let all: Vec<Lane> = Lane::all().collect();
        let mut ranges = knowledge.full_rescan.chunk(&all, |lane| watermarks.low(lane), watermarks.epoch(), now);
        let timeout = knowledge.full_rescan.timeout(&ranges);
        for range in ranges.iter_mut().filter(|range| knowledge.crowds.is_crowded(range.lane)) {
            range.ready_upto = range.upto;
        }
        let is_there = |lane: Lane| ranges.iter().find(|range| range.lane == lane);
        let waits = |group: &&ParkedGroup| {
            is_there(group.lane).is_some_and(|range| group.upto > range.above && group.after < range.upto)
        };
        let waiting = knowledge.parked.iter().filter(waits);
        let filters_held = |lane: Lane| is_there(lane).is_some_and(Range::filters_held);
        let known = knowledge.parked.iter().filter(|group| filters_held(group.lane));
        let known = known.map(|group| Arc::clone(&group.group)).collect();
        let waiting = waiting.map(|group| (Arc::clone(&group.group), group.after)).collect();
        let rescan = Rescan {
            waiting,
            timeout,
            ranges,
            // The lowest message of each lane is enough: the next claim reads on from there.
            limit: 1,
            // Held-up messages count too, until they are remembered.
            known,
            order,
        };
        self.ask(Question::FullRescan, Work::Rescan(RescanWork { rescan, proof: None, statement: 0 }))
    }

    fn plan_claim(&mut self, ready: &[Lane]) -> Option<Work> {
        let lanes = if self.between.share.max_lanes < LANES { ready.to_vec() } else { Lane::all().collect() };
        let (max_lanes, idle_timeout) =
            (self.between.share.max_lanes, claim_idle_timeout(self.destination.tuning.request_timeout));
        self.ask(Question::Claim, Work::Claim { lanes, max_lanes, idle_timeout })
    }
}
