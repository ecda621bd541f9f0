//! What outlives a claim: settings, limits, what was learnt of the database and of the queue, outcomes that wait, and what
//! there is to report.

use std::collections::HashMap;
use std::sync::Arc;

use super::breaker::Breaker;
use super::handover::{GoesOn, ParkedGroup};
use super::limits::{ConcurrencyLimit, MemoryShare, WriteRate};
use super::outcomes::Outcomes;
use super::scan::Scan;
use super::watermark::Watermarks;
use crate::clock::Time;
use crate::config::{OnDead, Tuning};
use crate::message::{Fault, FaultKind, Lane, MessageKey, Quarantined, QueueKind, Settlement};
use crate::outbox::{OutboxError, Settled};
use crate::reading::{ByLane, HeldGroup, Incarnation, Order};

/// Groups remembered from claim to claim; beyond that they are read again from the table.
pub(super) const MAX_PARKED_GROUPS: usize = 10_000;

/// What was learnt of the database, which is dropped as a whole when it may be about another history.
#[derive(Debug)]
pub(super) struct Knowledge {
    pub(super) watermarks: Watermarks,
    pub(super) scan: Scan,
    /// Groups of which messages below the low watermarks wait in the table.
    pub(super) parked: Vec<ParkedGroup>,
    /// The history that each lane belonged to.
    incarnations: ByLane<Option<Incarnation>>,
}

impl Knowledge {
    /// What is known after the first scan.
    pub(super) fn new(watermarks: Watermarks, incarnations: ByLane<Option<Incarnation>>, now: Time) -> Self {
        Self { watermarks, scan: Scan::new(now), parked: Vec::new(), incarnations }
    }

    /// Whether this is about the history that these lanes belong to. A lane of which nothing is known was made meanwhile.
    pub(super) fn is_about(&self, lanes: &[(Lane, Incarnation)]) -> bool {
        lanes.iter().all(|(lane, incarnation)| self.incarnations[*lane].as_ref() == Some(incarnation))
    }

    /// Remembers groups that a claim left in the table; lanes go back for those that are too many.
    pub(super) fn park(&mut self, groups: Vec<ParkedGroup>) {
        for group in groups {
            if self.parked.len() < MAX_PARKED_GROUPS {
                self.parked.push(group);
            } else {
                self.watermarks.rewind(group.lane, group.after.next());
            }
        }
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
