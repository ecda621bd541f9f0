//! The bounds, one rule at a time.

use super::*;

fn after(start: Instant, millis: u64) -> Instant {
    start + Duration::from_millis(millis)
}

fn look(text: &str, next_xid: i64, last_id: i64) -> Look {
    Look { snapshot: snapshot(text), next_xid, last_id, ready: Vec::new(), due: Vec::new() }
}

fn snapshot(text: &str) -> Snapshot {
    Snapshot::parse(text).unwrap()
}

#[test]
fn the_bound_waits_until_the_writers_of_the_read_have_ended() {
    let start = Instant::now();
    let mut bounds = LowBounds::default();
    bounds.read(3, 100, 50, start);
    assert_eq!((bounds.low(3), bounds.cursor(3)), (0, 100));
    assert!(bounds.has_gap(3));
    bounds.swept(&[(3, 100)], &snapshot("49:51:49"), after(start, 10));
    assert_eq!(bounds.low(3), 0, "transaction 49 still runs and may hold a lower id");
    bounds.swept(&[(3, 100)], &snapshot("50:52:50"), after(start, 20));
    assert_eq!(bounds.low(3), 100);
    assert!(!bounds.has_gap(3) && !bounds.has_overtaken());
}

#[test]
fn a_writer_that_is_overtaken_is_remembered_until_it_is_seen_to_end() {
    let start = Instant::now();
    let mut bounds = LowBounds::default();
    bounds.read(0, 100, 50, start);
    bounds.swept(&[(0, 100)], &snapshot("30:60:30,55"), after(start, 1999));
    assert_eq!(bounds.low(0), 0);
    bounds.swept(&[(0, 100)], &snapshot("30:60:30,55"), after(start, 2000));
    assert_eq!(bounds.low(0), 100);
    assert!(bounds.has_overtaken());
    assert!(!bounds.shows_late_rows(&snapshot("30:70:30")), "55 began after the read, so it holds no lower id");
    assert!(bounds.shows_late_rows(&snapshot("65:70:65")));
    assert!(!bounds.has_overtaken() && bounds.is_unswept(0) && bounds.is_unswept(7));
    bounds.swept_from_the_bottom(&[0], bounds.marks());
    assert!(!bounds.is_unswept(0) && bounds.is_unswept(7), "7 was not swept");
}

#[test]
fn a_sweep_that_began_before_a_writer_ended_says_nothing_of_it() {
    let start = Instant::now();
    let mut bounds = LowBounds::default();
    bounds.read(0, 100, 50, start);
    bounds.swept(&[(0, 100)], &snapshot("30:60:30"), after(start, 2000));
    let before = bounds.marks();
    assert!(bounds.shows_late_rows(&snapshot("60:60:")));
    bounds.swept_from_the_bottom(&[0], before);
    assert!(bounds.is_unswept(0));
}

#[test]
fn after_a_climb_writers_that_were_running_are_waited_for() {
    let mut bounds = LowBounds::default();
    let climb = Climb { floors: vec![(0, 500), (1, 900)], snapshot: snapshot("40:50:40"), next_xid: 50 };
    bounds.start_from(&climb);
    assert_eq!((bounds.low(0), bounds.cursor(1), bounds.low(2)), (500, 900, 0));
    assert!(bounds.has_overtaken() && !bounds.shows_late_rows(&snapshot("40:55:40")));
    assert!(bounds.shows_late_rows(&snapshot("55:55:")), "what 40 wrote may lie below the floors");
}

#[test]
fn a_writer_beyond_the_snapshots_xmax_is_waited_for_and_remembered() {
    let start = Instant::now();
    let mut bounds = LowBounds::default();
    // 50 has taken an id and runs; nothing after it has ended, so the snapshot's xmax is 50 and does not list it.
    bounds.read(0, 100, 51, start);
    bounds.swept(&[(0, 100)], &snapshot("50:50:"), after(start, 10));
    assert_eq!(bounds.low(0), 0);
    bounds.swept(&[(0, 100)], &snapshot("50:50:"), after(start, 2000));
    assert_eq!(bounds.low(0), 100);
    assert!(bounds.has_overtaken() && !bounds.shows_late_rows(&snapshot("50:50:")));
    assert!(!bounds.shows_late_rows(&snapshot("50:60:50,55")), "now it is listed");
    assert!(bounds.has_overtaken());
    assert!(bounds.shows_late_rows(&snapshot("55:60:55")));
    assert!(!bounds.has_overtaken());
}

#[test]
fn a_sweep_settles_only_what_its_snapshot_covers() {
    let start = Instant::now();
    let mut bounds = LowBounds::default();
    bounds.read(0, 100, 50, start);
    bounds.read(0, 200, 60, start);
    bounds.swept(&[(0, 200)], &snapshot("55:61:55"), start);
    assert_eq!((bounds.low(0), bounds.cursor(0)), (100, 200));
    bounds.swept(&[(1, 200)], &snapshot("99:99:"), start);
    assert_eq!(bounds.low(0), 100, "another lane's sweep says nothing");
    bounds.swept(&[(0, 150)], &snapshot("99:99:"), start);
    assert_eq!(bounds.low(0), 100, "the sweep ended before the second read's cursor");
}

#[test]
fn an_empty_look_moves_the_bound_to_what_the_sequence_had_reached_before() {
    let start = Instant::now();
    let mut bounds = LowBounds::default();
    bounds.looked(&[5], &look("10:10:", 10, 1000), start);
    assert_eq!(bounds.low(5), 0);
    bounds.looked(&[5], &look("11:12:11", 12, 1200), start);
    assert_eq!(bounds.low(5), 0, "1000 was taken by a transaction below 12, and 11 still runs");
    bounds.looked(&[5], &look("12:12:", 12, 1300), start);
    assert_eq!((bounds.low(5), bounds.cursor(5)), (1000, 1000));
    assert_eq!(bounds.lowest(), 0, "the other lanes were not seen empty");
}

#[test]
fn what_was_left_is_read_again() {
    let start = Instant::now();
    let mut bounds = LowBounds::default();
    bounds.read(0, 100, 50, start);
    bounds.swept(&[(0, 100)], &snapshot("50:50:"), start);
    bounds.read(0, 200, 60, start);
    bounds.rewind(0, 80);
    assert_eq!((bounds.low(0), bounds.cursor(0)), (79, 79));
    bounds.swept(&[(0, 200)], &snapshot("60:60:"), start);
    assert_eq!(bounds.low(0), 79, "a candidate above the left message is gone");
}

#[test]
fn a_late_row_in_the_gap_sets_only_the_cursor_back() {
    let start = Instant::now();
    let mut bounds = LowBounds::default();
    bounds.read(0, 100, 50, start);
    bounds.swept(&[(0, 100)], &snapshot("50:50:"), start);
    bounds.read(0, 200, 60, start);
    bounds.rewind(0, 150);
    assert_eq!((bounds.low(0), bounds.cursor(0)), (100, 149));
}

#[test]
fn a_new_claim_reads_the_gap_again() {
    let start = Instant::now();
    let mut bounds = LowBounds::default();
    bounds.read(0, 100, 50, start);
    bounds.open(0);
    assert_eq!(bounds.cursor(0), 0);
    bounds.swept(&[(0, 100)], &snapshot("99:99:"), start);
    assert_eq!(bounds.low(0), 0);
}
