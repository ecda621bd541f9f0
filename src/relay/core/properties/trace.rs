//! The lines of a trace, which tells what happened in a scenario that failed.

use super::super::work::{Completion, Work};
use crate::message::Message;

/// The line for a piece of work that begins; `None` if it is not worth one.
pub(super) fn shown(work: &Work) -> Option<String> {
    let text = match work {
        Work::Publish { items, until, .. } => {
            let ids: Vec<i64> = items.iter().map(|item| item.key().id.0).collect();
            format!("publish {ids:?} until {until:?}")
        }
        Work::Settle { settlements, .. } => {
            let ids: Vec<_> = settlements.iter().map(|one| (one.key.id.0, &one.outcome)).collect();
            format!("settle {ids:?}")
        }
        Work::Read(work) if !work.request.groups.is_empty() => format!("continue groups {:?}", work.groups),
        Work::Release | Work::Quarantine { .. } | Work::Extend { .. } => {
            format!("{work:?}").chars().take(200).collect()
        }
        _ => return None,
    };
    Some(text)
}

/// The line for a completion; `None` if it is not worth one.
pub(super) fn answer_shown(completion: &Completion) -> Option<String> {
    let text = match completion {
        Completion::Read(work, Ok(answer)) => {
            let ids = |messages: &[Message]| {
                messages.iter().map(|one| (one.key.id.0, one.hold, one.wait)).collect::<Vec<_>>()
            };
            let gap = answer.gap.as_ref().filter(|gap| !gap.found.is_empty());
            if answer.lanes.messages.is_empty() && answer.groups.is_empty() && gap.is_none() {
                return None;
            }
            let lanes: Vec<_> =
                work.request.lanes.iter().map(|one| (one.lane.number(), one.above.0)).filter(|one| one.0 < 3).collect();
            let groups = work.request.groups.iter().zip(&answer.groups);
            let groups: Vec<_> =
                groups.map(|(one, batch)| (&one.group, one.after.id.0, ids(&batch.messages))).collect();
            let gap = gap.map(|gap| gap.found.iter().map(|found| found.key.id.0).collect::<Vec<_>>());
            format!("read {lanes:?} {:?} groups {groups:?} gap {gap:?}", ids(&answer.lanes.messages))
        }
        Completion::Claimed(Ok(None)) => return None,
        Completion::Claimed(Ok(Some(claimed))) => {
            let lanes: Vec<i16> = claimed.lanes.iter().map(|(lane, _)| lane.number()).collect();
            format!("claimed {lanes:?} by transaction {}", claimed.proof.transaction_id.0)
        }
        Completion::DueRead { answer: Ok(batch), .. } if batch.messages.is_empty() => return None,
        Completion::DueRead { answer: Ok(batch), .. } => {
            format!("due {:?}", batch.messages.iter().map(|one| one.key.id.0).collect::<Vec<_>>())
        }
        Completion::Rescanned(_, Ok(Some(rescanned))) if rescanned.found.is_empty() => return None,
        Completion::Looked(Ok(look)) if look.ready.is_empty() && look.due.is_empty() => return None,
        Completion::Looked(Ok(look)) => format!("looked {:?} {:?}", look.ready, look.due),
        Completion::Rescanned(work, Ok(Some(rescanned))) => {
            let found: Vec<i64> = rescanned.found.iter().map(|found| found.key.id.0).collect();
            format!("rescan {:?} waiting {:?} found {found:?}", work.rescan.ranges.first(), work.rescan.waiting)
        }
        Completion::Published { items, published } => {
            let ids: Vec<i64> = items.iter().map(|item| item.key().id.0).collect();
            format!("published {ids:?} {:?}", published.results)
        }
        Completion::Settled { answer, .. } => format!("settled {answer:?}"),
        other => format!("{other:?}"),
    };
    Some(text.chars().take(600).collect())
}
