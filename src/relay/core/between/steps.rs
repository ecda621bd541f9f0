//! What is asked next between claims. Pure.

use std::sync::Arc;
use std::time::Duration;

use super::super::handover::ParkedGroup;
use super::super::work::{RescanWork, Work};
use super::super::{Control, Core, GaveUp, Until};
use super::{FIRST_CONTROL, PAUSED_EVERY, Plan, Turn};
use crate::clock::Time;
use crate::message::{LANES, Lane, QueueKind};
use crate::reading::{Range, Rescan};
use crate::relay::core::lease::claim_limit;

impl Core {
    /// What to ask next, if nothing is being asked.
    pub(in crate::relay::core) fn next(&mut self, now: Time) -> Option<Work> {
        if self.between.asking.is_some() {
            return None;
        }
        if !self.standing.outcomes.is_empty() {
            return if self.between.pause.is_over(now) { self.settle(now) } else { None };
        }
        if self.is_draining {
            self.outcome = Some(Ok(self.ended));
            return None;
        }
        if !self.between.pause.is_over(now) {
            return None;
        }
        if !self.between.is_prepared {
            return self.ask("prepares", Work::Prepare);
        }
        let is_late = now.since(self.between.started_at) >= FIRST_CONTROL;
        match self.control {
            Control::Unknown if !is_late => return None,
            Control::Unknown | Control::Paused => return self.rest_paused(now),
            Control::Running => {}
        }
        if let Some(work) = self.between.first_scan.next() {
            return self.ask("scans for the first time", work);
        }
        match self.between.plan.clone() {
            Plan::Rest => self.rest(now),
            Plan::Look => self.look(now),
            Plan::Claim(ready) => self.claim(&ready),
            Plan::CheckPending => {
                let order = self.standing.order();
                self.ask("checks what is pending", Work::CheckPending { order })
            }
        }
    }

    pub(super) fn ask(&mut self, what: &'static str, work: Work) -> Option<Work> {
        self.between.asking = Some(what);
        Some(work)
    }

    /// What a claim could not write is written: deliveries, because SQS has accepted those messages whoever has their lanes now.
    fn settle(&mut self, now: Time) -> Option<Work> {
        let outcomes = &mut self.standing.outcomes;
        outcomes.drop_what_needs_the_claim();
        let messages = outcomes.take_culprits(false);
        if !messages.is_empty() {
            return self.ask("sets messages aside", Work::SetAside { messages });
        }
        let settlements = outcomes.take_due(&self.standing.write_rate, Duration::ZERO, true, now)?;
        self.ask("records what SQS accepted", Work::Settle { settlements, proof: None })
    }

    /// While the destination is paused the database is looked at, so that one which goes away is noticed.
    fn rest_paused(&mut self, now: Time) -> Option<Work> {
        self.between.pause.hard = Some(now + PAUSED_EVERY);
        self.give_up_after(GaveUp::Paused, now);
        match self.until {
            Until::Drained => self.ask("looks at the database during a pause", Work::Prepare),
            Until::Empty => {
                let order = self.standing.order();
                self.ask("checks what is pending", Work::CheckPending { order })
            }
        }
    }

    fn must_rescan(&self) -> bool {
        let watermarks = &self.standing.knowledge.watermarks;
        self.standing.kind == QueueKind::Fifo && Lane::all().any(|lane| watermarks.must_rescan(lane))
    }

    fn rest(&mut self, now: Time) -> Option<Work> {
        let knowledge = &self.standing.knowledge;
        let goes_on = knowledge.parked.iter().any(|group| group.goes_on.is_now(now));
        let is_doubtful = knowledge.parked.iter().any(|group| group.goes_on.is_doubtful(now));
        if goes_on || (is_doubtful && now >= self.between.held_check.due_at()) {
            self.between.plan = Plan::Look;
            return self.look(now);
        }
        self.rescan_if_due(now)
    }

    fn look(&mut self, now: Time) -> Option<Work> {
        loop {
            let (work, next) = match self.between.turn {
                Turn::Rescan => (self.rescan_if_nobody_waits(now), Turn::HeldCheck),
                Turn::HeldCheck => (self.check_held(now), Turn::Writers),
                Turn::Writers => (self.ask_writers(now), Turn::Look),
                Turn::Look => (self.look_at_lanes(), Turn::Rescan),
            };
            self.between.turn = next;
            if work.is_some() || next == Turn::Rescan {
                return work;
            }
        }
    }

    fn rescan_if_due(&mut self, now: Time) -> Option<Work> {
        let is_due = now >= self.standing.knowledge.scan.due_at() || self.must_rescan();
        if is_due { self.rescan(now) } else { None }
    }

    /// While one claim follows another, the claims rescan all lanes, beside their reads; here messages would wait for it.
    fn rescan_if_nobody_waits(&mut self, now: Time) -> Option<Work> {
        let covers_all = self.between.has_found && self.between.share.max_lanes == LANES;
        if covers_all && !self.must_rescan() { None } else { self.rescan_if_due(now) }
    }

    fn check_held(&mut self, now: Time) -> Option<Work> {
        let order = self.standing.order();
        if !order.is_kept() {
            return None;
        }
        let parked = &self.standing.knowledge.parked;
        let doubtful = parked.iter().filter(|group| group.goes_on.is_doubtful(now)).map(|group| &group.group);
        let work = self.between.held_check.due(doubtful, order, self.standing.outcomes.deaths(), now)?;
        self.ask("checks which groups are held up", work)
    }

    fn ask_writers(&mut self, now: Time) -> Option<Work> {
        let is_wanted = self.standing.knowledge.watermarks.wants_writers(now);
        if is_wanted { self.ask("asks who is writing", Work::Writers { asked_at: now }) } else { None }
    }

    fn look_at_lanes(&mut self) -> Option<Work> {
        let lows = self.standing.knowledge.watermarks.lows();
        self.between.heeded_due = self.between.watch.and_then(|watch| watch.latest_due);
        let (order, longest_delay) = (self.standing.order(), self.standing.tuning.retry_max);
        self.ask("looks for messages", Work::Look { lows, order, longest_delay })
    }

    /// One chunk of a look at all lanes from the bottom: for what was committed below a low watermark.
    pub(super) fn rescan(&mut self, now: Time) -> Option<Work> {
        let order = self.standing.order();
        let knowledge = &mut self.standing.knowledge;
        let watermarks = &knowledge.watermarks;
        let all: Vec<Lane> = Lane::all().collect();
        let mut ranges = knowledge.scan.chunk(&all, |lane| watermarks.low(lane), watermarks.epoch(), now);
        let limit = knowledge.scan.limit(&ranges);
        for range in ranges.iter_mut().filter(|range| knowledge.crowds.is_crowded(range.lane)) {
            range.ready_upto = range.upto;
        }
        let is_there = |lane: Lane| ranges.iter().find(|range| range.lane == lane);
        let waits = |group: &&ParkedGroup| {
            is_there(group.lane).is_some_and(|range| group.upto > range.above && group.after < range.upto)
        };
        let waiting = knowledge.parked.iter().filter(waits);
        let leaves_out = |lane: Lane| is_there(lane).is_some_and(Range::leaves_out);
        let known = knowledge.parked.iter().filter(|group| leaves_out(group.lane));
        let known = known.map(|group| Arc::clone(&group.group)).collect();
        let waiting = waiting.map(|group| (Arc::clone(&group.group), group.after)).collect();
        let rescan = Rescan {
            waiting,
            limit,
            ranges,
            // The lowest of each lane is enough: the claim that follows reads on from there.
            most: 1,
            // What is held up counts too, until it is remembered.
            known,
            order,
        };
        self.ask("looks from the bottom", Work::Rescan(RescanWork { rescan, proof: None, statement: 0 }))
    }

    fn claim(&mut self, ready: &[Lane]) -> Option<Work> {
        let lanes = if self.between.share.max_lanes < LANES { ready.to_vec() } else { Lane::all().collect() };
        let (most, limit) = (self.between.share.max_lanes, claim_limit(self.standing.tuning.request_timeout));
        self.ask("claims lanes", Work::Claim { lanes, most, limit })
    }
}
