//! Which messages of a group wait in the table, what holds a group up, and what a claim hands over to the next one.

use super::*;

#[test]
fn everything_that_was_not_sent_is_handed_over() {
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
    failed.charged_error = Some("InternalError".to_owned());
    schedule.finish(&[], vec![(failed, Some(due))]);
    assert!(schedule.only_waits_beyond(due) && !schedule.only_waits_beyond(due + Duration::from_millis(1)));
    let handover = schedule.hand_over(at(0));
    assert_eq!(handover.items.len(), 1, "2 has to be recorded");
    assert_eq!(handover.parked[0].after, MessageId(2));
    // The next claim opens the lane: first what is remembered, then the recorded retry when it is due.
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
fn a_group_is_read_up_to_its_known_rest_or_to_the_position_of_its_lane() {
    let upto = |read_to: i64| {
        let mut schedule = Schedule::new(STRICT);
        let (after, upto) = (MessageId(5), MessageId(9));
        schedule.take_over(&ParkedGroup { group: a(), lane: key(0).lane, after, upto, goes_on: GoesOn::Now });
        schedule.next_to_read_on(1, &|_| MessageId(read_to)).pop().map(|wanted| wanted.position.upto.0)
    };
    assert_eq!(upto(4), None, "a message below 6 may come late");
    assert_eq!(upto(5), Some(9));
    assert_eq!(upto(20), Some(20), "messages that were passed since are read with it");
}

#[test]
fn nothing_counts_as_waiting_behind_a_deferred_head_until_something_was_seen() {
    let mut schedule = Schedule::new(STRICT);
    let head = Deferred::Head { id: MessageId(5), due: Some(at(100)) };
    let (after, upto) = (MessageId(5), MessageId(5));
    schedule.take_over(&ParkedGroup { group: a(), lane: key(0).lane, after, upto, goes_on: GoesOn::After(head) });
    let all = [Range::new(key(0).lane, MessageId::NONE, MessageId::MAX)];
    assert_eq!(schedule.waiting_in_table(&all), [], "7 may be committed late, and only a rescan shows it");
    assert!(!schedule.is_left(key(7), Some(&a())));
    let behind = Hold::Behind { head: MessageId(5), last: MessageId(5), wait: Some(Duration::from_secs(100)) };
    read(&mut schedule, 7, Some("a"), Some(behind));
    assert_eq!(schedule.waiting_in_table(&all), [(a(), MessageId(5))]);
    assert!(schedule.is_left(key(7), Some(&a())) && schedule.is_left(key(8), Some(&a())));
}

#[test]
fn an_answer_to_an_outdated_read_of_a_group_is_ignored() {
    let messages: Vec<_> = (1..=9).map(|id| (id, Some("a"))).collect();
    let mut schedule = with(STRICT, &messages);
    assert_eq!([deliver(&mut schedule), deliver(&mut schedule)].concat(), [1, 2]);
    let slow = wanted(&mut schedule).expect("3 and 4 are left");
    let mut request = schedule.next_request().unwrap();
    schedule.finish(&[], vec![(request.remove(0), Some(at(0)))]);
    schedule.wake(at(0));
    assert_eq!(deliver(&mut schedule), [3]);
    // The group wants to read on behind 3 when the answer for what is behind 4 arrives.
    schedule.read_on(&slow, of_a(5..=8, false));
    assert_eq!(next(&mut schedule), [] as [i64; 0], "4 was left in the table and has to go first");
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
    assert!(!schedule.apply_hold(&held(Some(MessageId(1))), at(0)) && schedule.apply_hold(&held(None), at(0)));
    let from = wanted(&mut schedule).expect("it goes on from the dead message");
    assert_eq!(from.position.after, key(0));
    schedule.read_on(&from, of_a([2, 4, 5], true));
    assert_eq!(next(&mut schedule), [2]);
}

#[test]
fn messages_that_come_back_to_a_blocked_group_stay_in_the_table() {
    let mut schedule = with(BATCHED, &[(1, Some("a")), (2, Some("a"))]);
    let request = schedule.next_request().unwrap();
    // 3 can never be sent. It is read while 1 and 2 are under way.
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
fn too_many_held_up_groups_form_a_crowd_until_one_of_them_may_go() {
    let mut schedule = Schedule::new(STRICT);
    let hold = |by| Some(Hold::Group { by: MessageId(by) });
    let many = STRICT.max_parked as i64;
    for id in 1..=many + 5 {
        read(&mut schedule, id, Some(&format!("g{id}")), hold(id));
    }
    assert_eq!(schedule.groups.len(), many as usize);
    assert!(schedule.parked.crowds.is_crowded(key(0).lane));
    // The crowd is kept from claim to claim.
    let handover = schedule.hand_over(at(0));
    assert_eq!((handover.parked.len(), handover.emptied), (many as usize, Vec::new()));
    let mut schedule = Schedule::new(STRICT);
    schedule.parked.crowds = handover.crowds;
    // Nothing holds up this message, so its whole group may go, from the lowest message that may be there.
    let name: Arc<str> = Arc::from(format!("g{}", many + 2));
    read(&mut schedule, many + 9, Some(&name), None);
    assert!(!schedule.has_ready(), "nothing overtakes what was left");
    let from = wanted(&mut schedule).expect("it is read on");
    assert_eq!((from.position.group, from.position.after), (name, key(many)));
}

#[test]
fn a_group_that_has_left_its_crowd_is_remembered_by_its_rest() {
    let mut schedule = Schedule::new(STRICT);
    let (name, behind) = (a(), Some(Hold::Behind { head: MessageId(10), last: MessageId(10), wait: None }));
    for (id, group) in [(1, "b"), (2, "c"), (3, "d"), (28, "a"), (30, "a")] {
        let hold = if group == "a" { behind } else { Some(Hold::Group { by: MessageId(id) }) };
        read(&mut schedule, id, Some(group), hold);
    }
    assert!(schedule.parked.crowds.has(key(0).lane, &name));
    // An operator releases 10.
    assert!(schedule.start_over(&name, key(10), MessageId(30)));
    let from = wanted(&mut schedule).unwrap();
    assert_eq!(from.position.after, key(9));
    schedule.read_on(&from, of_a([10, 28, 30], true));
    assert!(!schedule.is_left(key(26), Some(&name)), "26 came late");
}

#[test]
fn a_blocked_group_goes_on_only_once_the_blocking_message_is_recorded_and_its_request_is_back() {
    let free = HeldGroup { group: a(), by: None, head: None };
    let mut schedule = with(STRICT, &[(10, Some("a"))]);
    let request = schedule.next_request().unwrap();
    // 11 cannot be read. The schedule knows that before the table does.
    schedule.pass_over(key(11), Some(&a()));
    schedule.block(&a(), key(11));
    assert!(!schedule.apply_hold(&free, at(0)), "11 is not recorded");
    schedule.forget(key(11));
    assert!(!schedule.apply_hold(&free, at(0)), "10 is under way");
    schedule.finish(&request, Vec::new());
    assert!(schedule.apply_hold(&free, at(0)));
}

#[test]
fn a_message_committed_late_before_a_deferred_one_of_the_rest_goes_with_it() {
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
    assert_eq!(from.position.after, key(5), "messages before 9 were left out of rescans");
}

#[test]
fn a_released_message_goes_on_with_the_messages_behind_it() {
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
fn a_group_waits_for_a_deferred_message_of_its_rest_once_the_messages_before_it_have_gone() {
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
fn a_group_waits_for_its_recorded_failed_head_even_if_the_retry_was_due() {
    let mut schedule = with(STRICT, &[(2, Some("a")), (3, Some("a"))]);
    let mut request = schedule.next_request().unwrap();
    let mut failed = request.remove(0);
    failed.charged_error = Some("InternalError".to_owned());
    schedule.finish(&[], vec![(failed, Some(at(1)))]);
    schedule.wake(at(1));
    let handover = schedule.hand_over(at(1));
    let head = Deferred::Head { id: MessageId(2), due: Some(at(1)) };
    assert_eq!(handover.parked[0].goes_on, GoesOn::After(head));
}
