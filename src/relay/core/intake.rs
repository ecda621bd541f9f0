//! Intake: what to read under a claim, and when.
//!
//! Only one statement of a kind is under way. Order depends on one rule: a FIFO queue gets a message only if every message of
//! its group that was committed before is in memory or done. So all that is read in order comes in one answer: more of some
//! groups, then the next messages of the lanes, then a look at the gap between low watermark and read position, each under
//! a later snapshot. What the look finds in the gap sets the lane back, and what was read of that lane is dropped, to be read
//! again in order. [`super::admit`] applies the answers. Pure.

use std::time::Duration;

use super::gap::rescan_of;
use super::limits::Reserved;
use super::positions::positions;
use super::schedule::Schedule;
use super::standing::Standing;
use super::statements::Statements;
use super::work::{ReadOn, ReadWork, RescanWork, Work};
use crate::clock::Time;
use crate::message::{Lane, MessageId, QueueKind};
use crate::reading::{ByLane, ClaimProof, DueRequest, Lookup, READ_BYTES, Range, ReadRequest, Rescan};

/// How soon to read again after a read that was not full: commits are seen within this time while traffic flows.
const ACTIVE_POLL: Duration = Duration::from_millis(5);

/// How often the gap is looked at on a standard queue while reads are not full; it bounds how late a message comes whose
/// transaction committed just after a higher id was read. On a FIFO queue every read looks.
const GAP_RESCAN: Duration = Duration::from_millis(10);

/// The same under backlog: one message's latency matters less than the cost of the look.
const GAP_RESCAN_BUSY: Duration = Duration::from_millis(250);

/// How often recorded retries are looked for that have fallen due.
const DUE_POLL: Duration = Duration::from_millis(50);

/// The same under backlog, while there are none: planning the question takes as long as reading a hundred messages.
const DUE_POLL_BUSY: Duration = Duration::from_millis(250);

/// Retries read at once.
const MAX_DUE: usize = 1000;

/// Groups read on at once.
const MAX_GROUPS: usize = 64;

/// Batches that may wait to be sent when another one is read. Under load a read takes as long as a batch lasts, and requests
/// of a slow queue would wait for it.
const READ_AHEAD: usize = 2;

/// How long events are looked up one by one after PostgreSQL could not read one of them, and how many messages at once.
const ONE_BY_ONE_FOR: Duration = Duration::from_secs(30);
const ONE_BY_ONE_BATCH: usize = 100;

/// A read that gets less memory than this is not worth its round trip; the first message always comes.
const MIN_READ_BYTES: usize = 256 * 1024;

/// How soon to ask for memory again.
const MEMORY_POLL: Duration = Duration::from_millis(10);

/// How many bytes the server is asked for. It counts them as they are stored, which compression makes fewer than what
/// arrives, so the number starts low and follows what reads bring.
#[derive(Clone, Copy, Debug)]
struct StoredBytes(usize);

impl Default for StoredBytes {
    fn default() -> Self {
        Self(READ_BYTES / 16)
    }
}

impl StoredBytes {
    /// What to ask for next, after a read that had to be cut, or had not.
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
    pub(super) is_reading: bool,
    is_asking_for_due: bool,
    pub(super) is_rescanning: bool,
    pub(super) next_read: Time,
    next_gap_rescan: Time,
    next_due: Time,
    stored_bytes: StoredBytes,
    one_by_one_until: Time,
    /// Lanes of which the last read left nothing, and that were not set back since.
    pub(super) read_to_end: ByLane<bool>,
    /// Whether all lanes were read, and all retries asked for, since something happened that may bring more.
    quiet: Quiet,
}

/// Which questions have shown nothing since something happened.
#[derive(Clone, Debug, Default)]
struct Quiet {
    /// How often something happened.
    happened: u64,
    /// What that was when each lane was read the last time and had nothing.
    lanes: ByLane<Option<u64>>,
    /// The same for retries.
    due: Option<u64>,
    /// What it was when the read under way began, and which lanes that reads.
    read_began: u64,
    reads: Vec<Lane>,
    due_began: u64,
}

impl Intake {
    /// Nothing is open.
    pub(super) fn new(now: Time) -> Self {
        Self {
            open: Vec::new(),
            full: Vec::new(),
            statements: Statements::default(),
            is_reading: false,
            is_asking_for_due: false,
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

    /// Lanes are read from now on.
    pub(super) fn open(&mut self, lanes: &[Lane], now: Time) {
        self.open.extend_from_slice(lanes);
        self.next_read = now;
        self.next_due = now;
        self.happened();
    }

    /// Something happened that may bring more: only what is read after this tells that there is nothing.
    pub(super) fn happened(&mut self) {
        self.quiet.happened += 1;
    }

    /// Whether the last read left more in the table.
    pub(super) fn was_full(&self) -> bool {
        !self.full.is_empty()
    }

    /// Whether a read is under way that may bring more.
    pub(super) fn expects_more(&self) -> bool {
        self.is_reading
    }

    /// Whether all there is was read, since anything happened that may have brought more.
    pub(super) fn has_nothing_more(&self) -> bool {
        let is_under_way = self.is_reading || self.is_rescanning || self.is_asking_for_due;
        let now = Some(self.quiet.happened);
        let is_quiet = |lane: &Lane| self.quiet.lanes[*lane] == now;
        !is_under_way && self.full.is_empty() && self.quiet.due == now && self.open.iter().all(is_quiet)
    }

    /// Whether the open lanes have to be rescanned from the bottom before more of them is sent.
    fn must_rescan(&self, standing: &Standing) -> bool {
        standing.kind == QueueKind::Fifo
            && self.open.iter().any(|lane| standing.knowledge.watermarks.must_rescan(*lane))
    }

    /// Whether nothing may be read before that. Where one statement is enough it goes with the read, as a look at a gap that
    /// begins at the bottom: it sees what every writer left that has ended by then, so that reading goes on however often that
    /// happens.
    pub(super) fn waits_for_rescan(&self, standing: &Standing) -> bool {
        self.must_rescan(standing) && !self.rescans_at_once(standing)
    }

    fn rescans_at_once(&self, standing: &Standing) -> bool {
        let watermarks = &standing.knowledge.watermarks;
        standing.knowledge.scan.is_at_once(self.open.iter().map(|lane| watermarks.position(*lane)))
    }

    fn has_room(&self, schedule: &Schedule, standing: &Standing) -> bool {
        schedule.waiting() < standing.tuning.batch_size * READ_AHEAD && schedule.waiting_bytes() < READ_BYTES
    }

    /// The statements to begin now.
    pub(super) fn due(
        &mut self,
        schedule: &mut Schedule,
        standing: &mut Standing,
        proof: &ClaimProof,
        now: Time,
    ) -> Vec<Work> {
        let mut work = Vec::new();
        if self.open.is_empty() {
            return work;
        }
        let waits_for_rescan = self.waits_for_rescan(standing);
        if !self.is_reading && !waits_for_rescan {
            work.extend(self.read(schedule, standing, now));
        }
        let may_rescan = !self.is_rescanning && (!waits_for_rescan || !self.is_reading);
        if may_rescan && (waits_for_rescan || now >= standing.knowledge.scan.due_at()) {
            work.push(self.rescan(schedule, standing, proof, now));
        }
        if now >= self.next_due && !self.is_asking_for_due && self.has_room(schedule, standing) {
            work.extend(self.read_due(schedule, standing, now));
        }
        work
    }

    /// When the next of these is due, of those that could begin.
    pub(super) fn wake_at(&self, schedule: &Schedule, standing: &Standing) -> Option<Time> {
        if self.open.is_empty() {
            return None;
        }
        let has_room = self.has_room(schedule, standing);
        let waits_for_rescan = self.waits_for_rescan(standing);
        let read = (!self.is_reading && !waits_for_rescan && has_room).then_some(self.next_read);
        let rescan = (!self.is_rescanning && !waits_for_rescan).then(|| standing.knowledge.scan.due_at());
        let due = (!self.is_asking_for_due && has_room).then_some(self.next_due);
        [read, rescan, due].into_iter().flatten().min()
    }

    fn read(&mut self, schedule: &mut Schedule, standing: &mut Standing, now: Time) -> Option<Work> {
        let has_room = self.has_room(schedule, standing);
        let is_due = has_room && (!self.full.is_empty() || now >= self.next_read);
        let watermarks = &standing.knowledge.watermarks;
        let read_to_end = self.read_to_end.clone();
        let read_to = |lane| if has_room && read_to_end[lane] { MessageId::MAX } else { watermarks.position(lane) };
        if !is_due && !schedule.parked.may_read_on(&read_to) {
            return None;
        }
        let Some(memory) = self.memory(standing) else {
            self.next_read = now + MEMORY_POLL;
            return None;
        };
        let groups = schedule.next_to_read_on(MAX_GROUPS, &read_to);
        if !is_due && groups.is_empty() {
            return None;
        }
        let lookup = self.lookup(now);
        let batch_size = match lookup {
            Lookup::Together => standing.tuning.batch_size,
            Lookup::OneByOne => standing.tuning.batch_size.min(ONE_BY_ONE_BATCH),
        };
        // A lane that was read to its end is read once more with the groups, for what was committed late.
        let is_ahead = |wanted: &ReadOn| wanted.position.after.id > watermarks.position(wanted.position.after.lane);
        let lanes = if is_due || groups.iter().any(is_ahead) {
            positions(&self.open, &self.full, batch_size, &mut standing.dice, |lane| watermarks.position(lane))
        } else {
            Vec::new()
        };
        self.is_reading = true;
        for lane in &self.open {
            schedule.parked.crowds.pass(*lane, watermarks.low(*lane));
        }
        self.quiet.read_began = self.quiet.happened;
        self.quiet.reads = lanes.iter().map(|position| position.lane).collect();
        let request = ReadRequest {
            groups: groups.iter().map(|wanted: &ReadOn| wanted.position.clone()).collect(),
            lanes,
            gap: self.gap(schedule, standing, now),
            stored_bytes: self.stored_bytes.0.min(memory.bytes()),
            bytes: memory.bytes(),
            lookup,
            order: standing.order(),
        };
        let statement = self.statements.begin();
        Some(Work::Read(Box::new(ReadWork { request, groups, began_at: now, statement, memory })))
    }

    /// Memory for a read: as much as it may bring, or what is left. Whoever holds nothing always gets enough for a message.
    fn memory(&self, standing: &Standing) -> Option<Reserved> {
        let budget = &standing.memory;
        let share = READ_BYTES.min(budget.max() / 4).max(MIN_READ_BYTES);
        let half = (share / 2).max(MIN_READ_BYTES);
        budget
            .try_reserve(share)
            .or_else(|| budget.try_reserve(half))
            .or_else(|| budget.try_reserve(MIN_READ_BYTES))
            .or_else(|| (budget.held() == 0).then(|| budget.reserve(MIN_READ_BYTES)))
    }

    fn lookup(&self, now: Time) -> Lookup {
        if now < self.one_by_one_until { Lookup::OneByOne } else { Lookup::Together }
    }

    /// The look at the gap that goes with a read, if one is needed.
    fn gap(&mut self, schedule: &Schedule, standing: &Standing, now: Time) -> Option<Rescan> {
        let watermarks = &standing.knowledge.watermarks;
        let has_gap = self.open.iter().any(|lane| watermarks.has_gap(*lane));
        let is_due = match standing.kind {
            QueueKind::Fifo => has_gap || watermarks.has_overtaken() || self.must_rescan(standing),
            QueueKind::Standard => has_gap && now >= self.next_gap_rescan,
        };
        if !is_due {
            return None;
        }
        self.next_gap_rescan = now + if self.full.is_empty() { GAP_RESCAN } else { GAP_RESCAN_BUSY };
        let is_from_bottom = self.must_rescan(standing);
        let low = |lane| if is_from_bottom { MessageId::NONE } else { watermarks.low(lane) };
        let range = |lane: &Lane| Range::new(*lane, low(*lane), watermarks.position(*lane));
        let ranges: Vec<Range> = self.open.iter().map(range).collect();
        Some(rescan_of(ranges, schedule, standing))
    }

    /// The next chunk of the look from the bottom.
    fn rescan(&mut self, schedule: &Schedule, standing: &mut Standing, proof: &ClaimProof, now: Time) -> Work {
        self.is_rescanning = true;
        let knowledge = &mut standing.knowledge;
        let watermarks = &knowledge.watermarks;
        let ranges = knowledge.scan.chunk(&self.open, |lane| watermarks.position(lane), watermarks.epoch(), now);
        let limit = knowledge.scan.limit(&ranges);
        let rescan = Rescan { limit, ..rescan_of(ranges, schedule, standing) };
        let statement = self.statements.begin();
        Work::Rescan(RescanWork { rescan, proof: Some(proof.clone()), statement })
    }

    fn read_due(&mut self, schedule: &Schedule, standing: &Standing, now: Time) -> Option<Work> {
        let Some(memory) = self.memory(standing) else {
            self.next_due = now + MEMORY_POLL;
            return None;
        };
        self.is_asking_for_due = true;
        self.quiet.due_began = self.quiet.happened;
        let mut groups_to_skip = schedule.read_in_turn(now);
        if standing.outcomes.dying() > 0 {
            // What is not recorded yet is unknown to the database.
            groups_to_skip.extend(schedule.blocked().cloned());
        }
        let request = DueRequest {
            lanes: self.open.clone(),
            most: MAX_DUE,
            stored_bytes: self.stored_bytes.0.min(memory.bytes()),
            bytes: memory.bytes(),
            groups_to_skip,
            longest_delay: standing.tuning.retry_max,
            lookup: self.lookup(now),
            order: standing.order(),
        };
        Some(Work::ReadDue { request, statement: self.statements.begin(), memory })
    }

    /// A read has come back.
    pub(super) fn read_ended(&mut self, now: Time, jitter: f64) {
        self.is_reading = false;
        self.next_read = now + ACTIVE_POLL.mul_f64(0.8 + 0.4 * jitter);
    }

    /// Nothing of it was new.
    pub(super) fn read_showed_nothing(&mut self) {
        for lane in self.quiet.reads.drain(..) {
            self.quiet.lanes[lane] = Some(self.quiet.read_began);
        }
    }

    /// A read of retries has come back.
    pub(super) fn due_ended(&mut self, now: Time) {
        self.is_asking_for_due = false;
        self.next_due = now + DUE_POLL;
    }

    /// It had no messages.
    pub(super) fn nothing_was_due(&mut self, now: Time) {
        if self.was_full() {
            self.next_due = now + DUE_POLL_BUSY;
        }
    }

    /// Nothing of it was new.
    pub(super) fn due_showed_nothing(&mut self) {
        self.quiet.due = Some(self.quiet.due_began);
    }

    /// How full reads were, in bytes.
    pub(super) fn follow(&mut self, is_cut: bool) {
        self.stored_bytes.follow(is_cut);
    }

    /// PostgreSQL could not read something: from now on each event is looked up by itself.
    pub(super) fn look_up_one_by_one(&mut self, now: Time) {
        self.one_by_one_until = now + ONE_BY_ONE_FOR;
        self.next_read = now;
        self.next_due = now;
        self.happened();
    }

    /// Whether events are looked up one by one, so that none can make a read fail.
    pub(super) fn looks_up_one_by_one(&self, now: Time) -> bool {
        self.lookup(now) == Lookup::OneByOne
    }
}
