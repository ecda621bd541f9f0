//! Between claims: prepare, run the initial scan, look, idle, claim. Pure.
//!
//! This file has the state, [`steps`] decides what to ask next, and [`answers`] applies the answers. One question is
//! under way at a time. Acceptances by SQS that are not recorded yet are written before anything else.

mod answers;
mod steps;

use std::time::Duration;

use super::destination::{DestinationState, Knowledge};
use super::initial_scan::InitialScan;
use super::questions::HeldCheck;
use super::watermark::Watermarks;
use super::{Control, Core, Until};
use crate::clock::Time;
use crate::health::Activity;
use crate::message::{LANES, Lane, MessageId};
use crate::reading::{ByLane, Watch};
use crate::retry::Delays;

/// First and longest pause after a database failure.
const DATABASE_RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// The pause after a claim that found nothing to send, in poll intervals, and the longest such pause.
const FRUITLESS_PAUSE: u32 = 5;
const LONGEST_FRUITLESS_PAUSE: Duration = Duration::from_secs(1);

/// How often to look again while others hold all lanes that have work. In between the relay only tries to claim: a look
/// begins at this relay's own low watermarks and walks everything that others have delivered since.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How long a starting relay waits for the first answer about pauses before it treats itself as paused.
const FIRST_CONTROL: Duration = Duration::from_secs(2);

/// How often a paused relay checks whether the database answers.
const PAUSED_EVERY: Duration = Duration::from_millis(3500);

/// The question that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Question {
    Prepare,
    InitialScan,
    Look,
    FullRescan,
    HeldGroups,
    Writers,
    Pending,
    Claim,
    /// Releases a claim that belongs to another incarnation of the database than the relay's knowledge.
    Release,
    Settle,
    Quarantine,
    /// Nothing but whether the database answers during a pause.
    PausedProbe,
}

impl Question {
    /// What the relay does, for the status page.
    fn text(self) -> &'static str {
        match self {
            Self::Prepare => "prepares",
            Self::InitialScan => "runs the initial scan",
            Self::Look => "looks for messages",
            Self::FullRescan => "rescans from the bottom",
            Self::HeldGroups => "checks which groups are held up",
            Self::Writers => "asks who is writing",
            Self::Pending => "checks for pending messages",
            Self::Claim => "claims lanes",
            Self::Release => "releases a claim",
            Self::Settle => "records what SQS accepted",
            Self::Quarantine => "puts messages into quarantine",
            Self::PausedProbe => "looks at the database during a pause",
        }
    }
}

/// The next step.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Plan {
    /// Look which lanes have something to do.
    Look,
    /// Wait until something new comes, or a rescan is due.
    Idle,
    /// Take lanes; these have something to do.
    Claim(Vec<Lane>),
    /// Check whether anything is left, for `--until-empty`.
    CheckPending,
}

/// What comes before a look, if it is due. Each step gets one turn between two looks. So a look and a claim happen even
/// if the database is so slow that the first step is due again after the last one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Turn {
    #[default]
    Rescan,
    HeldCheck,
    Writers,
    Look,
}

/// What is new in the poller's answer.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct News {
    /// There may be something new.
    pub(super) has_come: bool,
    /// An operator has changed messages.
    pub(super) has_acted: bool,
}

/// The state between claims.
#[derive(Debug)]
pub(super) struct BetweenClaims {
    plan: Plan,
    turn: Turn,
    /// Whether the last look found something.
    has_found: bool,
    /// The question under way.
    asking: Option<Question>,
    is_prepared: bool,
    initial_scan: InitialScan,
    pause: Pause,
    watch: Option<Watch>,
    /// The latest due time that a look has covered.
    heeded_due: Option<f64>,
    share: Share,
    held_check: HeldCheck,
    database_delays: Delays,
    started_at: Time,
    /// How many messages were finished when the claim was taken.
    decided_before: u64,
}

/// Why nothing is asked now.
#[derive(Debug, Default)]
struct Pause {
    /// Nothing ends this pause early.
    hard: Option<Time>,
    /// Something new ends this pause early.
    soft: Option<Time>,
    /// The number of claims in a row that found nothing to send.
    fruitless: u32,
}

impl Pause {
    fn expire(&mut self, now: Time) -> bool {
        self.hard = self.hard.filter(|until| now < *until);
        self.soft = self.soft.filter(|until| now < *until);
        self.hard.is_none() && self.soft.is_none()
    }

    fn until(&self) -> Option<Time> {
        self.hard.into_iter().chain(self.soft).max()
    }
}

/// How many lanes to take. An idle relay takes every lane, so that quiet traffic fills requests. A saturated relay
/// takes fewer, only lanes with work, and leaves the others free for a moment.
#[derive(Debug)]
struct Share {
    max_lanes: usize,
    /// Lanes that had work and were all held by others, and until when not to check whether that has changed.
    contended: Option<(Vec<Lane>, Time)>,
    /// Whether the last claim got no lane because others hold them. It stays set while the relay looks and asks again.
    is_elsewhere: bool,
}

impl BetweenClaims {
    pub(super) fn new(now: Time) -> Self {
        Self {
            plan: Plan::Look,
            turn: Turn::default(),
            has_found: false,
            asking: None,
            is_prepared: false,
            initial_scan: InitialScan::default(),
            pause: Pause::default(),
            watch: None,
            heeded_due: None,
            share: Share { max_lanes: LANES, contended: None, is_elsewhere: false },
            held_check: HeldCheck::new(now),
            database_delays: Delays::new(DATABASE_RETRY.0, DATABASE_RETRY.1),
            started_at: now,
            decided_before: 0,
        }
    }

    /// Notes the poller's answer; everything up to `settled_to` is done.
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

    /// There may be something new.
    pub(super) fn wake(&mut self, now: Time) {
        self.pause.soft = None;
        if self.plan == Plan::Idle {
            self.look_again(now);
        }
    }

    /// An operator has changed something: groups that were held up may go on.
    pub(super) fn hurry(&mut self, now: Time) {
        self.held_check.hurry(now);
        self.share.contended = None;
        self.wake(now);
    }

    /// Drops the plan; a pause of the destination may be shorter now.
    pub(super) fn look_again(&mut self, now: Time) {
        self.pause.hard = self.pause.hard.map(|until| until.min(now));
        self.plan = Plan::Look;
        self.share.contended = None;
    }

    /// Asks nothing until then.
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

    /// Decides how many lanes to take next, after a claim that has ended.
    pub(super) fn share_lanes(&mut self, held: usize, is_saturated: bool) {
        self.share.max_lanes = if is_saturated { (held / 2).max(1) } else { LANES };
    }

    /// The knowledge may be about another history of the database.
    pub(super) fn forget(&mut self, destination: &mut DestinationState, now: Time) {
        destination.knowledge = Knowledge::new(Watermarks::default(), ByLane::default(), now);
        self.initial_scan = InitialScan::default();
        self.share.contended = None;
        self.share.is_elsewhere = false;
        self.plan = Plan::Look;
    }

    /// The database failed: the next answer may come from another server.
    pub(super) fn failed(&mut self, destination: &mut DestinationState, now: Time) {
        self.asking = None;
        self.held_check = HeldCheck::new(now);
        self.forget(destination, now);
        self.is_prepared = false;
        self.pause.hard = Some(now + self.database_delays.next_delay(&mut destination.rng));
    }

    /// Whether a claim that cannot be used is being released.
    pub(super) fn is_giving_back(&self) -> bool {
        self.asking == Some(Question::Release)
    }

    /// Whether the schema and the lanes existed.
    pub(super) fn is_prepared(&self) -> bool {
        self.is_prepared
    }

    /// What it is doing.
    pub(super) fn activity(&self) -> Activity {
        match (self.asking, &self.plan) {
            _ if self.share.is_elsewhere => Activity::LanesAreElsewhere,
            (Some(question), _) => Activity::Asking(question.text()),
            (None, Plan::Idle) => Activity::Idle,
            (None, _) => Activity::Asking("pauses before it asks again"),
        }
    }
}

impl Core {
    /// A claim has ended without an error.
    pub(super) fn go_on(&mut self, was_idle: bool, now: Time) {
        let is_fruitful = self.destination.outcomes.decided() > self.between.decided_before;
        self.between.plan = Plan::Look;
        if is_fruitful {
            self.between.pause.fruitless = 0;
            self.failing_since = None;
        } else if was_idle {
            // The next claim may find the same again at once.
            self.between.fruitless(self.destination.tuning.poll_interval, now);
            if self.until == Until::Empty {
                self.between.plan = Plan::CheckPending;
            }
        }
    }

    /// When to call again between claims.
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
        if self.between.plan != Plan::Idle {
            return Some(now);
        }
        let knowledge = &self.destination.knowledge;
        let is_doubtful = knowledge.parked.iter().any(|group| group.goes_on.is_doubtful(now));
        let held_check = is_doubtful.then(|| self.between.held_check.due_at());
        let goes_on = knowledge.parked.iter().filter_map(|group| group.goes_on.at(now));
        goes_on.chain(held_check).chain([knowledge.full_rescan.due_at()]).min()
    }

    /// Whether the relay waits for new work.
    pub(in crate::relay) fn is_idle(&self) -> bool {
        self.session.is_none() && self.between.asking.is_none() && self.result.is_none()
    }
}

#[cfg(test)]
mod tests;
