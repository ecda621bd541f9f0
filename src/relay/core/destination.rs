//! What outlives a claim: settings, limits, knowledge of the database and the queue, outcomes that wait, and reports.

use std::collections::HashMap;
use std::sync::Arc;

use super::breaker::Breaker;
use super::crowd::Crowds;
use super::full_rescan::FullRescan;
use super::handover::{GoesOn, ParkedGroup};
use super::hot::{Hot, HotGroups};
use super::limits::{ConcurrencyLimit, MemoryShare, WriteRate};
use super::outcomes::Outcomes;
use super::parked::MAX_PARKED;
use super::sequences::Sequences;
use super::watermark::Watermarks;
use crate::clock::Time;
use crate::config::{FifoMode, OnDead, Tuning};
use crate::message::{Accepts, DestinationKind, Fault, FaultKind, Lane, MessageKey, Quarantined, Settlement};
use crate::outbox::{OutboxError, Settled};
use crate::reading::{ByLane, Found, HeldGroup, Incarnation, Order};

/// How many unknown messages of a lane a rescan under a claim shows; if there are more, the lane is read
/// again.
pub(super) const MAX_UNKNOWN: usize = 100;

/// Knowledge of the database; all of it is dropped when it may describe another history.
#[derive(Debug)]
pub(super) struct Knowledge {
    pub(super) watermarks: Watermarks,
    pub(super) full_rescan: FullRescan,
    /// Groups of which messages wait in the table, which no watermark remembers.
    pub(super) parked: Vec<ParkedGroup>,
    /// Groups that are too many to be remembered individually.
    pub(super) crowds: Crowds,
    /// The history that each lane belonged to.
    incarnations: ByLane<Option<Incarnation>>,
}

impl Knowledge {
    /// The knowledge after the initial scan.
    pub(super) fn new(watermarks: Watermarks, incarnations: ByLane<Option<Incarnation>>, now: Time) -> Self {
        Self {
            watermarks,
            full_rescan: FullRescan::new(now),
            parked: Vec::new(),
            crowds: Crowds::default(),
            incarnations,
        }
    }

    /// Whether this is about the history that these lanes belong to. A lane without a known incarnation was created
    /// meanwhile.
    pub(super) fn is_about(&self, lanes: &[(Lane, Incarnation)]) -> bool {
        lanes.iter().all(|(lane, incarnation)| self.incarnations[*lane].as_ref() == Some(incarnation))
    }

    /// Remembers groups that a claim left in the table. When there are too many, groups that are held up join the
    /// crowd, and for the others their lanes are set back.
    pub(super) fn park(&mut self, groups: Vec<ParkedGroup>, limit: usize) {
        for group in groups {
            if self.parked.len() < limit {
                self.parked.push(group);
            } else if group.goes_on.is_held() {
                self.crowds.join(&group.group, MessageKey { lane: group.lane, id: group.after.next() });
            } else {
                self.watermarks.rewind(group.lane, group.after.next());
            }
        }
    }

    /// Nothing holds up this message. If its group is in the crowd, the group leaves it and goes on; returns whether it
    /// did.
    pub(super) fn take_from_crowd(&mut self, found: &Found) -> bool {
        let Found { key, group: Some(group) } = found else { return false };
        let Some(from) = self.crowds.remove(key.lane, group) else { return false };
        let (after, group) = (from.min(key.id).previous(), Arc::clone(group));
        self.parked.push(ParkedGroup { group, lane: key.lane, after, upto: key.id, goes_on: GoesOn::Now });
        true
    }

    /// Applies the answers about groups that were held up.
    pub(super) fn apply_hold(&mut self, held: &[HeldGroup], now: Time) {
        let held: HashMap<&Arc<str>, &HeldGroup> = held.iter().map(|held| (&held.group, held)).collect();
        for group in &mut self.parked {
            if let Some(held) = held.get(&group.group) {
                group.apply_hold(held, now);
            }
        }
    }
}

/// Everything of one destination that outlives a claim.
#[derive(Debug)]
pub(super) struct DestinationState {
    /// What it takes.
    pub(super) accepts: Accepts,
    pub(super) tuning: Tuning,
    pub(super) knowledge: Knowledge,
    pub(super) breaker: Breaker,
    pub(super) sequences: Sequences,
    pub(super) concurrency: ConcurrencyLimit,
    pub(super) write_rate: WriteRate,
    pub(super) outcomes: Outcomes,
    /// The groups that the FIFO mode limits.
    pub(super) hot: HotGroups,
    pub(super) memory: MemoryShare,
    pub(super) rng: fastrand::Rng,
    pub(super) reports: Vec<Report>,
    /// How many groups that wait in the table are remembered one by one; others that are held up
    /// join the crowd, and the lanes of the rest are read again.
    pub(super) max_parked: usize,
    /// How many unknown messages of a lane a rescan under a claim shows.
    pub(super) max_unknown: usize,
    /// The most messages of one group in memory, whatever the mode.
    pub(super) max_window: usize,
}

impl DestinationState {
    /// A destination that nothing is known about.
    pub(super) fn new(accepts: Accepts, tuning: Tuning, memory: MemoryShare, rng: fastrand::Rng, now: Time) -> Self {
        Self {
            accepts,
            tuning,
            knowledge: Knowledge::new(Watermarks::default(), ByLane::default(), now),
            breaker: Breaker::new(tuning.retry_initial, tuning.retry_max),
            sequences: Sequences::default(),
            concurrency: ConcurrencyLimit::new(tuning.max_in_flight),
            write_rate: WriteRate::default(),
            outcomes: Outcomes::default(),
            hot: HotGroups::default(),
            memory,
            rng,
            reports: Vec::new(),
            max_parked: MAX_PARKED,
            max_unknown: MAX_UNKNOWN,
            max_window: usize::MAX,
        }
    }

    /// Which messages hold up a group on this queue.
    pub(super) fn order(&self) -> Order {
        match (self.accepts.kind, self.tuning.on_dead) {
            (DestinationKind::Standard | DestinationKind::Fair, _) => Order::None,
            (DestinationKind::Fifo, OnDead::Skip) => Order::Groups,
            (DestinationKind::Fifo, OnDead::Block) => Order::GroupsBlockedByDead,
        }
    }

    /// At most so many bytes, and with a claim check no more than its largest body: one such destination does not fill
    /// the memory of all.
    pub(super) fn within_share(&self, bytes: usize) -> usize {
        self.accepts.claim_check.as_ref().map_or(bytes, |claim_check| bytes.min(claim_check.max_bytes))
    }

    /// The settings have changed.
    pub(super) fn adjust(&mut self, tuning: Tuning) {
        if tuning.fifo_mode != self.tuning.fifo_mode {
            self.hot.begin_again();
        }
        self.tuning = tuning;
        self.concurrency.set_max(tuning.max_in_flight);
        self.breaker.set_delays(tuning.retry_initial, tuning.retry_max);
        if !self.order().is_blocked_by_dead() {
            // A message in quarantine holds up its group all the same, and the next read shows it.
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

/// An event for metrics, logs or probes.
#[derive(Debug)]
pub(in crate::relay) enum Report {
    /// SQS accepted messages: how old each was, and how many members of metadata could not become attributes.
    Accepted { ages: Vec<std::time::Duration>, dropped_attributes: usize },
    /// An entry is sent again.
    Retried(FaultKind),
    /// Entries are sent again although SQS may have accepted them, or were sent by two relays.
    PossibleDuplicates(u64),
    /// This many messages were accepted too early and are sent once more.
    Repaired(u64),
    /// The queue has put these messages behind later ones of their groups.
    OrderBroken(Vec<MessageKey>),
    /// Outcomes were written back.
    Recorded(Vec<Settlement>),
    /// Delivered messages had been settled by another relay.
    PublishedTwice(u64),
    /// Delivered messages are not in the outbox, or their ids belong to others.
    Unmatched(Vec<MessageKey>),
    /// Records of delivered messages were removed, because their ids had been assigned again.
    Replaced(u64),
    /// Messages were set aside.
    Quarantined(Vec<Quarantined>),
    /// Messages were found that were committed after higher ids had been read.
    Late(u64),
    /// The FIFO mode limits groups: this mode these groups, of which some are named.
    Hot { hot: Hot, names: Vec<Arc<str>>, mode: FifoMode },
    /// The destination is halted.
    Halted(Fault),
    /// The halt has ended.
    Recovered,
    /// The database answered.
    DatabaseAnswered,
    /// The database failed while this many outcomes wait.
    DatabaseFailed { error: OutboxError, unsettled: usize },
    /// The knowledge described another history of the database and was dropped.
    IncarnationChanged,
}
