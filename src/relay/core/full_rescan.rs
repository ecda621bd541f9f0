//! The full rescan. About once a second every pending message is looked at, whatever the watermarks say, so that
//! completeness does not depend on them. [`super::initial_scan`] does the same once, to find where the lanes begin.
//!
//! A pass over a lane goes up in chunks of ids, because it walks rows that vacuum could not remove. Chunks take at most
//! one twentieth of the time, unless a FIFO queue waits for the pass. Each lane's pass continues where it was, from
//! claim to claim. Pure.

use std::time::Duration;

use crate::clock::Time;
use crate::message::{Lane, MessageId};
use crate::reading::{ByLane, CautiousWidth, Range, Rescan};

/// How often a pass from the bottom starts.
const EVERY: Duration = Duration::from_secs(1);

/// How often a pass is restarted because overtaken writers have ended, operators have changed something or
/// crowds have dissolved, before everything is rescanned in one statement.
const MOST_RESTARTS: u32 = 3;

/// Rescans may take one part in this many of the time.
const SHARE: u32 = 20;

/// How far the pass over a lane has come.
#[derive(Clone, Copy, Debug, Default)]
struct Pass {
    upto: MessageId,
    is_done: bool,
    /// The watermarks' epoch when it began.
    epoch: u64,
}

/// When to rescan next, and where.
#[derive(Clone, Debug)]
pub(super) struct FullRescan {
    due_at: Time,
    began_at: Time,
    width: CautiousWidth,
    passes: ByLane<Pass>,
    /// How often a pass was restarted since one was completed.
    restarts: u32,
    /// Whether any chunk has come back, so that the cost of chunks is known.
    has_come_back: bool,
}

impl FullRescan {
    /// The first pass is due in a second.
    pub(super) fn new(now: Time) -> Self {
        Self {
            due_at: now + EVERY,
            began_at: now,
            width: CautiousWidth::default(),
            passes: ByLane::default(),
            restarts: 0,
            has_come_back: false,
        }
    }

    /// When the next chunk is due, unless it is needed at once.
    pub(super) fn due_at(&self) -> Time {
        self.due_at
    }

    /// An operator has changed something that only a rescan shows. The pass restarts, but not without end while one
    /// change follows another.
    pub(super) fn hurry(&mut self, now: Time) {
        self.due_at = self.due_at.min(now);
        let is_under_way = self.passes.iter().any(|(_, pass)| !pass.is_done && pass.upto > MessageId::NONE);
        if is_under_way && self.restarts >= MOST_RESTARTS {
            return;
        }
        self.restarts += u32::from(is_under_way);
        self.passes = ByLane::default();
    }

    /// Whether everything below these ids can be rescanned in one statement: one chunk is enough, or overtaken writers
    /// end so often that no pass in chunks is ever completed.
    pub(super) fn fits_one_statement(&self, mut tops: impl Iterator<Item = MessageId>) -> bool {
        let is_one_chunk = |top| self.has_come_back && top <= self.width.end(MessageId::NONE);
        self.restarts >= MOST_RESTARTS || tops.all(is_one_chunk)
    }

    /// After what time the server is to cut a chunk of these ranges short.
    pub(super) fn timeout(&self, ranges: &[Range]) -> Option<Duration> {
        ranges.iter().filter_map(|range| self.width.timeout(range.above)).min()
    }

    /// A chunk was cut short: the next one starts at the same place and is narrower.
    pub(super) fn timed_out(&mut self, rescan: &Rescan, now: Time) {
        self.width.was_cut_short(&rescan.ranges);
        self.due_at = now + rescan.timeout.unwrap_or_default() * SHARE;
    }

    /// All of these ranges were rescanned in one statement, which took this long.
    pub(super) fn took_one_statement(&mut self, ranges: &[Range], cost: Duration) {
        self.width.took(ranges, cost);
    }

    /// The next chunk of these lanes. Passes that began in an earlier epoch restart, but not without end; if all passes
    /// are done, all restart.
    pub(super) fn chunk(
        &mut self,
        lanes: &[Lane],
        top: impl Fn(Lane) -> MessageId,
        epoch: u64,
        now: Time,
    ) -> Vec<Range> {
        let is_left = |pass: &Pass| !pass.is_done || pass.epoch != epoch;
        if !lanes.iter().any(|lane| is_left(&self.passes[*lane])) {
            lanes.iter().for_each(|lane| self.passes[*lane] = Pass::default());
            self.began_at = now;
            self.width.begin();
        }
        let is_outdated = |pass: &Pass| pass.epoch != epoch && !pass.is_done && pass.upto > MessageId::NONE;
        let is_any_outdated = lanes.iter().any(|lane| is_outdated(&self.passes[*lane]));
        let mut ranges = Vec::with_capacity(lanes.len());
        for lane in lanes {
            let pass = &mut self.passes[*lane];
            let is_continued = is_outdated(pass) && self.restarts >= MOST_RESTARTS;
            if pass.epoch != epoch && !is_continued {
                *pass = Pass { epoch, ..Pass::default() };
            }
            if !pass.is_done {
                let upto = self.width.end(pass.upto).min(top(*lane)).max(pass.upto);
                ranges.push(Range::new(*lane, pass.upto, upto));
            }
        }
        self.restarts += u32::from(is_any_outdated && self.restarts < MOST_RESTARTS);
        ranges
    }

    /// A chunk came back after this time. Returns the lanes whose pass is done, with the epoch in which the pass began.
    /// A lane that was not seen as a whole goes no further.
    pub(super) fn came_back(
        &mut self,
        ranges: &[Range],
        is_whole: impl Fn(Lane) -> bool,
        top: impl Fn(Lane) -> MessageId,
        cost: Duration,
        now: Time,
    ) -> Vec<(Lane, u64)> {
        self.width.took(ranges, cost);
        self.has_come_back = true;
        let mut done = Vec::new();
        for range in ranges.iter().filter(|range| is_whole(range.lane)) {
            let pass = &mut self.passes[range.lane];
            // The pass was restarted meanwhile.
            if pass.upto != range.above || pass.is_done {
                continue;
            }
            pass.upto = range.upto;
            if range.upto >= top(range.lane) {
                pass.is_done = true;
                done.push((range.lane, pass.epoch));
            }
        }
        let rest = now + cost * SHARE;
        let is_over = ranges.iter().all(|range| self.passes[range.lane].is_done);
        if is_over {
            self.restarts = 0;
        }
        self.due_at = if is_over { rest.max(self.began_at + EVERY) } else { rest };
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(100);

    fn lanes() -> Vec<Lane> {
        Lane::all().take(2).collect()
    }

    /// A scan whose first chunk was cut short.
    fn narrow(now: Time) -> FullRescan {
        let mut scan = FullRescan::new(now);
        let ranges = vec![Range::new(lanes()[0], MessageId::NONE, MessageId(1 << 24))];
        scan.timed_out(&Rescan { ranges, ..Rescan::default() }, now);
        scan
    }

    #[test]
    fn each_lanes_pass_continues_where_it_was_from_claim_to_claim() {
        let now = Time::default();
        let mut scan = narrow(now);
        let top = |lane: Lane| MessageId(if lane.index() == 0 { 100 } else { 1 << 30 });
        let first = scan.chunk(&lanes(), top, 0, now);
        assert_eq!(
            scan.came_back(&first, |_| true, top, SHORT, now),
            [(lanes()[0], 0)],
            "lane 0 ends with the first chunk"
        );
        let second = scan.chunk(&lanes(), top, 0, now);
        assert_eq!((second.len(), second[0].lane, second[0].above), (1, lanes()[1], first[1].upto));
        // The claim has ended. Between claims all lanes are scanned, and the others start.
        let all: Vec<Lane> = Lane::all().collect();
        let third = scan.chunk(&all, top, 0, now);
        assert_eq!(third.len(), 15);
        assert_eq!(third[0], second[0]);
        assert!(third[1..].iter().all(|range| range.above == MessageId::NONE));
    }

    #[test]
    fn a_pass_restarts_when_an_overtaken_writer_has_ended() {
        let now = Time::default();
        let mut scan = narrow(now);
        let top = |_| MessageId(1 << 30);
        let chunk = scan.chunk(&lanes(), top, 0, now);
        scan.came_back(&chunk, |_| true, top, SHORT, now);
        let again = scan.chunk(&lanes(), top, 1, now);
        assert!(again.iter().all(|range| range.above == MessageId::NONE));
    }

    #[test]
    fn a_pass_completes_however_often_overtaken_writers_end() {
        let now = Time::default();
        let mut scan = narrow(now);
        let top = |_| MessageId(1 << 22);
        let tops = || lanes().into_iter().map(top);
        assert!(!scan.fits_one_statement(tops()), "one chunk is not enough");
        let is_over = (0..100).any(|epoch| {
            let chunk = scan.chunk(&lanes(), top, epoch, now);
            let is_over = !scan.came_back(&chunk, |_| true, top, SHORT, now).is_empty();
            assert!(is_over || scan.fits_one_statement(tops()) == (epoch >= u64::from(MOST_RESTARTS)), "{epoch}");
            is_over
        });
        assert!(is_over, "it restarts without end");
    }

    #[test]
    fn a_pass_completes_however_often_an_operator_changes_something() {
        let now = Time::default();
        let mut scan = narrow(now);
        let top = |_| MessageId(1 << 22);
        let is_over = (0..100).any(|_| {
            let chunk = scan.chunk(&lanes(), top, 0, now);
            let is_over = !scan.came_back(&chunk, |_| true, top, SHORT, now).is_empty();
            scan.hurry(now);
            is_over
        });
        assert!(is_over, "it restarts without end");
    }

    #[test]
    fn a_pass_says_in_which_epoch_it_began() {
        let now = Time::default();
        let mut scan = FullRescan::new(now);
        let top = |_| MessageId(100);
        let chunk = scan.chunk(&lanes(), top, 3, now);
        assert_eq!(scan.came_back(&chunk, |_| true, top, SHORT, now), [(lanes()[0], 3), (lanes()[1], 3)]);
    }

    #[test]
    fn a_pass_is_made_once_a_second_and_takes_a_twentieth_of_the_time() {
        let now = Time::default();
        let mut scan = FullRescan::new(now);
        let top = |_| MessageId(100);
        let chunk = scan.chunk(&lanes(), top, 0, now);
        scan.came_back(&chunk, |_| true, top, Duration::from_millis(1), now);
        assert_eq!(scan.due_at().since(now), EVERY);
        let chunk = scan.chunk(&lanes(), top, 0, now);
        scan.came_back(&chunk, |_| true, top, SHORT, now);
        assert_eq!(scan.due_at().since(now), SHORT * SHARE);
        scan.hurry(now);
        assert_eq!(scan.due_at(), now);
    }
}
