//! Sweeps from the bottom: everything that is pending is looked at about once a second, whatever the bounds say, so that
//! nothing depends on them.
//!
//! A sweep is made in slices of ids, because it walks what vacuum could not remove; and slices take at most one part in
//! twenty of the time, unless a lane is unswept and a FIFO queue waits for it. Under a claim the [`Stream`] sweeps its lanes,
//! between claims the [`Relay`] all of them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::stream::{Event, Stream};
use super::{Destination, Relay};
use crate::message::{LANES, Lane, QueueKind};
use crate::outbox::{LowBounds, OutboxError, Range, Slices, Sweep, Swept};

/// How often everything is swept from the bottom.
const FULL_SWEEP: Duration = Duration::from_secs(1);

/// Sweeping from the bottom may take one part in so many of the time.
const FULL_SWEEP_SHARE: u32 = 20;

/// A sweep from the bottom on its way up.
#[derive(Clone, Debug)]
pub(super) struct Round {
    lanes: Vec<Lane>,
    above: i64,
    marks: u64,
    began: Instant,
    /// Whether a group that was left out has come to its end meanwhile, so that not everything was seen.
    is_partial: bool,
}

impl Round {
    fn new(lanes: Vec<Lane>, bounds: &LowBounds) -> Self {
        Self { lanes, above: 0, marks: bounds.marks(), began: Instant::now(), is_partial: false }
    }
}

/// When to sweep, and how much at once; kept from claim to claim.
#[derive(Clone, Debug)]
pub(super) struct Sweeping {
    next: Instant,
    slices: Slices,
}

impl Default for Sweeping {
    fn default() -> Self {
        Self { next: Instant::now() + FULL_SWEEP, slices: Slices::default() }
    }
}

impl Sweeping {
    /// When the next slice is due, unless it is wanted at once.
    pub(super) fn next(&self) -> Instant {
        self.next
    }

    /// A slice came back.
    fn took(&mut self, started: Instant, is_last_of: Option<&Round>) {
        let cost = started.elapsed();
        self.slices.took(cost);
        let rest = Instant::now() + cost * FULL_SWEEP_SHARE;
        self.next = is_last_of.map_or(rest, |round| rest.max(round.began + FULL_SWEEP));
    }
}

impl Stream<'_> {
    /// Whether nothing may be read before the claimed lanes were swept from the bottom.
    pub(super) fn must_sweep(&self) -> bool {
        self.destination.queue.kind() == QueueKind::Fifo
            && self.feed.open.iter().any(|lane| self.memory.bounds.is_unswept(*lane))
    }

    pub(super) fn start_sweeping(&mut self, now: Instant) {
        if self.feed.is_sweeping || !(self.must_sweep() || now >= self.memory.sweeping.next()) {
            return;
        }
        self.feed.is_sweeping = true;
        let bounds = &*self.memory.bounds;
        // A writer that ended meanwhile may have left rows below what this round has passed.
        let under_way = self.feed.round.take().filter(|round| round.marks == bounds.marks());
        let round = under_way.unwrap_or_else(|| Round::new(self.feed.open.clone(), bounds));
        let upto = self.memory.sweeping.slices.end(round.above);
        let sweep = self.sweep_of(&round.lanes, |lane| (round.above, upto.min(bounds.cursor(lane))));
        let destination = self.destination.clone();
        self.tasks.push(Box::pin(async move {
            let result = destination.outbox.sweep(&destination.name, &sweep).await;
            Event::Swept { sweep, round, upto, started: now, result }
        }));
    }

    /// A sweep of these lanes, each between the two ids.
    pub(super) fn sweep_of(&self, lanes: &[Lane], between: impl Fn(Lane) -> (i64, i64)) -> Sweep {
        let range = |lane: &Lane| {
            let (above, upto) = between(*lane);
            Range { lane: *lane, above, upto }
        };
        Sweep {
            ranges: lanes.iter().map(range).collect(),
            // Room for all that is known and some that is not, so that the known cannot hide the unknown.
            most: self.schedule.known() + 100,
            groups_to_skip: self.schedule.groups_with_rest(),
        }
    }

    /// A slice came back: lanes go back below what was found.
    pub(super) fn swept_a_slice(
        &mut self,
        sweep: &Sweep,
        mut round: Round,
        upto: i64,
        started: Instant,
        swept: &Swept,
    ) {
        round.is_partial |= !self.schedule.no_longer_left(&sweep.groups_to_skip).is_empty();
        self.schedule.has_swept();
        if !self.find_late(swept).is_empty() {
            self.feed.next_read = Instant::now();
        }
        let is_last = round.lanes.iter().all(|lane| self.memory.bounds.cursor(*lane) <= upto);
        self.memory.sweeping.took(started, is_last.then_some(&round));
        if !is_last {
            round.above = upto;
            self.feed.round = Some(round);
        } else if !round.is_partial {
            self.memory.bounds.swept_from_the_bottom(&round.lanes, round.marks);
        }
    }

    /// Sets lanes back below what a sweep found and nobody knew; returns them.
    pub(super) fn find_late(&mut self, swept: &Swept) -> Vec<Lane> {
        let mut late = Vec::new();
        for key in swept.keys.iter().filter(|key| !self.schedule.knows(key.id)) {
            self.memory.bounds.rewind(key.lane, key.id);
            late.push(key.lane);
        }
        self.destination.metrics.late.inc_by(late.len() as u64);
        late
    }
}

impl Relay {
    /// Learns from where the lanes have to be read; returns whether that is known.
    pub(super) async fn climb(&mut self, drain: &CancellationToken) -> Result<bool, OutboxError> {
        if self.is_climbed {
            return Ok(true);
        }
        let Destination { name, outbox, .. } = &self.destination;
        let pulse = &self.reports.pulse;
        let go_on = || {
            pulse.tick();
            !drain.is_cancelled()
        };
        if let Some(climb) = outbox.climb(name, go_on).await? {
            self.bounds.start_from(&climb);
            self.is_climbed = true;
        }
        Ok(self.is_climbed)
    }

    /// One slice of a sweep of all lanes; returns those in which something is pending. For what committed below a low bound,
    /// or came with an id of its own.
    pub(super) async fn sweep(&mut self) -> Result<Vec<Lane>, OutboxError> {
        let started = Instant::now();
        let under_way = self.round.take().filter(|round| round.marks == self.bounds.marks());
        let mut round = under_way.unwrap_or_else(|| Round::new((0..LANES).collect(), &self.bounds));
        let end = self.sweeping.slices.end(round.above);
        let is_last = end >= self.bounds.highest();
        let upto = if is_last { i64::MAX } else { end };
        let sweep = Sweep {
            ranges: round.lanes.iter().map(|lane| Range { lane: *lane, above: round.above, upto }).collect(),
            // The lowest of each lane is enough: the claim that follows reads on from there.
            most: 1,
            groups_to_skip: self.remembered.iter().map(|left| (left.lane, Arc::clone(&left.group))).collect(),
        };
        let swept = self.destination.outbox.sweep(&self.destination.name, &sweep).await?;
        self.sweeping.took(started, is_last.then_some(&round));
        for key in &swept.keys {
            self.destination.metrics.late.inc_by(u64::from(key.id <= self.bounds.low(key.lane)));
            self.bounds.rewind(key.lane, key.id);
        }
        if is_last {
            self.bounds.swept_from_the_bottom(&round.lanes, round.marks);
        } else {
            round.above = end;
            self.round = Some(round);
        }
        Ok(swept.keys.iter().map(|key| key.lane).collect())
    }
}
