use std::sync::Arc;
use std::time::Duration;

use super::super::limits::MemoryBudget;
use super::super::work::{Baseline, Completion, Work};
use super::super::{Control, Core, Until};
use super::*;
use crate::config::Tuning;
use crate::message::{Accepts, DestinationKind, MessageKey, TransactionId};
use crate::reading::{ByLane, Found, Look, Rescanned, Snapshot, Writers};

/// The answers of a quiet database in which all lanes have messages and are held by others.
fn answer(work: Work) -> Completion {
    let snapshot = || Snapshot::parse("100:100:").unwrap();
    let writers = || Writers { transaction_ids: Vec::new(), next_xid: Some(TransactionId(100)) };
    match work {
        Work::Prepare => Completion::Prepared(Ok(())),
        Work::ReadBaseline => Completion::BaselineRead(Ok(Baseline {
            incarnations: ByLane::all(Some(Arc::from("1"))),
            last_id: MessageId(100),
            writers: writers(),
        })),
        Work::Rescan(work) => {
            let rescanned = Rescanned { snapshot: snapshot(), found: Vec::new(), took: Duration::ZERO };
            Completion::Rescanned(work, Ok(Some(rescanned)))
        }
        Work::Look { .. } => Completion::Looked(Ok(Look {
            snapshot: snapshot(),
            next_xid: TransactionId(100),
            last_id: MessageId(100),
            ready: Lane::all().collect(),
            due: Vec::new(),
        })),
        Work::Writers { asked_at } => Completion::Writers { asked_at, answer: Ok(writers()) },
        Work::Claim { .. } => Completion::Claimed(Ok(None)),
        other => unreachable!("{other:?} is not asked for"),
    }
}

#[test]
fn while_others_hold_the_lanes_every_step_says_so() {
    let mut now = Time::default();
    let memory = MemoryBudget::new(1 << 20).share();
    let rng = fastrand::Rng::with_seed(1);
    let mut core =
        Core::new(Accepts::queue(DestinationKind::Fifo), Tuning::default(), Until::Drained, memory, rng, now);
    core.control(Control::Running, now);
    let (mut claims, mut steps) = (0, std::collections::HashSet::new());
    for _ in 0..1000 {
        for work in core.due(now) {
            if claims > 0 {
                assert_eq!(core.activity(), Activity::LanesAreElsewhere, "while it is asked for {work:?}");
                steps.insert(std::mem::discriminant(&work));
            }
            claims += u32::from(matches!(work, Work::Claim { .. }));
            core.apply(answer(work), now);
        }
        now = core.wake_at(now).max(now + Duration::from_millis(1));
    }
    assert!(steps.len() >= 4, "it prepares, looks, rescans and claims");
}

#[test]
fn a_rescan_that_finds_a_message_of_a_crowd_has_not_seen_what_is_above_it() {
    let now = Time::default();
    let memory = MemoryBudget::new(1 << 20).share();
    let rng = fastrand::Rng::with_seed(1);
    let mut core =
        Core::new(Accepts::queue(DestinationKind::Fifo), Tuning::default(), Until::Drained, memory, rng, now);
    core.control(Control::Running, now);
    while !core.between.initial_scan.is_done() {
        for work in core.due(now) {
            core.apply(answer(work), now);
        }
    }
    let lane = Lane::all().next().unwrap();
    let key = MessageKey { lane, id: MessageId(15) };
    let knowledge = &mut core.destination.knowledge;
    knowledge.crowds.join("k", key);
    knowledge.watermarks.mark_for_rescan(&[lane]);
    core.between.asking = None;
    let Some(Work::Rescan(work)) = core.plan_rescan(now) else { unreachable!("it does not rescan") };
    let found = vec![Found { key, group: Some(Arc::from("k")) }];
    let rescanned = Rescanned { snapshot: Snapshot::parse("100:100:").unwrap(), found, took: Duration::ZERO };
    core.apply(Completion::Rescanned(work, Ok(Some(rescanned))), now);
    assert!(
        core.destination.knowledge.watermarks.must_rescan(lane),
        "only the lowest message of the lane was asked for"
    );
}
