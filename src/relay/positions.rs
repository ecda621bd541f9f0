//! How a read is shared between lanes. Pure.

use crate::message::{LANES, Lane};
use crate::outbox::Position;

/// From where and how much to read: lanes that had more last time share the batch, the others are asked for a little.
pub(super) fn positions(
    open: &[Lane],
    full: &[Lane],
    batch_size: usize,
    cursor: impl Fn(Lane) -> i64,
) -> Vec<Position> {
    // With fewer messages wanted than lanes, a random part of the lanes is read.
    let most_lanes = open.len().min(batch_size);
    let first = fastrand::usize(0..open.len().max(1));
    let lanes = open.iter().cycle().skip(first).take(most_lanes).copied();
    let sharing = if full.is_empty() { most_lanes } else { full.len().min(most_lanes) };
    let little = if full.is_empty() { 0 } else { (batch_size / usize::from(LANES.unsigned_abs()) / 4).max(1) };
    let for_others = little * (most_lanes - sharing);
    let share = (batch_size.saturating_sub(for_others) / sharing.max(1)).max(1);
    let most = |lane: &Lane| {
        if full.is_empty() || full.contains(lane) { share } else { little }
    };
    lanes.map(|lane| Position { lane, cursor: cursor(lane), most: most(&lane) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn total(positions: &[Position]) -> usize {
        positions.iter().map(|position| position.most).sum()
    }

    #[test]
    fn a_read_never_asks_for_more_than_a_batch() {
        let open: Vec<Lane> = (0..16).collect();
        for batch_size in [1, 2, 7, 16, 17, 100, 1000, 10_000] {
            for full in [vec![], vec![3], vec![1, 2, 3], open.clone()] {
                let positions = positions(&open, &full, batch_size, |_| 0);
                assert!(total(&positions) <= batch_size, "{batch_size} {full:?}: {positions:?}");
                assert!(positions.iter().all(|position| position.most > 0));
            }
        }
    }

    #[test]
    fn a_lane_with_a_backlog_gets_most_of_the_batch() {
        let open: Vec<Lane> = (0..16).collect();
        let positions = positions(&open, &[5], 1000, |_| 0);
        let of_five = positions.iter().find(|position| position.lane == 5).unwrap();
        assert!(of_five.most > 700, "{positions:?}");
        assert_eq!(positions.len(), 16);
    }
}
