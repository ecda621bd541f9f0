//! Between claims: prepare, scan for the first time, look, rest, claim. Pure.
//!
//! Here is the state; [`steps`] has what is asked next, and [`answers`] what comes of it. One question is under way at a time. What SQS has accepted and
//! nobody has recorded is written before anything else.

mod answers;
mod steps;

use std::time::Duration;

use super::first_scan::FirstScan;
use super::questions::HeldCheck;
use super::standing::{Knowledge, Standing};
use super::watermark::Watermarks;
use super::{Control, Core, Until};
use crate::clock::Time;
use crate::health::Activity;
use crate::message::{LANES, Lane, MessageId};
use crate::reading::{ByLane, Watch};
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

/// What comes before a look, if it is time for it. Each gets one turn between two looks, so that there is a look and a claim
/// however long a slow database takes for each: by then the first of them may be due again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Turn {
    #[default]
    Rescan,
    HeldCheck,
    Writers,
    Look,
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
    turn: Turn,
    /// The last look has found something.
    has_found: bool,
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
    /// Whether the last claim got none because others hold them. It holds while the relay looks and asks again.
    is_elsewhere: bool,
}

impl Between {
    pub(super) fn new(now: Time) -> Self {
        Self {
            plan: Plan::Look,
            turn: Turn::default(),
            has_found: false,
            asking: None,
            is_prepared: false,
            first_scan: FirstScan::default(),
            pause: Pause::default(),
            watch: None,
            heeded_due: None,
            share: Share { max_lanes: LANES, contended: None, is_elsewhere: false },
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
        self.share.is_elsewhere = false;
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
            _ if self.share.is_elsewhere => Activity::LanesAreElsewhere,
            (Some(what), _) => Activity::Asking(what),
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
        let is_doubtful = knowledge.parked.iter().any(|group| group.goes_on.is_doubtful(now));
        let held_check = is_doubtful.then(|| self.between.held_check.due_at());
        let goes_on = knowledge.parked.iter().filter_map(|group| group.goes_on.at(now));
        goes_on.chain(held_check).chain([knowledge.scan.due_at()]).min()
    }

    /// Whether it waits for something to come.
    pub(in crate::relay) fn is_resting(&self) -> bool {
        self.session.is_none() && self.between.asking.is_none() && self.outcome.is_none()
    }
}

#[cfg(test)]
mod tests;
