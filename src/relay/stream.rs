//! The stream: everything that happens while a claim is held.
//!
//! Reading, publishing and settling go on at the same time, as tasks that this loop starts and whose results it applies;
//! no state is shared. Each turn of the loop notices what has changed, starts what is due, and waits for the next result.
//! The stream closes after a few seconds, when nothing is left, or when something fails. Then nothing new is sent, what is
//! in flight is awaited and settled, and only then is the claim released.
//!
//! What may go next is [`super::schedule`]'s decision, what a failure means [`crate::retry`]'s. [`super::feed`] starts the
//! reads and takes in what they bring.

use std::collections::VecDeque;
use std::pin::Pin;
use std::time::{Duration, Instant};

use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio_util::sync::CancellationToken;

use super::feed::Feed;
use super::group::Item;
use super::schedule::{Leftovers, Limits, ReadOn, Schedule};
use super::{Destination, Probe};
use crate::config::FifoMode;
use crate::health::Pulse;
use crate::message::{Lane, Outcome, Settlement};
use crate::outbox::{Batch, Claim, LowBounds, OutboxError, Position, Swept};
use crate::retry::{Conduct, Fault, FaultKind, conduct, delay_after};
use crate::sqs::Published;

/// How long a claim is used before it is given back, so that lanes can move and vacuum is not held up. With the request
/// timeout on top it stays below the ten seconds within which a frozen relay's lanes must be free again.
pub const STREAM_FOR: Duration = Duration::from_millis(3500);

/// A stream with nothing to do ends after this time: no transaction stays open while it is quiet.
const IDLE_GRACE: Duration = Duration::from_millis(50);

/// Outcomes are written when there are this many, or when the oldest has waited [`SETTLE_AFTER`].
const SETTLE_SIZE: usize = 500;

/// See [`SETTLE_SIZE`].
const SETTLE_AFTER: Duration = Duration::from_millis(5);

/// How long a request may wait to be filled while others are under way.
const HOLD: Duration = Duration::from_millis(2);

/// How long while a read is under way that may bring what is missing.
const HOLD_FOR_READ: Duration = Duration::from_millis(20);

/// The loop looks up at least this often, to notice that the claim is gone.
const HEARTBEAT: Duration = Duration::from_millis(100);

/// After so many requests in a row without an answer the destination is taken as down.
const FAILURES_IN_A_ROW: u32 = 3;

/// Messages of one group in memory in strict mode: a hot group sends one at a time and reads on when half of it is gone.
const STRICT_WINDOW: usize = 20;

/// Messages of one group in memory in batched mode.
const BATCHED_WINDOW: usize = 100;

/// Why a stream closes.
#[derive(Debug)]
pub enum Closing {
    /// It held its lanes long enough.
    Time,
    /// Nothing is left to do.
    Idle,
    /// The process drains.
    Shutdown,
    /// The destination cannot take messages now.
    Halted(Fault),
    /// The database failed, or the claim is gone.
    Broken(OutboxError),
}

/// What a stream leaves behind.
#[derive(Debug)]
pub struct StreamEnd {
    /// Why it ended.
    pub closing: Closing,
    /// Outcomes that could not be written.
    pub unsettled: Vec<Settlement>,
    /// Whether more was waiting than it could send.
    pub is_saturated: bool,
    /// Messages that SQS accepted.
    pub delivered: u64,
    /// Messages given up.
    pub dead: u64,
}

/// The result of a task.
pub(super) enum Event {
    Opened {
        lanes: Vec<Lane>,
        result: Result<Batch, OutboxError>,
    },
    Read {
        positions: Vec<Position>,
        result: Result<Batch, OutboxError>,
    },
    ReadOn {
        from: ReadOn,
        result: Result<Batch, OutboxError>,
    },
    Swept {
        ranges: Vec<(Lane, i64, i64)>,
        most: usize,
        started: Instant,
        result: Result<Swept, OutboxError>,
    },
    Found {
        result: Result<Batch, OutboxError>,
    },
    Due {
        result: Result<Batch, OutboxError>,
    },
    Widened {
        result: Result<Vec<Lane>, OutboxError>,
    },
    Published {
        items: Vec<Item>,
        published: Published,
    },
    Settled {
        settlements: Vec<Settlement>,
        result: Result<u64, OutboxError>,
    },
}

/// A task of the stream.
pub(super) type Task = Pin<Box<dyn Future<Output = Event> + Send>>;

/// What a relay remembers from claim to claim.
pub(super) struct Memory<'a> {
    pub(super) bounds: &'a mut LowBounds,
    pub(super) probe: &'a mut Probe,
    pub(super) next_sweep: &'a mut Instant,
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
    pulse: &'a Pulse,
    outcomes: VecDeque<Settlement>,
    oldest_outcome: Option<Instant>,
    is_settling: bool,
    settled_ids: Vec<i64>,
    publishing: usize,
    failures_in_a_row: u32,
    held_since: Option<Instant>,
    active_at: Instant,
    delivered: u64,
    dead: u64,
}

impl<'a> Stream<'a> {
    pub(super) fn new(destination: &'a Destination, claim: Claim, memory: Memory<'a>, pulse: &'a Pulse) -> Self {
        let request_size = destination.tuning.request_size;
        let limits = match destination.tuning.fifo_mode {
            FifoMode::Strict => Limits {
                request_size,
                per_group: 1,
                window: STRICT_WINDOW,
            },
            FifoMode::Batched => Limits {
                request_size,
                per_group: request_size,
                window: BATCHED_WINDOW,
            },
        };
        Self {
            destination,
            memory,
            schedule: Schedule::new(limits),
            tasks: FuturesUnordered::new(),
            feed: Feed::new(claim.taken_at()),
            claim,
            closing: None,
            pulse,
            outcomes: VecDeque::new(),
            oldest_outcome: None,
            is_settling: false,
            settled_ids: Vec::new(),
            publishing: 0,
            failures_in_a_row: 0,
            held_since: None,
            active_at: Instant::now(),
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
        let is_quiet = self.schedule.known() == 0 && self.feed.has_nothing_more();
        self.closing = if self.claim.is_lost() {
            Some(Closing::Broken(OutboxError::ClaimLost))
        } else if drain.is_cancelled() {
            Some(Closing::Shutdown)
        } else if now >= self.closes_at() {
            Some(Closing::Time)
        } else if is_quiet && now.saturating_duration_since(self.active_at) >= IDLE_GRACE {
            Some(Closing::Idle)
        } else {
            None
        };
    }

    fn closes_at(&self) -> Instant {
        self.claim.taken_at() + STREAM_FOR
    }

    fn start_requests(&mut self, now: Instant) {
        let most = if self.memory.probe.is_on() {
            1
        } else {
            self.destination.tuning.max_in_flight
        };
        while self.publishing < most && self.may_send(now) {
            let Some(items) = self.schedule.next_request() else {
                return;
            };
            let queue = self.destination.queue.clone();
            self.publishing += 1;
            self.tasks.push(Box::pin(async move {
                let entries: Vec<_> = items.iter().map(|item| &item.entry).collect();
                let published = queue.publish(&entries).await;
                Event::Published { items, published }
            }));
        }
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

    fn start_settling(&mut self, now: Instant) {
        let is_due = self.outcomes.len() >= SETTLE_SIZE
            || self.publishing == 0
            || self
                .oldest_outcome
                .is_some_and(|since| now.saturating_duration_since(since) >= SETTLE_AFTER);
        if self.is_settling || self.outcomes.is_empty() || !is_due || matches!(self.closing, Some(Closing::Broken(_))) {
            return;
        }
        self.is_settling = true;
        self.oldest_outcome = None;
        let mut settlements: Vec<Settlement> = self.outcomes.drain(..).collect();
        let destination = self.destination.clone();
        self.tasks.push(Box::pin(async move {
            let result = destination
                .outbox
                .settle(&destination.name, destination.keep, &mut settlements)
                .await;
            Event::Settled { settlements, result }
        }));
    }

    fn next_wake(&self, now: Instant) -> Instant {
        let mut wake = now + HEARTBEAT;
        if self.closing.is_none() {
            let held = self.held_since.map(|since| since + self.hold());
            let due = [held, self.schedule.next_wake(), self.next_feeding()];
            wake = due.into_iter().flatten().fold(wake.min(self.closes_at()), Instant::min);
        }
        if let Some(since) = self.oldest_outcome.filter(|_| !self.is_settling) {
            wake = wake.min(since + SETTLE_AFTER);
        }
        // Never in the past, so that the loop does not spin on something it cannot start.
        wake.max(now + Duration::from_micros(200))
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Published { items, published } => self.published(items, published),
            Event::Settled { settlements, result } => self.settled(settlements, result),
            event => self.fed(event),
        }
    }

    fn published(&mut self, items: Vec<Item>, published: Published) {
        let now = Instant::now();
        self.publishing -= 1;
        self.active_at = now;
        let metrics = &self.destination.metrics;
        metrics.requests.inc();
        metrics.request_duration.observe(published.duration.as_secs_f64());
        metrics.request_entries.observe(items.len() as f64);
        self.failures_in_a_row = match &published.request_fault {
            None => 0,
            Some(fault) => {
                metrics.request_failures(fault.kind).inc();
                self.failures_in_a_row + 1
            }
        };
        // A whole request is refused for what one entry holds: sent one by one, only that entry is refused again.
        let is_refused = |fault: &Fault| fault.kind == FaultKind::MessagePermanent;
        let is_split = items.len() > 1 && published.request_fault.as_ref().is_some_and(is_refused);
        let (mut done, mut again) = (Vec::with_capacity(items.len()), Vec::new());
        for (mut item, result) in items.into_iter().zip(published.results) {
            match result {
                Ok(sqs_message_id) => {
                    metrics
                        .latency
                        .observe((item.age_when_read + (now - item.read_at)).as_secs_f64());
                    self.outcomes.push_back(Settlement {
                        key: item.key(),
                        outcome: Outcome::Delivered { sqs_message_id },
                    });
                    done.push(item);
                }
                Err(_) if is_split => {
                    item.is_alone = true;
                    again.push((item, None));
                }
                Err(fault) => match self.failed(&mut item, &fault, now) {
                    Some(until) => again.push((item, until)),
                    None => done.push(item),
                },
            }
        }
        let accepted = done.len() as u64;
        if self.outcomes.is_empty() {
            self.oldest_outcome = None;
        } else {
            self.oldest_outcome.get_or_insert(now);
        }
        self.schedule.finish(&done, again);
        self.count_accepted(accepted);
    }

    fn count_accepted(&mut self, accepted: u64) {
        if accepted > 0 && self.failures_in_a_row == 0 {
            self.memory.probe.passed(self.destination);
        }
    }

    /// What happens to a message that was not accepted: when it is sent again (`Some`, with a time or at once), or never.
    fn failed(&mut self, item: &mut Item, fault: &Fault, now: Instant) -> Option<Option<Instant>> {
        let tuning = &self.destination.tuning;
        let what = conduct(fault.kind, item.attempts, tuning.max_attempts);
        if fault.kind.may_have_been_accepted() {
            self.destination.metrics.possible_duplicates.inc();
        }
        if what != Conduct::Bury {
            self.destination.metrics.retries(fault.kind).inc();
        }
        match what {
            Conduct::Bury => {
                item.attempts = item.attempts.saturating_add(1);
                self.bury(item.key(), item.attempts, fault);
                None
            }
            Conduct::RetryCharged => {
                item.attempts = item.attempts.saturating_add(1);
                item.charged = Some(fault.to_string());
                Some(Some(
                    now + delay_after(item.attempts, tuning.retry_initial, tuning.retry_max),
                ))
            }
            Conduct::Resend => {
                if self.failures_in_a_row >= FAILURES_IN_A_ROW
                    || (self.memory.probe.is_on() && self.failures_in_a_row > 0)
                {
                    self.halt(fault);
                }
                Some(Some(now + delay_after(1, tuning.retry_initial, tuning.retry_max)))
            }
            Conduct::Halt => {
                self.halt(fault);
                Some(None)
            }
        }
    }

    fn halt(&mut self, fault: &Fault) {
        if !matches!(self.closing, Some(Closing::Halted(_) | Closing::Broken(_))) {
            self.closing = Some(Closing::Halted(fault.clone()));
        }
    }

    /// Gives a message up.
    pub(super) fn bury(&mut self, key: crate::message::MessageKey, attempts: i16, fault: &Fault) {
        self.dead += 1;
        self.destination.metrics.dead_lettered(fault.kind).inc();
        // A dead message is an operator's business, and there are few of them or there is a bigger problem.
        tracing::warn!(destination = %self.destination.name, message_id = key.id, reason = %fault, "message is dead");
        self.outcomes.push_back(Settlement {
            key,
            outcome: Outcome::Dead {
                attempts,
                error: fault.to_string(),
            },
        });
        self.oldest_outcome.get_or_insert_with(Instant::now);
    }

    fn settled(&mut self, settlements: Vec<Settlement>, result: Result<u64, OutboxError>) {
        self.is_settling = false;
        match result {
            Ok(published_twice) => {
                self.count_settled(&settlements, published_twice);
                // A sweep that is under way may have seen these messages pending, so they stay known until it is over.
                self.settled_ids
                    .extend(settlements.iter().map(|settlement| settlement.key.id));
                self.forget_settled();
            }
            Err(error) => {
                self.outcomes.extend(settlements);
                self.closing = Some(Closing::Broken(error));
            }
        }
    }

    /// Forgets what is settled, unless a sweep is under way.
    pub(super) fn forget_settled(&mut self) {
        if !self.feed.is_sweeping() {
            for id in self.settled_ids.drain(..) {
                self.schedule.forget(id);
            }
        }
    }

    fn count_settled(&mut self, settlements: &[Settlement], published_twice: u64) {
        let is_delivered = |settlement: &&Settlement| matches!(settlement.outcome, Outcome::Delivered { .. });
        let delivered = settlements.iter().filter(is_delivered).count() as u64;
        self.delivered += delivered;
        self.destination.metrics.delivered.inc_by(delivered);
        if published_twice > 0 {
            self.destination.metrics.possible_duplicates.inc_by(published_twice);
            tracing::warn!(
                destination = %self.destination.name,
                messages = published_twice,
                "messages were settled by another relay meanwhile, so both published them"
            );
        }
    }

    /// Everything has come back: records what waits for a retry, releases the claim, and says what was left.
    async fn end(mut self) -> StreamEnd {
        let now = Instant::now();
        let Leftovers { items, rests } = self.schedule.take_leftovers();
        for (item, until) in items {
            match item.charged {
                Some(error) => {
                    let wait = until.map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
                    let outcome = Outcome::Deferred {
                        attempts: item.attempts,
                        wait,
                        error,
                    };
                    self.outcomes.push_back(Settlement {
                        key: item.entry.key(),
                        outcome,
                    });
                }
                None => self.memory.bounds.rewind(item.entry.key().lane, item.entry.key().id),
            }
        }
        for key in rests {
            self.memory.bounds.rewind(key.lane, key.id);
        }
        let mut closing = self.closing.take().unwrap_or(Closing::Time);
        let mut unsettled: Vec<Settlement> = self.outcomes.drain(..).collect();
        if !matches!(closing, Closing::Broken(_)) {
            let destination = self.destination;
            match destination
                .outbox
                .settle(&destination.name, destination.keep, &mut unsettled)
                .await
            {
                Ok(published_twice) => {
                    self.count_settled(&unsettled, published_twice);
                    unsettled.clear();
                }
                Err(error) => closing = Closing::Broken(error),
            }
        }
        let is_saturated = matches!(closing, Closing::Time) && self.feed.was_full();
        if let Err(error) = self.claim.release().await
            && !matches!(closing, Closing::Broken(_) | Closing::Halted(_))
        {
            closing = Closing::Broken(error);
        }
        StreamEnd {
            closing,
            unsettled,
            is_saturated,
            delivered: self.delivered,
            dead: self.dead,
        }
    }

    /// Something happened that may bring more.
    pub(super) fn touch(&mut self, now: Instant) {
        self.active_at = now;
    }
}
