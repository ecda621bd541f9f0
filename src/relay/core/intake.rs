//! Intake: what to read under a claim, and when.
//!
//! Only one statement of each kind is under way at a time. Order depends on one rule: a FIFO queue gets a message only
//! if every message of its group that was committed before is in memory or done. So everything that is read in order
//! comes in one answer: more of some groups, then the next messages of the lanes, then a rescan of the gap between low
//! watermark and read position, each under a later snapshot. If the rescan finds something in the gap, the lane's
//! position is set back, and what was read of that lane is dropped and read again in order. [`super::admit`] applies
//! the answers. Pure.

use std::time::Duration;

use super::destination::DestinationState;
use super::positions::positions;
use super::read_memory::{bytes_to_keep, memory_for};
use super::rescan_request::rescan_of;
use super::schedule::Schedule;
use super::statements::Statements;
use super::work::{ReadOn, ReadWork, RescanWork, Work};
use crate::clock::Time;
use crate::message::{DestinationKind, Lane, MessageId};
use crate::reading::{ByLane, ClaimProof, DueRequest, Lookup, READ_BYTES, Range, ReadRequest, Rescan};

/// The interval between reads that are not full: under traffic a commit is seen within this time.
const ACTIVE_POLL: Duration = Duration::from_millis(5);

/// How often the gap is rescanned on a standard queue while reads are not full. It bounds the delay of a message whose
/// transaction committed just after a higher id was read. On a FIFO queue every read includes the rescan.
const GAP_RESCAN: Duration = Duration::from_millis(10);

/// The same under backlog: one message's latency matters less than the cost of the rescan.
const GAP_RESCAN_BUSY: Duration = Duration::from_millis(250);

/// How often to look for recorded retries that have fallen due.
const DUE_POLL: Duration = Duration::from_millis(50);

/// The same under backlog while there are none: planning the query takes as long as reading a hundred messages.
const DUE_POLL_BUSY: Duration = Duration::from_millis(250);

/// The most retries in one read.
const MAX_DUE: usize = 1000;

/// The most groups that one read continues.
const MAX_GROUPS: usize = 64;

/// How many batches may be waiting to be sent when the next one is read. Under load a read takes as long as sending a
/// batch, and the requests of a slow queue would otherwise wait for it.
const READ_AHEAD: usize = 2;

/// After PostgreSQL could not read an event: how long events are looked up one by one, and how many messages are read
/// at once.
const ONE_BY_ONE_FOR: Duration = Duration::from_secs(30);
const ONE_BY_ONE_BATCH: usize = 100;

/// How soon to ask for memory again.
const MEMORY_POLL: Duration = Duration::from_millis(10);

/// How many bytes the server is asked for. The server counts bytes as stored, and compression makes those fewer than
/// the bytes that arrive. So the number starts low and follows what the reads return.
#[derive(Clone, Copy, Debug)]
struct StoredBytes(usize);

impl Default for StoredBytes {
    fn default() -> Self {
        Self(READ_BYTES / 16)
    }
}

impl StoredBytes {
    /// Adjusts the number after a read that was cut, or was not.
    fn follow(&mut self, is_cut: bool) {
        self.0 = if is_cut { (self.0 / 2).max(READ_BYTES / 256) } else { (self.0 * 2).min(READ_BYTES) };
    }
}

/// The state of reading under one claim.
#[derive(Debug)]
pub(super) struct Intake {
    /// Lanes that are read.
    pub(super) open: Vec<Lane>,
    /// Lanes of which the last read left something in the table.
    pub(super) full: Vec<Lane>,
    pub(super) statements: Statements,
    /// When the read that is under way began, and that of retries.
    reading_since: Option<Time>,
    asking_for_due_since: Option<Time>,
    pub(super) is_rescanning: bool,
    pub(super) next_read: Time,
    next_gap_rescan: Time,
    next_due: Time,
    stored_bytes: StoredBytes,
    one_by_one_until: Time,
    /// Lanes that the last read emptied and that have not been set back since.
    pub(super) read_to_end: ByLane<bool>,
    /// Whether all lanes were read, and all retries asked for, since the last event that may bring more.
    quiet: Quiet,
}

/// Which questions have found nothing since the last event.
#[derive(Clone, Debug, Default)]
struct Quiet {
    /// The number of events so far.
    happened: u64,
    /// The number of events when the lane was last read and had nothing.
    lanes: ByLane<Option<u64>>,
    /// The same for retries.
    due: Option<u64>,
    /// The number of events when the current read began, and the lanes of that read.
    read_began: u64,
    reads: Vec<Lane>,
    due_began: u64,
}

impl Intake {
    /// No lane is open.
    pub(super) fn new(now: Time) -> Self {
        Self {
            open: Vec::new(),
            full: Vec::new(),
            statements: Statements::default(),
            reading_since: None,
            asking_for_due_since: None,
            is_rescanning: false,
            next_read: now,
            next_gap_rescan: now + GAP_RESCAN,
            next_due: now,
            stored_bytes: StoredBytes::default(),
            one_by_one_until: now,
            read_to_end: ByLane::default(),
            quiet: Quiet::default(),
        }
    }

    /// Starts reading these lanes.
    pub(super) fn open(&mut self, lanes: &[Lane], now: Time) {
        self.open.extend_from_slice(lanes);
        self.next_read = now;
        self.next_due = now;
        self.happened();
    }

    /// Notes an event that may bring more: only a read that starts after it can show that there is nothing.
    pub(super) fn happened(&mut self) {
        self.quiet.happened += 1;
    }

    /// Whether the last read left more in the table.
    pub(super) fn was_full(&self) -> bool {
        !self.full.is_empty()
    }

    /// Whether a read is under way that may bring more.
    pub(super) fn expects_more(&self) -> bool {
        self.reading_since.is_some()
    }

    /// When the first of the reads under way began that may bring messages.
    pub(super) fn reading_since(&self) -> Option<Time> {
        self.reading_since.into_iter().chain(self.asking_for_due_since).min()
    }

    /// Whether everything there is was read since the last event that may have brought more.
    pub(super) fn has_nothing_more(&self) -> bool {
        let is_under_way = self.expects_more() || self.is_rescanning || self.asking_for_due_since.is_some();
        let now = Some(self.quiet.happened);
        let is_quiet = |lane: &Lane| self.quiet.lanes[*lane] == now;
        !is_under_way && self.full.is_empty() && self.quiet.due == now && self.open.iter().all(is_quiet)
    }

    /// Whether the open lanes must be rescanned from the bottom before more of them is sent.
    fn must_rescan(&self, destination: &DestinationState) -> bool {
        destination.accepts.kind == DestinationKind::Fifo
            && self.open.iter().any(|lane| destination.knowledge.watermarks.must_rescan(*lane))
    }

    /// Whether reading must wait for that rescan. Where one statement is enough, the rescan goes with the read, as a
    /// rescan of a gap that begins at the bottom. It sees the rows of every writer that has ended by then, so reading
    /// goes on however often writers are overtaken.
    pub(super) fn waits_for_rescan(&self, destination: &DestinationState) -> bool {
        self.must_rescan(destination) && !self.rescans_at_once(destination)
    }

    fn rescans_at_once(&self, destination: &DestinationState) -> bool {
        let watermarks = &destination.knowledge.watermarks;
        destination.knowledge.full_rescan.fits_one_statement(self.open.iter().map(|lane| watermarks.position(*lane)))
    }

    fn has_room(&self, schedule: &Schedule, destination: &DestinationState) -> bool {
        schedule.waiting() < destination.tuning.batch_size * READ_AHEAD
            && schedule.waiting_bytes() < destination.within_share(READ_BYTES)
    }

    /// The statements to begin now.
    pub(super) fn due(
        &mut self,
        schedule: &mut Schedule,
        destination: &mut DestinationState,
        proof: &ClaimProof,
        now: Time,
    ) -> Vec<Work> {
        let mut work = Vec::new();
        if self.open.is_empty() {
            return work;
        }
        let waits_for_rescan = self.waits_for_rescan(destination);
        if !self.expects_more() && !waits_for_rescan {
            work.extend(self.plan_read(schedule, destination, now));
        }
        let may_rescan = !self.is_rescanning && (!waits_for_rescan || !self.expects_more());
        if may_rescan && (waits_for_rescan || now >= destination.knowledge.full_rescan.due_at()) {
            work.push(self.plan_full_rescan(schedule, destination, proof, now));
        }
        if now >= self.next_due && self.asking_for_due_since.is_none() && self.has_room(schedule, destination) {
            work.extend(self.plan_due_read(schedule, destination, now));
        }
        work
    }

    /// When the next statement is due, of those that could start.
    pub(super) fn wake_at(&self, schedule: &Schedule, destination: &DestinationState) -> Option<Time> {
        if self.open.is_empty() {
            return None;
        }
        let has_room = self.has_room(schedule, destination);
        let waits_for_rescan = self.waits_for_rescan(destination);
        let read = (!self.expects_more() && !waits_for_rescan && has_room).then_some(self.next_read);
        let rescan = (!self.is_rescanning && !waits_for_rescan).then(|| destination.knowledge.full_rescan.due_at());
        let due = (self.asking_for_due_since.is_none() && has_room).then_some(self.next_due);
        [read, rescan, due].into_iter().flatten().min()
    }

    fn plan_read(&mut self, schedule: &mut Schedule, destination: &mut DestinationState, now: Time) -> Option<Work> {
        let has_room = self.has_room(schedule, destination);
        let is_due = has_room && (!self.full.is_empty() || now >= self.next_read);
        let watermarks = &destination.knowledge.watermarks;
        let read_to_end = self.read_to_end.clone();
        // Of a lane that was read to its end everything is known, whatever the id.
        let read_to = |lane| if has_room && read_to_end[lane] { MessageId::MAX } else { watermarks.position(lane) };
        if !is_due && !schedule.parked.may_read_on(&read_to) {
            return None;
        }
        let statements = 1 + usize::from(schedule.parked.may_read_on(&read_to));
        let Some(memory) = memory_for(destination, statements) else {
            self.next_read = now + MEMORY_POLL;
            return None;
        };
        let groups = schedule.next_to_read_on(MAX_GROUPS, &read_to);
        if !is_due && groups.is_empty() {
            return None;
        }
        let lookup = self.lookup(now);
        let batch_size = match lookup {
            Lookup::Together => destination.tuning.batch_size,
            Lookup::OneByOne => destination.tuning.batch_size.min(ONE_BY_ONE_BATCH),
        };
        // A lane that was read to its end is read again together with the groups, for rows that were committed late.
        let is_ahead = |wanted: &ReadOn| wanted.position.after.id > watermarks.position(wanted.position.after.lane);
        let lanes = if is_due || groups.iter().any(is_ahead) {
            positions(&self.open, &self.full, batch_size, &mut destination.rng, |lane| watermarks.position(lane))
        } else {
            Vec::new()
        };
        self.reading_since = Some(now);
        for lane in &self.open {
            schedule.parked.crowds.pass(*lane, watermarks.low(*lane));
        }
        self.quiet.read_began = self.quiet.happened;
        self.quiet.reads = lanes.iter().map(|position| position.lane).collect();
        let request = ReadRequest {
            groups: groups.iter().map(|wanted: &ReadOn| wanted.position.clone()).collect(),
            lanes,
            gap: self.plan_gap_rescan(schedule, destination, now),
            stored_bytes: self.stored_bytes.0.min(memory.bytes()),
            bytes: bytes_to_keep(destination, &memory, statements),
            lookup,
            order: destination.order(),
            max_body_bytes: destination.accepts.max_body_bytes(),
        };
        let statement = self.statements.begin();
        Some(Work::Read(Box::new(ReadWork { request, groups, began_at: now, statement, memory })))
    }

    fn lookup(&self, now: Time) -> Lookup {
        if now < self.one_by_one_until { Lookup::OneByOne } else { Lookup::Together }
    }

    /// The rescan of the gap that goes with a read, if one is needed.
    fn plan_gap_rescan(&mut self, schedule: &Schedule, destination: &DestinationState, now: Time) -> Option<Rescan> {
        let watermarks = &destination.knowledge.watermarks;
        let has_gap = self.open.iter().any(|lane| watermarks.has_gap(*lane));
        let is_due = match destination.accepts.kind {
            DestinationKind::Fifo => has_gap || watermarks.has_overtaken() || self.must_rescan(destination),
            DestinationKind::Standard | DestinationKind::Fair => has_gap && now >= self.next_gap_rescan,
        };
        if !is_due {
            return None;
        }
        self.next_gap_rescan = now + if self.full.is_empty() { GAP_RESCAN } else { GAP_RESCAN_BUSY };
        let is_from_bottom = self.must_rescan(destination);
        let low = |lane| if is_from_bottom { MessageId::NONE } else { watermarks.low(lane) };
        let range = |lane: &Lane| Range::new(*lane, low(*lane), watermarks.position(*lane));
        let ranges: Vec<Range> = self.open.iter().map(range).collect();
        Some(rescan_of(ranges, schedule, destination))
    }

    /// The next chunk of the rescan from the bottom.
    fn plan_full_rescan(
        &mut self,
        schedule: &Schedule,
        destination: &mut DestinationState,
        proof: &ClaimProof,
        now: Time,
    ) -> Work {
        self.is_rescanning = true;
        let knowledge = &mut destination.knowledge;
        let watermarks = &knowledge.watermarks;
        let ranges = knowledge.full_rescan.chunk(&self.open, |lane| watermarks.position(lane), watermarks.epoch(), now);
        let timeout = knowledge.full_rescan.timeout(&ranges);
        let rescan = Rescan { timeout, ..rescan_of(ranges, schedule, destination) };
        let statement = self.statements.begin();
        Work::Rescan(RescanWork { rescan, proof: Some(proof.clone()), statement })
    }

    fn plan_due_read(&mut self, schedule: &Schedule, destination: &DestinationState, now: Time) -> Option<Work> {
        let Some(memory) = memory_for(destination, 1) else {
            self.next_due = now + MEMORY_POLL;
            return None;
        };
        self.asking_for_due_since = Some(now);
        self.quiet.due_began = self.quiet.happened;
        let mut groups_to_skip = schedule.groups_excluded_from_due(now);
        if destination.outcomes.dying() > 0 {
            // The database does not know yet what is not recorded.
            groups_to_skip.extend(schedule.blocked().cloned());
        }
        let request = DueRequest {
            lanes: self.open.clone(),
            limit: MAX_DUE,
            stored_bytes: self.stored_bytes.0.min(memory.bytes()),
            bytes: bytes_to_keep(destination, &memory, 1),
            groups_to_skip,
            longest_delay: destination.tuning.retry_max,
            lookup: self.lookup(now),
            order: destination.order(),
            max_body_bytes: destination.accepts.max_body_bytes(),
        };
        Some(Work::ReadDue { request, statement: self.statements.begin(), memory })
    }

    /// A read has come back.
    pub(super) fn read_ended(&mut self, now: Time, jitter: f64) {
        self.reading_since = None;
        self.next_read = now + ACTIVE_POLL.mul_f64(0.8 + 0.4 * jitter);
    }

    /// The read returned nothing new.
    pub(super) fn read_showed_nothing(&mut self) {
        for lane in self.quiet.reads.drain(..) {
            self.quiet.lanes[lane] = Some(self.quiet.read_began);
        }
    }

    /// A read of retries has come back.
    pub(super) fn due_ended(&mut self, now: Time) {
        self.asking_for_due_since = None;
        self.next_due = now + DUE_POLL;
    }

    /// The read of retries returned no messages.
    pub(super) fn nothing_was_due(&mut self, now: Time) {
        if self.was_full() {
            self.next_due = now + DUE_POLL_BUSY;
        }
    }

    /// The read of retries returned nothing new.
    pub(super) fn due_showed_nothing(&mut self) {
        self.quiet.due = Some(self.quiet.due_began);
    }

    /// Adjusts the bytes asked for, after a read that was cut, or was not.
    pub(super) fn follow(&mut self, is_cut: bool) {
        self.stored_bytes.follow(is_cut);
    }

    /// PostgreSQL could not read something: each event is looked up separately from now on.
    pub(super) fn look_up_one_by_one(&mut self, now: Time) {
        self.one_by_one_until = now + ONE_BY_ONE_FOR;
        self.next_read = now;
        self.next_due = now;
        self.happened();
    }
}
