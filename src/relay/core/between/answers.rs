//! What comes of the answers between claims: what is known, and what is planned next. Pure.

use super::{GIVES_BACK, LOOK_AGAIN, Plan};
use crate::clock::Time;
use crate::message::{LANES, Lane, Settlement};
use crate::outbox::{Claimed, OutboxError, Pending, Settled};
use crate::reading::{HeldGroup, Look, Rescanned};
use crate::relay::core::first_scan::Scanned;
use crate::relay::core::outcomes::Written;
use crate::relay::core::session::Session;
use crate::relay::core::standing::{Knowledge, Report};
use crate::relay::core::watermark::Watermarks;
use crate::relay::core::work::{Completion, FirstLook, RescanWork, Work};
use crate::relay::core::{Control, Core, Until};

impl Core {
    /// Takes an answer that is no session's; returns what is to begin at once.
    pub(in crate::relay::core) fn answered(&mut self, completion: Completion, now: Time) -> Option<Work> {
        self.between.asking = None;
        let mut next = None;
        let result = match completion {
            Completion::Prepared(answer) => answer.map(|()| self.between.is_prepared = true),
            Completion::FirstLooked(answer) => answer.map(|first| self.first_looked(first, now)),
            Completion::Rescanned(work, answer) => answer.map(|rescanned| self.rescanned(&work, rescanned, now)),
            Completion::Looked(answer) => answer.map(|look| self.looked(&look, now)),
            Completion::Writers { asked_at, answer } => {
                answer.map(|writers| self.standing.knowledge.watermarks.note_writers(writers, asked_at, now))
            }
            Completion::HeldChecked { deaths, answer, .. } => answer.map(|held| self.held_checked(&held, deaths, now)),
            Completion::PendingChecked(answer) => answer.map(|pending| self.pending(pending, now)),
            Completion::Claimed(answer) => answer.map(|claimed| next = self.claimed(claimed, now)),
            Completion::Released(answer) => answer,
            Completion::Settled { settlements, took, answer } => {
                self.standing.write_rate.note(settlements.len(), took, answer.is_ok());
                self.settled(settlements, answer, now)
            }
            Completion::SetAside { messages, answer } => {
                self.standing.outcomes.set_aside(&messages, answer.is_ok(), now);
                answer.map(|()| self.standing.report(Report::Quarantined(messages)))
            }
            // The claim was given back, or a session was told.
            Completion::ClaimLost => Ok(()),
            other => {
                debug_assert!(false, "not asked for between claims: {other:?}");
                Ok(())
            }
        };
        match result {
            Ok(()) => self.standing.report(Report::DatabaseAnswered),
            Err(error) => self.database_failed(error, now),
        }
        next
    }

    fn settled(
        &mut self,
        settlements: Vec<Settlement>,
        answer: Result<Settled, OutboxError>,
        now: Time,
    ) -> Result<(), OutboxError> {
        match self.standing.outcomes.written(settlements, answer, now) {
            Written::Done(settlements, settled) => self.standing.recorded(settlements, settled),
            Written::Divided => {}
            Written::Failed(error) => return Err(error),
        }
        Ok(())
    }

    fn first_looked(&mut self, first: FirstLook, now: Time) {
        // A server that took over may have no lanes yet.
        self.between.is_prepared = first.incarnations.iter().all(|(_, incarnation)| incarnation.is_some());
        if self.between.is_prepared {
            let scanned = self.between.first_scan.looked(first);
            self.start(scanned, now);
        }
    }

    /// The first scan is over.
    fn start(&mut self, scanned: Option<Scanned>, now: Time) {
        if let Some(Scanned { floors, first }) = scanned {
            let watermarks = Watermarks::start(&floors, &first);
            self.standing.knowledge = Knowledge::new(watermarks, first.incarnations, now);
            self.between.plan = Plan::Look;
        }
    }

    fn rescanned(&mut self, work: &RescanWork, rescanned: Option<Rescanned>, now: Time) {
        if !self.between.first_scan.is_done() {
            let scanned = self.between.first_scan.rescanned(rescanned.as_ref());
            return self.start(scanned, now);
        }
        let Some(rescanned) = rescanned else {
            return self.standing.knowledge.scan.cut_short(&work.rescan, now);
        };
        let knowledge = &mut self.standing.knowledge;
        let (mut late, mut hidden) = (0, Vec::new());
        for found in &rescanned.found {
            if knowledge.leaves_crowd(found) {
                // Only the lowest of the lane was asked for, so there may be others.
                hidden.push(found.key.lane);
                continue;
            }
            late += u64::from(found.key.id <= knowledge.watermarks.low(found.key.lane));
            knowledge.watermarks.rewind(found.key.lane, found.key.id);
        }
        // Where something was found the lane is read from there, and that is all there is.
        let watermarks = &knowledge.watermarks;
        let is_whole = |lane: Lane| !hidden.contains(&lane);
        let low = |lane: Lane| watermarks.low(lane);
        let done = knowledge.scan.came_back(&work.rescan.ranges, is_whole, low, rescanned.took, now);
        let done_any = !done.is_empty();
        for (lane, epoch) in done {
            knowledge.watermarks.rescanned_from_the_bottom(lane, epoch);
        }
        // What was written above the watermarks without the sequence of ids is seen by no watch.
        if self.between.plan == Plan::Rest && done_any {
            self.between.plan = Plan::Look;
        }
        if !rescanned.found.is_empty() {
            self.standing.report(Report::Late(late));
            self.between.plan = Plan::Claim(rescanned.found.iter().map(|found| found.key.lane).collect());
        }
    }

    fn looked(&mut self, look: &Look, now: Time) {
        let knowledge = &mut self.standing.knowledge;
        // Ids are handed out again: somebody has set the sequence back, or restored the database.
        if look.last_id < knowledge.watermarks.last_id() {
            self.standing.report(Report::AnotherHistory);
            self.between.forget(&mut self.standing, now);
            return;
        }
        self.between.database_delays.reset();
        // A writer that was overtaken has ended; what it left below the watermarks may be the head of a group.
        knowledge.watermarks.shows_late(&look.snapshot);
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
            Until::Drained if !self.between.has_news(self.standing.knowledge.watermarks.lowest()) => Plan::Rest,
            Until::Drained => {
                self.pause_to_poll(now);
                Plan::Look
            }
        };
    }

    fn pause_to_poll(&mut self, now: Time) {
        let jitter = 0.8 + 0.4 * self.standing.dice.f64();
        self.between.pause.soft = Some(now + self.standing.tuning.poll_interval.mul_f64(jitter));
    }

    fn held_checked(&mut self, held: &[HeldGroup], deaths: u64, now: Time) {
        self.between.held_check.answered();
        if deaths == self.standing.outcomes.deaths() {
            self.standing.knowledge.hear(held, now);
        }
    }

    fn pending(&mut self, pending: Pending, now: Time) {
        if pending != Pending::Some && self.until == Until::Empty {
            self.ended.is_blocked = pending == Pending::OnlyHeld;
            self.ended.is_cut_short = false;
            self.outcome = Some(Ok(self.ended));
            return;
        }
        self.between.plan = Plan::Look;
        if self.between.pause.soft.is_none() && self.control == Control::Running {
            self.pause_to_poll(now);
        }
    }

    fn claimed(&mut self, claimed: Option<Claimed>, now: Time) -> Option<Work> {
        let plan = std::mem::replace(&mut self.between.plan, Plan::Look);
        let Some(claimed) = claimed else {
            if let Plan::Claim(ready) = plan {
                self.contended(ready, now);
            }
            return None;
        };
        self.between.share.contended = None;
        self.between.share.is_elsewhere = false;
        if !self.standing.knowledge.is_about(&claimed.lanes) {
            self.standing.report(Report::AnotherHistory);
            self.between.forget(&mut self.standing, now);
            return self.ask(GIVES_BACK, Work::Release);
        }
        self.between.finished_before = self.standing.outcomes.finished();
        let (session, extend) = Session::new(&claimed, &mut self.standing, now);
        self.session = Some(session);
        extend
    }

    /// Others have all lanes that have something.
    fn contended(&mut self, ready: Vec<Lane>, now: Time) {
        // The database answers, and somebody delivers.
        self.failing_since = None;
        self.between.share.is_elsewhere = true;
        // Others have all lanes and much to do. Whoever took all that one of them gives back would only swap places.
        if ready.len() >= LANES / 2 {
            self.between.share.max_lanes = self.between.share.max_lanes.min(LANES / 2);
        }
        let (ready, until) = self.between.share.contended.take().unwrap_or((ready, now + LOOK_AGAIN));
        if now < until {
            self.between.plan = Plan::Claim(ready.clone());
            self.between.share.contended = Some((ready, until));
        } else {
            // A server that took over has no lanes, or other ones.
            self.between.is_prepared = false;
        }
        self.pause_to_poll(now);
    }
}
