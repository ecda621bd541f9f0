//! What an answer of SQS means: for each message of a request, and for the destination. Pure, no I/O.
//!
//! The rule for failures that may be anybody's: a failed entry costs its message an attempt only if SQS accepted other messages
//! of the destination, in the same request or since the message failed before; and while most of what was sent lately failed,
//! nobody is charged and the destination halts. The policy for each kind of fault is [`crate::retry`]'s.

use super::breaker::{Breaker, Tally};
use super::item::Item;
use crate::clock::Time;
use crate::config::Tuning;
use crate::message::{Fault, FaultKind};
use crate::retry::{Policy, delay_after, policy};

/// What becomes of one message of a request.
#[derive(Debug)]
pub(super) enum Verdict {
    /// SQS accepted it under this id.
    Accepted(String),
    /// It is given up.
    Dead(Fault),
    /// It is sent again, at once or at a time.
    Again(Option<Time>),
}

/// What a request's answer means.
#[derive(Debug, Default)]
pub(super) struct Judgement {
    /// Of each message, in order.
    pub(super) messages: Vec<(Item, Verdict)>,
    /// Entries that will be sent again, by the kind of fault.
    pub(super) retried: Vec<FaultKind>,
    /// Entries that SQS may have accepted although the answer does not say so.
    pub(super) possible_duplicates: u64,
    /// Why the destination halts, if it does.
    pub(super) halt: Option<Fault>,
    /// Whether the destination was halted and is not any more.
    pub(super) is_back: bool,
    /// How many entries were accepted.
    pub(super) accepted: u64,
}

/// Judges a request that came back. `request_fault` says that it failed as a whole; then each result is that fault.
pub(super) fn judge(
    items: Vec<Item>,
    results: Vec<Result<String, Fault>>,
    request_fault: Option<&Fault>,
    breaker: &mut Breaker,
    tuning: &Tuning,
    dice: &mut fastrand::Rng,
    now: Time,
) -> Judgement {
    let tally = tally(&results);
    // What never left this host says nothing about the destination.
    let is_sent = request_fault.is_none_or(|fault| fault.kind != FaultKind::NotSent);
    let failed_here = |(item, result): (&Item, &Result<String, Fault>)| {
        let is_failed = result.as_ref().is_err_and(|fault| fault.kind == FaultKind::MessageTransient);
        is_failed.then(|| item.key())
    };
    let failed_keys = items.iter().zip(&results).filter_map(failed_here).collect();
    let is_back = is_sent && breaker.note(tally, failed_keys, now);
    let mut judgement = Judgement { is_back, messages: Vec::with_capacity(items.len()), ..Judgement::default() };
    judgement.accepted = results.iter().filter(|result| result.is_ok()).count() as u64;
    // A whole request is refused for what one entry holds: sent one by one, only that entry is refused again.
    let is_refused = request_fault.is_some_and(|fault| fault.kind == FaultKind::MessagePermanent);
    let is_split = items.len() > 1 && is_refused;
    // All of a request failed by the receiver's fault, and more than one cannot be wrong by themselves.
    let is_all = tally.accepted == 0 && tally.failed > 1;
    let is_outage = is_all || breaker.mostly_fails();
    for (mut item, result) in items.into_iter().zip(results) {
        let verdict = match result {
            Ok(sqs_message_id) => Verdict::Accepted(sqs_message_id),
            Err(_) if is_split => {
                item.is_alone = true;
                Verdict::Again(None)
            }
            Err(fault) => {
                if fault.kind.may_have_been_accepted() {
                    judgement.possible_duplicates += 1;
                }
                let is_charged = fault.kind != FaultKind::MessageTransient
                    || (!is_outage && (tally.accepted > 0 || breaker.failed_before(item.key())));
                let verdict = failed(&mut item, &fault, is_charged, tuning, dice, now);
                if !matches!(verdict, Verdict::Dead(_)) {
                    judgement.retried.push(fault.kind);
                }
                judgement.halt = judgement.halt.take().or_else(|| halts(&fault, is_outage, breaker).then_some(fault));
                verdict
            }
        };
        if !matches!(verdict, Verdict::Again(_)) {
            breaker.forget(item.key());
        }
        judgement.messages.push((item, verdict));
    }
    judgement
}

fn tally(results: &[Result<String, Fault>]) -> Tally {
    let mut tally = Tally::default();
    for result in results {
        match result {
            Ok(_) => tally.accepted += 1,
            Err(fault) if fault.kind == FaultKind::MessagePermanent => tally.refused += 1,
            Err(fault) if fault.kind == FaultKind::MessageTransient => tally.failed += 1,
            Err(_) => {}
        }
    }
    tally
}

/// What happens to a message that was not accepted.
fn failed(
    item: &mut Item,
    fault: &Fault,
    is_charged: bool,
    tuning: &Tuning,
    dice: &mut fastrand::Rng,
    now: Time,
) -> Verdict {
    let mut delay = |attempts| Some(now + delay_after(attempts, tuning.retry_initial, tuning.retry_max, dice));
    match policy(fault.kind, item.attempts, tuning.max_attempts) {
        Policy::DeadLetter | Policy::RetryCharged if !is_charged => {
            item.resends = item.resends.saturating_add(1);
            Verdict::Again(delay(item.resends))
        }
        Policy::DeadLetter => {
            item.attempts = item.attempts.saturating_add(1);
            Verdict::Dead(fault.clone())
        }
        Policy::RetryCharged => {
            item.attempts = item.attempts.saturating_add(1);
            item.charged = Some(fault.to_string());
            Verdict::Again(delay(item.attempts))
        }
        Policy::Resend => {
            item.resends = item.resends.saturating_add(1);
            Verdict::Again(delay(item.resends))
        }
        Policy::Halt => Verdict::Again(None),
    }
}

/// Whether this fault halts the destination.
fn halts(fault: &Fault, is_outage: bool, breaker: &Breaker) -> bool {
    match fault.kind {
        FaultKind::MessagePermanent | FaultKind::NotSent => false,
        FaultKind::MessageTransient => is_outage || breaker.is_down(),
        FaultKind::Ambiguous => breaker.is_down(),
        FaultKind::Destination
        | FaultKind::Throttle
        | FaultKind::Outage
        | FaultKind::ServerError
        | FaultKind::Internal => true,
    }
}
