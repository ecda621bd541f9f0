use super::*;

fn queue(is_fifo: bool) -> Queue {
    Queue::new(Settings::new(is_fifo), 0)
}

fn draft(body: &str, group: Option<&str>) -> Draft {
    let deduplication = group.map(|_| body.to_owned());
    Draft { body: body.to_owned(), group: group.map(str::to_owned), deduplication, ..Draft::default() }
}

fn send(queue: &mut Queue, draft: Draft, now: u64) -> Sent {
    let id = format!("m-{}", queue.next);
    queue.send(draft, id, now).unwrap()
}

fn bodies(received: &[Received]) -> Vec<&str> {
    received.iter().map(|received| received.draft.body.as_str()).collect()
}

#[test]
fn a_message_is_received_once_within_its_visibility_timeout_and_again_after_it() {
    let mut queue = queue(false);
    send(&mut queue, draft("a", None), 1000);
    let first = queue.receive(10, 5000, 2000);
    assert_eq!((bodies(&first), first[0].times, first[0].sent_at), (vec!["a"], 1, 1000));
    assert_eq!(queue.counts(6999), Counts { in_flight: 1, ..Counts::default() });
    assert!(queue.receive(10, 5000, 6999).is_empty());
    let second = queue.receive(10, 5000, 7000);
    assert_eq!((bodies(&second), second[0].times, second[0].first_received_at), (vec!["a"], 2, 2000));
    assert_ne!(first[0].handle, second[0].handle);
    queue.delete(&first[0].handle, 7001).unwrap();
    assert_eq!(queue.counts(7001).in_flight, 1, "an old handle deletes nothing");
    queue.delete(&second[0].handle, 7001).unwrap();
    assert_eq!((queue.counts(7001), queue.bytes(7001)), (Counts::default(), 0));
    assert_eq!(queue.delete(&second[0].handle, 7001), Ok(()), "twice is no mistake");
}

#[test]
fn a_standard_message_can_be_deleted_after_its_timeout_unless_it_was_received_again() {
    let mut queue = queue(false);
    send(&mut queue, draft("a", None), 0);
    let handle = queue.receive(1, 1000, 0).remove(0).handle;
    queue.delete(&handle, 5000).unwrap();
    assert_eq!(queue.counts(5000), Counts::default());
}

#[test]
fn a_group_is_received_in_order_and_blocked_while_one_of_its_messages_is_in_flight() {
    let mut queue = queue(true);
    for (body, group) in [("a1", "a"), ("a2", "a"), ("b1", "b"), ("a3", "a")] {
        send(&mut queue, draft(body, Some(group)), 0);
    }
    let first = queue.receive(2, 10_000, 1);
    assert_eq!(bodies(&first), ["a1", "a2"], "several of a group at once, in order");
    assert_eq!(bodies(&queue.receive(10, 10_000, 2)), ["b1"]);
    assert!(queue.receive(10, 10_000, 3).is_empty());
    queue.delete(&first[0].handle, 4).unwrap();
    assert!(queue.receive(10, 10_000, 4).is_empty(), "a2 is still in flight");
    queue.change_visibility(&first[1].handle, 0, 5).unwrap();
    assert_eq!(bodies(&queue.receive(10, 10_000, 5)), ["a2", "a3"], "what comes back goes first");
}

#[test]
fn a_message_that_comes_back_waits_for_a_later_one_of_its_group_in_flight() {
    let mut queue = queue(true);
    for body in ["a1", "a2"] {
        send(&mut queue, draft(body, Some("a")), 0);
    }
    let first = queue.receive(2, 10_000, 1);
    queue.change_visibility(&first[0].handle, 0, 2).unwrap();
    assert!(queue.receive(10, 10_000, 2).is_empty());
    queue.delete(&first[1].handle, 3).unwrap();
    assert_eq!(bodies(&queue.receive(10, 10_000, 3)), ["a1"]);
}

#[test]
fn a_fifo_message_cannot_be_deleted_once_its_timeout_has_ended() {
    let mut queue = queue(true);
    send(&mut queue, draft("a", Some("a")), 0);
    let handle = queue.receive(1, 1000, 0).remove(0).handle;
    assert_eq!(queue.delete(&handle, 1000).map_err(|refusal| refusal.code), Err(refusal::BAD_VALUE));
    let handle = queue.receive(1, 1000, 1000).remove(0).handle;
    queue.delete(&handle, 1999).unwrap();
}

#[test]
fn a_copy_within_five_minutes_is_dropped_and_answered_like_the_first_even_after_it_was_deleted() {
    let mut queue = queue(true);
    let first = send(&mut queue, draft("a", Some("a")), 0);
    let handle = queue.receive(1, 1000, 0).remove(0).handle;
    queue.delete(&handle, 1).unwrap();
    let copy = send(&mut queue, draft("a", Some("other group")), 299_999);
    assert_eq!(copy, Sent { is_copy: true, ..first.clone() });
    assert!(queue.receive(1, 1000, 299_999).is_empty());
    let late = send(&mut queue, draft("a", Some("a")), 300_000);
    assert!(!late.is_copy && late.sequence_number > first.sequence_number);
    assert_eq!(queue.receive(1, 1000, 300_000).len(), 1);
}

#[test]
fn with_the_scope_of_a_group_the_same_id_in_two_groups_is_two_messages() {
    let mut queue = Queue::new(Settings { deduplicates_per_group: true, ..Settings::new(true) }, 0);
    assert!(!send(&mut queue, draft("a", Some("a")), 0).is_copy);
    assert!(!send(&mut queue, draft("a", Some("b")), 0).is_copy);
    assert!(send(&mut queue, draft("a", Some("b")), 0).is_copy);
}

#[test]
fn content_is_an_id_if_the_queue_says_so() {
    let mut queue = Queue::new(Settings { has_content_deduplication: true, ..Settings::new(true) }, 0);
    let message = Draft { deduplication: None, ..draft("a", Some("a")) };
    assert!(!send(&mut queue, message.clone(), 0).is_copy);
    assert!(send(&mut queue, message.clone(), 0).is_copy);
    assert!(!send(&mut queue, Draft { deduplication: Some("x".to_owned()), ..message }, 0).is_copy);
    let received = queue.receive(1, 1000, 0);
    let sha256 = "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb"; // printf a | sha256sum
    assert_eq!(received[0].draft.deduplication.as_deref(), Some(sha256));
}

#[test]
fn each_kind_of_queue_refuses_what_belongs_to_the_other() {
    let refused =
        |queue: &mut Queue, draft: Draft| queue.send(draft, "m".to_owned(), 0).map_err(|refusal| refusal.code);
    let mut fifo = queue(true);
    assert_eq!(refused(&mut fifo, draft("a", None)), Err(refusal::MISSING));
    let without_id = Draft { deduplication: None, ..draft("a", Some("a")) };
    assert_eq!(refused(&mut fifo, without_id), Err(refusal::BAD_VALUE));
    assert_eq!(refused(&mut fifo, Draft { delay: Some(1), ..draft("a", Some("a")) }), Err(refusal::BAD_VALUE));
    let mut standard = queue(false);
    assert_eq!(refused(&mut standard, draft("a", Some("a"))), Err(refusal::BAD_VALUE), "a deduplication id");
    assert!(refused(&mut standard, Draft { deduplication: None, ..draft("a", Some("a")) }).is_ok(), "fair queues");
}

#[test]
fn a_message_that_is_too_long_for_the_queue_is_refused() {
    let mut queue = Queue::new(Settings { max_bytes: 1024, ..Settings::new(false) }, 0);
    assert!(queue.send(draft(&"x".repeat(1024), None), "m".to_owned(), 0).is_ok());
    let refused = queue.send(draft(&"x".repeat(1025), None), "m".to_owned(), 0);
    assert_eq!(refused.map_err(|refusal| refusal.code), Err(refusal::BAD_VALUE));
}

#[test]
fn a_delayed_message_waits_and_holds_up_its_group() {
    let mut standard = queue(false);
    send(&mut standard, Draft { delay: Some(2), ..draft("a", None) }, 0);
    send(&mut standard, draft("b", None), 0);
    assert_eq!(standard.counts(0), Counts { visible: 1, delayed: 1, ..Counts::default() });
    assert_eq!(bodies(&standard.receive(10, 60_000, 1999)), ["b"]);
    assert_eq!(bodies(&standard.receive(10, 60_000, 2000)), ["a"]);
    let mut fifo = Queue::new(Settings { delay: 2000, ..Settings::new(true) }, 0);
    send(&mut fifo, draft("a1", Some("a")), 0);
    send(&mut fifo, draft("a2", Some("a")), 1000);
    assert!(fifo.receive(10, 500, 1999).is_empty());
    assert_eq!(bodies(&fifo.receive(10, 500, 2000)), ["a1"]);
    assert_eq!(bodies(&fifo.receive(10, 500, 3000)), ["a1", "a2"]);
}

#[test]
fn a_visibility_timeout_can_be_changed_only_in_flight_and_a_strange_handle_is_refused() {
    let mut queue = queue(false);
    send(&mut queue, draft("a", None), 0);
    let handle = queue.receive(1, 1000, 0).remove(0).handle;
    queue.change_visibility(&handle, 5000, 999).unwrap();
    assert!(queue.receive(1, 1000, 5998).is_empty());
    let late = queue.change_visibility(&handle, 1000, 5999);
    assert_eq!(late.map_err(|refusal| refusal.code), Err(refusal::NOT_IN_FLIGHT));
    for handle in ["", "x", "1.1", "-1.1.m", "1.x.m"] {
        assert_eq!(queue.delete(handle, 0).map_err(|refusal| refusal.code), Err(refusal::BAD_HANDLE), "{handle}");
    }
}

#[test]
fn a_purged_queue_is_empty_and_still_knows_deduplication_ids() {
    let mut queue = queue(true);
    send(&mut queue, draft("a", Some("a")), 0);
    queue.receive(1, 1000, 0);
    queue.purge();
    assert_eq!(queue.counts(0), Counts::default());
    assert!(send(&mut queue, draft("a", Some("a")), 1).is_copy);
}
