//! The watermarks, one rule at a time.

use super::*;

fn lane(number: i16) -> Lane {
    Lane::new(number).unwrap()
}

fn at(millis: u64) -> Time {
    Time::default() + Duration::from_millis(millis)
}

fn snapshot(text: &str) -> Snapshot {
    Snapshot::parse(text).unwrap()
}

fn look(text: &str, next_xid: i64, last_id: i64) -> Look {
    let (next_xid, last_id) = (TransactionId(next_xid), MessageId(last_id));
    Look { snapshot: snapshot(text), next_xid, last_id, ready: Vec::new(), due: Vec::new() }
}

fn writers(ids: &[i64]) -> Writers {
    Writers { transaction_ids: ids.iter().copied().map(TransactionId).collect(), next_xid: None }
}

/// Watermarks whose lane 0 was read up to 100 at the beginning, when every transaction was below 50.
fn read_to_100() -> Watermarks {
    let mut marks = Watermarks::default();
    marks.read(lane(0), MessageId(100), TransactionId(50), MessageId(1000), at(0));
    marks
}

fn rescan(marks: &mut Watermarks, upto: i64, text: &str, now: Time) -> i64 {
    let snapshot = snapshot(text);
    marks.rescanned(&[(lane(0), MessageId(upto))], View { snapshot: &snapshot, began_at: now }, now);
    marks.low(lane(0)).0
}

#[test]
fn the_watermark_waits_until_the_writers_of_the_read_have_ended() {
    let mut marks = read_to_100();
    assert_eq!((marks.low(lane(0)), marks.position(lane(0))), (MessageId(0), MessageId(100)));
    assert!(marks.has_gap(lane(0)));
    assert_eq!(rescan(&mut marks, 100, "49:51:49", at(10)), 0, "49 still runs and may hold a lower id");
    assert_eq!(rescan(&mut marks, 100, "50:52:50", at(20)), 100);
    assert!(!marks.has_gap(lane(0)) && !marks.has_overtaken());
}

#[test]
fn only_a_known_writer_is_overtaken() {
    let mut marks = read_to_100();
    assert!(!marks.wants_writers(at(499)) && marks.wants_writers(at(500)));
    assert_eq!(rescan(&mut marks, 100, "30:60:30", at(60_000)), 0, "it is not known what 30 does");
    marks.note_writers(writers(&[55]), at(60_000), at(60_000));
    assert_eq!(rescan(&mut marks, 100, "30:60:30,55", at(60_010)), 100, "30 writes no messages, and 55 began later");
    assert!(!marks.has_overtaken());
}

#[test]
fn an_answer_from_before_a_read_says_nothing_about_its_writers() {
    let mut marks = Watermarks::default();
    marks.note_writers(writers(&[]), at(0), at(0));
    marks.read(lane(0), MessageId(100), TransactionId(50), MessageId(1000), at(0));
    assert_eq!(rescan(&mut marks, 100, "30:60:30", at(400)), 0);
    assert!(marks.wants_writers(at(500)), "so it is asked again");
}

#[test]
fn an_answer_from_between_two_reads_says_nothing_about_the_writers_of_the_second() {
    // 30 writes something else for long. 49 has begun, and takes its first message id only after the lock table was
    // asked. No other transaction begins meanwhile.
    let mut marks = read_to_100();
    marks.note_writers(writers(&[]), at(600), at(600));
    marks.read(lane(0), MessageId(110), TransactionId(50), MessageId(1000), at(610));
    let low = rescan(&mut marks, 110, "30:50:30,49", at(620));
    assert!(low <= 100, "49 may still commit an id up to 110, but {low} was passed");
}

#[test]
fn an_answer_during_a_rescan_says_nothing_about_who_ran_at_its_start() {
    // 49 runs in the rescan's snapshot, commits a message that the rescan did not see, and has ended when the lock
    // table is asked.
    let mut marks = read_to_100();
    let snapshot = snapshot("30:60:30,49");
    marks.note_writers(writers(&[]), at(600), at(620));
    marks.rescanned(&[(lane(0), MessageId(100))], View { snapshot: &snapshot, began_at: at(590) }, at(630));
    assert_eq!(marks.low(lane(0)), MessageId(0), "49 was passed");
    assert_eq!(rescan(&mut marks, 100, "30:61:30", at(640)), 100, "a rescan that began later has seen its messages");
}

#[test]
fn an_overtaken_writer_is_remembered_until_it_is_seen_to_end() {
    let mut marks = read_to_100();
    marks.note_writers(writers(&[30, 55]), at(600), at(600));
    assert!(!marks.wants_writers(at(700)));
    assert_eq!(rescan(&mut marks, 100, "30:60:30,55", at(1999)), 0);
    assert_eq!(rescan(&mut marks, 100, "30:60:30,55", at(2000)), 100);
    assert!(marks.has_overtaken());
    assert!(!marks.note_ended_writers(&snapshot("30:70:30")), "55 began after the read, so it holds no lower id");
    assert!(marks.note_ended_writers(&snapshot("65:70:65")));
    assert!(!marks.has_overtaken() && marks.must_rescan(lane(0)) && marks.must_rescan(lane(7)));
    let epoch = marks.epoch();
    marks.rescanned_from_the_bottom(lane(0), epoch);
    assert!(!marks.must_rescan(lane(0)) && marks.must_rescan(lane(7)), "7 was not rescanned");
}

#[test]
fn a_rescan_that_began_before_a_writer_ended_does_not_cover_it() {
    let mut marks = read_to_100();
    marks.note_writers(writers(&[30]), at(600), at(600));
    rescan(&mut marks, 100, "30:60:30", at(2000));
    let before = marks.epoch();
    assert!(marks.note_ended_writers(&snapshot("60:60:")));
    marks.rescanned_from_the_bottom(lane(0), before);
    assert!(marks.must_rescan(lane(0)));
}

#[test]
fn writers_running_before_the_first_scan_are_waited_for() {
    let mut floors = ByLane::all(MessageId(900));
    floors[lane(0)] = MessageId(500);
    let first = Baseline { incarnations: ByLane::default(), last_id: MessageId(900), writers: writers(&[40]) };
    let mut marks = Watermarks::start(&floors, &first);
    assert_eq!((marks.low(lane(0)), marks.position(lane(1))), (MessageId(500), MessageId(900)));
    assert!(marks.has_overtaken() && !marks.note_ended_writers(&snapshot("40:55:40")));
    assert!(marks.note_ended_writers(&snapshot("55:55:")), "what 40 wrote may lie below the floors");
}

#[test]
fn a_writer_beyond_the_snapshots_xmax_is_waited_for_and_remembered() {
    let mut marks = Watermarks::default();
    // 50 has taken an id and runs. Nothing after it has ended, so the snapshot's xmax is 50, and the snapshot does not
    // list it.
    marks.read(lane(0), MessageId(100), TransactionId(51), MessageId(1000), at(0));
    assert_eq!(rescan(&mut marks, 100, "50:50:", at(10)), 0);
    marks.note_writers(writers(&[50]), at(600), at(600));
    assert_eq!(rescan(&mut marks, 100, "50:50:", at(2000)), 100);
    assert!(marks.has_overtaken() && !marks.note_ended_writers(&snapshot("50:50:")));
    assert!(!marks.note_ended_writers(&snapshot("50:60:50,55")), "now it is listed");
    assert!(marks.note_ended_writers(&snapshot("55:60:55")) && !marks.has_overtaken());
}

#[test]
fn a_rescan_settles_only_what_its_snapshot_covers() {
    let mut marks = read_to_100();
    marks.read(lane(0), MessageId(200), TransactionId(60), MessageId(1000), at(0));
    assert_eq!(rescan(&mut marks, 200, "55:61:55", at(1)), 100);
    let snapshot = snapshot("99:99:");
    marks.rescanned(&[(lane(1), MessageId(200))], View { snapshot: &snapshot, began_at: at(1) }, at(1));
    assert_eq!(marks.low(lane(0)), MessageId(100), "another lane's rescan says nothing");
    assert_eq!(rescan(&mut marks, 150, "99:99:", at(1)), 100, "it ended below the end of the second read");
}

#[test]
fn an_empty_look_moves_the_watermark_to_the_sequences_value_at_the_look_before() {
    let mut marks = Watermarks::default();
    marks.looked([lane(5)], &look("10:10:", 10, 1000), at(0));
    assert_eq!(marks.low(lane(5)), MessageId(0));
    marks.looked([lane(5)], &look("11:12:11", 12, 1200), at(0));
    assert_eq!(marks.low(lane(5)), MessageId(0), "1000 was taken by a transaction below 12, and 11 still runs");
    marks.looked([lane(5)], &look("12:12:", 12, 1300), at(0));
    assert_eq!((marks.low(lane(5)), marks.position(lane(5))), (MessageId(1000), MessageId(1000)));
    assert_eq!(marks.lowest(), MessageId(0), "the other lanes were not seen empty");
}

#[test]
fn messages_that_were_left_are_read_again() {
    let mut marks = read_to_100();
    rescan(&mut marks, 100, "50:50:", at(0));
    marks.read(lane(0), MessageId(200), TransactionId(60), MessageId(1000), at(0));
    marks.rewind(lane(0), MessageId(80));
    assert_eq!((marks.low(lane(0)), marks.position(lane(0))), (MessageId(79), MessageId(79)));
    assert_eq!(rescan(&mut marks, 200, "60:60:", at(0)), 79, "candidates above the message that was left are gone");
}

#[test]
fn a_late_message_in_the_gap_sets_only_the_position_back() {
    let mut marks = read_to_100();
    rescan(&mut marks, 100, "50:50:", at(0));
    marks.read(lane(0), MessageId(200), TransactionId(60), MessageId(1000), at(0));
    marks.rewind(lane(0), MessageId(150));
    assert_eq!((marks.low(lane(0)), marks.position(lane(0))), (MessageId(100), MessageId(149)));
}

#[test]
fn a_new_claim_reads_the_gap_again_and_waits_no_longer_for_its_writers() {
    let mut marks = read_to_100();
    marks.open(lane(0));
    assert_eq!(marks.position(lane(0)), MessageId(0));
    assert_eq!(rescan(&mut marks, 0, "99:99:", at(0)), 0, "not before the gap was read");
    marks.read(lane(0), MessageId(100), TransactionId(70), MessageId(1000), at(1000));
    marks.note_writers(writers(&[30]), at(1500), at(1500));
    assert_eq!(rescan(&mut marks, 100, "30:99:30", at(2000)), 100, "two seconds after the first claim read it");
}

#[test]
fn a_claim_that_reads_less_far_than_the_one_before_moves_the_watermark_as_far_as_it_read() {
    let mut marks = read_to_100();
    marks.open(lane(0));
    marks.read(lane(0), MessageId(60), TransactionId(90), MessageId(1000), at(1000));
    assert_eq!(rescan(&mut marks, 60, "50:95:", at(1000)), 60, "what can come below 60 was known when 100 was read");
    assert_eq!(rescan(&mut marks, 100, "50:95:", at(1000)), 100);
}

#[test]
fn an_id_beyond_the_sequence_moves_the_watermark_only_to_the_sequence() {
    let mut marks = Watermarks::default();
    marks.looked([], &look("10:10:", 10, 700), at(0));
    marks.read(lane(0), MessageId(9_000_000), TransactionId(50), MessageId(1000), at(0));
    assert_eq!(rescan(&mut marks, 9_000_000, "50:50:", at(0)), 700, "all below were taken by transactions below 50");
    assert_eq!(marks.position(lane(0)), MessageId(9_000_000));
    assert!(marks.has_gap(lane(0)), "so every read rescans what is below it");
}
