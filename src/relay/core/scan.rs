//! Rescans from the bottom: everything that is pending is looked at about once a second, whatever the watermarks say, so that
//! nothing depends on them; and the first scan, which finds from where the lanes have to be read.
//!
//! A pass over a lane goes up in chunks of ids, because it walks what vacuum could not remove, and chunks take at most one part
//! in twenty of the time, unless a FIFO queue waits for the pass. Each lane's pass goes on where it was, from claim to claim.
//! Pure.

use std::time::Duration;

use crate::clock::Time;
use crate::message::{Lane, MessageId};
use crate::reading::{ByLane, ChunkWidth, Range};

/// How often everything is looked at from the bottom.
const EVERY: Duration = Duration::from_secs(1);

/// Looking from the bottom may take one part in so many of the time.
const SHARE: u32 = 20;

/// How far the look from the bottom has come in a lane.
#[derive(Clone, Copy, Debug, Default)]
struct Pass {
    upto: MessageId,
    is_done: bool,
    /// The watermarks' epoch when it began.
    epoch: u64,
}

/// When to look again, and where.
#[derive(Clone, Debug)]
pub(super) struct Scan {
    due_at: Time,
    began_at: Time,
    width: ChunkWidth,
    passes: ByLane<Pass>,
}

impl Scan {
    /// A first pass is due in a second.
    pub(super) fn new(now: Time) -> Self {
        Self { due_at: now + EVERY, began_at: now, width: ChunkWidth::default(), passes: ByLane::default() }
    }

    /// When the next chunk is due, unless it is wanted at once.
    pub(super) fn due_at(&self) -> Time {
        self.due_at
    }

    /// An operator has changed something that only a look from the bottom shows.
    pub(super) fn hurry(&mut self, now: Time) {
        self.due_at = self.due_at.min(now);
        self.passes = ByLane::default();
    }

    /// The next chunk of these lanes. Passes that began in an earlier epoch begin again; where all are done, all do.
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
        }
        let mut ranges = Vec::with_capacity(lanes.len());
        for lane in lanes {
            let pass = &mut self.passes[*lane];
            if pass.epoch != epoch {
                *pass = Pass { epoch, ..Pass::default() };
            }
            if !pass.is_done {
                let upto = self.width.end(pass.upto).min(top(*lane)).max(pass.upto);
                ranges.push(Range { lane: *lane, above: pass.upto, upto });
            }
        }
        ranges
    }

    /// A chunk came back after this time; returns the lanes whose pass is done, and in which epoch it began.
    pub(super) fn came_back(
        &mut self,
        ranges: &[Range],
        top: impl Fn(Lane) -> MessageId,
        cost: Duration,
        now: Time,
    ) -> Vec<(Lane, u64)> {
        let walked = ranges.iter().map(Range::width).max().unwrap_or_default();
        self.width.took(walked, cost);
        let mut done = Vec::new();
        for range in ranges {
            let pass = &mut self.passes[range.lane];
            // Begun again meanwhile.
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

    #[test]
    fn each_lanes_pass_goes_on_where_it_was_whoever_asks() {
        let now = Time::default();
        let mut scan = Scan::new(now);
        let top = |lane: Lane| MessageId(if lane.index() == 0 { 100 } else { 1 << 30 });
        let first = scan.chunk(&lanes(), top, 0, now);
        assert_eq!(scan.came_back(&first, top, SHORT, now), [(lanes()[0], 0)], "lane 0 ends with the first chunk");
        let second = scan.chunk(&lanes(), top, 0, now);
        assert_eq!((second.len(), second[0].lane, second[0].above), (1, lanes()[1], first[1].upto));
        // The claim is over; between claims all lanes are looked at, and the others begin.
        let all: Vec<Lane> = Lane::all().collect();
        let third = scan.chunk(&all, top, 0, now);
        assert_eq!(third.len(), 15);
        assert_eq!(third[0], second[0]);
        assert!(third[1..].iter().all(|range| range.above == MessageId::NONE));
    }

    #[test]
    fn a_pass_begins_again_when_a_writer_that_was_overtaken_has_ended() {
        let now = Time::default();
        let mut scan = Scan::new(now);
        let top = |_| MessageId(1 << 30);
        let chunk = scan.chunk(&lanes(), top, 0, now);
        scan.came_back(&chunk, top, SHORT, now);
        let again = scan.chunk(&lanes(), top, 1, now);
        assert!(again.iter().all(|range| range.above == MessageId::NONE));
    }

    #[test]
    fn a_pass_says_in_which_epoch_it_began() {
        let now = Time::default();
        let mut scan = Scan::new(now);
        let top = |_| MessageId(100);
        let chunk = scan.chunk(&lanes(), top, 3, now);
        assert_eq!(scan.came_back(&chunk, top, SHORT, now), [(lanes()[0], 3), (lanes()[1], 3)]);
    }

    #[test]
    fn a_pass_is_made_once_a_second_and_takes_a_twentieth_of_the_time() {
        let now = Time::default();
        let mut scan = Scan::new(now);
        let top = |_| MessageId(100);
        let chunk = scan.chunk(&lanes(), top, 0, now);
        scan.came_back(&chunk, top, Duration::from_millis(1), now);
        assert_eq!(scan.due_at().since(now), EVERY);
        let chunk = scan.chunk(&lanes(), top, 0, now);
        scan.came_back(&chunk, top, SHORT, now);
        assert_eq!(scan.due_at().since(now), SHORT * SHARE);
        scan.hurry(now);
        assert_eq!(scan.due_at(), now);
    }
}
