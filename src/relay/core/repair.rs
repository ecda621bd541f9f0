//! Repair: the last copies of a group's messages are in order in the queue, whichever entries of a request fail.
//!
//! In batched mode a request holds several messages of a group. SQS judges each on its own, so it may accept a message
//! although an earlier one of the group has failed. Such a message is *superseded*: it stays pending, and a copy with
//! another deduplication id is sent after the earlier one. It counts as delivered only when SQS has accepted a copy in
//! its turn. The outcome `Superseded` records the number of the copy that came too early, so that the next relay sends
//! another copy as well, should this one end.
//!
//! A message also gets a copy if its number shows that it is behind a later one ([`super::sequences`]). That happens
//! when the answer to a request is lost in which an entry failed: its messages of the group are sent again together, the
//! failed entry arrives now, and SQS drops the others, which it had accepted before. (One by one, a relay that takes over
//! in between would see only the others, and nothing would show that they came first.) A superseded message that is read
//! again before that is recorded is found in the same way. It happens in both modes if a message is redriven or committed
//! late in between. If the number of a copy that SQS cannot have known is not in order either, the queue does not keep order.
//! That is an *order break*; it is counted, nothing more is sent, and from then on numbers cause no copies. Pure.

use super::destination::{DestinationState, Report};
use super::item::Item;
use super::sequences::Sequences;
use super::verdict::Verdict;
use crate::message::MessageKey;

/// How often a number may be explained by an earlier copy that SQS recognised: by the first copy, and by copies that
/// another relay sent and did not record.
const MAX_BY_NUMBER: u8 = 3;

/// What became of the order of a request's messages.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct OrderFound {
    /// Messages of which another copy has to follow.
    pub(super) superseded: u64,
    /// Messages that the queue has put behind later ones.
    pub(super) breaks: Vec<MessageKey>,
}

impl OrderFound {
    /// Reports what is not as it should be.
    pub(super) fn report_to(self, destination: &mut DestinationState) {
        if self.superseded > 0 {
            destination.report(Report::Repaired(self.superseded));
        }
        if !self.breaks.is_empty() {
            destination.report(Report::OrderBroken(self.breaks));
        }
    }
}

/// Checks the order of the messages of a request that came back, and turns verdicts to [`Verdict::Superseded`] where an
/// earlier message of the group comes after. With `waits_for_dead` the messages behind a dead one come after it is
/// redriven or discarded.
pub(super) fn check_order(
    messages: &mut [(Item, Verdict)],
    sequences: &mut Sequences,
    waits_for_dead: bool,
) -> OrderFound {
    let mut found = OrderFound::default();
    // Indexes of messages that come after this request, the first of each group.
    let mut later: Vec<usize> = Vec::new();
    for index in 0..messages.len() {
        let (before, rest) = messages.split_at_mut(index);
        let Some((item, verdict)) = rest.first_mut() else { break };
        let Some(group) = item.group.clone() else { continue };
        let is_of_group = |other: &Item| other.group.as_ref() == Some(&group);
        let is_behind = later.iter().any(|at| before.get(*at).is_some_and(|(other, _)| is_of_group(other)));
        match verdict {
            Verdict::Again(_) if !is_behind => later.push(index),
            Verdict::Dead(_) if !is_behind && waits_for_dead => later.push(index),
            Verdict::Accepted(accepted) if is_behind => {
                *verdict = Verdict::Superseded(item.entry.supersede(accepted.sequence_number));
                item.is_unsure = false;
                found.superseded += 1;
                // If they fail again together with others, those get yet another copy.
                let failed = before.iter_mut().filter(|(other, verdict)| {
                    matches!(verdict, Verdict::Again(_)) && other.group.as_ref() == item.group.as_ref()
                });
                failed.for_each(|(other, _)| other.is_last_of_group = true);
            }
            Verdict::Accepted(accepted) => {
                let Some(number) = accepted.sequence_number else { continue };
                if sequences.note(&group, item.id(), number) {
                    continue;
                }
                let is_newer = item.entry.superseded().is_none_or(|superseded| number > superseded);
                if is_newer && item.repairs_by_number < MAX_BY_NUMBER && sequences.are_believed() {
                    item.repairs_by_number += 1;
                    *verdict = Verdict::Superseded(item.entry.supersede(Some(number)));
                    item.is_unsure = false;
                    found.superseded += 1;
                    later.push(index);
                } else {
                    sequences.broken(&group, item.id(), number);
                    found.breaks.push(item.key());
                }
            }
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests;
