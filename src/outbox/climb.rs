//! The climb: finds from where a destination's lanes have to be read, without one long statement.
//!
//! Below the first pending message of a lane there may be millions of index entries of delivered rows that vacuum could not
//! remove, because some session holds the horizon back. Walking them takes seconds and more. So they are walked in slices of
//! ids, each of which takes a fraction of a second whatever lies in it.

use std::time::{Duration, Instant};

use super::{Outbox, OutboxError, Range, Snapshot, Sweep};
use crate::message::{LANES, Lane};

/// How wide a slice of ids is, adapted to what slices cost.
#[derive(Clone, Copy, Debug)]
pub struct Slices {
    width: i64,
}

impl Default for Slices {
    fn default() -> Self {
        Self { width: 1 << 18 }
    }
}

impl Slices {
    /// The narrowest and the widest slice.
    const WIDTHS: (i64, i64) = (1 << 12, 1 << 42);

    /// What a slice may cost: enough to make the round trip cheap, little enough to disturb nobody.
    const COST: (Duration, Duration) = (Duration::from_millis(40), Duration::from_millis(160));

    /// Where a slice ends that begins above this id.
    pub fn end(self, above: i64) -> i64 {
        above.saturating_add(self.width)
    }

    /// Takes the cost of a slice into account.
    pub fn took(&mut self, cost: Duration) {
        if cost < Self::COST.0 {
            self.width = (self.width * 2).min(Self::WIDTHS.1);
        } else if cost > Self::COST.1 {
            self.width = (self.width / 4).max(Self::WIDTHS.0);
        }
    }
}

/// What a climb found.
#[derive(Clone, Debug)]
pub struct Climb {
    /// Each lane, and an id below which nothing of it was pending.
    pub floors: Vec<(Lane, i64)>,
    /// What had ended before the climb began.
    pub snapshot: Snapshot,
    /// Every transaction that had begun to write by then was below this one.
    pub next_xid: i64,
}

impl Outbox {
    /// Finds the first message of each lane that waits for nothing but being read. `go_on` is asked before each slice;
    /// `None` when it said no.
    ///
    /// # Errors
    ///
    /// When a statement fails.
    pub async fn climb(
        &self,
        destination: &str,
        mut go_on: impl FnMut() -> bool,
    ) -> Result<Option<Climb>, OutboxError> {
        let top = self.watch(&[destination]).await?.last_id;
        // Ids up to the top were taken by transactions that this snapshot shows, or shows as running.
        let above_the_top: Vec<(Lane, i64)> = (0..LANES).map(|lane| (lane, top)).collect();
        let look = self.look(destination, &above_the_top).await?;
        let mut floors = above_the_top;
        let mut missing: Vec<Lane> = (0..LANES).collect();
        let (mut above, mut slices) = (0, Slices::default());
        while above < top && !missing.is_empty() {
            if !go_on() {
                return Ok(None);
            }
            let started = Instant::now();
            let upto = slices.end(above).min(top);
            let ranges = missing.iter().map(|lane| Range { lane: *lane, above, upto }).collect();
            let swept = self.sweep(destination, &Sweep { ranges, most: 1, groups_to_skip: Vec::new() }).await?;
            slices.took(started.elapsed());
            for key in &swept.keys {
                missing.retain(|lane| *lane != key.lane);
                floors.iter_mut().filter(|(lane, _)| *lane == key.lane).for_each(|(_, floor)| *floor = key.id - 1);
            }
            above = upto;
        }
        Ok(Some(Climb { floors, snapshot: look.snapshot, next_xid: look.next_xid }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_follow_their_cost() {
        let mut slices = Slices::default();
        let width = slices.end(0);
        slices.took(Duration::from_millis(1));
        assert_eq!(slices.end(10), 10 + 2 * width);
        slices.took(Duration::from_millis(100));
        assert_eq!(slices.end(0), 2 * width);
        (0..100).for_each(|_| slices.took(Duration::from_secs(1)));
        assert_eq!(slices.end(0), 1 << 12);
        (0..100).for_each(|_| slices.took(Duration::ZERO));
        assert_eq!(slices.end(i64::MAX), i64::MAX, "the last slice ends with the ids");
    }
}
