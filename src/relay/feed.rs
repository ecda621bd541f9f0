//! Feeding the stream: opening lanes, reading, sweeping, and taking in what comes.
//!
//! [`Feed`] is the state of reading; the methods of [`Stream`] here start the tasks and apply their results. Only one task
//! of a kind is under way.
//!
//! Order depends on one rule: a FIFO queue gets a message only if every message of its group that was committed before is
//! in memory or done. A read shows some snapshot; the sweep sent right behind it sees at least as much, so a row it finds
//! in the gap sets the lane's cursor back and what was read of that lane is dropped, to be read again in order.

use std::time::{Duration, Instant};

use super::Destination;
use super::positions::positions;
use super::stream::{Closing, Event, Stream};
use super::sweep::Round;
use crate::message::{LANES, Lane, Message, QueueKind};
use crate::outbox::{Batch, DeadGroup, DeferredHead, OutboxError, Position, ReadBudget, Sweep, Swept};

/// How soon to read again after a read that was not full: commits are seen within this time while traffic flows.
const ACTIVE_POLL: Duration = Duration::from_millis(5);

/// How often the gap between low bound and cursor is swept on a standard queue while reads are not full; it bounds how late
/// a message comes whose transaction committed just after a higher id was read. On a FIFO queue every read sweeps.
const GAP_SWEEP: Duration = Duration::from_millis(10);

/// The same while there is a backlog: nobody waits for a single message then, and the rows cost.
const GAP_SWEEP_BUSY: Duration = Duration::from_millis(250);

/// How often recorded retries are looked for that have fallen due.
const DUE_POLL: Duration = Duration::from_millis(50);

/// Retries read at once.
const MOST_DUE: usize = 1000;

/// How often to ask for lanes that were left to others or held by them: a saturated relay leaves half of its own free this
/// long.
const WIDEN_EVERY: Duration = Duration::from_millis(100);

/// Lanes taken at a time by that. Free lanes may belong to a busy relay that is about to claim again; whoever took all of
/// them would leave it without work until the next claim ends.
const WIDEN_BY: usize = 2;

/// Bytes in memory that wait to be sent, beyond which no read is started.
const MOST_WAITING_BYTES: usize = crate::outbox::READ_BYTES;

/// Batches that may wait to be sent when another one is read. Under load a read takes as long as a batch lasts, and requests
/// of a slow queue would wait for it.
const READ_AHEAD: usize = 2;

/// Bits of [`Feed::reads_under_way`].
const READ: u8 = 1;
const DUE: u8 = 2;
const READ_ON: u8 = 4;
const SWEEP: u8 = 8;

/// The state of reading.
#[derive(Debug)]
pub(super) struct Feed {
    pub(super) open: Vec<Lane>,
    full: Vec<Lane>,
    is_opening: bool,
    is_reading: bool,
    is_reading_on: bool,
    pub(super) is_sweeping: bool,
    /// The sweep from the bottom that is on its way up.
    pub(super) round: Option<Round>,
    is_asking_for_due: bool,
    pub(super) is_rechecking: bool,
    /// When to ask whether blocked groups may go on; `None` while there are none.
    pub(super) next_recheck: Option<Instant>,
    is_widening: bool,
    next_widening: Instant,
    pub(super) next_read: Instant,
    next_gap_sweep: Instant,
    next_due: Instant,
    budget: ReadBudget,
}

impl Feed {
    pub(super) fn new(claimed_at: Instant) -> Self {
        let now = Instant::now();
        Self {
            open: Vec::new(),
            full: Vec::new(),
            is_opening: false,
            is_reading: false,
            is_reading_on: false,
            is_sweeping: false,
            round: None,
            is_asking_for_due: false,
            is_rechecking: false,
            next_recheck: None,
            is_widening: false,
            next_widening: claimed_at + WIDEN_EVERY,
            next_read: now,
            next_gap_sweep: now + GAP_SWEEP,
            next_due: now,
            budget: ReadBudget::default(),
        }
    }

    /// The reads under way that may bring messages which were settled since the statement began.
    pub(super) fn reads_under_way(&self) -> u8 {
        let bits = [
            (self.is_reading, READ),
            (self.is_asking_for_due, DUE),
            (self.is_reading_on, READ_ON),
            (self.is_sweeping, SWEEP),
        ];
        bits.into_iter().filter(|(is_under_way, _)| *is_under_way).fold(0, |all, (_, bit)| all | bit)
    }

    /// Whether the last read left more in the table.
    pub(super) fn was_full(&self) -> bool {
        !self.full.is_empty()
    }

    /// Whether a read that is under way, or due at once, may bring more.
    pub(super) fn expects_more(&self) -> bool {
        self.is_opening || self.is_reading || self.is_reading_on
    }

    /// Whether nothing is under way and the last read took all there was.
    pub(super) fn has_nothing_more(&self) -> bool {
        !self.expects_more() && !self.is_sweeping && !self.is_asking_for_due && self.full.is_empty()
    }
}

impl Stream<'_> {
    /// Lanes were claimed: first of all, which of their groups have to wait.
    pub(super) fn open(&mut self, lanes: Vec<Lane>) {
        self.feed.is_opening = true;
        let destination = self.destination.clone();
        self.tasks.push(Box::pin(async move {
            let Destination { name, outbox, .. } = &destination;
            let work = async {
                // Only the holder of a lane buries or defers its messages, so nothing changes in between.
                let dead = if destination.blocks() { outbox.dead_groups(name, &lanes).await? } else { Vec::new() };
                let is_fifo = destination.queue.kind() == QueueKind::Fifo;
                let heads = if is_fifo { outbox.deferred_heads(name, &lanes).await? } else { Vec::new() };
                Ok((dead, heads))
            };
            let result = work.await;
            Event::Opened { lanes, result }
        }));
    }

    pub(super) fn start_feeding(&mut self, now: Instant) {
        self.start_widening(now);
        if self.feed.open.is_empty() {
            return;
        }
        self.start_reading(now);
        self.start_reading_on();
        self.start_sweeping(now);
        self.start_rechecking(now);
        if now >= self.feed.next_due && !self.feed.is_asking_for_due && self.has_room() {
            self.feed.is_asking_for_due = true;
            let (destination, lanes, budget) = (self.destination.clone(), self.feed.open.clone(), self.feed.budget);
            let groups = self.schedule.due_elsewhere();
            self.tasks.push(Box::pin(async move {
                let due = destination.outbox.read_due(&destination.name, &lanes, MOST_DUE, budget, &groups);
                Event::Due { result: due.await }
            }));
        }
    }

    /// When the next of these is due, of those that could be started.
    pub(super) fn next_feeding(&self) -> Option<Instant> {
        let feed = &self.feed;
        let has_all = self.claim.lanes().len() >= usize::try_from(LANES).unwrap_or(1);
        let widening = (!has_all && !feed.is_widening).then_some(feed.next_widening);
        if feed.open.is_empty() {
            return widening;
        }
        let reading = (!feed.is_reading && !self.must_sweep() && self.has_room()).then_some(feed.next_read);
        let sweep = (!feed.is_sweeping).then_some(self.memory.sweeping.next());
        let due = (!feed.is_asking_for_due && self.has_room()).then_some(feed.next_due);
        let recheck = feed.next_recheck.filter(|_| !feed.is_rechecking && self.burying == 0);
        [widening, reading, sweep, due, recheck].into_iter().flatten().min()
    }

    fn has_room(&self) -> bool {
        self.schedule.waiting() < self.destination.tuning.batch_size * READ_AHEAD
            && self.schedule.waiting_bytes() < MOST_WAITING_BYTES
    }

    fn has_gap(&self) -> bool {
        self.feed.open.iter().any(|lane| self.memory.bounds.has_gap(*lane))
    }

    fn start_widening(&mut self, now: Instant) {
        let held = self.claim.lanes();
        if now < self.feed.next_widening || self.feed.is_widening {
            return;
        }
        self.feed.next_widening = now + WIDEN_EVERY;
        let others: Vec<Lane> = (0..LANES).filter(|lane| !held.contains(lane)).collect();
        if others.is_empty() || self.feed.is_opening {
            return;
        }
        self.feed.is_widening = true;
        let asked = self.claim.take_more(&others, WIDEN_BY);
        self.tasks.push(Box::pin(async move { Event::Widened { result: asked.await } }));
    }

    fn start_reading(&mut self, now: Instant) {
        let is_due = !self.feed.full.is_empty() || now >= self.feed.next_read;
        if self.feed.is_reading || self.must_sweep() || !self.has_room() || !is_due {
            return;
        }
        self.feed.is_reading = true;
        let positions = positions(&self.feed.open, &self.feed.full, self.destination.tuning.batch_size, |lane| {
            self.memory.bounds.cursor(lane)
        });
        let sweep = self.sweep_of_the_gap(now);
        let budget = self.feed.budget;
        let destination = self.destination.clone();
        self.tasks.push(Box::pin(async move {
            let timer = destination.metrics.read_duration.start_timer();
            let result = destination.outbox.read(&destination.name, &positions, budget, sweep.as_ref()).await;
            timer.observe_duration();
            Event::Read { positions, sweep, result }
        }));
    }

    /// The sweep that goes with a read, if one is needed.
    fn sweep_of_the_gap(&mut self, now: Instant) -> Option<Sweep> {
        let is_due = match self.destination.queue.kind() {
            QueueKind::Fifo => self.has_gap() || self.memory.bounds.has_overtaken(),
            QueueKind::Standard => self.has_gap() && now >= self.feed.next_gap_sweep,
        };
        if !is_due {
            return None;
        }
        self.feed.next_gap_sweep = now + if self.feed.full.is_empty() { GAP_SWEEP } else { GAP_SWEEP_BUSY };
        let bounds = &*self.memory.bounds;
        Some(self.sweep_of(&self.feed.open, |lane| (bounds.low(lane), bounds.cursor(lane))))
    }

    fn start_reading_on(&mut self) {
        if self.feed.is_reading_on {
            return;
        }
        let Some(from) = self.schedule.next_to_read_on() else {
            return;
        };
        self.feed.is_reading_on = true;
        let (destination, budget) = (self.destination.clone(), self.feed.budget);
        self.tasks.push(Box::pin(async move {
            let Destination { name, outbox, .. } = &destination;
            let result = outbox.read_group(name, &from.group, from.after, from.most, budget).await;
            Event::ReadOn { from, result }
        }));
    }

    /// Applies the results of the tasks that are started here.
    pub(super) fn fed(&mut self, event: Event) {
        let ended = match &event {
            Event::Read { .. } => READ,
            Event::Due { .. } => DUE,
            Event::ReadOn { .. } => READ_ON,
            Event::Swept { .. } => SWEEP,
            _ => 0,
        };
        let applied = match event {
            Event::Opened { lanes, result } => result.map(|(dead, heads)| self.opened(&lanes, &dead, &heads)),
            Event::Rechecked { blocked, burials, result } => {
                result.map(|dead| self.rechecked(&blocked, burials, &dead))
            }
            Event::Read { positions, sweep, result } => {
                self.feed.is_reading = false;
                result.map(|(batch, swept)| {
                    let swept = swept.map(|swept| self.without_the_claim(swept));
                    let gap = sweep.as_ref().zip(swept.as_ref());
                    self.read(&positions, batch, gap);
                })
            }
            Event::ReadOn { from, result } => {
                self.feed.is_reading_on = false;
                result.map(|batch| {
                    self.feed.budget.follow(batch.is_cut);
                    let is_all = batch.messages.len() < from.most && !batch.is_cut && batch.lanes_with_more.is_empty();
                    let last = batch.messages.last().map(|message| message.key.id);
                    let until = |message: &Message| message.wait.map(|wait| message.read_at + wait);
                    let with_time = |message| (until(&message), message);
                    let items = batch.messages.into_iter().map(with_time);
                    let items = items.filter_map(|(until, message)| Some((self.item(message)?, until))).collect();
                    self.schedule.read_on(&from, items, last, is_all);
                })
            }
            Event::Swept { sweep, round, upto, started, result } => {
                self.feed.is_sweeping = false;
                result.map(|swept| self.swept_a_slice(&sweep, round, upto, started, &self.without_the_claim(swept)))
            }
            Event::Due { result } => {
                self.feed.is_asking_for_due = false;
                self.feed.next_due = Instant::now() + DUE_POLL;
                result.map(|batch| self.admit_due(batch))
            }
            Event::Widened { result } => {
                self.feed.is_widening = false;
                result.map(|lanes| self.widened(lanes))
            }
            Event::Published { .. } | Event::Settled { .. } => Ok(()),
        };
        self.forget_settled(ended);
        if let Err(error) = applied {
            self.broke(error);
        }
    }

    /// The claim's own transaction is open as long as the stream; no bound has to wait for it.
    fn without_the_claim(&self, swept: Swept) -> Swept {
        Swept { snapshot: swept.snapshot.without(self.claim.transaction_id()), keys: swept.keys }
    }

    fn broke(&mut self, error: OutboxError) {
        if !matches!(self.closing, Some(Closing::Broken(_))) {
            self.closing = Some(Closing::Broken(error));
        }
    }

    fn opened(&mut self, lanes: &[Lane], dead: &[DeadGroup], heads: &[DeferredHead]) {
        self.feed.is_opening = false;
        for lane in lanes {
            self.memory.bounds.open(*lane);
        }
        for group in dead {
            self.block(&group.name, group.first);
        }
        self.feed.open.extend_from_slice(lanes);
        self.feed.next_read = Instant::now();
        self.feed.next_due = Instant::now();
        for head in heads {
            if head.is_redriven {
                self.schedule.start_over(&head.group, head.key, self.memory.bounds.cursor(head.key.lane));
            } else {
                self.schedule.defer(&head.group, head.key, head.due);
            }
        }
        self.memory.remembered.retain(|remembered| {
            let is_here = lanes.contains(&remembered.lane);
            if is_here {
                self.schedule.remember(remembered);
            }
            !is_here
        });
    }

    fn widened(&mut self, lanes: Vec<Lane>) {
        if !lanes.is_empty() && self.closing.is_none() {
            self.claim.add(&lanes);
            self.destination.metrics.lanes_held.set(self.claim.lanes().len() as i64);
            self.open(lanes);
        }
    }

    fn read(&mut self, positions: &[Position], mut batch: Batch, gap: Option<(&Sweep, &Swept)>) {
        let now = Instant::now();
        self.feed.budget.follow(batch.is_cut);
        let jitter = ACTIVE_POLL.mul_f64(0.8 + 0.4 * fastrand::f64());
        self.feed.next_read = now + jitter;
        // A sweep from the bottom may have set a lane back since the read began.
        let mut in_place: Vec<Position> = positions.to_vec();
        in_place.retain(|position| self.memory.bounds.cursor(position.lane) == position.cursor);
        if let Some((sweep, swept)) = gap {
            if self.destination.queue.kind() == QueueKind::Fifo && self.memory.bounds.shows_late_rows(&swept.snapshot) {
                return;
            }
            let late = self.swept(sweep, swept, now);
            if !late.is_empty() {
                in_place.retain(|position| !late.contains(&position.lane));
                self.feed.next_read = now;
            }
        }
        batch.messages.retain(|message| in_place.iter().any(|position| position.lane == message.key.lane));
        self.feed.full.clear();
        for position in &in_place {
            let of_lane = batch.messages.iter().filter(|message| message.key.lane == position.lane);
            let (count, last) = of_lane.fold((0, 0), |(count, _), message| (count + 1, message.key.id));
            if last > 0 {
                self.memory.bounds.read(position.lane, last, batch.next_xid, now);
            }
            if count == position.most || batch.is_cut || batch.lanes_with_more.contains(&position.lane) {
                self.feed.full.push(position.lane);
            }
        }
        if !batch.messages.is_empty() {
            self.touch(now);
        }
        self.admit(batch);
    }

    /// Applies a sweep: bounds move up over what it settles, and back below what it found; returns the lanes where it
    /// found something, or may have left something out.
    fn swept(&mut self, sweep: &Sweep, swept: &Swept, now: Instant) -> Vec<Lane> {
        let mut late = self.schedule.no_longer_left(&sweep.groups_to_skip);
        self.schedule.has_swept();
        let count = |lane: Lane| swept.keys.iter().filter(|key| key.lane == lane).count();
        let is_complete = |lane: Lane| count(lane) < sweep.most && !late.contains(&lane);
        let covered: Vec<(Lane, i64)> =
            sweep.ranges.iter().filter(|range| is_complete(range.lane)).map(|range| (range.lane, range.upto)).collect();
        self.memory.bounds.swept(&covered, &swept.snapshot, now);
        late.extend(self.find_late(swept));
        late
    }
}
