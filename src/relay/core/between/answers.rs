//! Applies the answers between claims to what is known and what is planned next. Pure.

use super::{LOOK_AGAIN, Plan, Question};
use crate::clock::Time;
use crate::message::{LANES, Lane, Settlement};
use crate::outbox::{Claimed, OutboxError, Pending, Settled};
use crate::reading::{HeldGroup, Look, Rescanned};
use crate::relay::core::destination::{Knowledge, Report};
use crate::relay::core::initial_scan::Scanned;
use crate::relay::core::outcomes::Written;
use crate::relay::core::session::Session;
use crate::relay::core::watermark::Watermarks;
use crate::relay::core::work::{Baseline, Completion, RescanWork, Work};
use crate::relay::core::{Control, Core, Until};

impl Core {
    /// Applies an answer that belongs to no session; returns the work to start at once.
    pub(in crate::relay::core) fn answered(&mut self, completion: Completion, now: Time) -> Option<Work> {
        self.between.asking = None;
        let mut next = None;
        let result = match completion {
            Completion::Prepared(answer) => answer.map(|()| self.between.is_prepared = true),
            Completion::BaselineRead(answer) => answer.map(|first| self.on_baseline(first, now)),
            Completion::Rescanned(work, answer) => answer.map(|rescanned| self.on_rescanned(&work, rescanned, now)),
            Completion::Looked(answer) => answer.map(|look| self.on_looked(&look, now)),
            Completion::Writers { asked_at, answer } => {
                answer.map(|writers| self.destination.knowledge.watermarks.note_writers(writers, asked_at, now))
            }
            Completion::HeldChecked { deaths, answer, .. } => {
                answer.map(|held| self.on_held_checked(&held, deaths, now))
            }
            Completion::PendingChecked(answer) => answer.map(|pending| self.on_pending(pending, now)),
            Completion::Claimed(answer) => answer.map(|claimed| next = self.on_claimed(claimed, now)),
            Completion::Released(answer) => answer,
            Completion::Settled { settlements, took, answer } => {
                self.destination.write_rate.note(settlements.len(), took, answer.is_ok());
                self.on_settled(settlements, answer, now)
            }
            Completion::Quarantined { messages, answer } => {
                self.destination.outcomes.quarantined(&messages, answer.is_ok(), now);
                answer.map(|()| self.destination.report(Report::Quarantined(messages)))
            }
            // The claim was released, or the session already knows.
            Completion::ClaimLost => Ok(()),
            other => {
                debug_assert!(false, "not asked for between claims: {other:?}");
                Ok(())
            }
        };
        match result {
            Ok(()) => self.destination.report(Report::DatabaseAnswered),
            Err(error) => self.database_failed(error, now),
        }
        next
    }

    fn on_settled(
        &mut self,
        settlements: Vec<Settlement>,
        answer: Result<Settled, OutboxError>,
        now: Time,
    ) -> Result<(), OutboxError> {
        match self.destination.outcomes.written(settlements, answer, now) {
            Written::Done(settlements, settled) => self.destination.recorded(settlements, settled),
            Written::Divided => {}
            Written::Failed(error) => return Err(error),
        }
        Ok(())
    }

    fn on_baseline(&mut self, first: Baseline, now: Time) {
        // A server that took over may have no lanes yet.
        self.between.is_prepared = first.incarnations.iter().all(|(_, incarnation)| incarnation.is_some());
        if self.between.is_prepared {
            let scanned = self.between.initial_scan.looked(first);
            self.start(scanned, now);
        }
    }

    /// Takes over the result of the initial scan, once it is finished.
    fn start(&mut self, scanned: Option<Scanned>, now: Time) {
        if let Some(Scanned { floors, first }) = scanned {
            let watermarks = Watermarks::start(&floors, &first);
            self.destination.knowledge = Knowledge::new(watermarks, first.incarnations, now);
            self.between.plan = Plan::Look;
        }
    }

    fn on_rescanned(&mut self, work: &RescanWork, rescanned: Option<Rescanned>, now: Time) {
        if !self.between.initial_scan.is_done() {
            let scanned = self.between.initial_scan.rescanned(rescanned.as_ref());
            return self.start(scanned, now);
        }
        let Some(rescanned) = rescanned else {
            return self.destination.knowledge.full_rescan.timed_out(&work.rescan, now);
        };
        let knowledge = &mut self.destination.knowledge;
        let (mut late, mut hidden) = (0, Vec::new());
        for found in &rescanned.found {
            if knowledge.take_from_crowd(found) {
                // Only the lowest message of the lane was asked for, so there may be others.
                hidden.push(found.key.lane);
                continue;
            }
            late += u64::from(found.key.id <= knowledge.watermarks.low(found.key.lane));
            knowledge.watermarks.rewind(found.key.lane, found.key.id);
        }
        // A lane in which something was found is read from there, which covers the rest.
        let watermarks = &knowledge.watermarks;
        let is_whole = |lane: Lane| !hidden.contains(&lane);
        let low = |lane: Lane| watermarks.low(lane);
        let done = knowledge.full_rescan.came_back(&work.rescan.ranges, is_whole, low, rescanned.took, now);
        let done_any = !done.is_empty();
        for (lane, epoch) in done {
            knowledge.watermarks.rescanned_from_the_bottom(lane, epoch);
        }
        // The poller does not see ids above the watermarks that were not taken from the sequence.
        if self.between.plan == Plan::Idle && done_any {
            self.between.plan = Plan::Look;
        }
        if !rescanned.found.is_empty() {
            self.destination.report(Report::Late(late));
            self.between.plan = Plan::Claim(rescanned.found.iter().map(|found| found.key.lane).collect());
        }
    }

    fn on_looked(&mut self, look: &Look, now: Time) {
        let knowledge = &mut self.destination.knowledge;
        // The sequence went backwards: somebody has reset it, or restored the database.
        if look.last_id < knowledge.watermarks.last_id() {
            self.destination.report(Report::IncarnationChanged);
            self.between.forget(&mut self.destination, now);
            return;
        }
        self.between.database_delays.reset();
        // An overtaken writer has ended; what it left below the watermarks may be the head of a group.
        knowledge.watermarks.note_ended_writers(&look.snapshot);
        let empty = Lane::all().filter(|lane| !look.ready.contains(lane));
        knowledge.watermarks.looked(empty, look, now);
        let goes_on = knowledge.parked.iter().filter(|group| group.goes_on.is_now(now)).map(|group| group.lane);
        let mut ready: Vec<Lane> = look.ready.iter().chain(&look.due).copied().chain(goes_on).collect();
        ready.sort_unstable();
        ready.dedup();
        self.between.has_found = !ready.is_empty();
        if !ready.is_empty() {
            self.between.plan = Plan::Claim(ready);
            return;
        }
        self.failing_since = None;
        self.between.share.is_elsewhere = false;
        self.between.plan = match self.until {
            Until::Empty => Plan::CheckPending,
            Until::Drained if !self.between.has_news(self.destination.knowledge.watermarks.lowest()) => Plan::Idle,
            Until::Drained => {
                self.pause_to_poll(now);
                Plan::Look
            }
        };
    }

    fn pause_to_poll(&mut self, now: Time) {
        let jitter = 0.8 + 0.4 * self.destination.rng.f64();
        self.between.pause.soft = Some(now + self.destination.tuning.poll_interval.mul_f64(jitter));
    }

    fn on_held_checked(&mut self, held: &[HeldGroup], deaths: u64, now: Time) {
        self.between.held_check.answered();
        if deaths == self.destination.outcomes.deaths() {
            self.destination.knowledge.apply_hold(held, now);
        }
    }

    fn on_pending(&mut self, pending: Pending, now: Time) {
        if pending != Pending::Some && self.until == Until::Empty {
            self.summary.is_blocked = pending == Pending::OnlyHeld;
            self.summary.is_cut_short = false;
            self.result = Some(Ok(self.summary));
            return;
        }
        self.between.plan = Plan::Look;
        if self.between.pause.soft.is_none() && self.control == Control::Running {
            self.pause_to_poll(now);
        }
    }

    fn on_claimed(&mut self, claimed: Option<Claimed>, now: Time) -> Option<Work> {
        let plan = std::mem::replace(&mut self.between.plan, Plan::Look);
        let Some(claimed) = claimed else {
            if let Plan::Claim(ready) = plan {
                self.contended(ready, now);
            }
            return None;
        };
        self.between.share.contended = None;
        self.between.share.is_elsewhere = false;
        if !self.destination.knowledge.is_about(&claimed.lanes) {
            self.destination.report(Report::IncarnationChanged);
            self.between.forget(&mut self.destination, now);
            return self.ask(Question::Release, Work::Release);
        }
        self.between.decided_before = self.destination.outcomes.decided();
        let (session, extend) = Session::new(&claimed, &mut self.destination, now);
        self.session = Some(session);
        extend
    }

    /// Others hold all lanes that have something to do.
    fn contended(&mut self, ready: Vec<Lane>, now: Time) {
        // The database answers, and another relay delivers.
        self.failing_since = None;
        self.between.share.is_elsewhere = true;
        // Others hold all lanes and are busy. A relay that took everything another one releases would only swap places
        // with it.
        if ready.len() >= LANES / 2 {
            self.between.share.max_lanes = self.between.share.max_lanes.min(LANES / 2);
        }
        let (ready, until) = self.between.share.contended.take().unwrap_or((ready, now + LOOK_AGAIN));
        if now < until {
            self.between.plan = Plan::Claim(ready.clone());
            self.between.share.contended = Some((ready, until));
        } else {
            // A server that took over has no lanes, or different ones.
            self.between.is_prepared = false;
        }
        self.pause_to_poll(now);
    }
}
