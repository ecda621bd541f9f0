//! Writers that begin, take ids and end whenever they like; reads, sweeps and looks in between. Nothing is passed in silence.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

/// Two lanes are enough to see one disturb the other.
const FEW_LANES: Lane = 2;

#[derive(Clone, Debug)]
enum Move {
    /// A transaction gets its id.
    Begin,
    /// A transaction takes a message id.
    Take {
        writer: usize,
        lane: Lane,
    },
    End {
        writer: usize,
        commits: bool,
    },
    /// A transaction does all that at once.
    Write {
        lane: Lane,
    },
    Pass {
        millis: u64,
    },
    Claim,
    /// The statement of a read runs; its answer is applied by `EndRead`, after the sweep that follows it.
    BeginRead {
        most: usize,
    },
    EndRead {
        sweeps: bool,
    },
    BeginSweep,
    EndSweep,
    /// The claim ends, and some of what was read is left in the table.
    Release {
        left: usize,
    },
    /// A transaction may begin and take an id after the look saw its snapshot and before it saw the sequence.
    Look {
        is_slow: bool,
    },
    SweepAll,
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let lane = || prop_oneof![4 => Just(0), 1 => Just(1)];
    let read = || (1..6_usize).prop_map(|most| vec![Move::BeginRead { most }, Move::EndRead { sweeps: true }]);
    let alone = prop_oneof![
        2 => Just(Move::Begin),
        4 => (0..6_usize, lane()).prop_map(|(writer, lane)| Move::Take { writer, lane }),
        3 => (0..6_usize, prop::bool::weighted(0.8)).prop_map(|(writer, commits)| Move::End { writer, commits }),
        4 => lane().prop_map(|lane| Move::Write { lane }),
        1 => prop_oneof![0..50_u64, 1000..3000_u64].prop_map(|millis| Move::Pass { millis }),
        2 => Just(Move::Claim),
        1 => (1..6_usize).prop_map(|most| Move::BeginRead { most }),
        1 => prop::bool::weighted(0.7).prop_map(|sweeps| Move::EndRead { sweeps }),
        1 => Just(Move::BeginSweep),
        1 => Just(Move::EndSweep),
        1 => (0..4_usize).prop_map(|left| Move::Release { left }),
        2 => any::<bool>().prop_map(|is_slow| Move::Look { is_slow }),
        1 => Just(Move::SweepAll),
    ];
    let some = prop_oneof![20 => alone.prop_map(|one| vec![one]), 5 => read()];
    prop::collection::vec(some, 1..100).prop_map(|all| all.concat())
}

/// A read that has seen the table and not come back.
struct Read {
    next_xid: i64,
    /// The cursor of each lane and what lay above it.
    lanes: Vec<(i64, Vec<i64>)>,
}

/// A sweep of claimed lanes from the bottom that has not come back.
struct BottomSweep {
    marks: u64,
    upto: Vec<(Lane, i64)>,
    keys: Vec<(Lane, i64)>,
}

/// A database with writers, and the bounds of a relay that reads it.
struct World {
    bounds: LowBounds,
    start: Instant,
    now: Instant,
    next_xid: i64,
    latest_ended: i64,
    last_id: i64,
    /// Transactions that run, with the rows they have inserted.
    running: BTreeMap<i64, Vec<(Lane, i64)>>,
    /// Rows that are committed and not read.
    pending: BTreeSet<(Lane, i64)>,
    /// Rows that were read under this claim, in the order of reading.
    taken: Vec<(Lane, i64)>,
    claim: Option<i64>,
    read: Option<Read>,
    sweep: Option<BottomSweep>,
}

impl World {
    fn new() -> Self {
        let start = Instant::now();
        Self {
            bounds: LowBounds::default(),
            start,
            now: start,
            next_xid: 100,
            latest_ended: 99,
            last_id: 0,
            running: BTreeMap::new(),
            pending: BTreeSet::new(),
            taken: Vec::new(),
            claim: None,
            read: None,
            sweep: None,
        }
    }

    fn begin(&mut self) -> i64 {
        self.next_xid += 1;
        self.running.insert(self.next_xid - 1, Vec::new());
        self.next_xid - 1
    }

    fn insert(&mut self, xid: i64, lane: Lane) {
        self.last_id += 1;
        self.running.get_mut(&xid).unwrap().push((lane, self.last_id));
    }

    fn end(&mut self, xid: i64, commits: bool) {
        let rows = self.running.remove(&xid).unwrap_or_default();
        self.latest_ended = self.latest_ended.max(xid);
        if commits {
            self.pending.extend(rows);
        }
    }

    /// Writers other than the claim, which takes no ids.
    fn writer(&self, at: usize) -> Option<i64> {
        let writers: Vec<i64> = self.running.keys().copied().filter(|xid| Some(*xid) != self.claim).collect();
        (!writers.is_empty()).then(|| writers[at % writers.len()])
    }

    fn end_all(&mut self) {
        while let Some(writer) = self.writer(0) {
            self.end(writer, true);
        }
    }

    /// As PostgreSQL computes it: xmax follows the latest transaction that has ended.
    fn snapshot(&self) -> Snapshot {
        let xmax = self.latest_ended + 1;
        let running: Vec<String> = self.running.range(..xmax).map(|(xid, _)| xid.to_string()).collect();
        let xmin = self.running.keys().next().map_or(xmax, |first| xmax.min(*first));
        let snapshot = Snapshot::parse(&format!("{xmin}:{xmax}:{}", running.join(","))).unwrap();
        self.claim.map_or(snapshot.clone(), |claim| snapshot.without(claim))
    }

    fn above(&self, lane: Lane, id: i64) -> Vec<i64> {
        self.pending.range((lane, id + 1)..(lane + 1, i64::MIN)).map(|(_, id)| *id).collect()
    }

    fn make(&mut self, step: &Move) {
        match *step {
            Move::Begin => drop(self.begin()),
            Move::Take { writer, lane } => {
                if let Some(xid) = self.writer(writer) {
                    self.insert(xid, lane);
                }
            }
            Move::End { writer, commits } => {
                if let Some(xid) = self.writer(writer) {
                    self.end(xid, commits);
                }
            }
            Move::Write { lane } => {
                let xid = self.begin();
                self.insert(xid, lane);
                self.end(xid, true);
            }
            Move::Pass { millis } => self.now += Duration::from_millis(millis),
            Move::Claim => self.open(),
            Move::BeginRead { most } => self.begin_read(most),
            Move::EndRead { sweeps } => self.end_read(sweeps),
            Move::BeginSweep => self.begin_sweep(),
            Move::EndSweep => self.end_sweep(),
            Move::Release { left } => self.release(left),
            Move::Look { is_slow } => drop(self.look(is_slow)),
            Move::SweepAll if self.claim.is_none() => drop(self.sweep_all()),
            Move::SweepAll => {}
        }
    }

    fn open(&mut self) {
        if self.claim.is_none() {
            self.claim = Some(self.begin());
            (0..FEW_LANES).for_each(|lane| self.bounds.open(lane));
        }
    }

    fn begin_read(&mut self, most: usize) {
        if self.claim.is_some() && self.read.is_none() {
            let of_lane = |lane| {
                let cursor = self.bounds.cursor(lane);
                (cursor, self.above(lane, cursor).into_iter().take(most).collect())
            };
            self.read = Some(Read { next_xid: self.next_xid, lanes: (0..FEW_LANES).map(of_lane).collect() });
        }
    }

    /// What the feed does with a read and the sweep of the gap that follows it.
    fn end_read(&mut self, sweeps: bool) {
        let Some(Read { next_xid, lanes }) = self.read.take() else { return };
        let snapshot = self.snapshot();
        if sweeps {
            self.bounds.shows_late_rows(&snapshot);
        }
        if sweeps && self.is_unswept() {
            self.begin_sweep();
            self.end_sweep();
            return;
        }
        for (lane, (cursor, ids)) in (0..FEW_LANES).zip(lanes) {
            let is_in_place = self.bounds.cursor(lane) == cursor;
            let late = if sweeps { self.sweep_of_the_gap(lane, &snapshot) } else { None };
            if let (true, None, Some(last)) = (is_in_place, late, ids.last()) {
                self.bounds.read(lane, *last, next_xid, self.now);
                self.take(lane, &ids);
            }
        }
    }

    fn take(&mut self, lane: Lane, ids: &[i64]) {
        for id in ids {
            if self.pending.remove(&(lane, *id)) {
                self.taken.push((lane, *id));
            }
        }
    }

    fn sweep_of_the_gap(&mut self, lane: Lane, snapshot: &Snapshot) -> Option<i64> {
        let upto = self.bounds.cursor(lane);
        let late = self.above(lane, self.bounds.low(lane)).first().copied().filter(|id| *id <= upto);
        self.bounds.swept(&[(lane, upto)], snapshot, self.now);
        late.inspect(|id| self.bounds.rewind(lane, *id))
    }

    fn begin_sweep(&mut self) {
        if self.claim.is_some() && self.sweep.is_none() {
            let upto: Vec<(Lane, i64)> = (0..FEW_LANES).map(|lane| (lane, self.bounds.cursor(lane))).collect();
            let is_in_reach = |key: &&(Lane, i64)| upto.iter().any(|(lane, upto)| *lane == key.0 && key.1 <= *upto);
            let keys = self.pending.iter().filter(is_in_reach).copied().collect();
            self.sweep = Some(BottomSweep { marks: self.bounds.marks(), upto, keys });
        }
    }

    fn end_sweep(&mut self) {
        let Some(BottomSweep { marks, upto, keys }) = self.sweep.take() else { return };
        for (lane, id) in keys.into_iter().filter(|key| self.pending.contains(key)) {
            self.bounds.rewind(lane, id);
        }
        let lanes: Vec<Lane> = upto.into_iter().map(|(lane, _)| lane).collect();
        self.bounds.swept_from_the_bottom(&lanes, marks);
    }

    fn is_unswept(&self) -> bool {
        (0..FEW_LANES).any(|lane| self.bounds.is_unswept(lane))
    }

    fn release(&mut self, left: usize) {
        let Some(claim) = self.claim else { return };
        self.end_read(true);
        self.end_sweep();
        let taken = std::mem::take(&mut self.taken);
        for key in taken.into_iter().rev().take(left) {
            self.pending.insert(key);
            self.bounds.rewind(key.0, key.1);
        }
        self.claim = None;
        self.end(claim, true);
    }

    /// What the relay does without a claim; returns the lanes to claim.
    fn look(&mut self, is_slow: bool) -> Vec<Lane> {
        if self.claim.is_some() {
            return Vec::new();
        }
        let ready: Vec<Lane> = (0..FEW_LANES).filter(|l| !self.above(*l, self.bounds.low(*l)).is_empty()).collect();
        let (snapshot, next_xid) = (self.snapshot(), self.next_xid);
        if is_slow {
            let xid = self.begin();
            self.insert(xid, 0);
        }
        let look = Look { snapshot, next_xid, last_id: self.last_id, ready, due: Vec::new() };
        self.bounds.shows_late_rows(&look.snapshot);
        let late = if self.is_unswept() { self.sweep_all() } else { Vec::new() };
        let empty: Vec<Lane> = (0..LANES).filter(|lane| !look.ready.contains(lane) && !late.contains(lane)).collect();
        self.bounds.looked(&empty, &look, self.now);
        [look.ready, late].concat()
    }

    /// The relay's own sweep: the lowest message of each lane is enough.
    fn sweep_all(&mut self) -> Vec<Lane> {
        let lowest = |lane| self.above(lane, 0).first().map(|id| (lane, *id));
        let found: Vec<(Lane, i64)> = (0..FEW_LANES).filter_map(lowest).collect();
        for (lane, id) in &found {
            self.bounds.rewind(*lane, *id);
        }
        let all: Vec<Lane> = (0..LANES).collect();
        self.bounds.swept_from_the_bottom(&all, self.bounds.marks());
        found.iter().map(|(lane, _)| *lane).collect()
    }

    /// A message that is committed and not read lies above the low bound of its lane, or it is known that something below
    /// the bounds may be new.
    fn check(&self) {
        for (lane, id) in &self.pending {
            let low = self.bounds.low(*lane);
            let is_known = self.bounds.is_unswept(*lane) || self.bounds.clone().shows_late_rows(&self.snapshot());
            let is_seen = *id > low || is_known;
            assert!(is_seen, "message {id} of lane {lane} was passed in silence; the low bound is {low}");
        }
        assert!((0..FEW_LANES).all(|lane| self.bounds.low(lane) <= self.bounds.cursor(lane)));
        assert!(!self.bounds.has_overtaken() || self.now - self.start >= PATIENCE, "nobody waited for a writer");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_committed_message_is_passed_in_silence(moves in moves()) {
        let mut world = World::new();
        for step in &moves {
            world.make(step);
            world.check();
        }
    }

    /// Under one claim, and without a sweep from the bottom but for those that a writer's end calls for.
    #[test]
    fn all_is_read_when_the_writers_are_over(moves in moves()) {
        let mut world = World::new();
        moves.iter().for_each(|step| world.make(step));
        world.end_all();
        world.look(false);
        world.open();
        for _ in 0..2 * world.pending.len() + 4 {
            world.begin_read(3);
            world.end_read(true);
        }
        prop_assert!(world.pending.is_empty(), "never read: {:?}", world.pending);
    }

    /// Without overtaking the bounds follow, so that neither reads nor sweeps walk what is done.
    #[test]
    fn the_bounds_reach_what_was_read_when_the_writers_are_over(moves in moves()) {
        let mut world = World::new();
        moves.iter().for_each(|step| world.make(step));
        world.release(0);
        world.end_all();
        let before = world.last_id;
        for _ in 0..4 * world.pending.len() + 4 {
            for _ in world.look(false) {
                world.open();
            }
            for _ in 0..4 {
                world.begin_read(3);
                world.end_read(true);
            }
            world.release(0);
        }
        let lows: Vec<i64> = (0..FEW_LANES).map(|lane| world.bounds.low(lane)).collect();
        prop_assert!(lows.iter().all(|low| *low >= before), "{:?} after all up to {} ended", lows, before);
    }
}
