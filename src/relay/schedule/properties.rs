//! Whatever happens in whatever order: groups go out in order, one request at a time, nothing is lost, nothing is doubled.
//!
//! The table, the other relays and SQS are modelled in [`world`]; each case is a random list of moves against it.

mod world;

use proptest::prelude::*;

use super::tests::{item, sized};
use super::*;
use crate::sqs::MAX_BYTES;
use world::World;

const STRICT: Limits = Limits { request_size: 4, per_group: 1, window: 4 };
const BATCHED: Limits = Limits { request_size: 4, per_group: 4, window: 8 };

/// What becomes of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Accepted,
    /// Given up, or never acceptable.
    Dead,
    /// To be sent again at once, as when the destination halts.
    Again,
    /// The same, but without neighbours.
    Alone,
    /// To be sent again later, free of charge.
    Later(u64),
    /// The same, and an attempt is charged.
    Charged(u64),
}

/// A thing that may happen at any time. Where it cannot happen just then, nothing does.
#[derive(Clone, Debug)]
pub(super) enum Move {
    /// A transaction takes ids; it commits at once or with `Commit`, later messages of its group after it.
    Write {
        group: u8,
        count: usize,
        commits: bool,
        /// Which of them, if there are so many, can never be sent.
        poison: usize,
    },
    Commit,
    /// The relay starts what it can: requests, and statements, which see the table now and are answered later.
    Turn {
        most: usize,
    },
    EndRead,
    EndReadOn,
    EndDue,
    Answer {
        which: usize,
        fates: Vec<Fate>,
    },
    Settle,
    /// An operator redrives one of the dead messages.
    Redrive {
        which: usize,
    },
    Pass {
        millis: u64,
    },
    /// The claim ends and a new one begins; another relay may have the lane in between.
    Reclaim {
        elsewhere: Vec<Fate>,
    },
}

fn fate() -> impl Strategy<Value = Fate> {
    prop_oneof![
        6 => Just(Fate::Accepted),
        1 => Just(Fate::Dead),
        1 => Just(Fate::Again),
        1 => Just(Fate::Alone),
        2 => (0..300_u64).prop_map(Fate::Later),
        2 => (0..300_u64).prop_map(Fate::Charged),
    ]
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let fates = || prop::collection::vec(fate(), 4);
    let one = prop_oneof![
        4 => (0..3_u8, 1..9_usize, prop::bool::weighted(0.6), 0..20_usize)
            .prop_map(|(group, count, commits, poison)| Move::Write { group, count, commits, poison }),
        3 => Just(Move::Commit),
        8 => (1..20_usize).prop_map(|most| Move::Turn { most }),
        3 => Just(Move::EndRead),
        2 => Just(Move::EndReadOn),
        1 => Just(Move::EndDue),
        6 => (0..4_usize, fates()).prop_map(|(which, fates)| Move::Answer { which, fates }),
        2 => Just(Move::Settle),
        2 => (0..4_usize).prop_map(|which| Move::Redrive { which }),
        3 => (0..300_u64).prop_map(|millis| Move::Pass { millis }),
        1 => fates().prop_map(|elsewhere| Move::Reclaim { elsewhere }),
    ];
    prop::collection::vec(one, 1..150)
}

/// The world checks each request when it is sent, and the memory after every move.
fn play(limits: Limits, moves: &[Move]) {
    let mut world = World::new(limits);
    for step in moves {
        world.make(step);
        world.check();
    }
    world.deliver_the_rest();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn strict_keeps_every_promise_whatever_happens(moves in moves()) {
        play(STRICT, &moves);
    }

    #[test]
    fn batched_keeps_every_promise_whatever_happens(moves in moves()) {
        play(BATCHED, &moves);
    }
}

/// A message to pack: its size, and its group.
fn messages() -> impl Strategy<Value = Vec<(usize, u8)>> {
    let size = prop_oneof![4 => 1..1000_usize, 2 => 90_000..120_000_usize, 1 => 400_000..1_000_000_usize];
    prop::collection::vec((size, 0..12_u8), 0..30)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_request_is_as_full_as_the_next_entry_allows(
        messages in messages(),
        request_size in 1..=10_usize,
        is_strict in any::<bool>(),
    ) {
        let per_group = if is_strict { 1 } else { request_size };
        let mut schedule = Schedule::new(Limits { request_size, per_group, window: 100 });
        for (id, (size, group)) in (1..).zip(&messages) {
            let name = format!("g{group}");
            schedule.admit(sized(id, (*group > 0).then_some(&name), *size), None);
        }
        let bytes = |items: &[Item]| items.iter().map(|item| item.entry.bytes()).sum::<usize>();
        let (mut sent, mut in_flight) = (Vec::new(), Vec::new());
        while schedule.has_ready() {
            while let Some(request) = schedule.next_request() {
                prop_assert!(request.len() <= request_size && bytes(&request) <= MAX_BYTES);
                in_flight.push(request);
            }
            for pair in in_flight.windows(2) {
                let with_the_next = bytes(&pair[0]) + pair[1][0].entry.bytes();
                prop_assert!(pair[0].len() == request_size || with_the_next > MAX_BYTES);
            }
            for request in in_flight.drain(..) {
                schedule.finish(&request, Vec::new());
                sent.extend(request.iter().map(|item| (item.group.clone(), item.key().id)));
            }
        }
        let mut groups: HashMap<Option<Arc<str>>, Vec<i64>> = HashMap::new();
        for (group, id) in &sent {
            groups.entry(group.clone()).or_default().push(*id);
        }
        prop_assert_eq!(sent.len(), messages.len(), "nothing is dropped");
        prop_assert!(groups.values().all(|ids| ids.is_sorted()), "{:?}", groups);
        prop_assert_eq!((schedule.waiting(), schedule.waiting_bytes()), (0, 0));
    }
}
