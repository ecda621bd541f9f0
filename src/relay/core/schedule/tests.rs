//! Order and progress of the schedule, one rule at a time. All rules together: `relay/core/properties.rs`.

use std::time::{Duration, SystemTime};

use super::super::group::Deferred;
use super::super::handover::{GoesOn, ParkedGroup};
use super::super::limits::MemoryBudget;
use super::super::parked::ReadOnAnswer;
use super::super::work::ReadOn;
use super::*;
use crate::message::{Content, Event, EventPosition, Hold, Lane, Message, Origin, QueueKind};
use crate::reading::{HeldGroup, Range};
use crate::relay::core::compose_item;

const STRICT: Shape = Shape { request_size: 10, per_group: 1, window: 4, max_parked: 3 };
const BATCHED: Shape = Shape { request_size: 10, per_group: 10, window: 40, max_parked: 3 };

fn key(id: i64) -> MessageKey {
    MessageKey { lane: Lane::new(1).unwrap(), id: MessageId(id) }
}

fn sized(id: i64, group: Option<&str>, bytes: usize) -> Item {
    let event = Event {
        event_id: "e".to_owned(),
        event_type: "T".to_owned(),
        stream: None,
        payload: "x".repeat(bytes),
        metadata: "{}".to_owned(),
    };
    let message = Message {
        key: key(id),
        origin: Origin { event_position: EventPosition(id), enqueued_at: SystemTime::UNIX_EPOCH },
        group: group.map(Arc::from),
        attempts: 0,
        age_when_read: Duration::ZERO,
        read_at: Time::default(),
        wait: None,
        hold: None,
        content: Content::Event(event),
    };
    compose_item(message, QueueKind::Fifo, &mut MemoryBudget::new(0).share().reserve(0)).unwrap()
}

fn item(id: i64, group: Option<&str>) -> Item {
    sized(id, group, 2)
}

/// Messages of group a, as a read brings them.
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

/// Sends the next request, which is accepted.
fn deliver(schedule: &mut Schedule) -> Vec<i64> {
    let Some(items) = schedule.next_request() else { return Vec::new() };
    schedule.finish(&items, Vec::new());
    ids(&items)
}

/// A schedule that has read these messages.
fn with(shape: Shape, messages: &[(i64, Option<&str>)]) -> Schedule {
    let mut schedule = Schedule::new(shape);
    messages.iter().for_each(|(id, group)| read(&mut schedule, *id, *group, None));
    schedule
}

/// Reads a message in its turn, of which the database says this.
fn read(schedule: &mut Schedule, id: i64, group: Option<&str>, hold: Option<Hold>) {
    let name: Option<Arc<str>> = group.map(Arc::from);
    let stays = name.is_some_and(|name| schedule.leaves_in_table(&name, key(id), hold, Time::default()));
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
    assert_eq!(schedule.waiting(), 0, "what is delayed does not keep the relay from reading on");
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
fn a_hot_group_leaves_what_is_beyond_its_window_in_the_table() {
    let messages: Vec<_> = (1..=9).map(|id| (id, Some("a"))).collect();
    let mut schedule = with(STRICT, &messages);
    assert_eq!((schedule.waiting(), schedule.known()), (4, 4));
    assert_eq!([deliver(&mut schedule), deliver(&mut schedule)].concat(), [1, 2]);
    let from = wanted(&mut schedule).expect("two of four are left");
    assert_eq!((from.position.after, from.position.most), (key(4), 4));
    // While the table is read a further message is seen and left, so this read cannot have been the last.
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
fn a_message_that_was_found_late_takes_its_place_by_id() {
    let mut schedule = with(STRICT, &[(5, Some("a")), (7, Some("a")), (3, Some("a")), (6, Some("a"))]);
    let mut sent = Vec::new();
    while let [first, ..] = deliver(&mut schedule)[..] {
        sent.push(first);
    }
    assert_eq!(sent, [3, 5, 6, 7]);
}

#[test]
fn a_message_is_taken_in_once() {
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
fn an_alone_message_has_no_company_of_its_own_group_either() {
    let mut schedule = with(BATCHED, &[(1, Some("a")), (2, Some("a")), (3, Some("a"))]);
    let mut request = schedule.next_request().unwrap();
    request[0].is_alone = true;
    schedule.finish(&[], request.into_iter().map(|item| (item, None)).collect());
    assert_eq!(deliver(&mut schedule), [1]);
    assert_eq!(next(&mut schedule), [2, 3]);
}

#[test]
fn what_waits_behind_a_deferred_message_stays_in_the_table_until_that_has_gone() {
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

#[test]
fn what_is_handed_over_is_everything_that_was_not_sent() {
    let mut schedule = with(STRICT, &[(1, None), (2, Some("a")), (3, Some("a"))]);
    let request = schedule.next_request().unwrap();
    assert_eq!(ids(&request), [1, 2]);
    let [first, second] = <[Item; 2]>::try_from(request).unwrap();
    schedule.finish(&[], vec![(first, Some(at(1))), (second, Some(at(1)))]);
    schedule.admit(item(9, None));
    let handover = schedule.hand_over(at(0));
    let left: Vec<_> = handover.items.iter().map(|left| (left.item.id().0, left.until.is_some())).collect();
    assert_eq!(left, [(1, true), (9, false)]);
    let until = GoesOn::After(Deferred::Until(at(1)));
    let parked: Vec<_> = handover.parked.iter().map(|left| (left.after, left.upto, left.goes_on)).collect();
    assert_eq!(parked, [(MessageId(1), MessageId(3), until)], "3 was left behind 2, which is not recorded as a retry");
    assert!(schedule.next_request().is_none());
}

#[test]
fn a_recorded_retry_and_what_is_behind_it_are_remembered_apart() {
    let mut schedule = with(STRICT, &[(2, Some("a")), (3, Some("a"))]);
    let due = at(1);
    let mut request = schedule.next_request().unwrap();
    let mut failed = request.remove(0);
    failed.charged = Some("InternalError".to_owned());
    schedule.finish(&[], vec![(failed, Some(due))]);
    assert!(schedule.only_waits_beyond(due) && !schedule.only_waits_beyond(due + Duration::from_millis(1)));
    let handover = schedule.hand_over(at(0));
    assert_eq!(handover.items.len(), 1, "2 is to be recorded");
    assert_eq!(handover.parked[0].after, MessageId(2));
    // The next claim opens the lane: what is remembered first, then the recorded retry when it is due.
    schedule.take_over(&handover.parked[0]);
    assert!(wanted(&mut schedule).is_none(), "nothing is read behind a head that waits");
    schedule.admit_head(item(2, Some("a")), MessageId(3));
    assert_eq!(deliver(&mut schedule), [2]);
    let from = wanted(&mut schedule).unwrap();
    schedule.read_on(&from, of_a([3], true));
    assert_eq!(next(&mut schedule), [3]);
}

#[test]
fn a_remembered_group_without_a_head_is_read_on_at_once() {
    let mut schedule = Schedule::new(STRICT);
    let (after, upto) = (MessageId(5), MessageId(9));
    schedule.take_over(&ParkedGroup { group: a(), lane: key(0).lane, after, upto, goes_on: GoesOn::Now });
    read(&mut schedule, 10, Some("a"), None);
    assert!(schedule.next_request().is_none(), "10 must not overtake 6 to 9");
    assert_eq!(wanted(&mut schedule).unwrap().position.after, key(5));
}

#[test]
fn a_group_is_read_up_to_what_is_known_to_be_left_or_to_where_its_lane_was_read() {
    let upto = |read_to: i64| {
        let mut schedule = Schedule::new(STRICT);
        let (after, upto) = (MessageId(5), MessageId(9));
        schedule.take_over(&ParkedGroup { group: a(), lane: key(0).lane, after, upto, goes_on: GoesOn::Now });
        schedule.next_to_read_on(1, &|_| MessageId(read_to)).pop().map(|wanted| wanted.position.upto.0)
    };
    assert_eq!(upto(4), None, "a message below 6 may come late");
    assert_eq!(upto(5), Some(9));
    assert_eq!(upto(20), Some(20), "what was passed since is read with it");
}

#[test]
fn behind_a_deferred_head_nothing_is_known_to_wait_until_something_was_seen() {
    let mut schedule = Schedule::new(STRICT);
    let head = Deferred::Head { id: MessageId(5), due: Some(at(100)) };
    let (after, upto) = (MessageId(5), MessageId(5));
    schedule.take_over(&ParkedGroup { group: a(), lane: key(0).lane, after, upto, goes_on: GoesOn::After(head) });
    let all = [Range { lane: key(0).lane, above: MessageId::NONE, upto: MessageId::MAX }];
    assert_eq!(schedule.waiting_in_table(&all), [], "7 may be committed late, and only a look shows it");
    assert!(!schedule.is_left(key(7), Some(&a())));
    let behind = Hold::Behind { head: MessageId(5), last: MessageId(5), wait: Some(Duration::from_secs(100)) };
    read(&mut schedule, 7, Some("a"), Some(behind));
    assert_eq!(schedule.waiting_in_table(&all), [(a(), MessageId(5))]);
    assert!(schedule.is_left(key(7), Some(&a())) && schedule.is_left(key(8), Some(&a())));
}

#[test]
fn an_answer_that_comes_after_its_group_was_given_back_is_not_taken_for_a_later_one() {
    let messages: Vec<_> = (1..=9).map(|id| (id, Some("a"))).collect();
    let mut schedule = with(STRICT, &messages);
    assert_eq!([deliver(&mut schedule), deliver(&mut schedule)].concat(), [1, 2]);
    let slow = wanted(&mut schedule).expect("3 and 4 are left");
    let mut request = schedule.next_request().unwrap();
    schedule.finish(&[], vec![(request.remove(0), Some(at(0)))]);
    schedule.wake(at(0));
    assert_eq!(deliver(&mut schedule), [3]);
    // The group wants to read on behind 3, when what was read behind 4 comes in.
    schedule.read_on(&slow, of_a(5..=8, false));
    assert_eq!(next(&mut schedule), [] as [i64; 0], "4 was given back and has to go first");
    assert_eq!(wanted(&mut schedule).expect("4 is wanted").position.after, key(3));
}

#[test]
fn a_blocked_group_keeps_nothing_in_memory_and_others_go_on() {
    let mut schedule = with(STRICT, &[(1, Some("a")), (2, Some("a")), (3, Some("b")), (4, Some("a"))]);
    let request = schedule.next_request().unwrap();
    assert_eq!(ids(&request), [1, 3]);
    // 1 is dead.
    schedule.finish(&request, Vec::new());
    schedule.block(&a(), key(1));
    read(&mut schedule, 5, Some("a"), Some(Hold::Group { by: MessageId(1) }));
    read(&mut schedule, 6, Some("b"), None);
    assert_eq!(next(&mut schedule), [6]);
    assert!(!schedule.knows(key(2)) && !schedule.knows(key(5)), "they are in the table");
    assert!(wanted(&mut schedule).is_none());
    let held = |by| HeldGroup { group: a(), by, head: None };
    // Its death is recorded.
    schedule.forget(key(1));
    assert!(!schedule.hear(&held(Some(MessageId(1))), at(0)) && schedule.hear(&held(None), at(0)));
    let from = wanted(&mut schedule).expect("it goes on from the dead message");
    assert_eq!(from.position.after, key(0));
    schedule.read_on(&from, of_a([2, 4, 5], true));
    assert_eq!(next(&mut schedule), [2]);
}

#[test]
fn what_comes_back_to_a_blocked_group_stays_in_the_table() {
    let mut schedule = with(BATCHED, &[(1, Some("a")), (2, Some("a"))]);
    let request = schedule.next_request().unwrap();
    // 3 can never be sent; it is read while 1 and 2 are under way.
    schedule.block(&a(), key(3));
    let [first, second] = <[Item; 2]>::try_from(request).unwrap();
    schedule.finish(&[first], vec![(second, None)]);
    assert!(schedule.next_request().is_none());
    let handover = schedule.hand_over(at(0));
    assert!(handover.items.is_empty());
    let ParkedGroup { after, upto, goes_on, .. } = handover.parked[0];
    assert_eq!((after, upto, goes_on), (MessageId(1), MessageId(2), GoesOn::WithoutBlock(MessageId(3))));
}

#[test]
fn groups_that_are_held_up_and_too_many_are_a_crowd_until_something_of_them_may_go() {
    let mut schedule = Schedule::new(STRICT);
    let hold = |by| Some(Hold::Group { by: MessageId(by) });
    let many = STRICT.max_parked as i64;
    for id in 1..=many + 5 {
        read(&mut schedule, id, Some(&format!("g{id}")), hold(id));
    }
    assert_eq!(schedule.groups.len(), many as usize);
    assert!(schedule.parked.crowds.is_crowded(key(0).lane));
    // It is kept from claim to claim.
    let handover = schedule.hand_over(at(0));
    assert_eq!((handover.parked.len(), handover.half_seen), (many as usize, Vec::new()));
    let mut schedule = Schedule::new(STRICT);
    schedule.parked.crowds = handover.crowds;
    // A message that nothing holds up: all of its group may go, from the lowest one that may be there.
    let name: Arc<str> = Arc::from(format!("g{}", many + 2));
    read(&mut schedule, many + 9, Some(&name), None);
    assert!(!schedule.has_ready(), "nothing overtakes what was left");
    let from = wanted(&mut schedule).expect("it is read on");
    assert_eq!((from.position.group, from.position.after), (name, key(many)));
}

#[test]
fn a_group_that_has_left_its_crowd_is_known_by_what_of_it_is_left() {
    let mut schedule = Schedule::new(STRICT);
    let (name, behind) = (a(), Some(Hold::Behind { head: MessageId(10), last: MessageId(10), wait: None }));
    for (id, group) in [(1, "b"), (2, "c"), (3, "d"), (28, "a"), (30, "a")] {
        let hold = if group == "a" { behind } else { Some(Hold::Group { by: MessageId(id) }) };
        read(&mut schedule, id, Some(group), hold);
    }
    assert!(schedule.parked.crowds.has(key(0).lane, &name));
    // Somebody lets 10 go.
    assert!(schedule.start_over(&name, key(10), MessageId(30)));
    let from = wanted(&mut schedule).unwrap();
    assert_eq!(from.position.after, key(9));
    schedule.read_on(&from, of_a([10, 28, 30], true));
    assert!(!schedule.is_left(key(26), Some(&name)), "26 came late");
}

#[test]
fn a_blocked_group_goes_on_only_when_what_blocks_it_is_recorded_and_its_request_has_come_back() {
    let free = HeldGroup { group: a(), by: None, head: None };
    let mut schedule = with(STRICT, &[(10, Some("a"))]);
    let request = schedule.next_request().unwrap();
    // 11 cannot be read. That is known here before it is in the table.
    schedule.pass_over(key(11), Some(&a()));
    schedule.block(&a(), key(11));
    assert!(!schedule.hear(&free, at(0)), "11 is not recorded");
    schedule.forget(key(11));
    assert!(!schedule.hear(&free, at(0)), "10 is under way");
    schedule.finish(&request, Vec::new());
    assert!(schedule.hear(&free, at(0)));
}

#[test]
fn what_came_late_before_a_deferred_message_of_the_rest_goes_with_it() {
    let mut schedule = with(STRICT, &[(1, Some("a")), (2, Some("a")), (3, Some("a")), (4, Some("a")), (5, Some("a"))]);
    for id in 1..=2 {
        assert_eq!(deliver(&mut schedule), [id]);
    }
    let from = wanted(&mut schedule).expect("5 is left");
    // 9 is held back, and 7 is committed after this read.
    let head = Some(Deferred::Head { id: MessageId(9), due: Some(at(1)) });
    schedule.read_on(&from, ReadOnAnswer { head, ..of_a([5], false) });
    for id in 3..=5 {
        assert_eq!(deliver(&mut schedule), [id]);
    }
    schedule.admit_head(item(9, Some("a")), MessageId(20));
    assert_eq!(deliver(&mut schedule), [9], "it was committed before 7");
    let from = wanted(&mut schedule).expect("there is more");
    assert_eq!(from.position.after, key(5), "what is before 9 was left out of looks");
}

#[test]
fn a_message_that_was_held_back_and_is_not_any_more_goes_on_with_what_waited_behind_it() {
    let mut schedule = Schedule::new(BATCHED);
    let behind = Some(Hold::Behind { head: MessageId(3), last: MessageId(3), wait: None });
    for id in 4..=7 {
        read(&mut schedule, id, Some("a"), behind);
    }
    for id in 3..=7 {
        read(&mut schedule, id, Some("a"), None);
    }
    let from = wanted(&mut schedule).expect("it is read on");
    assert_eq!(from.position.after, key(2));
}

#[test]
fn a_deferred_message_in_the_rest_of_a_group_is_waited_for_once_what_precedes_it_has_gone() {
    let mut schedule = with(STRICT, &[(1, Some("a")), (2, Some("a")), (3, Some("a")), (4, Some("a")), (5, Some("a"))]);
    assert_eq!([deliver(&mut schedule), deliver(&mut schedule)].concat(), [1, 2]);
    let from = wanted(&mut schedule).unwrap();
    let head = Some(Deferred::Head { id: MessageId(6), due: Some(at(9)) });
    schedule.read_on(&from, ReadOnAnswer { head, ..of_a([5], false) });
    assert_eq!([deliver(&mut schedule), deliver(&mut schedule), deliver(&mut schedule)].concat(), [3, 4, 5]);
    assert!(wanted(&mut schedule).is_none() && schedule.next_request().is_none(), "6 comes when it is due");
    read(&mut schedule, 7, Some("a"), None);
    assert!(wanted(&mut schedule).is_some(), "or when a read says that nothing is deferred");
}

#[test]
fn a_group_whose_failed_head_is_recorded_waits_for_it_even_if_its_turn_had_come() {
    let mut schedule = with(STRICT, &[(2, Some("a")), (3, Some("a"))]);
    let mut request = schedule.next_request().unwrap();
    let mut failed = request.remove(0);
    failed.charged = Some("InternalError".to_owned());
    schedule.finish(&[], vec![(failed, Some(at(1)))]);
    schedule.wake(at(1));
    let handover = schedule.hand_over(at(1));
    let head = Deferred::Head { id: MessageId(2), due: Some(at(1)) };
    assert_eq!(handover.parked[0].goes_on, GoesOn::After(head));
}
