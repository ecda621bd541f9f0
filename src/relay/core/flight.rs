//! Requests in flight: how many may go, and when one that is not full goes. Pure.

use std::time::Duration;

use super::limits::Reserved;
use super::schedule::Schedule;
use super::standing::Standing;
use super::work::Work;
use crate::clock::Time;
use crate::sqs::MAX_BYTES;

/// How long a request may wait to be filled while others are under way.
const HOLD: Duration = Duration::from_millis(2);

/// How long a partial request waits for entries from a running read.
const HOLD_FOR_READ: Duration = Duration::from_millis(20);

/// What the requests in flight may weigh together, so that many requests of large messages do not fill the memory: sixteen
/// of the largest, or thousands of small ones.
const MAX_BYTES_IN_FLIGHT: usize = 16 * MAX_BYTES;

/// How many times its entries a request takes while it is built, signed and sent, measured with entries of 1 MB
/// (docs/benchmarks/notes.md), and what it takes besides.
const COPIES: usize = 3;
const REQUEST_BYTES: usize = 16 * 1024;

/// How soon to ask for memory again.
const MEMORY_POLL: Duration = Duration::from_millis(10);

/// What is on its way to SQS.
#[derive(Debug, Default)]
pub(super) struct Flight {
    requests: usize,
    bytes: usize,
    entries: usize,
    /// Since when a request that is not full waits for more entries.
    held_since: Option<Time>,
    /// When to ask for memory again, after there was none.
    starved_until: Option<Time>,
}

impl Flight {
    /// Requests under way.
    pub(super) fn requests(&self) -> usize {
        self.requests
    }

    /// The requests to send now, each before `until`. `expects_more` says that a read is under way.
    pub(super) fn due(
        &mut self,
        schedule: &mut Schedule,
        standing: &Standing,
        expects_more: bool,
        until: Time,
        now: Time,
    ) -> Vec<Work> {
        let mut work = Vec::new();
        let most = if standing.breaker.halted().is_some() { 1 } else { standing.concurrency.limit() };
        while self.requests < most
            && self.has_room(standing)
            && self.may_send(schedule, expects_more, until, now)
            && let Some(mut memory) = self.memory(schedule, standing, now)
            && let Some(items) = schedule.next_request()
        {
            let bytes = items.iter().map(|item| item.entry.bytes()).sum::<usize>();
            memory.resize(COPIES * bytes + REQUEST_BYTES);
            self.requests += 1;
            self.bytes += bytes;
            self.entries += items.len();
            work.push(Work::Publish { items, until, memory });
        }
        work
    }

    /// A request came back with these entries.
    pub(super) fn came_back(&mut self, bytes: usize, entries: usize) {
        self.requests -= 1;
        self.bytes -= bytes;
        self.entries -= entries;
    }

    /// When to look again whether something may go.
    pub(super) fn wake_at(&self, standing: &Standing, expects_more: bool) -> Option<Time> {
        let held = self.held_since.filter(|_| self.has_room(standing)).map(|since| since + self.hold(expects_more));
        held.into_iter().chain(self.starved_until).min()
    }

    /// One request may always be under way, unless the database has enough to write.
    fn has_room(&self, standing: &Standing) -> bool {
        self.entries + standing.outcomes.under_way() < standing.write_rate.max_under_way()
            && (self.requests == 0 || self.bytes < MAX_BYTES_IN_FLIGHT)
    }

    /// Memory for the next request, as if all that waits were of one size; a destination that has none in flight always gets
    /// it.
    fn memory(&mut self, schedule: &Schedule, standing: &Standing, now: Time) -> Option<Reserved> {
        let average = schedule.waiting_bytes() / schedule.waiting().max(1);
        let bytes = COPIES * (average * standing.tuning.request_size).min(MAX_BYTES) + REQUEST_BYTES;
        let memory = standing.memory.try_reserve(bytes);
        let memory = memory.or_else(|| (self.requests == 0).then(|| standing.memory.reserve(bytes)));
        self.starved_until = memory.is_none().then(|| now + MEMORY_POLL);
        memory
    }

    /// A request that is not full waits a moment when its missing entries may still come: from answers that are under way,
    /// which set groups free, or from a read.
    fn may_send(&mut self, schedule: &Schedule, expects_more: bool, until: Time, now: Time) -> bool {
        if !schedule.has_ready() || now >= until {
            self.held_since = None;
            return false;
        }
        if schedule.can_fill_a_request() {
            self.held_since = None;
            return true;
        }
        let since = *self.held_since.get_or_insert(now);
        let may = now.since(since) >= self.hold(expects_more);
        if may {
            self.held_since = None;
        }
        may
    }

    fn hold(&self, expects_more: bool) -> Duration {
        match (expects_more, self.requests) {
            (true, _) => HOLD_FOR_READ,
            (false, 0) => Duration::ZERO,
            (false, _) => HOLD,
        }
    }
}
