//! Which messages get another copy, one rule at a time. `relay/core/properties.rs` tests that the last copies are in
//! order.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::super::admit::compose_item;
use super::super::limits::MemoryBudget;
use super::*;
use crate::clock::Time;
use crate::message::{
    Accepts, BodyForm, Content, DestinationKind, Event, EventPosition, Fault, FaultKind, Lane, Message, MessageId,
    Origin, SequenceNumber,
};
use crate::publisher::{Accepted, build_request};

fn item(id: i64, group: Option<&str>) -> Item {
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
        group: group.map(Arc::from),
        attempts: 0,
        superseded: None,
        age_when_read: Duration::ZERO,
        read_at: Time::default(),
        wait: None,
        hold: None,
        content: Content::Event(event),
    };
    compose_item(message, &Accepts::queue(DestinationKind::Fifo), &mut MemoryBudget::new(0).share().reserve(0)).unwrap()
}

fn number(number: u64) -> Option<SequenceNumber> {
    SequenceNumber::parse(&number.to_string())
}

fn accepted(at: u64) -> Verdict {
    Verdict::Accepted(Accepted { sqs_message_id: "m".to_owned(), sequence_number: number(at) })
}

fn dead() -> Verdict {
    Verdict::Dead(Fault::new(FaultKind::MessagePermanent, "InvalidMessageContents", ""))
}

/// What a relay knows of the order, and what is to be sent again.
#[derive(Default)]
struct Relay {
    sequences: Sequences,
    waits_for_dead: bool,
    found: OrderFound,
    again: Vec<Item>,
}

impl Relay {
    /// The answers for these messages of group a; returns the ids of those that are sent again.
    fn answers(&mut self, answers: Vec<(Item, Verdict)>) -> Vec<i64> {
        let mut messages = answers;
        self.found = check_order(&mut messages, &mut self.sequences, self.waits_for_dead);
        let is_over = |verdict: &Verdict| matches!(verdict, Verdict::Accepted(_) | Verdict::Dead(_));
        self.again = messages.into_iter().filter(|(_, verdict)| !is_over(verdict)).map(|(item, _)| item).collect();
        self.again.iter().map(|item| item.id().0).collect()
    }

    /// The same for messages from 1 on that were not sent before.
    fn first_answers(&mut self, verdicts: impl IntoIterator<Item = Verdict>) -> Vec<i64> {
        let items = (1..).map(|id| item(id, Some("a")));
        self.answers(items.zip(verdicts).collect())
    }
}

fn deduplication_id(item: &Item) -> String {
    build_request(&[&item.entry]).unwrap()[0].message_deduplication_id().unwrap().to_owned()
}

#[test]
fn everything_behind_a_failed_entry_is_sent_again() {
    let mut relay = Relay::default();
    let (first, failed) = (accepted(100), || Verdict::Again(None));
    let answers = [first, failed(), accepted(101), accepted(102), failed(), accepted(103)];
    assert_eq!(relay.first_answers(answers), [2, 3, 4, 5, 6]);
    assert_eq!(relay.found, OrderFound { superseded: 3, breaks: Vec::new() });
    let ids: Vec<String> = relay.again.iter().map(deduplication_id).collect();
    assert_eq!(ids, ["e-2", "e-3-101", "e-4-102", "e-5", "e-6-103"]);
    let alone: Vec<bool> = relay.again.iter().map(|item| item.is_last_of_group).collect();
    assert_eq!(alone, [true, false, false, true, false], "otherwise another failure makes another copy of all");
    let copies = std::mem::take(&mut relay.again);
    let answers = copies.into_iter().zip(104..).map(|(item, at)| (item, accepted(at)));
    assert_eq!(relay.answers(answers.collect()), [] as [i64; 0]);
    assert_eq!(relay.found, OrderFound::default());
}

#[test]
fn a_copy_that_comes_too_early_again_has_yet_another_deduplication_id() {
    let mut relay = Relay::default();
    relay.first_answers([Verdict::Again(None), accepted(101)]);
    let ids: Vec<String> = relay.again.iter().map(deduplication_id).collect();
    let again = std::mem::take(&mut relay.again);
    let answers = again.into_iter().zip([Verdict::Again(None), accepted(102)]).collect();
    assert_eq!(relay.answers(answers), [1, 2]);
    assert_eq!(relay.again.iter().map(deduplication_id).collect::<Vec<_>>(), ["e-1", "e-2-102"]);
    assert_eq!(ids, ["e-1", "e-2-101"]);
}

#[test]
fn nothing_is_sent_again_behind_a_dead_message_unless_its_group_waits_for_it() {
    for (waits_for_dead, expected) in [(false, [].as_slice()), (true, [2, 3].as_slice())] {
        let mut relay = Relay { waits_for_dead, ..Relay::default() };
        assert_eq!(relay.first_answers([dead(), accepted(100), accepted(101)]), expected);
    }
}

#[test]
fn other_groups_and_messages_without_a_group_are_not_affected() {
    let mut relay = Relay::default();
    let others = [Some("b"), None].map(|group| item(9, group));
    let mut answers = vec![(item(1, Some("a")), Verdict::Again(None))];
    answers.extend(others.into_iter().map(|other| (other, accepted(100))));
    assert_eq!(relay.answers(answers), [1]);
}

#[test]
fn what_sqs_dropped_as_a_copy_is_sent_again_if_an_earlier_message_arrived_behind_it() {
    // The first answer was lost; 2 had failed in it, and 3 is known by the number it got then.
    let mut relay = Relay::default();
    assert_eq!(relay.first_answers([accepted(100), accepted(105), accepted(101), accepted(106)]), [3, 4]);
    let answers = std::mem::take(&mut relay.again).into_iter().zip(107..).map(|(item, at)| (item, accepted(at)));
    assert_eq!(relay.answers(answers.collect()), [] as [i64; 0]);
    // In requests of their own as well.
    let mut relay = Relay::default();
    relay.answers(vec![(item(2, Some("a")), accepted(105))]);
    assert_eq!(relay.answers(vec![(item(3, Some("a")), accepted(101))]), [3]);
}

#[test]
fn a_queue_whose_numbers_fall_breaks_the_order_and_gets_no_endless_copies() {
    let mut relay = Relay::default();
    relay.answers(vec![(item(1, Some("a")), accepted(100))]);
    assert_eq!(relay.answers(vec![(item(2, Some("a")), accepted(50))]), [2]);
    let copy = relay.again.remove(0);
    assert_eq!(relay.answers(vec![(copy, accepted(49))]), [] as [i64; 0], "a later copy has a higher number");
    assert_eq!(relay.found.breaks.len(), 1);
    assert_eq!(relay.answers(vec![(item(3, Some("a")), accepted(48))]), [] as [i64; 0], "its numbers mean nothing");
    assert_eq!(relay.found.breaks.len(), 1, "which is counted all the same");
    // A counter that begins again.
    let (mut relay, mut sent) = (Relay::default(), 0);
    let mut again = vec![item(3, Some("b"))];
    relay.answers(vec![(item(2, Some("b")), accepted(1000))]);
    while let Some(item) = again.pop() {
        sent += 1;
        relay.answers(vec![(item, accepted(sent))]);
        again = std::mem::take(&mut relay.again);
    }
    assert_eq!((sent, relay.found.breaks.len()), (u64::from(MAX_BY_NUMBER) + 1, 1));
    relay.answers(vec![(item(4, Some("b")), accepted(sent + 1))]);
    assert_eq!(relay.found, OrderFound::default(), "one break and not one for each message");
}

#[test]
fn a_queue_that_gives_no_numbers_gets_copies_with_distinct_ids() {
    let unnumbered = || Verdict::Accepted(Accepted { sqs_message_id: "m".to_owned(), sequence_number: None });
    let mut relay = Relay::default();
    assert_eq!(relay.first_answers([unnumbered(), Verdict::Again(None), unnumbered()]), [2, 3]);
    let again = std::mem::take(&mut relay.again);
    relay.answers(again.into_iter().zip([Verdict::Again(None), unnumbered()]).collect());
    assert_eq!(relay.again.iter().map(deduplication_id).collect::<Vec<_>>(), ["e-2", "e-3-2"]);
}
