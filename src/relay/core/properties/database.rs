//! A simulated PostgreSQL: what its statements would see and change at one instant. [`super::process`] says when they run.
//!
//! Rows, transactions and locks as `sql/queries/*.sql` find them; each answer guarantees what the head of its statement says.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::clock::Time;
use crate::message::{
    Content, Event, EventPosition, Hold, Lane, Message, MessageId, MessageKey, Origin, Outcome, Quarantined,
    Settlement, TransactionId,
};
use crate::outbox::{OutboxError, Pending, Settled};
use crate::reading::{
    Batch, ByLane, ClaimProof, DueRequest, Found, GroupPosition, HeldGroup, Incarnation, Look, Order, ReadRequest,
    Rescan, Rescanned, Snapshot, Watch, Writers,
};

/// When a deferred message may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Available {
    At(Time),
    Never,
}

/// A message, whatever its status.
#[derive(Clone, Debug)]
pub(super) struct Row {
    /// Never given twice, whatever ids are.
    pub(super) uid: u64,
    pub(super) key: MessageKey,
    pub(super) group: Option<Arc<str>>,
    pub(super) attempts: i16,
    pub(super) available: Option<Available>,
    /// Grows with commits.
    pub(super) committed: u64,
    /// An operator has sent it again, after others of its group had gone.
    pub(super) is_redriven: bool,
}

impl Row {
    pub(super) fn origin(&self) -> Origin {
        Origin {
            event_position: EventPosition(self.key.id.0),
            enqueued_at: SystemTime::UNIX_EPOCH + Duration::from_micros(self.uid),
        }
    }
}

/// The message that an origin belongs to.
pub(super) fn uid(origin: Origin) -> u64 {
    origin.enqueued_at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_micros() as u64
}

/// A message in quarantine.
#[derive(Clone, Debug)]
pub(super) struct Aside {
    pub(super) uid: u64,
    pub(super) group: Option<Arc<str>>,
}

/// A claim's transaction.
#[derive(Clone, Debug)]
pub(super) struct OpenClaim {
    pub(super) lanes: Vec<Lane>,
    pub(super) limit: Duration,
    pub(super) heard_at: Time,
}

/// Everything that PostgreSQL has.
#[derive(Clone, Debug)]
pub(super) struct Database {
    pub(super) pending: BTreeMap<MessageKey, Row>,
    pub(super) delivered: BTreeMap<MessageKey, Row>,
    pub(super) dead: BTreeMap<MessageKey, Row>,
    pub(super) quarantine: BTreeMap<MessageKey, Aside>,
    pub(super) last_id: i64,
    pub(super) actions: i64,
    next_xid: i64,
    latest_ended: i64,
    pub(super) commits: u64,
    /// Transactions that run, and what they have written.
    running: BTreeMap<TransactionId, Vec<Row>>,
    /// Those of them that have the lock of a writer.
    writers: BTreeSet<TransactionId>,
    pub(super) claims: BTreeMap<TransactionId, OpenClaim>,
    lanes: ByLane<Option<Incarnation>>,
    /// How often the server was started.
    pub(super) starts: u64,
    /// Messages whose outcomes some constraint refuses.
    pub(super) refused: HashSet<u64>,
    /// Messages whose event cannot be read.
    pub(super) unreadable: HashSet<u64>,
}

impl Database {
    pub(super) fn new() -> Self {
        Self {
            pending: BTreeMap::new(),
            delivered: BTreeMap::new(),
            dead: BTreeMap::new(),
            quarantine: BTreeMap::new(),
            last_id: 0,
            actions: 0,
            next_xid: 100,
            latest_ended: 99,
            commits: 0,
            running: BTreeMap::new(),
            writers: BTreeSet::new(),
            claims: BTreeMap::new(),
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

    /// Writes a message; takes the lock of a writer.
    pub(super) fn insert(&mut self, id: TransactionId, row: Row) {
        self.writers.insert(id);
        self.running.get_mut(&id).unwrap().push(row);
    }

    pub(super) fn lock_as_writer(&mut self, id: TransactionId) {
        self.writers.insert(id);
    }

    /// Of which groups a transaction has written messages, with their lanes.
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

    fn snapshot(&self, own: &BTreeSet<TransactionId>) -> Snapshot {
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

    fn take(&self, wanted: &[Lane], most: usize, first: usize) -> Vec<(Lane, Incarnation)> {
        let is_held = |lane: &Lane| self.claims.values().any(|claim| claim.lanes.contains(lane));
        let mut free: Vec<Lane> = wanted.iter().copied().filter(|lane| !is_held(lane)).collect();
        free.sort_by_key(|lane| (lane.index() + 16 - first) % 16);
        let named = free.into_iter().filter_map(|lane| Some((lane, self.lanes[lane].clone()?)));
        named.take(most).collect()
    }

    pub(super) fn claim(
        &mut self,
        wanted: &[Lane],
        most: usize,
        first: usize,
        limit: Duration,
        now: Time,
    ) -> Option<(Vec<(Lane, Incarnation)>, ClaimProof)> {
        let lanes = self.take(wanted, most, first);
        if lanes.is_empty() {
            return None;
        }
        let id = self.begin();
        let numbers = lanes.iter().map(|(lane, _)| *lane).collect();
        self.claims.insert(id, OpenClaim { lanes: numbers, limit, heard_at: now });
        Some((lanes, ClaimProof { transaction_id: id, server: self.starts.to_string() }))
    }

    pub(super) fn widen(
        &mut self,
        id: TransactionId,
        wanted: &[Lane],
        most: usize,
        now: Time,
    ) -> Vec<(Lane, Incarnation)> {
        let lanes = self.take(wanted, most, 0);
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

    /// The server crashes and is started again: transactions are gone, and so are the lanes, which are not logged.
    pub(super) fn restart(&mut self) {
        self.running.clear();
        self.writers.clear();
        self.claims.clear();
        self.latest_ended = self.next_xid - 1;
        self.lanes = ByLane::default();
        self.starts += 1;
    }

    /// A standby that has got no further than this takes over; what was committed since is lost, and its ids are given again.
    pub(super) fn promote(&mut self, standby: &Database, skipped: i64) {
        let (starts, refused, unreadable) = (self.starts, self.refused.clone(), self.unreadable.clone());
        *self = standby.clone();
        self.last_id += skipped;
        (self.starts, self.refused, self.unreadable) = (starts, refused, unreadable);
        self.restart();
    }

    // What holds messages up.

    fn is_aside(&self, row: &Row) -> bool {
        self.quarantine.get(&row.key).is_some_and(|aside| aside.uid == row.uid)
    }

    pub(super) fn held_by(&self, group: &Option<Arc<str>>, order: Order) -> Option<MessageId> {
        group.as_ref()?;
        let dead =
            self.dead.values().filter(|row| order.is_blocked_by_dead() && row.group == *group).map(|row| row.key.id);
        let aside = self.quarantine.iter().filter(|(_, aside)| order.is_kept() && aside.group == *group);
        dead.chain(aside.map(|(key, _)| key.id)).min()
    }

    /// The lowest and the highest deferred message of its group that come before it.
    fn behind(&self, row: &Row, order: Order) -> Option<(&Row, &Row)> {
        if !order.is_kept() || row.group.is_none() {
            return None;
        }
        // A group has one lane.
        let before = self.pending.range(MessageKey { id: MessageId::NONE, ..row.key }..row.key).map(|(_, other)| other);
        let deferred = before.filter(|other| other.available.is_some() && other.group == row.group);
        deferred.clone().min_by_key(|row| row.key.id).zip(deferred.max_by_key(|row| row.key.id))
    }

    fn is_ready(&self, row: &Row, order: Order) -> bool {
        self.held_by(&row.group, order).is_none() && self.behind(row, order).is_none()
    }

    /// Pending messages that reads in order show.
    fn readable(&self) -> impl Iterator<Item = &Row> {
        self.pending.values().filter(|row| self.is_readable(row))
    }

    fn is_readable(&self, row: &Row) -> bool {
        row.available.is_none() && !self.is_aside(row)
    }

    // Reading.

    pub(super) fn watch(&self, now: Time) -> Watch {
        let due = self.pending.values().filter_map(|row| match row.available? {
            Available::At(at) if at <= now => Some(at.since(Time::default()).as_secs_f64()),
            _ => None,
        });
        let latest_due = due.fold(None, |latest: Option<f64>, at| Some(latest.map_or(at, |latest| latest.max(at))));
        Watch { last_id: MessageId(self.last_id), latest_due, last_action: self.actions }
    }

    pub(super) fn look(
        &self,
        lows: &[(Lane, MessageId)],
        order: Order,
        longest_delay: Duration,
        own: &BTreeSet<TransactionId>,
        now: Time,
    ) -> Look {
        let has_work =
            |(lane, low): &&(Lane, MessageId)| self.readable().any(|row| row.key.lane == *lane && row.key.id > *low);
        let due = self.pending.values().filter(|row| is_due(row, longest_delay, now));
        let due = due.filter(|row| self.is_ready(row, order)).map(|row| row.key.lane);
        let due: BTreeSet<Lane> = due.collect();
        Look {
            snapshot: self.snapshot(own),
            next_xid: self.next_xid(),
            last_id: MessageId(self.last_id),
            ready: lows.iter().filter(has_work).map(|(lane, _)| *lane).collect(),
            due: due.into_iter().collect(),
        }
    }

    pub(super) fn writers(&self) -> Writers {
        Writers { transaction_ids: self.writers.iter().copied().collect(), next_xid: Some(self.next_xid()) }
    }

    pub(super) fn rescan(&self, rescan: &Rescan, own: &BTreeSet<TransactionId>) -> Rescanned {
        let mut found = Vec::new();
        for range in &rescan.ranges {
            let is_known = |row: &Row| {
                let after =
                    |group: &Arc<str>| rescan.waiting.iter().find(|(name, _)| name == group).map(|(_, after)| *after);
                row.group.as_ref().and_then(after).is_some_and(|after| row.key.id > after)
            };
            let counts = |row: &Row| !rescan.ready_only.contains(&range.lane) || self.is_ready(row, rescan.order);
            let next = MessageKey { lane: range.lane, id: range.above.next() };
            let last = MessageKey { lane: range.lane, id: range.upto.max(next.id) };
            let rows = self.pending.range(next..=last).map(|(_, row)| row);
            let rows = rows.filter(|row| self.is_readable(row) && row.key.id <= range.upto);
            let rows = rows.filter(|row| !is_known(row) && counts(row)).take(rescan.most);
            found.extend(rows.map(|row| Found { key: row.key, group: row.group.clone() }));
        }
        Rescanned { snapshot: self.snapshot(own), found, took: Duration::from_millis(2) }
    }

    pub(super) fn held_groups(&self, groups: &[Arc<str>], order: Order, now: Time) -> Vec<HeldGroup> {
        // A group has one lane, where ids ascend.
        let mut heads: HashMap<&Arc<str>, &Row> = HashMap::new();
        for row in self.pending.values().filter(|row| row.available.is_some()) {
            if let Some(group) = &row.group {
                heads.entry(group).or_insert(row);
            }
        }
        let held = |group: &Arc<str>| HeldGroup {
            group: Arc::clone(group),
            by: self.held_by(&Some(Arc::clone(group)), order),
            head: heads.get(group).map(|row| (row.key.id, wait(row, now))),
        };
        groups.iter().map(held).collect()
    }

    pub(super) fn pending_left(&self, order: Order) -> Pending {
        let is_free = |row: &Row| self.held_by(&row.group, order).is_none() && !self.is_aside(row);
        match () {
            () if self.pending.is_empty() => Pending::Nothing,
            () if self.pending.values().any(is_free) => Pending::Some,
            () => Pending::OnlyHeld,
        }
    }

    fn message(&self, row: &Row, order: Order, now: Time) -> Message {
        let held_by = self.held_by(&row.group, order);
        let behind = self.behind(row, order);
        let hold = held_by.map(|by| Hold::Group { by }).or_else(|| {
            let (head, last) = behind?;
            Some(Hold::Behind { head: head.key.id, last: last.key.id, wait: wait(head, now) })
        });
        let content = match () {
            () if held_by.is_some() => Content::Held,
            () if self.unreadable.contains(&row.uid) => {
                Content::Unreadable { reason: "invalid byte sequence".to_owned() }
            }
            () => Content::Event(Event {
                event_id: row.uid.to_string(),
                event_type: "T".to_owned(),
                stream: None,
                payload: row.uid.to_string(),
                metadata: "{}".to_owned(),
            }),
        };
        Message {
            key: row.key,
            origin: row.origin(),
            group: row.group.clone(),
            attempts: row.attempts,
            age_when_read: Duration::ZERO,
            read_at: now,
            wait: None,
            hold,
            content,
        }
    }

    /// The next messages of some lanes; `cut` is after how many the bytes are used up.
    pub(super) fn read_lanes(&self, request: &ReadRequest, cut: usize, now: Time) -> Result<Batch, OutboxError> {
        let mut batch = Batch::default();
        for position in &request.lanes {
            let next = MessageKey { lane: position.lane, id: position.above.next() };
            let last = MessageKey { lane: position.lane, id: MessageId::MAX };
            let rows = self.pending.range(next..=last).map(|(_, row)| row);
            for row in rows.filter(|row| self.is_readable(row)).take(position.most) {
                batch.next_xid = Some(self.next_xid());
                batch.last_id = MessageId(self.last_id);
                self.can_read(row, request.lookup)?;
                if batch.messages.len() >= cut.max(1) {
                    batch.is_cut = true;
                    break;
                }
                batch.messages.push(self.message(row, request.order, now));
            }
        }
        batch.messages.sort_by_key(|message| message.key.id);
        Ok(batch)
    }

    fn can_read(&self, row: &Row, lookup: crate::reading::Lookup) -> Result<(), OutboxError> {
        let is_unreadable = self.unreadable.contains(&row.uid) && lookup == crate::reading::Lookup::Together;
        if is_unreadable { Err(OutboxError::of_code("22021")) } else { Ok(()) }
    }

    pub(super) fn read_group(
        &self,
        position: &GroupPosition,
        request: &ReadRequest,
        now: Time,
    ) -> Result<Batch, OutboxError> {
        let mut batch = Batch { next_xid: Some(self.next_xid()), ..Batch::default() };
        let next = MessageKey { id: position.after.id.next(), ..position.after };
        let last = MessageKey { id: position.upto.max(next.id), ..position.after };
        let is_next = |row: &&Row| {
            row.group.as_ref() == Some(&position.group) && row.key.id <= position.upto && !self.is_aside(row)
        };
        for row in self.pending.range(next..=last).map(|(_, row)| row).filter(is_next).take(position.most) {
            self.can_read(row, request.lookup)?;
            let mut message = self.message(row, request.order, now);
            message.hold = message.hold.filter(|hold| matches!(hold, Hold::Group { .. }));
            message.wait = row.available.and_then(|available| match available {
                Available::At(at) => (at > now).then(|| at.since(now)),
                Available::Never => Some(Duration::from_secs(100 * 366 * 86_400)),
            });
            batch.messages.push(message);
        }
        Ok(batch)
    }

    pub(super) fn read_due(&self, request: &DueRequest, now: Time) -> Result<Batch, OutboxError> {
        let mut batch = Batch::default();
        let may = |row: &&Row| {
            is_due(row, request.longest_delay, now)
                && request.lanes.contains(&row.key.lane)
                && row.group.as_ref().is_none_or(|group| !request.groups_to_skip.contains(group))
                && self.is_ready(row, request.order)
                && !self.is_aside(row)
        };
        let mut due: Vec<&Row> = self.pending.values().filter(may).collect();
        due.sort_by_key(|row| (row.available.map(|available| matches!(available, Available::Never)), row.key.id));
        for row in due.into_iter().take(request.most) {
            self.can_read(row, request.lookup)?;
            let mut message = self.message(row, request.order, now);
            message.hold = None;
            batch.messages.push(message);
        }
        Ok(batch)
    }

    // Writing back.

    /// Writes outcomes at one instant.
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
            let needs_claim = !settlement.is_delivered();
            let is_here = matching(settlement, &self.pending) && (may_defer || !needs_claim);
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
                Outcome::Dead { attempts, .. } if is_here && may_defer => {
                    let mut row = self.pending.remove(&key).unwrap();
                    row.attempts = row.attempts.max(*attempts);
                    row.available = None;
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

    pub(super) fn set_aside(&mut self, messages: &[Quarantined]) {
        for Quarantined { key, origin, group, .. } in messages {
            self.quarantine.insert(*key, Aside { uid: uid(*origin), group: group.clone() });
        }
    }
}

/// How long a deferred message waits; `None` when nobody knows.
fn wait(row: &Row, now: Time) -> Option<Duration> {
    match row.available {
        Some(Available::Never) => None,
        Some(Available::At(at)) => Some(at.since(now)),
        None => Some(Duration::ZERO),
    }
}

fn is_due(row: &Row, longest_delay: Duration, now: Time) -> bool {
    match row.available {
        Some(Available::At(at)) => at <= now || (row.attempts > 0 && at.since(now) > longest_delay),
        _ => false,
    }
}
