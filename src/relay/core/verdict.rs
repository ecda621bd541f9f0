//! What an answer of SQS means for each message of a request, and for the destination. Pure, no I/O.
//!
//! The rule for failures whose cause is unclear: a failed entry costs its message an attempt only if SQS accepted other
//! messages of the destination, in the same request or since the message last failed. While most recent entries fail,
//! no message is charged and the destination halts. [`crate::retry`] has the policy for each kind of fault.

use super::breaker::{Breaker, Tally};
use super::item::Item;
use crate::clock::Time;
use crate::config::Tuning;
use crate::message::{Fault, FaultKind, SequenceNumber};
use crate::publisher::Accepted;
use crate::retry::{Policy, delay_after, policy};

/// What becomes of one message of a request.
#[derive(Debug)]
pub(super) enum Verdict {
    /// SQS accepted it.
    Accepted(Accepted),
    /// SQS accepted it too early, under this number; another copy is sent ([`super::repair`]).
    Superseded(SequenceNumber),
    /// It is dead.
    Dead(Fault),
    /// It is sent again, at once or at the given time.
    Again(Option<Time>),
}

/// What a request's answer means.
#[derive(Debug, Default)]
pub(super) struct Judgement {
    /// The verdict on each message, in order.
    pub(super) messages: Vec<(Item, Verdict)>,
    /// The kind of fault of each entry that will be sent again.
    pub(super) retried: Vec<FaultKind>,
    /// Entries that SQS may have accepted although the answer does not say so.
    pub(super) possible_duplicates: u64,
    /// Why the destination halts, if it does.
    pub(super) halt: Option<Fault>,
    /// Whether a halt of the destination has ended.
    pub(super) has_recovered: bool,
    /// How many entries were accepted.
    pub(super) accepted: u64,
}

/// Judges a request that came back. If it failed as a whole, `request_fault` is the fault, and each result holds the same
/// one, except that of an entry for which the others were not sent.
pub(super) fn judge(
    items: Vec<Item>,
    results: Vec<Result<Accepted, Fault>>,
    request_fault: Option<&Fault>,
    breaker: &mut Breaker,
    tuning: &Tuning,
    rng: &mut fastrand::Rng,
    now: Time,
) -> Judgement {
    let tally = tally(&results);
    // The request was refused as a whole because of one entry, or maybe so. Sent one by one, only that entry is refused again.
    let is_of_message = request_fault.is_some_and(|fault| fault.kind.is_of_message());
    let is_split = items.len() > 1 && is_of_message;
    // A request that never left this host says nothing about the destination, and one that may have failed because of one
    // entry only that the destination answers.
    let is_unclear = is_split && request_fault.is_some_and(|fault| fault.kind == FaultKind::MessageTransient);
    if is_unclear {
        breaker.answered();
    }
    let is_sent = !is_unclear && request_fault.is_none_or(|fault| fault.kind != FaultKind::NotSent);
    let failed_here = |(item, result): (&Item, &Result<Accepted, Fault>)| {
        let is_failed = result.as_ref().is_err_and(|fault| fault.kind == FaultKind::MessageTransient);
        is_failed.then(|| item.key())
    };
    let failed_keys = items.iter().zip(&results).filter_map(failed_here).collect();
    let has_recovered = is_sent && breaker.note(tally, failed_keys, now);
    let mut judgement = Judgement { has_recovered, messages: Vec::with_capacity(items.len()), ..Judgement::default() };
    judgement.accepted = results.iter().filter(|result| result.is_ok()).count() as u64;
    // Every entry failed by the receiver's fault, and it is unlikely that several messages are bad.
    let is_all = tally.accepted == 0 && tally.failed > 1;
    let is_outage = is_all || breaker.mostly_fails();
    // A probe may have the very message that is at fault, so it takes several.
    let is_down = if is_of_message { breaker.fails_in_a_row() } else { breaker.is_down() };
    for (mut item, result) in items.into_iter().zip(results) {
        let verdict = match result {
            Ok(accepted) => Verdict::Accepted(accepted),
            Err(_) if is_split => {
                item.is_alone = true;
                Verdict::Again(None)
            }
            // A queue may take less than others; then the body goes to the bucket of the destination.
            Err(fault) if offload(&mut item, &fault) => {
                judgement.retried.push(fault.kind);
                Verdict::Again(None)
            }
            Err(fault) => {
                if fault.kind.may_have_been_accepted() {
                    judgement.possible_duplicates += 1;
                    item.is_unsure = true;
                }
                let is_charged = fault.kind != FaultKind::MessageTransient
                    || (!is_outage && (tally.accepted > 0 || breaker.note_suspect(item.key())));
                let verdict = failed(&mut item, &fault, is_charged, tuning, rng, now);
                if !matches!(verdict, Verdict::Dead(_)) {
                    judgement.retried.push(fault.kind);
                }
                judgement.halt = judgement.halt.take().or_else(|| halts(&fault, is_outage, is_down).then_some(fault));
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

fn tally(results: &[Result<Accepted, Fault>]) -> Tally {
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

/// Whether a message that was refused is sent again with its body in a bucket.
fn offload(item: &mut Item, fault: &Fault) -> bool {
    let dropped_attributes = item.entry.offload_after(fault);
    item.dropped_attributes += dropped_attributes.unwrap_or_default();
    dropped_attributes.is_some()
}

/// What happens to a message that was not accepted.
fn failed(
    item: &mut Item,
    fault: &Fault,
    is_charged: bool,
    tuning: &Tuning,
    rng: &mut fastrand::Rng,
    now: Time,
) -> Verdict {
    let mut delay = |attempts| Some(now + delay_after(attempts, tuning.retry_initial, tuning.retry_max, rng));
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
            item.charged_error = Some(fault.to_string());
            // What was recorded is about the failure before this one.
            item.is_recorded = false;
            Verdict::Again(delay(item.attempts))
        }
        Policy::Resend => {
            item.resends = item.resends.saturating_add(1);
            Verdict::Again(delay(item.resends))
        }
        // The session closes, so it is only put back.
        Policy::Halt => Verdict::Again(None),
    }
}

/// Whether this fault halts the destination.
fn halts(fault: &Fault, is_outage: bool, is_down: bool) -> bool {
    match fault.kind {
        FaultKind::MessagePermanent | FaultKind::NotSent => false,
        FaultKind::MessageTransient => is_outage || is_down,
        FaultKind::Ambiguous => is_down,
        FaultKind::Destination
        | FaultKind::Throttle
        | FaultKind::Outage
        | FaultKind::ServerError
        | FaultKind::Internal => true,
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::super::admit::compose_item;
    use super::super::limits::MemoryBudget;
    use super::*;
    use crate::message::{
        Accepts, BodyForm, Content, DestinationKind, Event, EventPosition, Lane, Message, MessageId, MessageKey, Origin,
    };

    fn item(id: i64) -> Item {
        let event = Event {
            event_id: "e".to_owned(),
            event_type: "T".to_owned(),
            stream: None,
            body: "{}".to_owned(),
            form: BodyForm::Json,
            metadata: "{}".to_owned(),
        };
        let message = Message {
            key: MessageKey { lane: Lane::new(1).unwrap(), id: MessageId(id) },
            origin: Origin { event_position: EventPosition(id), enqueued_at: SystemTime::UNIX_EPOCH },
            group: None,
            attempts: 0,
            superseded: None,
            age_when_read: Duration::ZERO,
            read_at: Time::default(),
            wait: None,
            hold: None,
            content: Content::Event(event),
        };
        compose_item(message, &Accepts::queue(DestinationKind::Fifo), &mut MemoryBudget::new(0).share().reserve(0))
            .unwrap()
    }

    /// The first failure of a request in which SQS accepts another entry.
    fn failed(item: Item, other: i64, breaker: &mut Breaker) -> Item {
        let fault = Fault::new(FaultKind::MessageTransient, "InternalError", "simulated");
        let (items, results) = (
            vec![item, self::item(other)],
            vec![Err(fault), Ok(Accepted { sqs_message_id: "m".to_owned(), sequence_number: None })],
        );
        let mut rng = fastrand::Rng::with_seed(1);
        judge(items, results, None, breaker, &Tuning::default(), &mut rng, Time::default()).messages.remove(0).0
    }

    /// Judges a request of these messages that a topic refused as a whole, maybe because of one of them.
    fn refused(items: Vec<Item>, breaker: &mut Breaker) -> Judgement {
        let fault = Fault::new(FaultKind::MessageTransient, "InvalidParameter", "simulated");
        let results = vec![Err(fault.clone()); items.len()];
        let mut rng = fastrand::Rng::with_seed(1);
        judge(items, results, Some(&fault), breaker, &Tuning::default(), &mut rng, Time::default())
    }

    #[test]
    fn a_request_that_may_be_refused_for_one_message_is_sent_one_by_one_before_the_destination_halts() {
        let mut breaker = Breaker::new(Duration::from_millis(200), Duration::from_secs(60));
        for _ in 0..5 {
            breaker.note(Tally::default(), Vec::new(), Time::default());
        }
        breaker.halt(Fault::new(FaultKind::Outage, "NotConnected", ""), &mut fastrand::Rng::with_seed(1));
        let split = refused((1..=3).map(item).collect(), &mut breaker);
        assert!(split.halt.is_none() && split.messages.iter().all(|(item, _)| item.is_alone && item.attempts == 0));
        assert!(breaker.halted().is_some(), "nothing got through yet");
        // The probe has the message at fault first, and goes on to the next.
        for id in 1..=2 {
            assert!(refused(vec![item(id)], &mut breaker).halt.is_none(), "{id}");
        }
        assert!(refused(vec![item(3)], &mut breaker).halt.is_some(), "single messages fail one after another");
    }

    #[test]
    fn a_second_failure_is_recorded_although_the_first_one_was() {
        let mut breaker = Breaker::new(Duration::from_millis(200), Duration::from_secs(60));
        let mut first = failed(item(1), 2, &mut breaker);
        assert_eq!((first.attempts, first.is_recorded), (1, false));
        first.is_recorded = true;
        let second = failed(first, 3, &mut breaker);
        assert_eq!((second.attempts, second.is_recorded), (2, false), "a crash would lose the second attempt");
    }
}
