//! What outlives a claim: settings, limits, what was learnt of the database and of the queue, outcomes that wait, and what
//! there is to report.

use std::collections::HashMap;
use std::sync::Arc;

use super::breaker::Breaker;
use super::crowd::Crowds;
use super::handover::{GoesOn, ParkedGroup};
use super::limits::{ConcurrencyLimit, MemoryShare, WriteRate};
use super::outcomes::Outcomes;
use super::parked::MAX_PARKED;
use super::scan::Scan;
use super::watermark::Watermarks;
use crate::clock::Time;
use crate::config::{OnDead, Tuning};
use crate::message::{Fault, FaultKind, Lane, MessageKey, Quarantined, QueueKind, Settlement};
use crate::outbox::{OutboxError, Settled};
use crate::reading::{ByLane, Found, HeldGroup, Incarnation, Order};

/// How many messages of a lane that nobody knew of a look under a claim shows; where there are more, the lane is looked at again.
pub(super) const MAX_UNKNOWN: usize = 100;

/// What was learnt of the database, which is dropped as a whole when it may be about another history.
#[derive(Debug)]
pub(super) struct Knowledge {
    pub(super) watermarks: Watermarks,
    pub(super) scan: Scan,
    /// Groups of which messages below the low watermarks wait in the table.
    pub(super) parked: Vec<ParkedGroup>,
    /// Those of which there are too many.
    pub(super) crowds: Crowds,
    /// The history that each lane belonged to.
    incarnations: ByLane<Option<Incarnation>>,
}

impl Knowledge {
    /// What is known after the first scan.
    pub(super) fn new(watermarks: Watermarks, incarnations: ByLane<Option<Incarnation>>, now: Time) -> Self {
        Self { watermarks, scan: Scan::new(now), parked: Vec::new(), crowds: Crowds::default(), incarnations }
    }

    /// Whether this is about the history that these lanes belong to. A lane of which nothing is known was made meanwhile.
    pub(super) fn is_about(&self, lanes: &[(Lane, Incarnation)]) -> bool {
        lanes.iter().all(|(lane, incarnation)| self.incarnations[*lane].as_ref() == Some(incarnation))
    }

    /// Remembers groups that a claim left in the table. Of those that are too many the ones that are held up join the crowd, and
    /// lanes go back for the others.
    pub(super) fn park(&mut self, groups: Vec<ParkedGroup>, most: usize) {
        for group in groups {
            if self.parked.len() < most {
                self.parked.push(group);
            } else if group.goes_on.is_held() {
                self.crowds.join(&group.group, MessageKey { lane: group.lane, id: group.after.next() });
            } else {
                self.watermarks.rewind(group.lane, group.after.next());
            }
        }
    }

    /// Nothing holds this message up. If its group is one of a crowd it goes on; returns whether it was.
    pub(super) fn leaves_crowd(&mut self, found: &Found) -> bool {
        let Found { key, group: Some(group) } = found else { return false };
        let Some(from) = self.crowds.leave(key.lane, group) else { return false };
        let (after, group) = (from.min(key.id).previous(), Arc::clone(group));
        self.parked.push(ParkedGroup { group, lane: key.lane, after, upto: key.id, goes_on: GoesOn::Now });
        true
    }

    /// Groups were asked about: each goes on, or not, as that says.
    pub(super) fn hear(&mut self, held: &[HeldGroup], now: Time) {
        let held: HashMap<&Arc<str>, &HeldGroup> = held.iter().map(|held| (&held.group, held)).collect();
        for group in &mut self.parked {
            if let Some(held) = held.get(&group.group) {
                group.hear(held, now);
            }
        }
    }
}

/// Everything of one destination that outlives a claim.
#[derive(Debug)]
pub(super) struct Standing {
    pub(super) kind: QueueKind,
    pub(super) tuning: Tuning,
    pub(super) knowledge: Knowledge,
    pub(super) breaker: Breaker,
    pub(super) concurrency: ConcurrencyLimit,
    pub(super) write_rate: WriteRate,
    pub(super) outcomes: Outcomes,
    pub(super) memory: MemoryShare,
    pub(super) dice: fastrand::Rng,
    pub(super) reports: Vec<Report>,
    /// How many groups that wait in the table are remembered one by one; of others their lanes are read again.
    pub(super) max_parked: usize,
    /// How many messages of a lane that nobody knew of a look under a claim shows.
    pub(super) max_unknown: usize,
}

impl Standing {
    /// A destination of which nothing is known.
    pub(super) fn new(kind: QueueKind, tuning: Tuning, memory: MemoryShare, dice: fastrand::Rng, now: Time) -> Self {
        Self {
            kind,
            tuning,
            knowledge: Knowledge::new(Watermarks::default(), ByLane::default(), now),
            breaker: Breaker::new(tuning.retry_initial, tuning.retry_max),
            concurrency: ConcurrencyLimit::new(tuning.max_in_flight),
            write_rate: WriteRate::default(),
            outcomes: Outcomes::default(),
            memory,
            dice,
            reports: Vec::new(),
            max_parked: MAX_PARKED,
            max_unknown: MAX_UNKNOWN,
        }
    }

    /// What holds a group up on this queue.
    pub(super) fn order(&self) -> Order {
        match (self.kind, self.tuning.on_dead) {
            (QueueKind::Standard, _) => Order::None,
            (QueueKind::Fifo, OnDead::Skip) => Order::Groups,
            (QueueKind::Fifo, OnDead::Block) => Order::GroupsBlockedByDead,
        }
    }

    /// Other settings are in force.
    pub(super) fn adjust(&mut self, tuning: Tuning) {
        self.tuning = tuning;
        self.concurrency.set_max(tuning.max_in_flight);
        self.breaker.set_delays(tuning.retry_initial, tuning.retry_max);
        if !self.order().is_blocked_by_dead() {
            // What is in quarantine holds its group up all the same, and says so when it is read.
            for group in &mut self.knowledge.parked {
                if matches!(group.goes_on, GoesOn::WithoutBlock(_)) {
                    group.goes_on = GoesOn::Now;
                }
            }
        }
    }

    /// Outcomes were written back.
    pub(super) fn recorded(&mut self, settlements: Vec<Settlement>, settled: Settled) {
        self.report(Report::Recorded(settlements));
        if !settled.published_twice.is_empty() {
            self.report(Report::PublishedTwice(settled.published_twice.len() as u64));
        }
        if settled.replaced > 0 {
            self.report(Report::Replaced(settled.replaced));
        }
        if !settled.unmatched.is_empty() {
            self.report(Report::Unmatched(settled.unmatched));
        }
    }

    pub(super) fn report(&mut self, report: Report) {
        self.reports.push(report);
    }
}

/// Something that metrics, logs or probes should know.
#[derive(Debug)]
pub(in crate::relay) enum Report {
    /// SQS accepted messages: how old each was, and how many members of metadata could not become attributes.
    Accepted { ages: Vec<std::time::Duration>, left_out: usize },
    /// An entry is sent again.
    Retried(FaultKind),
    /// Entries are sent again although SQS may have accepted them, or were sent by two relays.
    PossibleDuplicates(u64),
    /// Outcomes were written back.
    Recorded(Vec<Settlement>),
    /// Delivered messages had been settled by another relay.
    PublishedTwice(u64),
    /// Delivered messages are not in the outbox, or their ids belong to others.
    Unmatched(Vec<MessageKey>),
    /// Records of delivered messages were removed, because their ids had been given again.
    Replaced(u64),
    /// Messages were set aside.
    Quarantined(Vec<Quarantined>),
    /// Messages were found that were committed after higher ids had been read.
    Late(u64),
    /// The destination is halted.
    Halted(Fault),
    /// It is not any more.
    Back,
    /// The database answered.
    DatabaseAnswered,
    /// It did not, and so many outcomes wait.
    DatabaseFailed { error: OutboxError, unsettled: usize },
    /// What was learnt is about another history of the database and was dropped.
    AnotherHistory,
}
