//! Rescans under a claim: which messages count, and how many the answer may have. Pure.

use super::destination::DestinationState;
use super::schedule::Schedule;
use crate::message::Lane;
use crate::reading::{Range, Rescan};

/// A rescan of these ranges, without what is known to wait in the table.
pub(super) fn rescan_of(mut ranges: Vec<Range>, schedule: &Schedule, destination: &DestinationState) -> Rescan {
    let waiting = schedule.waiting_in_table(&ranges);
    let crowds = &schedule.parked.crowds;
    for range in ranges.iter_mut().filter(|range| crowds.is_crowded(range.lane)) {
        // Above the low watermark every message counts: a message committed late there, if left out, would never have
        // been seen.
        range.ready_upto = range.upto.min(destination.knowledge.watermarks.low(range.lane));
    }
    let crowded: Vec<Lane> = ranges.iter().filter(|range| range.filters_held()).map(|range| range.lane).collect();
    let known = schedule.groups_of(&crowded).cloned().collect();
    // Room for all known messages and some unknown ones, so that the known cannot hide the unknown.
    let in_gap = ranges.iter().map(|range| crowds.seen_above(range.lane, range.ready_upto)).max().unwrap_or_default();
    let limit = schedule.known() + in_gap + destination.max_unknown;
    Rescan { ranges, limit, waiting, known, order: destination.order(), timeout: None }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::destination::{Knowledge, MAX_UNKNOWN};
    use super::super::limits::MemoryBudget;
    use super::super::schedule::ScheduleLimits;
    use super::super::watermark::Watermarks;
    use super::super::work::Baseline;
    use super::*;
    use crate::clock::Time;
    use crate::config::Tuning;
    use crate::message::{Accepts, DestinationKind, Hold, MessageId, MessageKey};
    use crate::reading::{ByLane, Writers};

    #[test]
    fn of_a_crowded_lane_only_what_the_low_watermark_has_passed_may_be_left_out() {
        let now = Time::default();
        let (crowded, other) = (Lane::new(1).unwrap(), Lane::new(2).unwrap());
        let memory = MemoryBudget::new(1 << 20).share();
        let mut destination = DestinationState::new(
            Accepts::queue(DestinationKind::Fifo),
            Tuning::default(),
            memory,
            fastrand::Rng::with_seed(1),
            now,
        );
        let writers = Writers { transaction_ids: Vec::new(), next_xid: None };
        let first = Baseline { incarnations: ByLane::default(), last_id: MessageId(20), writers };
        let watermarks = Watermarks::start(&ByLane::all(MessageId(20)), &first);
        destination.knowledge = Knowledge::new(watermarks, ByLane::default(), now);
        let mut schedule = Schedule::new(ScheduleLimits {
            request_size: 10,
            per_group: 1,
            window: 10,
            max_parked: 0,
            request_bytes: 1_048_576,
        });
        for id in [18, 25, 26] {
            let hold = Hold::Group { by: MessageId(3) };
            schedule.keep_in_table_if_held(
                &Arc::from("k"),
                MessageKey { lane: crowded, id: MessageId(id) },
                Some(hold),
                now,
            );
        }
        let ranges = [crowded, other].map(|lane| Range::new(lane, MessageId::NONE, MessageId(30)));
        let rescan = rescan_of(ranges.to_vec(), &schedule, &destination);
        assert_eq!(rescan.ranges[0].ready_upto, MessageId(20), "above it a held-up message may be new");
        assert_eq!(rescan.ranges[1].ready_upto, MessageId::NONE);
        assert_eq!(rescan.limit, MAX_UNKNOWN + 2, "messages of the gap that were read do not hide others");
    }
}
