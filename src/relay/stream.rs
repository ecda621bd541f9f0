//! The stream: everything that happens while a claim is held.
//!
//! Reading, publishing and settling go on at the same time, as tasks that this loop starts and whose results it applies;
//! no state is shared. Each turn of the loop notices what has changed, starts what is due, and waits for the next result.
//! The stream closes after a few seconds, when nothing is left, or when something fails. Then nothing new is sent, what is
//! in flight is awaited and settled, and only then is the claim released.
//!
//! What may go next is [`super::schedule`]'s decision. [`super::feed`] starts the reads and takes in what they bring;
//! [`super::outcomes`] applies SQS's answers and writes them back.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio_util::sync::CancellationToken;

use super::feed::Feed;
use super::group::Item;
use super::pace::Pace;
use super::schedule::{Limits, ReadOn, Remembered, Schedule};
use super::sweep::{Round, Sweeping};
use super::throttle::Throttle;
use super::{Destination, Helm, Probe};
use crate::config::FifoMode;
use crate::health::Pulse;
use crate::message::Fault;
use crate::message::{Lane, Settlement};
use crate::outbox::{Batch, Claim, DeadGroup, DeferredHead, LowBounds, OutboxError, Position, Sweep, Swept};
use crate::sqs::Published;

/// How long a claim is used before it is given back, so that lanes can move and vacuum is not held up. With the request
/// timeout on top it stays below the ten seconds within which a frozen relay's lanes must be free again.
pub(super) const STREAM_FOR: Duration = Duration::from_millis(3500);

/// A stream with nothing to do ends after this time: no transaction stays open while it is quiet.
const IDLE_GRACE: Duration = Duration::from_millis(50);

/// How long a request may wait to be filled while others are under way.
const HOLD: Duration = Duration::from_millis(2);

/// How long while a read is under way that may bring what is missing.
const HOLD_FOR_READ: Duration = Duration::from_millis(20);

/// The loop looks up at least this often, to notice that the claim is gone.
const HEARTBEAT: Duration = Duration::from_millis(100);

/// What the requests in flight may weigh together, so that many requests of large messages do not fill the memory: sixteen
/// of the largest, or thousands of the lottery's.
const MOST_BYTES_IN_FLIGHT: usize = 16 * crate::sqs::MAX_BYTES;

/// Messages of one group in memory in strict mode: a hot group sends one at a time and reads on when half of it is gone.
const STRICT_WINDOW: usize = 20;

/// Messages of one group in memory in batched mode.
const BATCHED_WINDOW: usize = 100;

/// How much of a group goes out at once and waits in memory.
pub(super) fn limits(request_size: usize, fifo_mode: FifoMode) -> Limits {
    match fifo_mode {
        FifoMode::Strict => Limits { request_size, per_group: 1, window: STRICT_WINDOW },
        FifoMode::Batched => Limits { request_size, per_group: request_size, window: BATCHED_WINDOW },
    }
}

/// Why a stream closes.
#[derive(Debug)]
pub(super) enum Closing {
    /// It held its lanes long enough.
    Time,
    /// Nothing is left to do.
    Idle,
    /// The process drains.
    Shutdown,
    /// An operator has paused the destination.
    Paused,
    /// The destination cannot take messages now.
    Halted(Fault),
    /// The database failed, or the claim is gone.
    Broken(OutboxError),
}

/// What a stream leaves behind.
#[derive(Debug)]
pub(super) struct StreamEnd {
    /// Why it ended.
    pub(super) closing: Closing,
    /// Outcomes that could not be written.
    pub(super) unsettled: Vec<Settlement>,
    /// Whether others were dropped, so that what is remembered of their groups may be wrong.
    pub(super) has_dropped: bool,
    /// Whether more was waiting than it could send.
    pub(super) is_saturated: bool,
    /// Messages that SQS accepted.
    pub(super) delivered: u64,
    /// Messages given up.
    pub(super) dead: u64,
}

/// The result of a task.
pub(super) enum Event {
    Opened { lanes: Vec<Lane>, result: Result<(Vec<DeadGroup>, Vec<DeferredHead>), OutboxError> },
    Read { positions: Vec<Position>, sweep: Option<Sweep>, result: Result<(Batch, Option<Swept>), OutboxError> },
    ReadOn { from: ReadOn, result: Result<Batch, OutboxError> },
    Swept { sweep: Sweep, round: Round, upto: i64, started: Instant, result: Result<Swept, OutboxError> },
    Due { result: Result<Batch, OutboxError> },
    Rechecked { blocked: Vec<(Lane, Arc<str>)>, burials: u64, result: Result<Vec<DeadGroup>, OutboxError> },
    Widened { result: Result<Vec<Lane>, OutboxError> },
    Published { items: Vec<Item>, published: Published },
    Settled { settlements: Vec<Settlement>, took: Duration, result: Result<u64, OutboxError> },
}

/// A task of the stream.
pub(super) type Task = Pin<Box<dyn Future<Output = Event> + Send>>;

/// What a relay remembers from claim to claim.
pub(super) struct Memory<'a> {
    pub(super) bounds: &'a mut LowBounds,
    pub(super) probe: &'a mut Probe,
    pub(super) throttle: &'a mut Throttle,
    pub(super) pace: &'a mut Pace,
    pub(super) sweeping: &'a mut Sweeping,
    pub(super) remembered: &'a mut Vec<Remembered>,
}

/// One claim's work.
pub(super) struct Stream<'a> {
    pub(super) destination: &'a Destination,
    pub(super) claim: Claim,
    pub(super) memory: Memory<'a>,
    pub(super) schedule: Schedule,
    pub(super) tasks: FuturesUnordered<Task>,
    pub(super) feed: Feed,
    pub(super) closing: Option<Closing>,
    pub(super) pulse: &'a Pulse,
    helm: &'a Helm,
    pub(super) outcomes: VecDeque<Settlement>,
    pub(super) oldest_outcome: Option<Instant>,
    /// How many outcomes are being written.
    pub(super) settling: usize,
    /// Dead messages that are not recorded yet.
    pub(super) burying: usize,
    /// How many there have been.
    pub(super) burials: u64,
    /// Whether something was not recorded because the claim was over.
    pub(super) has_dropped: bool,
    /// What is settled, with the reads that were under way then.
    pub(super) settled_ids: Vec<(u8, Vec<i64>)>,
    pub(super) publishing: usize,
    /// What their entries weigh.
    pub(super) publishing_bytes: usize,
    pub(super) publishing_entries: usize,
    pub(super) failures_in_a_row: u32,
    held_since: Option<Instant>,
    active_at: Instant,
    pub(super) is_saturated: bool,
    pub(super) delivered: u64,
    pub(super) dead: u64,
}

impl<'a> Stream<'a> {
    pub(super) fn new(
        destination: &'a Destination,
        claim: Claim,
        memory: Memory<'a>,
        helm: &'a Helm,
        pulse: &'a Pulse,
    ) -> Self {
        let limits = limits(destination.tuning.request_size, destination.tuning.fifo_mode);
        destination.metrics.lanes_held.set(claim.lanes().len() as i64);
        Self {
            destination,
            memory,
            schedule: Schedule::new(limits),
            tasks: FuturesUnordered::new(),
            feed: Feed::new(claim.taken_at()),
            claim,
            closing: None,
            pulse,
            helm,
            outcomes: VecDeque::new(),
            oldest_outcome: None,
            settling: 0,
            burying: 0,
            burials: 0,
            has_dropped: false,
            settled_ids: Vec::new(),
            publishing: 0,
            publishing_bytes: 0,
            publishing_entries: 0,
            failures_in_a_row: 0,
            held_since: None,
            active_at: Instant::now(),
            is_saturated: false,
            delivered: 0,
            dead: 0,
        }
    }

    /// Works until the stream closes and everything in flight has come back.
    pub(super) async fn run(mut self, drain: &CancellationToken) -> StreamEnd {
        self.open(self.claim.lanes().to_vec());
        loop {
            let now = Instant::now();
            self.pulse.tick();
            self.notice(now, drain);
            self.schedule.wake(now);
            if self.closing.is_none() {
                self.start_feeding(now);
                self.start_requests(now);
            }
            self.start_settling(now);
            if self.closing.is_some() && self.tasks.is_empty() {
                return self.end().await;
            }
            let wake = self.next_wake(now);
            tokio::select! {
                Some(event) = self.tasks.next(), if !self.tasks.is_empty() => self.apply(event),
                () = tokio::time::sleep_until(wake.into()) => {}
                () = drain.cancelled(), if self.closing.is_none() => {}
            }
            // What else is ready is taken along, so that a turn of the loop is paid once for many results.
            while let Some(Some(event)) = self.tasks.next().now_or_never() {
                self.apply(event);
            }
        }
    }

    fn notice(&mut self, now: Instant, drain: &CancellationToken) {
        if self.closing.is_some() {
            return;
        }
        // A backlog in few groups is left in the table and not in the reads; then the requests tell.
        let most_are_out = self.publishing >= self.destination.tuning.max_in_flight && self.schedule.has_ready();
        self.is_saturated = self.feed.was_full() || most_are_out;
        let is_quiet = self.schedule.only_waits_beyond(self.closes_at()) && self.feed.has_nothing_more();
        self.closing = if self.claim.is_lost() {
            Some(Closing::Broken(OutboxError::ClaimLost))
        } else if drain.is_cancelled() {
            Some(Closing::Shutdown)
        } else if self.helm.is_paused() {
            Some(Closing::Paused)
        } else if now >= self.closes_at() {
            Some(Closing::Time)
        } else if is_quiet && now.saturating_duration_since(self.active_at) >= IDLE_GRACE {
            Some(Closing::Idle)
        } else {
            None
        };
    }

    /// When PostgreSQL may have ended the claim, should it have heard nothing.
    pub(super) fn claim_ends_at(&self) -> Instant {
        self.closes_at() + self.destination.tuning.request_timeout
    }

    pub(super) fn closes_at(&self) -> Instant {
        self.claim.taken_at() + STREAM_FOR
    }

    fn start_requests(&mut self, now: Instant) {
        let most = if self.memory.probe.is_on() { 1 } else { self.memory.throttle.limit() };
        while self.publishing < most && self.has_room_in_flight() && self.may_send(now) {
            let Some(items) = self.schedule.next_request() else {
                return;
            };
            let queue = self.destination.queue.clone();
            self.publishing += 1;
            self.publishing_bytes += items.iter().map(|item| item.entry.bytes()).sum::<usize>();
            self.publishing_entries += items.len();
            self.destination.metrics.in_flight.set(self.publishing as i64);
            self.tasks.push(Box::pin(async move {
                let entries: Vec<_> = items.iter().map(|item| &item.entry).collect();
                let published = queue.publish(&entries).await;
                Event::Published { items, published }
            }));
        }
    }

    /// One request may always be under way, unless the database has enough to write.
    fn has_room_in_flight(&self) -> bool {
        let under_way = self.publishing_entries + self.outcomes.len() + self.settling;
        under_way < self.memory.pace.most_under_way()
            && (self.publishing == 0 || self.publishing_bytes < MOST_BYTES_IN_FLIGHT)
    }

    /// A request that is not full waits a moment when its missing entries may still come: from answers that are under way,
    /// which set groups free, or from a read.
    fn may_send(&mut self, now: Instant) -> bool {
        // A frozen process may wake up long after its claim was given to another relay.
        if !self.schedule.has_ready() || Instant::now() >= self.closes_at() {
            self.held_since = None;
            return false;
        }
        if self.schedule.can_fill_a_request() {
            self.held_since = None;
            return true;
        }
        let since = *self.held_since.get_or_insert(now);
        let may = now.saturating_duration_since(since) >= self.hold();
        if may {
            self.held_since = None;
        }
        may
    }

    fn hold(&self) -> Duration {
        match (self.feed.expects_more(), self.publishing) {
            (true, _) => HOLD_FOR_READ,
            (false, 0) => Duration::ZERO,
            (false, _) => HOLD,
        }
    }

    fn next_wake(&self, now: Instant) -> Instant {
        let mut wake = now + HEARTBEAT;
        if self.closing.is_none() {
            let held = self.held_since.filter(|_| self.has_room_in_flight()).map(|since| since + self.hold());
            let due = [held, self.schedule.next_wake(), self.next_feeding()];
            wake = due.into_iter().flatten().fold(wake.min(self.closes_at()), Instant::min);
        }
        let may_settle = self.settling == 0 && !matches!(self.closing, Some(Closing::Broken(_)));
        if let Some(since) = self.oldest_outcome.filter(|_| may_settle) {
            wake = wake.min(since + self.settle_after());
        }
        // Never in the past, so that the loop does not spin on something it cannot start.
        wake.max(now + Duration::from_micros(200))
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Published { items, published } => self.published(items, published),
            Event::Settled { settlements, took, result } => self.settled(settlements, took, result),
            event => self.fed(event),
        }
    }

    /// Something happened that may bring more.
    pub(super) fn touch(&mut self, now: Instant) {
        self.active_at = now;
    }
}
