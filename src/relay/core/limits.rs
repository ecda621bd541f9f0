//! Limits that adapt: how many requests may be in flight, how many outcomes the database writes, how much memory may be
//! used.
//!
//! When SQS throttles, fewer requests are sent. When the database writes slowly, fewer messages are under way, so that
//! all of them are recorded while the claim lives. When memory is short, fewer bytes are held. Pure, but for the
//! memory budget, which the relays of a process share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::message::FaultKind;

/// How many requests of a destination may be in flight after SQS has throttled.
///
/// Additive increase, multiplicative decrease, as in TCP: a throttling answer halves the limit, and each round of
/// accepted requests adds one to it, up to `OUTBOX_RELAY_MAX_IN_FLIGHT`.
#[derive(Debug)]
pub(super) struct ConcurrencyLimit {
    limit: f64,
    max: f64,
}

impl ConcurrencyLimit {
    /// Starts at the configured maximum.
    pub(super) fn new(max_in_flight: usize) -> Self {
        let max = max_in_flight.max(1) as f64;
        Self { limit: max, max }
    }

    /// The configured maximum has changed. A limit that was at the old maximum moves to the new one at once.
    pub(super) fn set_max(&mut self, max_in_flight: usize) {
        let max = max_in_flight.max(1) as f64;
        self.limit = if self.limit >= self.max { max } else { self.limit.min(max) };
        self.max = max;
    }

    /// Requests that may be in flight now, at least one.
    pub(super) fn limit(&self) -> usize {
        self.limit as usize
    }

    /// The destination was halted by this kind of fault. Answers that were under way at that time show the same
    /// congestion and are not counted again.
    pub(super) fn halted(&mut self, kind: FaultKind) {
        if matches!(kind, FaultKind::Throttle | FaultKind::ServerError) {
            self.limit = (self.limit / 2.0).floor().max(1.0);
        }
    }

    /// A request was accepted.
    pub(super) fn accepted(&mut self) {
        self.limit = (self.limit + 1.0 / self.limit).min(self.max);
    }
}

/// The most outcomes in one transaction, so that it ends well before the statement timeout.
const MAX_WRITTEN: usize = 2000;

/// The number of messages that may always be under way: ten full requests. No more are until the database has written
/// some: a guess that is too high costs duplicates, one that is too low costs one round trip.
const MIN_UNDER_WAY: usize = 100;

/// Everything under way shall be written within this time; a claim lasts several times as long.
const WRITTEN_WITHIN: Duration = Duration::from_secs(1);

/// How fast the database writes outcomes, and so how many messages may be sent and not yet recorded. A database that
/// writes slowly (a trigger, a slow disk) must not be given more than it can write while the claim lives; otherwise
/// another relay would send again what SQS has accepted.
#[derive(Debug, Default)]
pub(super) struct WriteRate {
    /// Outcomes a second in the last transaction; 0 before the first.
    per_second: f64,
}

impl WriteRate {
    /// Notes that this many outcomes were written, or failed to be written, in this time.
    pub(super) fn note(&mut self, outcomes: usize, time: Duration, is_written: bool) {
        let rate = outcomes as f64 / time.max(Duration::from_millis(1)).as_secs_f64();
        // An immediate failure shows nothing; a failure after a while shows that the database is no faster than that.
        self.per_second = if is_written { rate } else { self.per_second.min(rate) };
    }

    /// How many messages may be sent and not yet recorded.
    pub(super) fn max_under_way(&self) -> usize {
        // Saturates: a rate too high to represent is no limit.
        ((self.per_second * WRITTEN_WITHIN.as_secs_f64()) as usize).max(MIN_UNDER_WAY)
    }

    /// How many outcomes may be written in one transaction.
    pub(super) fn max_written(&self) -> usize {
        self.max_under_way().min(MAX_WRITTEN)
    }
}

/// Bytes of messages that this process may hold, shared by all destinations.
#[derive(Debug)]
pub struct MemoryBudget {
    max: usize,
    used: AtomicUsize,
    /// Whether some destination has an exception.
    has_exception: AtomicBool,
}

/// One destination's share of the budget. Cheap to clone.
#[derive(Clone, Debug)]
pub struct MemoryShare {
    budget: Arc<MemoryBudget>,
    /// The bytes that this destination holds.
    held: Arc<AtomicUsize>,
}

/// A reserved part of the budget; dropping it returns it.
#[derive(Debug)]
pub(in crate::relay) struct Reserved {
    share: MemoryShare,
    bytes: usize,
    /// The exception to which it belongs.
    exception: Option<Arc<Exception>>,
}

/// The right to exceed the budget by what must always be granted. One destination has it at a time, for as long as it
/// holds any of that.
#[derive(Debug)]
struct Exception {
    budget: Arc<MemoryBudget>,
}

impl Drop for Exception {
    fn drop(&mut self) {
        self.budget.has_exception.store(false, Ordering::Release);
    }
}

impl MemoryBudget {
    /// A budget of this many bytes.
    pub fn new(max: usize) -> Arc<Self> {
        Arc::new(Self { max, used: AtomicUsize::new(0), has_exception: AtomicBool::new(false) })
    }

    /// How many bytes are held.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// A share for one more destination.
    pub fn share(self: &Arc<Self>) -> MemoryShare {
        MemoryShare { budget: Arc::clone(self), held: Arc::default() }
    }
}

impl MemoryShare {
    /// How many bytes all destinations may hold together.
    pub(super) fn max(&self) -> usize {
        self.budget.max
    }

    /// How many bytes this destination holds.
    pub(super) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }

    /// Reserves this many bytes if they are available.
    pub(super) fn try_reserve(&self, bytes: usize) -> Option<Reserved> {
        let has_room = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= self.budget.max);
        self.budget.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, has_room).ok()?;
        self.held.fetch_add(bytes, Ordering::Relaxed);
        Some(Reserved { share: self.clone(), bytes, exception: None })
    }

    /// Reserves this many bytes even if they are not available, for bytes that are already in memory or must always be
    /// granted.
    pub(in crate::relay) fn reserve(&self, bytes: usize) -> Reserved {
        self.budget.used.fetch_add(bytes, Ordering::Relaxed);
        self.held.fetch_add(bytes, Ordering::Relaxed);
        Reserved { share: self.clone(), bytes, exception: None }
    }

    /// Reserves this many bytes even if they are not available, unless another destination has done so and still holds
    /// some of them.
    pub(super) fn reserve_as_exception(&self, bytes: usize) -> Option<Reserved> {
        let had = self.budget.has_exception.swap(true, Ordering::Acquire);
        (!had).then(|| {
            let mut reserved = self.reserve(bytes);
            reserved.exception = Some(Arc::new(Exception { budget: Arc::clone(&self.budget) }));
            reserved
        })
    }
}

impl Reserved {
    /// The size in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Changes the size, even if the bytes are not available.
    pub(super) fn resize(&mut self, bytes: usize) {
        let (more, less) = (bytes.saturating_sub(self.bytes), self.bytes.saturating_sub(bytes));
        for count in [&self.share.budget.used, &*self.share.held] {
            count.fetch_add(more, Ordering::Relaxed);
            count.fetch_sub(less, Ordering::Relaxed);
        }
        self.bytes = bytes;
    }

    /// Splits off a part. Missing bytes are taken from the budget in any case, because they are in memory already.
    pub(super) fn split(&mut self, bytes: usize) -> Reserved {
        let own = bytes.min(self.bytes);
        self.bytes -= own;
        let mut part = self.share.reserve(bytes - own);
        part.bytes = bytes;
        part.exception.clone_from(&self.exception);
        part
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.share.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
        self.share.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_throttled_destination_gets_half_and_finds_its_way_back() {
        let mut limit = ConcurrencyLimit::new(128);
        limit.halted(FaultKind::Throttle);
        assert_eq!(limit.limit(), 64);
        limit.halted(FaultKind::Throttle);
        assert_eq!(limit.limit(), 32);
        // One round of requests adds about one.
        (0..34).for_each(|_| limit.accepted());
        assert_eq!(limit.limit(), 33);
        (0..128 * 128).for_each(|_| limit.accepted());
        assert_eq!(limit.limit(), 128);
    }

    #[test]
    fn a_new_maximum_takes_effect_at_once_unless_sqs_has_throttled() {
        let mut limit = ConcurrencyLimit::new(128);
        limit.set_max(200);
        assert_eq!(limit.limit(), 200);
        limit.halted(FaultKind::Throttle);
        limit.set_max(150);
        assert_eq!(limit.limit(), 100);
        limit.set_max(20);
        assert_eq!(limit.limit(), 20);
    }

    #[test]
    fn one_request_is_always_allowed() {
        let mut limit = ConcurrencyLimit::new(3);
        (0..10).for_each(|_| limit.halted(FaultKind::ServerError));
        assert_eq!(limit.limit(), 1);
        limit.accepted();
        assert_eq!(limit.limit(), 2);
    }

    #[test]
    fn faults_that_show_no_congestion_change_nothing() {
        let mut limit = ConcurrencyLimit::new(10);
        for kind in [FaultKind::Destination, FaultKind::Outage, FaultKind::Ambiguous, FaultKind::Internal] {
            limit.halted(kind);
        }
        assert_eq!(limit.limit(), 10);
    }

    #[test]
    fn a_slow_database_is_given_no_more_than_it_writes_in_a_second() {
        let mut rate = WriteRate::default();
        assert_eq!((rate.max_under_way(), rate.max_written()), (100, 100), "nothing is known yet");
        rate.note(500, Duration::from_secs(1), true);
        assert_eq!((rate.max_under_way(), rate.max_written()), (500, 500));
        rate.note(500, Duration::from_millis(10), true);
        assert_eq!((rate.max_under_way(), rate.max_written()), (50_000, 2000));
    }

    #[test]
    fn some_messages_may_be_under_way_however_slow_it_is() {
        let mut rate = WriteRate::default();
        rate.note(1, Duration::from_secs(5), true);
        assert_eq!((rate.max_under_way(), rate.max_written()), (100, 100));
    }

    #[test]
    fn a_slow_failure_lowers_the_rate_and_an_immediate_one_does_not() {
        let mut rate = WriteRate::default();
        rate.note(1000, Duration::from_secs(1), true);
        rate.note(2000, Duration::from_millis(3), false);
        assert_eq!(rate.max_under_way(), 1000);
        rate.note(2000, Duration::from_secs(9), false);
        assert_eq!(rate.max_under_way(), 222);
    }

    #[test]
    fn memory_is_reserved_while_available_and_returned_when_its_part_is_dropped() {
        let budget = MemoryBudget::new(100);
        let (one, other) = (budget.share(), budget.share());
        let mut first = one.try_reserve(70).unwrap();
        assert!(other.try_reserve(40).is_none());
        let part = first.split(50);
        assert_eq!((budget.used(), one.held(), other.held()), (70, 70, 0));
        drop(first);
        assert_eq!(budget.used(), 50);
        // More arrived than was reserved: it is in memory all the same.
        let mut second = other.try_reserve(10).unwrap();
        let large = second.split(60);
        drop(second);
        assert_eq!((budget.used(), other.held()), (110, 60));
        drop((part, large));
        assert_eq!((budget.used(), one.held(), other.held()), (0, 0, 0));
    }

    #[test]
    fn one_destination_at_a_time_exceeds_the_budget_until_it_holds_nothing_of_that() {
        let budget = MemoryBudget::new(100);
        let (one, other) = (budget.share(), budget.share());
        let mut read = one.reserve_as_exception(150).unwrap();
        let message = read.split(120);
        drop(read);
        assert!(other.reserve_as_exception(150).is_none(), "its message is in memory");
        assert_eq!(budget.used(), 120);
        drop(message);
        assert!(other.reserve_as_exception(150).is_some());
    }
}
