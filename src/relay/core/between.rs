//! Between claims: prepare, scan for the first time, look, rest, claim. Pure.
//!
//! One question is under way at a time. What SQS has accepted and nobody has recorded is written before anything else.

use std::time::Duration;

use super::first_scan::{FirstScan, Scanned};
use super::questions::HeldCheck;
use super::session::{Session, claim_limit};
use super::standing::{Knowledge, Report, Standing};
use super::watermark::Watermarks;
use super::work::{Completion, FirstLook, RescanWork, Work};
use super::{Control, Core, GaveUp, Until};
use crate::clock::Time;
use crate::health::Activity;
use crate::message::{LANES, Lane, MessageId, QueueKind};
use crate::outbox::{Claimed, OutboxError, Pending, Settled};
use crate::reading::{ByLane, HeldGroup, Look, Rescan, Rescanned, Watch, Which};
use crate::retry::Delays;

/// First and longest pause after a database failure.
const DATABASE_RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// Poll intervals after a claim that found nothing to send, and the longest such pause.
const FRUITLESS_PAUSE: u32 = 5;
const LONGEST_FRUITLESS_PAUSE: Duration = Duration::from_secs(1);

/// While others hold all lanes with work, how often to look again. In between only the lanes are asked for: a look begins
/// at this relay's own low watermarks, and walks all that others have delivered since.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How long a relay that starts waits for the first word of operators before it takes itself for paused.
const FIRST_CONTROL: Duration = Duration::from_secs(2);

/// How often a paused relay looks whether the database answers.
const PAUSED_EVERY: Duration = Duration::from_millis(3500);

/// What it does with a claim that was taken in another history of the database than it knows.
const GIVES_BACK: &str = "gives a claim back";

/// What is next.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Plan {
    /// Look which lanes have something.
    Look,
    /// Wait until something comes, or a rescan is due.
    Rest,
    /// Take lanes, of which these have something.
    Claim(Vec<Lane>),
    /// See whether anything is left, for `--until-empty`.
    CheckPending,
}

/// What a look at all destinations brings that was not known.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct News {
    /// Something may have come.
    pub(super) has_come: bool,
    /// An operator has done something to messages.
    pub(super) has_acted: bool,
}

/// The state between claims.
#[derive(Debug)]
pub(super) struct Between {
    plan: Plan,
    /// What is being asked.
    asking: Option<&'static str>,
    is_prepared: bool,
    first_scan: FirstScan,
    pause: Pause,
    watch: Option<Watch>,
    /// The latest due time that a look has seen to.
    heeded_due: Option<f64>,
    share: Share,
    held_check: HeldCheck,
    database_delays: Delays,
    started_at: Time,
    /// How many messages were finished when the claim was taken.
    finished_before: u64,
}

/// Why nothing is asked for now.
#[derive(Debug, Default)]
struct Pause {
    /// Nothing ends this before its time.
    hard: Option<Time>,
    /// News end this.
    soft: Option<Time>,
    /// Claims in a row that found nothing to send.
    fruitless: u32,
}

impl Pause {
    fn is_over(&mut self, now: Time) -> bool {
        self.hard = self.hard.filter(|until| now < *until);
        self.soft = self.soft.filter(|until| now < *until);
        self.hard.is_none() && self.soft.is_none()
    }

    fn until(&self) -> Option<Time> {
        self.hard.into_iter().chain(self.soft).max()
    }
}

/// How many lanes to take. An idle relay takes every lane, so that quiet traffic fills requests. A saturated one takes fewer,
/// those with work, and leaves the others free for a moment.
#[derive(Debug)]
struct Share {
    max_lanes: usize,
    /// Lanes that had work and were all held by others, and until when not to look whether that is still so.
    contended: Option<(Vec<Lane>, Time)>,
}

impl Between {
    pub(super) fn new(now: Time) -> Self {
        Self {
            plan: Plan::Look,
            asking: None,
            is_prepared: false,
            first_scan: FirstScan::default(),
            pause: Pause::default(),
            watch: None,
            heeded_due: None,
            share: Share { max_lanes: LANES, contended: None },
            held_check: HeldCheck::new(now),
            database_delays: Delays::new(DATABASE_RETRY.0, DATABASE_RETRY.1),
            started_at: now,
            finished_before: 0,
        }
    }

    /// What was seen of all destinations; everything up to `settled_to` is done.
    pub(super) fn watched(&mut self, watch: Watch, settled_to: MessageId) -> News {
        let has_acted = self.watch.is_some_and(|before| before.last_action != watch.last_action);
        self.watch = Some(watch);
        News { has_come: self.has_news(settled_to), has_acted }
    }

    fn has_news(&self, settled_to: MessageId) -> bool {
        self.watch.is_some_and(|watch| {
            watch.last_id > settled_to || (watch.latest_due.is_some() && watch.latest_due != self.heeded_due)
        })
    }

    /// Something may have come.
    pub(super) fn wake(&mut self, now: Time) {
        self.pause.soft = None;
        if self.plan == Plan::Rest {
            self.look_again(now);
        }
    }

    /// An operator has changed something: what is held up may go on.
    pub(super) fn hurry(&mut self, now: Time) {
        self.held_check.hurry(now);
        self.share.contended = None;
        self.wake(now);
    }

    /// Nothing that was planned holds any more; a pause of the destination may be shorter now.
    pub(super) fn look_again(&mut self, now: Time) {
        self.pause.hard = self.pause.hard.map(|until| until.min(now));
        self.plan = Plan::Look;
        self.share.contended = None;
    }

    /// Leaves everything alone until then.
    pub(super) fn pause_until(&mut self, until: Time) {
        self.pause.hard = Some(until);
        self.plan = Plan::Look;
    }

    /// A claim found nothing to send, and might find the same again at once.
    fn fruitless(&mut self, poll_interval: Duration, now: Time) {
        let pause = poll_interval * FRUITLESS_PAUSE * 2_u32.pow(self.pause.fruitless.min(10));
        self.pause.fruitless += 1;
        self.pause.soft = Some(now + pause.min(LONGEST_FRUITLESS_PAUSE.max(poll_interval)));
    }

    /// How the lanes were shared in a claim that is over.
    pub(super) fn share_lanes(&mut self, held: usize, is_saturated: bool) {
        self.share.max_lanes = if is_saturated { (held / 2).max(1) } else { LANES };
    }

    /// What was learnt may be about another history of the database.
    pub(super) fn forget(&mut self, standing: &mut Standing, now: Time) {
        standing.knowledge = Knowledge::new(Watermarks::default(), ByLane::default(), now);
        self.first_scan = FirstScan::default();
        self.share.contended = None;
        self.plan = Plan::Look;
    }

    /// The database failed: whatever it was, the next answer may come from another server.
    pub(super) fn failed(&mut self, standing: &mut Standing, now: Time) {
        self.asking = None;
        self.held_check = HeldCheck::new(now);
        self.forget(standing, now);
        self.is_prepared = false;
        self.pause.hard = Some(now + self.database_delays.next_delay(&mut standing.dice));
    }

    /// Whether a claim that cannot be used is given back.
    pub(super) fn is_giving_back(&self) -> bool {
        self.asking == Some(GIVES_BACK)
    }

    /// Whether the schema and the lanes were there.
    pub(super) fn is_prepared(&self) -> bool {
        self.is_prepared
    }

    /// What it is doing.
    pub(super) fn activity(&self) -> Activity {
        match (self.asking, &self.plan) {
            (Some(what), _) => Activity::Asking(what),
            (None, _) if self.share.contended.is_some() => Activity::LanesAreElsewhere,
            (None, Plan::Rest) => Activity::Idle,
            (None, _) => Activity::Asking("pauses before it asks again"),
        }
    }
}

impl Core {
    /// A claim is over, and nothing went wrong.
    pub(super) fn go_on(&mut self, was_idle: bool, now: Time) {
        let is_fruitful = self.standing.outcomes.finished() > self.between.finished_before;
        self.between.plan = Plan::Look;
        if is_fruitful {
            self.between.pause.fruitless = 0;
            self.failing_since = None;
        } else if was_idle {
            // It may find the same again at once.
            self.between.fruitless(self.standing.tuning.poll_interval, now);
            if self.until == Until::Empty {
                self.between.plan = Plan::CheckPending;
            }
        }
    }

    /// When to look again between claims.
    pub(super) fn between_wake_at(&self, now: Time) -> Option<Time> {
        if self.between.asking.is_some() {
            return None;
        }
        if let Some(until) = self.between.pause.until() {
            return Some(until);
        }
        if self.control == Control::Unknown {
            return Some(self.between.started_at + FIRST_CONTROL);
        }
        if self.between.plan != Plan::Rest {
            return Some(now);
        }
        let knowledge = &self.standing.knowledge;
        let is_doubtful = knowledge.remembered.iter().any(|group| group.goes_on.is_doubtful(now));
        let held_check = is_doubtful.then(|| self.between.held_check.due_at());
        let goes_on = knowledge.remembered.iter().filter_map(|group| group.goes_on.at(now));
        goes_on.chain(held_check).chain([knowledge.scan.due_at()]).min()
    }

    /// Whether it waits for something to come.
    pub(in crate::relay) fn is_resting(&self) -> bool {
        self.session.is_none() && self.between.asking.is_none() && self.outcome.is_none()
    }

    /// What to ask next, if nothing is being asked.
    pub(super) fn next(&mut self, now: Time) -> Option<Work> {
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

    fn ask(&mut self, what: &'static str, work: Work) -> Option<Work> {
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
        let goes_on = knowledge.remembered.iter().any(|group| group.goes_on.is_now(now));
        let is_doubtful = knowledge.remembered.iter().any(|group| group.goes_on.is_doubtful(now));
        if goes_on || (is_doubtful && now >= self.between.held_check.due_at()) {
            self.between.plan = Plan::Look;
            return self.look(now);
        }
        if now >= knowledge.scan.due_at() || self.must_rescan() {
            return self.rescan(now);
        }
        None
    }

    fn look(&mut self, now: Time) -> Option<Work> {
        if now >= self.standing.knowledge.scan.due_at() || self.must_rescan() {
            return self.rescan(now);
        }
        let order = self.standing.order();
        let knowledge = &self.standing.knowledge;
        if order.is_kept() {
            let doubtful = knowledge.remembered.iter().filter(|group| group.goes_on.is_doubtful(now));
            let doubtful = doubtful.map(|group| &group.group);
            let deaths = self.standing.outcomes.deaths();
            if let Some(work) = self.between.held_check.due(doubtful, order, deaths, now) {
                return self.ask("checks which groups are held up", work);
            }
        }
        if knowledge.watermarks.wants_writers(now) {
            return self.ask("asks who is writing", Work::Writers { asked_at: now });
        }
        let lows = knowledge.watermarks.lows();
        self.between.heeded_due = self.between.watch.and_then(|watch| watch.latest_due);
        let longest_delay = self.standing.tuning.retry_max;
        self.ask("looks for messages", Work::Look { lows, order, longest_delay })
    }

    /// One chunk of a look at all lanes from the bottom: for what was committed below a low watermark.
    fn rescan(&mut self, now: Time) -> Option<Work> {
        let order = self.standing.order();
        let knowledge = &mut self.standing.knowledge;
        let watermarks = &knowledge.watermarks;
        let all: Vec<Lane> = Lane::all().collect();
        let ranges = knowledge.scan.chunk(&all, |lane| watermarks.low(lane), watermarks.epoch(), now);
        let is_there = |lane: Lane| ranges.iter().find(|range| range.lane == lane);
        let waits = |group: &&super::parked::Remembered| {
            is_there(group.lane).is_some_and(|range| group.upto > range.above && group.after < range.upto)
        };
        let waiting = knowledge.remembered.iter().filter(waits);
        let rescan = Rescan {
            waiting: waiting.map(|group| (std::sync::Arc::clone(&group.group), group.after)).collect(),
            ranges,
            // The lowest of each lane is enough: the claim that follows reads on from there.
            most: 1,
            which: if order.is_kept() { Which::Ready(order) } else { Which::All },
        };
        self.ask("looks from the bottom", Work::Rescan(RescanWork { rescan, proof: None, statement: 0 }))
    }

    fn claim(&mut self, ready: &[Lane]) -> Option<Work> {
        let lanes = if self.between.share.max_lanes < LANES { ready.to_vec() } else { Lane::all().collect() };
        let (most, limit) = (self.between.share.max_lanes, claim_limit(self.standing.tuning.request_timeout));
        self.ask("claims lanes", Work::Claim { lanes, most, limit })
    }

    /// Takes an answer that is no session's; returns what is to begin at once.
    pub(super) fn answered(&mut self, completion: Completion, now: Time) -> Option<Work> {
        self.between.asking = None;
        let mut next = None;
        let result = match completion {
            Completion::Prepared(answer) => answer.map(|()| self.between.is_prepared = true),
            Completion::FirstLooked(answer) => answer.map(|first| self.first_looked(first, now)),
            Completion::Rescanned(work, answer) => answer.map(|rescanned| self.rescanned(&work, &rescanned, now)),
            Completion::Looked(answer) => answer.map(|look| self.looked(&look, now)),
            Completion::Writers { asked_at, answer } => {
                answer.map(|writers| self.standing.knowledge.watermarks.note_writers(writers, asked_at))
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
        settlements: Vec<crate::message::Settlement>,
        answer: Result<Settled, OutboxError>,
        now: Time,
    ) -> Result<(), OutboxError> {
        match self.standing.outcomes.written(settlements, answer, now) {
            super::outcomes::Written::Done(settlements, settled) => self.standing.recorded(settlements, settled),
            super::outcomes::Written::Divided => {}
            super::outcomes::Written::Failed(error) => return Err(error),
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

    fn rescanned(&mut self, work: &RescanWork, rescanned: &Rescanned, now: Time) {
        if !self.between.first_scan.is_done() {
            let scanned = self.between.first_scan.rescanned(work, rescanned);
            return self.start(scanned, now);
        }
        let knowledge = &mut self.standing.knowledge;
        let mut late = 0;
        for found in &rescanned.found {
            late += u64::from(found.key.id <= knowledge.watermarks.low(found.key.lane));
            knowledge.watermarks.rewind(found.key.lane, found.key.id);
        }
        // Where something was found the lane is read from there, and that is all there is.
        let watermarks = &knowledge.watermarks;
        let done = knowledge.scan.came_back(&work.rescan.ranges, |lane| watermarks.low(lane), rescanned.took, now);
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
        let goes_on = knowledge.remembered.iter().filter(|group| group.goes_on.is_now(now)).map(|group| group.lane);
        let mut ready: Vec<Lane> = look.ready.iter().chain(&look.due).copied().chain(goes_on).collect();
        ready.sort_unstable();
        ready.dedup();
        if !ready.is_empty() {
            self.between.plan = Plan::Claim(ready);
            return;
        }
        self.failing_since = None;
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
