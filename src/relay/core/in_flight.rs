//! Requests in flight: how many may be sent, and when a partial request is sent. Pure.

use std::time::Duration;

use super::destination::DestinationState;
use super::limits::Reserved;
use super::schedule::Schedule;
use super::work::Work;
use crate::clock::Time;
use crate::message::MAX_MESSAGE_BYTES;
use crate::publisher::Entry;

/// How long a partial request may wait for entries while other requests are under way.
const LINGER: Duration = Duration::from_millis(2);

/// How long a partial request waits for entries from a running read.
const LINGER_FOR_READ: Duration = Duration::from_millis(20);

/// The limit of the bytes of all requests in flight, with bodies for a bucket, so that many requests of large messages do
/// not fill the memory, nor the way to S3: sixteen of the largest requests, or thousands of small ones.
const MAX_BYTES_IN_FLIGHT: usize = 16 * MAX_MESSAGE_BYTES;

/// The memory of a request while it is built, signed and sent: a multiple of its entries, measured with entries of 1 MB
/// (docs/benchmarks/notes.md), and a constant.
const COPIES: usize = 3;
const REQUEST_BYTES: usize = 16 * 1024;

/// How soon to ask for memory again.
const MEMORY_POLL: Duration = Duration::from_millis(10);

/// How many requests may be in flight now.
fn limit(destination: &DestinationState) -> usize {
    if destination.breaker.halted().is_some() { 1 } else { destination.concurrency.limit() }
}

/// What is on its way to SQS.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    requests: usize,
    bytes: usize,
    entries: usize,
    /// Whether there was any request.
    has_sent: bool,
    /// Since when a partial request has been waiting for more entries.
    lingers_since: Option<Time>,
    /// When to ask for memory again after there was none.
    starved_until: Option<Time>,
}

impl InFlight {
    /// Requests under way.
    pub(super) fn requests(&self) -> usize {
        self.requests
    }

    /// Whether any request went out.
    pub(super) fn has_sent(&self) -> bool {
        self.has_sent
    }

    /// The requests to send now, each before `until`. `expects_more` says that a read is under way.
    pub(super) fn due(
        &mut self,
        schedule: &mut Schedule,
        destination: &DestinationState,
        expects_more: bool,
        until: Time,
        now: Time,
    ) -> Vec<Work> {
        let mut work = Vec::new();
        while self.requests < limit(destination)
            && self.has_room(destination)
            && self.hold_or_send(schedule, expects_more, until, now)
            && let Some(mut memory) = self.memory(schedule, destination, now)
            && let Some(items) = schedule.next_request()
        {
            let sum = |of: fn(&Entry) -> usize| items.iter().map(|item| of(&item.entry)).sum::<usize>();
            let (bytes, in_memory) = (sum(Entry::bytes), sum(Entry::memory_bytes));
            memory.resize((COPIES - 1) * bytes + in_memory + REQUEST_BYTES);
            self.requests += 1;
            self.has_sent = true;
            self.bytes += in_memory;
            self.entries += items.len();
            work.push(Work::Publish { items, until, memory });
        }
        work
    }

    /// Whether another request would go out now if there were messages for it.
    pub(super) fn may_send_more(&self, destination: &DestinationState) -> bool {
        let is_halted = destination.breaker.halted().is_some();
        !is_halted && self.requests < limit(destination) && self.has_room(destination) && self.starved_until.is_none()
    }

    /// A request came back with these entries.
    pub(super) fn came_back(&mut self, bytes: usize, entries: usize) {
        self.requests -= 1;
        self.bytes -= bytes;
        self.entries -= entries;
    }

    /// When to check again whether a request may go.
    pub(super) fn wake_at(&self, destination: &DestinationState, expects_more: bool) -> Option<Time> {
        let held =
            self.lingers_since.filter(|_| self.has_room(destination)).map(|since| since + self.hold(expects_more));
        held.into_iter().chain(self.starved_until).min()
    }

    /// One request may always be under way, unless the database has enough to write.
    fn has_room(&self, destination: &DestinationState) -> bool {
        self.entries + destination.outcomes.under_way() < destination.write_rate.max_under_way()
            && (self.requests == 0 || self.bytes < destination.within_share(MAX_BYTES_IN_FLIGHT))
    }

    /// Memory for the next request, estimated from the average size of waiting messages; bodies for a bucket are
    /// copied once, and added when the request is known. A destination that has nothing
    /// in flight always gets it.
    fn memory(&mut self, schedule: &Schedule, destination: &DestinationState, now: Time) -> Option<Reserved> {
        let average = schedule.waiting_bytes() / schedule.waiting().max(1);
        let bytes =
            COPIES * (average * destination.tuning.request_size).min(destination.accepts.max_bytes()) + REQUEST_BYTES;
        let memory = destination.memory.try_reserve(bytes);
        let memory = memory.or_else(|| (self.requests == 0).then(|| destination.memory.reserve(bytes)));
        self.starved_until = memory.is_none().then(|| now + MEMORY_POLL);
        memory
    }

    /// A partial request waits a moment if the missing entries may still come: from a read, or from groups that the
    /// answers under way set free.
    fn hold_or_send(&mut self, schedule: &Schedule, expects_more: bool, until: Time, now: Time) -> bool {
        if !schedule.has_ready() || now >= until {
            self.lingers_since = None;
            return false;
        }
        if schedule.can_fill_a_request() {
            self.lingers_since = None;
            return true;
        }
        let since = *self.lingers_since.get_or_insert(now);
        let may = now.since(since) >= self.hold(expects_more);
        if may {
            self.lingers_since = None;
        }
        may
    }

    fn hold(&self, expects_more: bool) -> Duration {
        match (expects_more, self.requests) {
            (true, _) => LINGER_FOR_READ,
            (false, 0) => Duration::ZERO,
            (false, _) => LINGER,
        }
    }
}
