//! Order and progress of the schedule, one rule at a time. `relay/core/properties.rs` tests all rules together.

use std::time::{Duration, SystemTime};

use super::super::group::Deferred;
use super::super::handover::{GoesOn, ParkedGroup};
use super::super::limits::MemoryBudget;
use super::super::parked::ReadOnAnswer;
use super::super::work::ReadOn;
use super::*;
use crate::message::{
    Accepts, BodyForm, ClaimCheck, Content, DestinationKind, Event, EventPosition, Hold, Lane, Message, Origin,
};
use crate::reading::{HeldGroup, Range};
use crate::relay::core::admit::compose_item;

const STRICT: ScheduleLimits =
    ScheduleLimits { request_size: 10, per_group: 1, window: 4, max_parked: 3, request_bytes: 1_048_576 };
const BATCHED: ScheduleLimits =
    ScheduleLimits { request_size: 10, per_group: 10, window: 40, max_parked: 3, request_bytes: 1_048_576 };

fn key(id: i64) -> MessageKey {
    MessageKey { lane: Lane::new(1).unwrap(), id: MessageId(id) }
}

fn sized(id: i64, group: Option<&str>, bytes: usize) -> Item {
    composed(id, group, bytes, &Accepts::queue(DestinationKind::Fifo))
}

fn composed(id: i64, group: Option<&str>, bytes: usize, accepts: &Accepts) -> Item {
    let event = Event {
        event_id: "e".to_owned(),
        event_type: "T".to_owned(),
        stream: None,
        body: "x".repeat(bytes),
        form: BodyForm::Json,
        metadata: "{}".to_owned(),
    };
    let message = Message {
        key: key(id),
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
    compose_item(message, accepts, &mut MemoryBudget::new(0).share().reserve(0)).unwrap()
}

fn item(id: i64, group: Option<&str>) -> Item {
    sized(id, group, 2)
}

/// A message with a body of this size that goes to a bucket.
fn offloaded(id: i64, bytes: usize) -> Item {
    let claim_check = ClaimCheck {
        bucket: "b".to_owned(),
        prefix: String::new(),
        relay: String::new(),
        above: 1024,
        max_bytes: usize::MAX,
    };
    let accepts = Accepts { claim_check: Some(Arc::new(claim_check)), ..Accepts::queue(DestinationKind::Standard) };
    composed(id, None, bytes, &accepts)
}

/// Messages of group a, as a read returns them.
fn of_a(ids: impl IntoIterator<Item = i64>, is_all: bool) -> ReadOnAnswer {
    let items: Vec<Item> = ids.into_iter().map(|id| item(id, Some("a"))).collect();
    ReadOnAnswer { last: items.last().map(Item::id), items, head: None, is_all }
}

fn a() -> Arc<str> {
    Arc::from("a")
}

fn ids(items: &[Item]) -> Vec<i64> {
    items.iter().map(|item| item.id().0).collect()
}

fn next(schedule: &mut Schedule) -> Vec<i64> {
    schedule.next_request().map(|items| ids(&items)).unwrap_or_default()
}

/// Sends the next request, as if SQS accepted it.
fn deliver(schedule: &mut Schedule) -> Vec<i64> {
    let Some(items) = schedule.next_request() else { return Vec::new() };
    schedule.finish(&items, Vec::new());
    ids(&items)
}

/// A schedule that has read these messages.
fn with(shape: ScheduleLimits, messages: &[(i64, Option<&str>)]) -> Schedule {
    let mut schedule = Schedule::new(shape);
    messages.iter().for_each(|(id, group)| read(&mut schedule, *id, *group, None));
    schedule
}

/// Reads a message in order; `hold` is what the database says of it.
fn read(schedule: &mut Schedule, id: i64, group: Option<&str>, hold: Option<Hold>) {
    let name: Option<Arc<str>> = group.map(Arc::from);
    let stays = name.is_some_and(|name| schedule.keep_in_table_if_held(&name, key(id), hold, Time::default()));
    if !stays {
        schedule.admit(item(id, group));
    }
}

fn wanted(schedule: &mut Schedule) -> Option<ReadOn> {
    schedule.next_to_read_on(1, &|_| MessageId::MAX).pop()
}

fn at(seconds: u64) -> Time {
    Time::default() + Duration::from_secs(seconds)
}

#[test]
fn messages_without_a_group_fill_requests_in_the_order_of_arrival() {
    let messages: Vec<_> = (1..=23).map(|id| (id, None)).collect();
    let mut schedule = with(STRICT, &messages);
    assert!(schedule.can_fill_a_request());
    assert_eq!(next(&mut schedule), (1..=10).collect::<Vec<_>>());
    assert_eq!(next(&mut schedule), (11..=20).collect::<Vec<_>>());
    assert!(!schedule.can_fill_a_request());
    assert_eq!(next(&mut schedule), [21, 22, 23]);
    assert_eq!(next(&mut schedule), [] as [i64; 0]);
    assert_eq!((schedule.waiting(), schedule.waiting_bytes(), schedule.known()), (0, 0, 23));
}

#[test]
fn bodies_for_a_bucket_count_in_memory_and_few_of_them_are_in_one_request() {
    const MIB: usize = 1024 * 1024;
    let mut schedule = with(STRICT, &[(1, None)]);
    [(2, 20 * MIB), (3, 2 * MIB), (4, MIB), (5, MIB), (6, MIB)]
        .into_iter()
        .for_each(|(id, bytes)| schedule.admit(offloaded(id, bytes)));
    assert!(schedule.waiting_bytes() > 25 * MIB);
    assert_eq!(next(&mut schedule), [1], "it does not wait for a large body");
    assert_eq!(next(&mut schedule), [2]);
    assert_eq!(next(&mut schedule), [3, 4, 5]);
    assert_eq!(next(&mut schedule), [6]);
    assert_eq!((schedule.waiting(), schedule.waiting_bytes()), (0, 0));
}

#[test]
fn strict_sends_one_message_of_a_group_at_a_time() {
    let mut schedule = with(STRICT, &[(1, Some("a")), (2, Some("a")), (3, Some("b"))]);
    let first = schedule.next_request().unwrap();
    assert_eq!(ids(&first), [1, 3]);
    assert!(schedule.next_request().is_none(), "2 waits until 1 is confirmed");
    schedule.finish(&first, Vec::new());
    assert_eq!(next(&mut schedule), [2]);
}

#[test]
fn batched_sends_a_groups_messages_together_and_in_order() {
    let messages: Vec<_> = (1..=12).map(|id| (id, Some("a"))).collect();
    let mut schedule = with(BATCHED, &messages);
    let first = schedule.next_request().unwrap();
    assert_eq!(ids(&first), (1..=10).collect::<Vec<_>>());
    assert!(schedule.next_request().is_none(), "one request of a group at a time");
    schedule.finish(&first, Vec::new());
    assert_eq!(next(&mut schedule), [11, 12]);
}

#[test]
fn a_group_is_limited_while_its_next_message_waits_for_long_behind_its_own_request() {
    // e has nothing behind its message, f backs off, g is blocked, h waits for a deferred message.
    let groups = ["b", "a", "b", "a", "e", "f", "f", "g", "g"];
    let messages: Vec<_> = groups.into_iter().enumerate().map(|(at, group)| (at as i64 + 1, Some(group))).collect();
    let mut schedule = with(STRICT, &messages);
    let behind = Hold::Behind { head: MessageId(19), last: MessageId(19), wait: Some(Duration::from_secs(100)) };
    read(&mut schedule, 20, Some("h"), Some(behind));
    let mut request = schedule.next_request().unwrap();
    assert_eq!(ids(&request), [1, 2, 5, 6, 8]);
    let (g, f) = (request.pop().unwrap(), request.pop().unwrap());
    schedule.finish(&[], vec![(f, Some(at(60)))]);
    schedule.block(&Arc::from("g"), g.key());
    let limited = |schedule: &Schedule, now: Time| -> Vec<(String, i64)> {
        schedule.limited(now).iter().map(|one| (one.group.to_string(), one.head.0)).collect()
    };
    assert_eq!(limited(&schedule, at(1)), [], "they have not waited for more than a second");
    let (b, a) = (("b".to_owned(), 3), ("a".to_owned(), 4));
    assert_eq!(limited(&schedule, at(2)), [b.clone(), a], "the oldest first");
    let of_a = request.remove(1);
    schedule.finish(&[of_a], Vec::new());
    assert_eq!(limited(&schedule, at(2))[1], ("a".to_owned(), 4), "its next request waits to fill up");
    assert_eq!(next(&mut schedule), [4]);
    assert_eq!(limited(&schedule, at(2)), [b], "nothing of a waits");
}

#[test]
fn a_failed_message_goes_first_again_and_others_overtake_it() {
    let mut schedule = with(STRICT, &[(1, Some("a")), (2, Some("a")), (3, Some("b")), (4, Some("b"))]);
    let mut request = schedule.next_request().unwrap();
    let failed = request.remove(0);
    schedule.finish(&request, vec![(failed, Some(at(60)))]);
    assert_eq!(next(&mut schedule), [4], "group b goes on, group a waits");
    assert_eq!(schedule.next_wake(), Some(at(60)));
    schedule.wake(at(60));
    assert_eq!(next(&mut schedule), [1]);
}

#[test]
fn a_delayed_group_keeps_only_its_head_in_memory() {
    let mut schedule = with(STRICT, &[(1, Some("a")), (2, Some("a")), (3, Some("a"))]);
    let mut request = schedule.next_request().unwrap();
    schedule.finish(&[], vec![(request.remove(0), Some(at(0)))]);
    assert_eq!([1, 2, 3].map(|id| schedule.knows(key(id))), [true, false, false]);
    assert_eq!(schedule.waiting(), 0, "delayed messages do not keep the relay from reading on");
    read(&mut schedule, 4, Some("a"), None);
    assert!(!schedule.knows(key(4)));
    schedule.wake(at(0));
    assert_eq!(deliver(&mut schedule), [1]);
    let from = wanted(&mut schedule).expect("the rest is wanted now");
    assert_eq!(from.position.after, key(1));
    schedule.read_on(&from, of_a(2..=4, true));
    assert_eq!(next(&mut schedule), [2]);
    assert!(wanted(&mut schedule).is_none());
}

#[test]
fn messages_of_a_request_without_an_answer_go_again_in_one_request() {
    let mut messages: Vec<_> = (1..=5).map(|id| (id, Some("a"))).collect();
    messages.extend((6..=14).map(|id| (id, None)));
    let mut schedule = with(ScheduleLimits { request_size: 3, ..BATCHED }, &messages[..3]);
    let mut lost = schedule.next_request().unwrap();
    assert_eq!(ids(&lost), [1, 2, 3]);
    messages[3..].iter().for_each(|(id, group)| read(&mut schedule, *id, *group, None));
    schedule.shape = BATCHED;
    lost.iter_mut().for_each(|item| item.is_unsure = true);
    schedule.finish(&[], lost.into_iter().map(|item| (item, Some(at(5)))).collect());
    assert_eq!([1, 2, 3, 4].map(|id| schedule.knows(key(id))), [true, true, true, false]);
    assert!(!schedule.only_waits_beyond(at(5)), "others may go");
    schedule.wake(at(5));
    assert_eq!(next(&mut schedule), (6..=14).collect::<Vec<_>>(), "one entry is free, and three belong together");
    let again = schedule.next_request().unwrap();
    assert_eq!(ids(&again), [1, 2, 3]);
    schedule.finish(&[], again.into_iter().map(|item| (item, Some(at(9)))).collect());
    let free: Vec<Item> = (6..=14).map(|id| item(id, None)).collect();
    schedule.finish(&free, Vec::new());
    free.iter().for_each(|item| schedule.forget(item.key()));
    assert!(schedule.only_waits_beyond(at(9)) && !schedule.only_waits_beyond(at(10)));
    // A setting may have made requests smaller meanwhile.
    schedule.shape = ScheduleLimits { request_size: 2, per_group: 2, ..BATCHED };
    schedule.wake(at(9));
    assert_eq!(next(&mut schedule), [1, 2]);
}

#[test]
fn a_hot_group_leaves_messages_beyond_its_window_in_the_table() {
    let messages: Vec<_> = (1..=9).map(|id| (id, Some("a"))).collect();
    let mut schedule = with(STRICT, &messages);
    assert_eq!((schedule.waiting(), schedule.known()), (4, 4));
    assert_eq!([deliver(&mut schedule), deliver(&mut schedule)].concat(), [1, 2]);
    let from = wanted(&mut schedule).expect("two of four are left");
    assert_eq!((from.position.after, from.position.limit), (key(4), 4));
    // While the table is read, another message is seen and left; so this read cannot have been the last.
    read(&mut schedule, 10, Some("a"), None);
    schedule.read_on(&from, of_a(5..=8, false));
    let mut sent = Vec::new();
    while let [first, ..] = deliver(&mut schedule)[..] {
        sent.push(first);
        while let Some(from) = wanted(&mut schedule) {
            schedule.read_on(&from, of_a(from.position.after.id.0 + 1..=10, true));
        }
    }
    assert_eq!(sent, (3..=10).collect::<Vec<_>>());
}

#[test]
fn a_late_message_takes_its_place_by_id() {
    let mut schedule = with(STRICT, &[(5, Some("a")), (7, Some("a")), (3, Some("a")), (6, Some("a"))]);
    let mut sent = Vec::new();
    while let [first, ..] = deliver(&mut schedule)[..] {
        sent.push(first);
    }
    assert_eq!(sent, [3, 5, 6, 7]);
}

#[test]
fn a_message_is_admitted_once() {
    let mut schedule = Schedule::new(STRICT);
    let twice = [(1, None), (1, None), (2, Some("a")), (2, Some("a"))];
    twice.into_iter().for_each(|(id, group)| schedule.admit(item(id, group)));
    assert_eq!(next(&mut schedule), [1, 2]);
    schedule.admit(item(1, None));
    assert!(schedule.next_request().is_none(), "it is in flight");
    schedule.forget(key(1));
    schedule.admit(item(1, None));
    assert_eq!(next(&mut schedule), [1]);
}

#[test]
fn requests_are_split_by_bytes() {
    let mut schedule = Schedule::new(STRICT);
    (1..=3).for_each(|id| schedule.admit(sized(id, None, 500_000)));
    assert_eq!(next(&mut schedule), [1, 2]);
    assert_eq!(next(&mut schedule), [3]);
}

#[test]
fn a_message_that_must_be_alone_gets_a_request_of_its_own() {
    let mut schedule = Schedule::new(STRICT);
    for id in 1..=4 {
        let mut item = item(id, if id == 3 { Some("a") } else { None });
        item.is_alone = id == 2 || id == 3;
        schedule.admit(item);
    }
    assert_eq!([(); 4].map(|()| next(&mut schedule)), [[1], [2], [4], [3]]);
}

#[test]
fn a_message_that_must_be_alone_is_not_joined_by_its_own_group_either() {
    let mut schedule = with(BATCHED, &[(1, Some("a")), (2, Some("a")), (3, Some("a"))]);
    let mut request = schedule.next_request().unwrap();
    request[0].is_alone = true;
    schedule.finish(&[], request.into_iter().map(|item| (item, None)).collect());
    assert_eq!(deliver(&mut schedule), [1]);
    assert_eq!(next(&mut schedule), [2, 3]);
}

#[test]
fn messages_behind_a_deferred_one_stay_in_the_table_until_it_has_gone() {
    let mut schedule = Schedule::new(STRICT);
    let behind = Some(Hold::Behind { head: MessageId(1), last: MessageId(1), wait: Some(Duration::from_secs(5)) });
    read(&mut schedule, 2, Some("a"), behind);
    read(&mut schedule, 3, Some("b"), None);
    assert_eq!(next(&mut schedule), [3]);
    assert!(!schedule.knows(key(2)) && wanted(&mut schedule).is_none());
    schedule.admit_head(item(1, Some("a")), MessageId(3));
    assert_eq!(deliver(&mut schedule), [1]);
    let from = wanted(&mut schedule).expect("what waited behind it");
    assert_eq!(from.position.after, key(1));
    schedule.read_on(&from, of_a([2], true));
    assert_eq!(next(&mut schedule), [2]);
}

#[test]
fn a_group_whose_deferred_head_does_not_come_is_read_without_it_after_a_while() {
    let mut schedule = Schedule::new(STRICT);
    read(
        &mut schedule,
        2,
        Some("a"),
        Some(Hold::Behind { head: MessageId(1), last: MessageId(1), wait: Some(Duration::from_secs(5)) }),
    );
    let end = schedule.next_wake().unwrap();
    assert!(end > at(5) && end < at(10));
    schedule.wake(end);
    assert_eq!(wanted(&mut schedule).unwrap().position.after, key(0), "from below the head, should it still be there");
}

mod parked;
