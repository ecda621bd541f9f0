//! Order and progress of the schedule, without any I/O.

use std::time::Duration;

use super::*;
use crate::message::{Event, Message, MessageKey, QueueKind};
use crate::sqs::compose;

const STRICT: Limits = Limits { request_size: 10, per_group: 1, window: 4 };
const BATCHED: Limits = Limits { request_size: 10, per_group: 10, window: 40 };

pub(super) fn item(id: i64, group: Option<&str>) -> Item {
    sized(id, group, 2)
}

pub(super) fn sized(id: i64, group: Option<&str>, bytes: usize) -> Item {
    let event = Event {
        event_id: "e".to_owned(),
        event_type: "T".to_owned(),
        stream: None,
        payload: "x".repeat(bytes),
        metadata: "{}".to_owned(),
    };
    let group: Option<Arc<str>> = group.map(Arc::from);
    let read_at = Instant::now();
    let message = Message {
        key: MessageKey { lane: 1, id },
        group: group.clone(),
        attempts: 0,
        age_when_read: Duration::ZERO,
        read_at,
        wait: None,
        event: Some(event),
    };
    let entry = compose(message, QueueKind::Fifo).unwrap().entry;
    Item {
        entry,
        group,
        left_out: 0,
        attempts: 0,
        resends: 0,
        charged: None,
        is_recorded: false,
        not_before: None,
        age_when_read: Duration::ZERO,
        read_at,
        is_alone: false,
    }
}

/// Messages of group a, as a read brings them.
fn of_a(ids: impl IntoIterator<Item = i64>) -> Vec<(Item, Option<Instant>)> {
    ids.into_iter().map(|id| (item(id, Some("a")), None)).collect()
}

fn ids(items: &[Item]) -> Vec<i64> {
    items.iter().map(|item| item.key().id).collect()
}

fn next(schedule: &mut Schedule) -> Vec<i64> {
    schedule.next_request().map(|items| ids(&items)).unwrap_or_default()
}

/// A schedule with these messages.
fn with(limits: Limits, messages: &[(i64, Option<&str>)]) -> Schedule {
    let mut schedule = Schedule::new(limits);
    for (id, group) in messages {
        schedule.admit(item(*id, *group), None);
    }
    schedule
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
    let due = Instant::now() + Duration::from_secs(60);
    schedule.finish(&request, vec![(failed, Some(due))]);
    assert_eq!(next(&mut schedule), [4], "group b goes on, group a waits");
    assert_eq!(schedule.next_wake(), Some(due));
    schedule.wake(due);
    assert_eq!(next(&mut schedule), [1]);
}

#[test]
fn a_delayed_group_keeps_only_its_head_in_memory() {
    let mut schedule = with(STRICT, &[(1, Some("a")), (2, Some("a")), (3, Some("a"))]);
    let mut request = schedule.next_request().unwrap();
    let due = Instant::now();
    schedule.finish(&[], vec![(request.remove(0), Some(due))]);
    assert!(schedule.knows(1) && !schedule.knows(2) && !schedule.knows(3));
    assert_eq!(schedule.waiting(), 0, "what is delayed does not keep the relay from reading on");
    schedule.admit(item(4, Some("a")), None);
    assert!(!schedule.knows(4));
    schedule.wake(due);
    let again = schedule.next_request().unwrap();
    assert_eq!(ids(&again), [1]);
    schedule.finish(&again, Vec::new());
    let from = schedule.next_to_read_on().expect("the rest is wanted now");
    assert_eq!(from.after, MessageKey { lane: 1, id: 1 });
    schedule.read_on(&from, of_a(2..=4), Some(4), true);
    assert_eq!(next(&mut schedule), [2]);
    assert!(schedule.groups_with_rest().is_empty());
}

#[test]
fn a_hot_group_leaves_what_is_beyond_its_window_in_the_table() {
    let messages: Vec<_> = (1..=9).map(|id| (id, Some("a"))).collect();
    let mut schedule = with(STRICT, &messages);
    assert_eq!((schedule.waiting(), schedule.known()), (4, 4));
    for expected in [1, 2] {
        let request = schedule.next_request().unwrap();
        assert_eq!(ids(&request), [expected]);
        schedule.finish(&request, Vec::new());
    }
    let from = schedule.next_to_read_on().expect("two of four are left");
    assert_eq!((from.after.id, from.most), (4, 4));
    // While the table is read a further message is seen and left, so this read cannot have been the last.
    schedule.admit(item(10, Some("a")), None);
    schedule.read_on(&from, of_a(5..=8), Some(8), false);
    let mut sent = Vec::new();
    while let Some(request) = schedule.next_request() {
        sent.extend(ids(&request));
        schedule.finish(&request, Vec::new());
        while let Some(from) = schedule.next_to_read_on() {
            let rest = of_a(from.after.id + 1..=10);
            let last = rest.last().map(|(item, _)| item.key().id);
            schedule.read_on(&from, rest, last, true);
        }
    }
    assert_eq!(sent, (3..=10).collect::<Vec<_>>());
    assert!(schedule.groups_with_rest().is_empty());
}

#[test]
fn a_retry_recorded_earlier_blocks_its_group_until_it_is_due() {
    let mut schedule = Schedule::new(STRICT);
    let due = Instant::now() + Duration::from_secs(5);
    schedule.admit(item(1, Some("a")), Some(due));
    schedule.admit(item(2, Some("a")), None);
    schedule.admit(item(3, Some("b")), None);
    assert_eq!(next(&mut schedule), [3]);
    schedule.wake(due);
    assert_eq!(next(&mut schedule), [1]);
}

#[test]
fn a_message_that_was_found_late_takes_its_place_by_id() {
    let mut schedule = with(STRICT, &[(5, Some("a")), (7, Some("a"))]);
    schedule.admit(item(3, Some("a")), None);
    schedule.admit(item(6, Some("a")), None);
    let mut sent = Vec::new();
    while let Some(request) = schedule.next_request() {
        sent.extend(ids(&request));
        schedule.finish(&request, Vec::new());
    }
    assert_eq!(sent, [3, 5, 6, 7]);
}

#[test]
fn a_message_is_taken_in_once() {
    let mut schedule = with(STRICT, &[(1, None), (1, None), (2, Some("a")), (2, Some("a"))]);
    assert_eq!(next(&mut schedule), [1, 2]);
    schedule.admit(item(1, None), None);
    assert!(schedule.next_request().is_none(), "it is in flight");
    schedule.forget(1);
    schedule.admit(item(1, None), None);
    assert_eq!(next(&mut schedule), [1]);
}

#[test]
fn requests_are_split_by_bytes() {
    let mut schedule = Schedule::new(STRICT);
    for id in 1..=3 {
        schedule.admit(sized(id, None, 500_000), None);
    }
    assert_eq!(next(&mut schedule), [1, 2]);
    assert_eq!(next(&mut schedule), [3]);
}

#[test]
fn a_message_that_must_be_alone_gets_a_request_of_its_own() {
    let mut schedule = Schedule::new(STRICT);
    for id in 1..=4 {
        let mut item = item(id, if id == 3 { Some("a") } else { None });
        item.is_alone = id == 2 || id == 3;
        schedule.admit(item, None);
    }
    assert_eq!(next(&mut schedule), [1]);
    assert_eq!(next(&mut schedule), [2]);
    assert_eq!(next(&mut schedule), [4]);
    assert_eq!(next(&mut schedule), [3]);
}

#[test]
fn leftovers_are_everything_that_was_not_sent() {
    let mut schedule = with(STRICT, &[(1, None), (2, Some("a")), (3, Some("a"))]);
    let due = Instant::now() + Duration::from_secs(1);
    schedule.admit(item(9, None), Some(due));
    let request = schedule.next_request().unwrap();
    assert_eq!(ids(&request), [1, 2]);
    let mut request = request.into_iter();
    let (done, failed) = (request.next().unwrap(), request.next().unwrap());
    schedule.finish(&[done], vec![(failed, Some(due))]);
    let leftovers = schedule.take_leftovers();
    let mut left: Vec<(i64, bool)> =
        leftovers.items.iter().map(|left| (left.item.key().id, left.until.is_some())).collect();
    left.sort_unstable();
    assert_eq!(left, [(9, true)]);
    assert_eq!(leftovers.remembered.len(), 1, "3 was left in the table behind 2");
    let remembered = &leftovers.remembered[0];
    assert_eq!(
        (remembered.after, remembered.upto, remembered.goes_on),
        (1, 3, GoesOn::At(due)),
        "2 is not recorded as a retry"
    );
    assert!(schedule.next_request().is_none());
}

#[test]
fn a_recorded_retry_and_what_is_behind_it_are_remembered_apart() {
    let mut schedule = with(STRICT, &[(2, Some("a")), (3, Some("a"))]);
    let due = Instant::now() + Duration::from_secs(1);
    let mut request = schedule.next_request().unwrap();
    let mut failed = request.remove(0);
    failed.charged = Some("InternalError".to_owned());
    schedule.finish(&[], vec![(failed, Some(due))]);
    assert!(schedule.only_waits_beyond(due) && !schedule.only_waits_beyond(due + Duration::from_millis(1)));
    let leftovers = schedule.take_leftovers();
    assert_eq!(leftovers.items.len(), 1, "2 is to be recorded");
    assert_eq!(leftovers.remembered[0].after, 2);
    // The next claim opens the lane: the recorded retry first, then what is remembered.
    schedule.admit(item(2, Some("a")), Some(due));
    schedule.remember(&leftovers.remembered[0]);
    assert!(schedule.next_to_read_on().is_none(), "nothing is read behind a head that waits");
    schedule.wake(due);
    let head = schedule.next_request().unwrap();
    assert_eq!(ids(&head), [2]);
    schedule.finish(&head, Vec::new());
    let from = schedule.next_to_read_on().unwrap();
    schedule.read_on(&from, of_a([3]), Some(3), true);
    assert_eq!(next(&mut schedule), [3]);
}

#[test]
fn a_remembered_group_without_a_head_is_read_on_at_once() {
    let mut schedule = Schedule::new(STRICT);
    let group: Arc<str> = Arc::from("a");
    schedule.remember(&Remembered { group: Arc::clone(&group), lane: 1, after: 5, upto: 9, goes_on: GoesOn::Now });
    schedule.admit(item(10, Some("a")), None);
    assert!(schedule.next_request().is_none(), "10 must not overtake 6 to 9");
    let from = schedule.next_to_read_on().unwrap();
    assert_eq!(from.after, MessageKey { lane: 1, id: 5 });
}

#[test]
fn an_alone_message_has_no_company_of_its_own_group_either() {
    let mut schedule = with(BATCHED, &[(1, Some("a")), (2, Some("a")), (3, Some("a"))]);
    let mut request = schedule.next_request().unwrap();
    request[0].is_alone = true;
    schedule.finish(&[], request.into_iter().map(|item| (item, None)).collect());
    let first = schedule.next_request().unwrap();
    assert_eq!(ids(&first), [1]);
    schedule.finish(&first, Vec::new());
    assert_eq!(next(&mut schedule), [2, 3]);
}

#[test]
fn an_answer_that_comes_after_its_group_was_given_back_is_not_taken_for_a_later_one() {
    let messages: Vec<_> = (1..=9).map(|id| (id, Some("a"))).collect();
    let mut schedule = with(STRICT, &messages);
    for _ in 0..2 {
        let request = schedule.next_request().unwrap();
        schedule.finish(&request, Vec::new());
    }
    let slow = schedule.next_to_read_on().expect("3 and 4 are left");
    let mut request = schedule.next_request().unwrap();
    let due = Instant::now();
    schedule.finish(&[], vec![(request.remove(0), Some(due))]);
    schedule.wake(due);
    let head = schedule.next_request().unwrap();
    assert_eq!(ids(&head), [3]);
    schedule.finish(&head, Vec::new());
    // The group wants to read on behind 3, when what was read behind 4 comes in.
    schedule.read_on(&slow, of_a(5..=8), Some(8), false);
    assert_eq!(next(&mut schedule), [] as [i64; 0], "4 was given back and has to go first");
    let from = schedule.next_to_read_on().expect("4 is wanted");
    assert_eq!(from.after.id, 3);
}

#[test]
fn a_group_is_read_to_its_end_only_by_a_read_that_saw_as_much_as_the_sweeps_that_left_it_out() {
    let messages: Vec<_> = (1..=5).map(|id| (id, Some("a"))).collect();
    let mut schedule = with(STRICT, &messages);
    for _ in 0..2 {
        let request = schedule.next_request().unwrap();
        schedule.finish(&request, Vec::new());
    }
    let from = schedule.next_to_read_on().unwrap();
    let left_out = schedule.groups_with_rest();
    assert!(schedule.no_longer_left(&left_out).is_empty());
    schedule.has_swept();
    schedule.read_on(&from, of_a([5]), Some(5), true);
    assert_eq!(schedule.groups_with_rest().len(), 1, "the sweep may have left out a 6 that the read did not see");
    let request = schedule.next_request().unwrap();
    schedule.finish(&request, Vec::new());
    let from = schedule.next_to_read_on().expect("so it is read once more");
    schedule.read_on(&from, Vec::new(), None, true);
    assert!(schedule.groups_with_rest().is_empty());
    assert_eq!(schedule.no_longer_left(&left_out), [1], "and a sweep that began before that is worth nothing");
}

/// Random outcomes, many groups: every message goes out, in order within its group, whatever fails.
#[test]
fn any_mix_of_outcomes_keeps_order_and_makes_progress() {
    for seed in 0..40 {
        let mut random = fastrand::Rng::with_seed(seed);
        let limits = if seed % 2 == 0 { STRICT } else { BATCHED };
        let mut table: BTreeMap<i64, u8> = (1..=300).map(|id| (id, random.u8(0..8))).collect();
        let group = |name: u8| format!("g{name}");
        let mut schedule = Schedule::new(limits);
        let mut accepted: HashMap<u8, Vec<i64>> = HashMap::new();
        let mut in_flight: Vec<Vec<Item>> = Vec::new();
        let mut unread: VecDeque<i64> = table.keys().copied().collect();
        for _ in 0..20_000 {
            if let Some(id) = unread.pop_front() {
                schedule.admit(item(id, Some(&group(table[&id]))), None);
            }
            if let Some(from) = schedule.next_to_read_on() {
                let of_group = |(_, name): &(&i64, &u8)| group(**name) == *from.group;
                let read_so_far = unread.front().copied().unwrap_or(i64::MAX);
                let rest: Vec<i64> =
                    table.range(from.after.id + 1..read_so_far).filter(of_group).map(|(id, _)| *id).collect();
                let batch: Vec<(Item, Option<Instant>)> =
                    rest.iter().take(from.most).map(|id| (item(*id, Some(&from.group)), None)).collect();
                let last = batch.last().map(|(item, _)| item.key().id);
                schedule.read_on(&from, batch, last, rest.len() < from.most);
            }
            schedule.wake(Instant::now() + Duration::from_secs(1));
            in_flight.extend(schedule.next_request());
            if in_flight.is_empty() || random.bool() {
                continue;
            }
            let request = in_flight.swap_remove(random.usize(0..in_flight.len()));
            let (mut done, mut again) = (Vec::new(), Vec::new());
            // A batch with a failure in the middle breaks the order by itself, so here what follows a failure fails too.
            let mut failed: HashSet<u8> = HashSet::new();
            for item in request {
                let name = table[&item.key().id];
                if failed.contains(&name) || random.u8(0..4) == 0 {
                    failed.insert(name);
                    let delay = random.bool().then(|| Instant::now() + Duration::from_millis(random.u64(0..500)));
                    again.push((item, delay));
                } else {
                    accepted.entry(name).or_default().push(item.key().id);
                    done.push(item);
                }
            }
            for item in &done {
                table.remove(&item.key().id);
                schedule.forget(item.key().id);
            }
            schedule.finish(&done, again);
        }
        assert!(table.is_empty(), "seed {seed}: {} messages never went out: {table:?}", table.len());
        assert_eq!((schedule.waiting(), schedule.waiting_bytes()), (0, 0), "seed {seed}");
        for (name, ids) in accepted {
            assert!(ids.is_sorted(), "seed {seed}, group {name}: {ids:?}");
        }
    }
}

#[test]
fn a_blocked_group_keeps_nothing_in_memory_and_others_go_on() {
    let mut schedule = with(STRICT, &[(1, Some("a")), (2, Some("a")), (3, Some("b")), (4, Some("a"))]);
    let group: Arc<str> = Arc::from("a");
    let request = schedule.next_request().unwrap();
    assert_eq!(ids(&request), [1, 3]);
    // 1 is dead.
    schedule.finish(&request, Vec::new());
    schedule.block(&group, MessageKey { lane: 1, id: 1 });
    schedule.admit(item(5, Some("a")), None);
    schedule.admit(item(6, Some("b")), None);
    assert_eq!(next(&mut schedule), [6]);
    assert!(!schedule.knows(2) && !schedule.knows(5), "they are in the table");
    assert!(schedule.next_to_read_on().is_none());
    assert_eq!(schedule.groups_with_rest(), [(1, Arc::clone(&group))], "sweeps pass over it");
    schedule.unblock(&group);
    let from = schedule.next_to_read_on().expect("it goes on from the dead message");
    assert_eq!(from.after.id, 0);
    schedule.read_on(&from, of_a([2, 4, 5]), Some(5), true);
    assert_eq!(next(&mut schedule), [2]);
}

#[test]
fn what_comes_back_to_a_blocked_group_stays_in_the_table() {
    let mut schedule = with(BATCHED, &[(1, Some("a")), (2, Some("a"))]);
    let group: Arc<str> = Arc::from("a");
    let request = schedule.next_request().unwrap();
    // 3 can never be sent; it is read while 1 and 2 are under way.
    schedule.block(&group, MessageKey { lane: 1, id: 3 });
    let mut request = request.into_iter();
    let (first, second) = (request.next().unwrap(), request.next().unwrap());
    schedule.finish(&[first], vec![(second, None)]);
    assert!(schedule.next_request().is_none());
    let leftovers = schedule.take_leftovers();
    assert!(leftovers.items.is_empty());
    let remembered = &leftovers.remembered[0];
    assert_eq!((remembered.after, remembered.upto, remembered.goes_on), (1, 2, GoesOn::Unblocked));
}
