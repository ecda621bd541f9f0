//! From which positions the lanes are read under one claim, and how much of each. Pure.

use crate::message::{LANES, Lane, MessageId};
use crate::reading::Position;

/// The positions and sizes of a read: lanes that had more last time share the batch, and each other lane gets a little.
pub(super) fn positions(
    open: &[Lane],
    full: &[Lane],
    batch_size: usize,
    rng: &mut fastrand::Rng,
    position: impl Fn(Lane) -> MessageId,
) -> Vec<Position> {
    // If the batch is smaller than the number of lanes, a random part of the lanes is read; half of those have a
    // backlog.
    let max_lanes = open.len().min(batch_size);
    let mut in_turn = |lanes: &[Lane]| {
        let first = rng.usize(0..lanes.len().max(1));
        lanes.iter().cycle().skip(first).take(lanes.len()).copied().collect::<Vec<Lane>>()
    };
    let mut lanes = in_turn(full);
    lanes.truncate(max_lanes.div_ceil(2));
    let others = in_turn(open).into_iter().filter(|lane| !lanes.contains(lane));
    let others: Vec<Lane> = others.take(max_lanes - lanes.len()).collect();
    lanes.extend(others);
    let sharing = if full.is_empty() { max_lanes } else { full.len().min(max_lanes) };
    let little = if full.is_empty() { 0 } else { (batch_size / LANES / 4).max(1) };
    let for_others = little * (max_lanes - sharing);
    let share = (batch_size.saturating_sub(for_others) / sharing.max(1)).max(1);
    let limit = |lane: &Lane| {
        if full.is_empty() || full.contains(lane) { share } else { little }
    };
    lanes.into_iter().map(|lane| Position { lane, above: position(lane), limit: limit(&lane) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn positions_of(open: &[Lane], full: &[Lane], batch_size: usize) -> Vec<Position> {
        positions(open, full, batch_size, &mut fastrand::Rng::with_seed(7), |_| MessageId::NONE)
    }

    fn lanes(numbers: &[i16]) -> Vec<Lane> {
        numbers.iter().filter_map(|number| Lane::new(*number)).collect()
    }

    #[test]
    fn a_read_never_asks_for_more_than_a_batch() {
        let open: Vec<Lane> = Lane::all().collect();
        for batch_size in [1, 2, 7, 16, 17, 100, 1000, 10_000] {
            for full in [vec![], lanes(&[3]), lanes(&[1, 2, 3]), open.clone()] {
                let positions = positions_of(&open, &full, batch_size);
                let total: usize = positions.iter().map(|position| position.limit).sum();
                assert!(total <= batch_size, "{batch_size} {full:?}: {positions:?}");
                assert!(positions.iter().all(|position| position.limit > 0));
            }
        }
    }

    #[test]
    fn a_lane_with_a_backlog_gets_most_of_the_batch() {
        let open: Vec<Lane> = Lane::all().collect();
        let positions = positions_of(&open, &lanes(&[5]), 1000);
        let of_five = positions.iter().find(|position| position.lane.number() == 5).unwrap();
        assert!(of_five.limit > 700, "{positions:?}");
        assert_eq!(positions.len(), 16);
    }
}
