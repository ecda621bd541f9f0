//! A simulated PostgreSQL: what its statements see and change at one instant. [`super::process`] decides when they run.
//!
//! It holds rows, transactions and locks as the statements in `sql/queries/*.sql` see them. Each answer gives the
//! guarantees that the head of its statement states.

mod reads;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::clock::Time;
use crate::message::{
    EventPosition, Lane, MessageKey, Origin, Outcome, Quarantined, SequenceNumber, Settlement, TransactionId,
};
use crate::outbox::{OutboxError, Settled};
use crate::reading::{ByLane, ClaimProof, Incarnation, Snapshot};

/// When a deferred message may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Available {
    At(Time),
    Never,
}

/// A message, whatever its status.
#[derive(Clone, Debug)]
pub(super) struct Row {
    /// Never assigned twice, even if ids are.
    pub(super) uid: u64,
    pub(super) key: MessageKey,
    pub(super) group: Option<Arc<str>>,
    pub(super) attempts: i16,
    pub(super) available: Option<Available>,
    /// The number of the commit that made it visible.
    pub(super) committed: u64,
    /// Whether an operator has redriven it. Later messages of its group may have gone first.
    pub(super) is_redriven: bool,
    /// The number of the last copy that SQS accepted too early, as recorded.
    pub(super) superseded: Option<SequenceNumber>,
}

impl Row {
    pub(super) fn origin(&self) -> Origin {
        Origin {
            event_position: EventPosition(self.key.id.0),
            enqueued_at: SystemTime::UNIX_EPOCH + Duration::from_micros(self.uid),
        }
    }
}

/// The uid of the message with this origin.
pub(super) fn uid(origin: Origin) -> u64 {
    origin.enqueued_at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_micros() as u64
}

/// A message in quarantine.
#[derive(Clone, Debug)]
pub(super) struct QuarantinedRow {
    pub(super) uid: u64,
    pub(super) group: Option<Arc<str>>,
}

/// The open transaction of a claim.
#[derive(Clone, Debug)]
pub(super) struct OpenClaim {
    pub(super) lanes: Vec<Lane>,
    pub(super) idle_timeout: Duration,
    pub(super) heard_at: Time,
}

/// The state of PostgreSQL.
#[derive(Clone, Debug)]
pub(super) struct Database {
    pub(super) pending: BTreeMap<MessageKey, Row>,
    pub(super) delivered: BTreeMap<MessageKey, Row>,
    pub(super) dead: BTreeMap<MessageKey, Row>,
    /// Messages that have died since the last check.
    pub(super) died: Vec<Row>,
    pub(super) quarantine: BTreeMap<MessageKey, QuarantinedRow>,
    pub(super) last_id: i64,
    pub(super) actions: i64,
    next_xid: i64,
    latest_ended: i64,
    pub(super) commits: u64,
    /// Open transactions, and the messages that each has written.
    running: BTreeMap<TransactionId, Vec<Row>>,
    /// The open transactions that hold the lock of a writer.
    writers: BTreeSet<TransactionId>,
    pub(super) claims: BTreeMap<TransactionId, OpenClaim>,
    /// Claims that the server has ended because it heard nothing from their holders.
    pub(super) timed_out: BTreeSet<TransactionId>,
    lanes: ByLane<Option<Incarnation>>,
    /// How often the server has started.
    pub(super) starts: u64,
    /// The uids of messages whose outcomes a constraint refuses.
    pub(super) refused: HashSet<u64>,
    /// The uids of messages whose event cannot be read.
    pub(super) unreadable: HashSet<u64>,
}

impl Database {
    pub(super) fn new() -> Self {
        Self {
            pending: BTreeMap::new(),
            delivered: BTreeMap::new(),
            dead: BTreeMap::new(),
            died: Vec::new(),
            quarantine: BTreeMap::new(),
            last_id: 0,
            actions: 0,
            next_xid: 100,
            latest_ended: 99,
            commits: 0,
            running: BTreeMap::new(),
            writers: BTreeSet::new(),
            claims: BTreeMap::new(),
            timed_out: BTreeSet::new(),
            lanes: ByLane::default(),
            starts: 1,
            refused: HashSet::new(),
            unreadable: HashSet::new(),
        }
    }

    // Transactions.

    pub(super) fn begin(&mut self) -> TransactionId {
        let id = TransactionId(self.next_xid);
        self.next_xid += 1;
        self.running.insert(id, Vec::new());
        id
    }

    /// A transaction writes a message, and takes the lock of a writer.
    pub(super) fn insert(&mut self, id: TransactionId, row: Row) {
        self.writers.insert(id);
        self.running.get_mut(&id).unwrap().push(row);
    }

    pub(super) fn lock_as_writer(&mut self, id: TransactionId) {
        self.writers.insert(id);
    }

    /// The groups in which a transaction has written messages, with their lanes.
    pub(super) fn groups_of(&self, id: TransactionId) -> BTreeSet<(Arc<str>, Lane)> {
        let rows = self.running.get(&id).into_iter().flatten();
        rows.filter_map(|row| Some((Arc::clone(row.group.as_ref()?), row.key.lane))).collect()
    }

    pub(super) fn is_running(&self, id: TransactionId) -> bool {
        self.running.contains_key(&id)
    }

    pub(super) fn end(&mut self, id: TransactionId, commits: bool) {
        let Some(rows) = self.running.remove(&id) else { return };
        self.writers.remove(&id);
        self.latest_ended = self.latest_ended.max(id.0);
        if commits {
            self.commits += 1;
            for row in rows {
                self.pending.insert(row.key, Row { committed: self.commits, ..row });
            }
        }
    }

    pub(super) fn snapshot(&self, own: &BTreeSet<TransactionId>) -> Snapshot {
        let xmax = TransactionId(self.latest_ended + 1);
        let running = self.running.keys().copied().filter(|id| *id < xmax).collect();
        Snapshot::new(xmax, running).without(own)
    }

    fn next_xid(&self) -> TransactionId {
        TransactionId(self.next_xid)
    }

    // Claims.

    pub(super) fn create_lanes(&mut self) {
        let starts = self.starts;
        for (number, lane) in self.lanes.values_mut().enumerate() {
            lane.get_or_insert_with(|| Arc::from(format!("{starts}/{number}")));
        }
    }

    pub(super) fn incarnations(&self) -> ByLane<Option<Incarnation>> {
        self.lanes.clone()
    }

    fn take(&self, wanted: &[Lane], max_lanes: usize, first: usize) -> Vec<(Lane, Incarnation)> {
        let is_held = |lane: &Lane| self.claims.values().any(|claim| claim.lanes.contains(lane));
        let mut free: Vec<Lane> = wanted.iter().copied().filter(|lane| !is_held(lane)).collect();
        free.sort_by_key(|lane| (lane.index() + 16 - first) % 16);
        let named = free.into_iter().filter_map(|lane| Some((lane, self.lanes[lane].clone()?)));
        named.take(max_lanes).collect()
    }

    pub(super) fn claim(
        &mut self,
        wanted: &[Lane],
        max_lanes: usize,
        first: usize,
        idle_timeout: Duration,
        now: Time,
    ) -> Option<(Vec<(Lane, Incarnation)>, ClaimProof)> {
        let lanes = self.take(wanted, max_lanes, first);
        if lanes.is_empty() {
            return None;
        }
        let id = self.begin();
        let numbers = lanes.iter().map(|(lane, _)| *lane).collect();
        self.claims.insert(id, OpenClaim { lanes: numbers, idle_timeout, heard_at: now });
        Some((lanes, ClaimProof { transaction_id: id, server: self.starts.to_string() }))
    }

    pub(super) fn widen(
        &mut self,
        id: TransactionId,
        wanted: &[Lane],
        max_lanes: usize,
        now: Time,
    ) -> Vec<(Lane, Incarnation)> {
        let lanes = self.take(wanted, max_lanes, 0);
        let claim = self.claims.get_mut(&id).unwrap();
        claim.lanes.extend(lanes.iter().map(|(lane, _)| *lane));
        claim.heard_at = now;
        lanes
    }

    pub(super) fn end_claim(&mut self, id: TransactionId) {
        self.claims.remove(&id);
        self.end(id, false);
    }

    pub(super) fn is_claimed(&self, proof: Option<&ClaimProof>) -> Result<(), OutboxError> {
        let lives = |proof: &ClaimProof| {
            proof.server == self.starts.to_string() && self.claims.contains_key(&proof.transaction_id)
        };
        if proof.is_none_or(lives) { Ok(()) } else { Err(OutboxError::ClaimLost) }
    }

    // Failures.

    /// The server crashes and restarts. All transactions are gone, and so are the lanes, because their table is
    /// unlogged.
    pub(super) fn restart(&mut self) {
        self.running.clear();
        self.writers.clear();
        self.claims.clear();
        self.timed_out.clear();
        self.latest_ended = self.next_xid - 1;
        self.lanes = ByLane::default();
        self.starts += 1;
    }

    /// A standby that has received no more than this is promoted. What was committed since is lost, and its ids are
    /// assigned again unless they are among the next `skipped` ones: PostgreSQL logs a sequence 32 ids ahead.
    pub(super) fn promote(&mut self, standby: &Database, skipped: i64) {
        let (starts, refused, unreadable) = (self.starts, self.refused.clone(), self.unreadable.clone());
        *self = standby.clone();
        self.last_id += skipped;
        (self.starts, self.refused, self.unreadable) = (starts, refused, unreadable);
        self.restart();
    }

    // Recording outcomes.

    /// Records outcomes at one instant.
    pub(super) fn settle(
        &mut self,
        settlements: &[Settlement],
        proof: Option<&ClaimProof>,
        now: Time,
    ) -> Result<Settled, OutboxError> {
        let may_defer = self.is_claimed(proof).is_ok();
        let matching = |settlement: &Settlement, rows: &BTreeMap<MessageKey, Row>| {
            rows.get(&settlement.key).is_some_and(|row| row.origin() == settlement.origin)
        };
        for settlement in settlements {
            let is_here = matching(settlement, &self.pending) && (may_defer || !settlement.needs_claim());
            if is_here && self.refused.contains(&uid(settlement.origin)) {
                return Err(OutboxError::of_code("P0001"));
            }
        }
        let mut settled = Settled::default();
        for settlement in settlements {
            let (key, is_here) = (settlement.key, matching(settlement, &self.pending));
            match &settlement.outcome {
                Outcome::Delivered { .. } if is_here => {
                    let row = self.pending.remove(&key).unwrap();
                    self.delivered.insert(key, row);
                }
                Outcome::Delivered { .. } if matching(settlement, &self.delivered) => settled.published_twice.push(key),
                Outcome::Delivered { .. } => settled.unmatched.push(key),
                Outcome::Superseded { sequence_number } if is_here => {
                    let row = self.pending.get_mut(&key).unwrap();
                    row.superseded = row.superseded.max(Some(*sequence_number));
                }
                Outcome::Dead { attempts, .. } if is_here && may_defer => {
                    let mut row = self.pending.remove(&key).unwrap();
                    row.attempts = row.attempts.max(*attempts);
                    row.available = None;
                    self.died.push(row.clone());
                    self.dead.insert(key, row);
                }
                Outcome::Deferred { attempts, wait, .. } if is_here && may_defer => {
                    let row = self.pending.get_mut(&key).unwrap();
                    row.attempts = row.attempts.max(*attempts);
                    row.available = wait.map(|wait| Available::At(now + wait));
                }
                _ => {}
            }
        }
        Ok(settled)
    }

    pub(super) fn put_into_quarantine(&mut self, messages: &[Quarantined]) {
        for Quarantined { key, origin, group, .. } in messages {
            self.quarantine.insert(*key, QuarantinedRow { uid: uid(*origin), group: group.clone() });
        }
    }
}
