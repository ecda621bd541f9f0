//! Looks under a claim at what reads may have passed: which messages count there, and how many the answer may have. Pure.

use super::schedule::Schedule;
use super::standing::Standing;
use crate::message::Lane;
use crate::reading::{Range, Rescan};

/// A look at these ranges, without what is known to wait in the table.
pub(super) fn rescan_of(mut ranges: Vec<Range>, schedule: &Schedule, standing: &Standing) -> Rescan {
    let waiting = schedule.waiting_in_table(&ranges);
    let crowds = &schedule.parked.crowds;
    for range in ranges.iter_mut().filter(|range| crowds.is_crowded(range.lane)) {
        // In the gap everything counts: what is left out there was never seen, if it was committed late.
        range.ready_upto = range.upto.min(standing.knowledge.watermarks.low(range.lane));
    }
    let crowded: Vec<Lane> = ranges.iter().filter(|range| range.leaves_out()).map(|range| range.lane).collect();
    let known = schedule.groups_of(&crowded).cloned().collect();
    // Room for all that is known and some that is not, so that the known cannot hide the unknown.
    let in_gap = ranges.iter().map(|range| crowds.seen_above(range.lane, range.ready_upto)).max().unwrap_or_default();
    let most = schedule.known() + in_gap + standing.max_unknown;
    Rescan { ranges, most, waiting, known, order: standing.order(), limit: None }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::limits::MemoryBudget;
    use super::super::schedule::Shape;
    use super::super::standing::{Knowledge, MAX_UNKNOWN};
    use super::super::watermark::Watermarks;
    use super::super::work::FirstLook;
    use super::*;
    use crate::clock::Time;
    use crate::config::Tuning;
    use crate::message::{Hold, MessageId, MessageKey, QueueKind};
    use crate::reading::{ByLane, Writers};

    #[test]
    fn of_a_crowded_lane_only_what_the_low_watermark_has_passed_may_be_left_out() {
        let now = Time::default();
        let (crowded, other) = (Lane::new(1).unwrap(), Lane::new(2).unwrap());
        let memory = MemoryBudget::new(1 << 20).share();
        let mut standing = Standing::new(QueueKind::Fifo, Tuning::default(), memory, fastrand::Rng::with_seed(1), now);
        let writers = Writers { transaction_ids: Vec::new(), next_xid: None };
        let first = FirstLook { incarnations: ByLane::default(), last_id: MessageId(20), writers };
        let watermarks = Watermarks::start(&ByLane::all(MessageId(20)), &first);
        standing.knowledge = Knowledge::new(watermarks, ByLane::default(), now);
        let mut schedule = Schedule::new(Shape { request_size: 10, per_group: 1, window: 10, max_parked: 0 });
        for id in [18, 25, 26] {
            let hold = Hold::Group { by: MessageId(3) };
            schedule.leaves_in_table(&Arc::from("k"), MessageKey { lane: crowded, id: MessageId(id) }, Some(hold), now);
        }
        let ranges = [crowded, other].map(|lane| Range::new(lane, MessageId::NONE, MessageId(30)));
        let rescan = rescan_of(ranges.to_vec(), &schedule, &standing);
        assert_eq!(
            rescan.ranges[0].ready_upto,
            MessageId(20),
            "above that something may be new that is held up as well"
        );
        assert_eq!(rescan.ranges[1].ready_upto, MessageId::NONE);
        assert_eq!(rescan.most, MAX_UNKNOWN + 2, "what was read of the gap does not hide what was not");
    }
}
