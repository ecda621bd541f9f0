//! What one read may be taken for whose statements saw different snapshots. All rules together: `relay/core/properties.rs`.

use std::time::{Duration, SystemTime};

use super::super::handover::{GoesOn, ParkedGroup};
use super::super::limits::MemoryBudget;
use super::super::schedule::Shape;
use super::super::standing::Knowledge;
use super::super::watermark::Watermarks;
use super::super::work::FirstLook;
use super::*;
use crate::config::Tuning;
use crate::message::{Event, EventPosition, Origin, TransactionId};
use crate::reading::{ByLane, ReadRequest, Writers};

/// Above this nothing was read when a test begins.
const READ_TO: MessageId = MessageId(27);

/// Who has taken ids up to 27 and not committed yet.
const WRITER: TransactionId = TransactionId(50);

fn lane(number: i16) -> Lane {
    Lane::new(number).unwrap()
}

fn message(id: i64) -> Message {
    let event = Event {
        event_id: id.to_string(),
        event_type: "T".to_owned(),
        stream: None,
        payload: "{}".to_owned(),
        metadata: "{}".to_owned(),
    };
    Message {
        key: MessageKey { lane: lane(1), id: MessageId(id) },
        origin: Origin { event_position: EventPosition(id), enqueued_at: SystemTime::UNIX_EPOCH },
        group: Some(Arc::from("a")),
        attempts: 0,
        age_when_read: Duration::ZERO,
        read_at: Time::default(),
        wait: None,
        hold: None,
        content: Content::Event(event),
    }
}

fn batch(ids: impl IntoIterator<Item = i64>) -> Batch {
    let (next_xid, last_id) = (Some(TransactionId(60)), MessageId(30));
    Batch { messages: ids.into_iter().map(message).collect(), next_xid, last_id, ..Batch::default() }
}

/// A claim of lanes 1 and 2. Lane 1 was read to 27, and 21 to 25 of its group a were left in the table.
struct Claim {
    intake: Intake,
    schedule: Schedule,
    standing: Standing,
}

impl Claim {
    fn new(overtaken: Vec<TransactionId>) -> Self {
        let now = Time::default();
        let memory = MemoryBudget::new(1 << 20).share();
        let mut standing = Standing::new(QueueKind::Fifo, Tuning::default(), memory, fastrand::Rng::with_seed(1), now);
        let writers = Writers { transaction_ids: overtaken, next_xid: Some(TransactionId(40)) };
        let first = FirstLook { incarnations: ByLane::default(), last_id: MessageId(20), writers };
        let mut watermarks = Watermarks::start(&ByLane::all(MessageId(20)), &first);
        watermarks.read(lane(1), READ_TO, TransactionId(WRITER.0 + 1), READ_TO, now);
        standing.knowledge = Knowledge::new(watermarks, ByLane::default(), now);
        let mut schedule = Schedule::new(Shape { request_size: 10, per_group: 1, window: 10, max_parked: 10 });
        let (after, upto) = (MessageId(20), MessageId(25));
        let left = ParkedGroup { group: Arc::from("a"), lane: lane(1), after, upto, goes_on: GoesOn::Now };
        schedule.take_over(&left);
        Self { intake: Intake::new(now), schedule, standing }
    }

    /// A read of what was left of group a, of lane 1 above 27, and a look at the gap from here up.
    fn work(&mut self, gap_above: MessageId) -> ReadWork {
        let groups = self.schedule.next_to_read_on(1, &|_| READ_TO);
        let ranges = [1, 2].map(|number| Range::new(lane(number), gap_above, READ_TO));
        let request = ReadRequest {
            groups: groups.iter().map(|wanted| wanted.position.clone()).collect(),
            lanes: vec![Position { lane: lane(1), above: READ_TO, most: 10 }],
            gap: Some(Rescan { ranges: ranges.to_vec(), most: 100, ..Rescan::default() }),
            ..ReadRequest::default()
        };
        let memory = self.standing.memory.reserve(0);
        ReadWork { request, groups, began_at: Time::default(), statement: 1, memory }
    }

    fn read(&mut self, work: ReadWork, answer: ReadAnswer) {
        let Self { intake, schedule, standing } = self;
        let now = Time::default() + Duration::from_secs(1);
        Admission { intake, schedule, standing, refused: Refused::default(), now }.read(work, answer);
    }

    fn knows(&self, id: i64) -> bool {
        self.schedule.knows(MessageKey { lane: lane(1), id: MessageId(id) })
    }
}

fn snapshot(text: &str) -> Snapshot {
    Snapshot::parse(text).unwrap()
}

/// What the statements of a read saw if the writer ended after the groups were read.
fn answer(lanes: Batch) -> ReadAnswer {
    let gap = Rescanned { snapshot: snapshot("60:60:"), found: Vec::new(), took: Duration::ZERO };
    ReadAnswer { before: Some(snapshot("50:60:50")), groups: vec![batch(21..=25)], lanes, gap: Some(gap) }
}

#[test]
fn what_is_committed_after_a_group_was_read_is_not_passed_and_not_overtaken() {
    let mut claim = Claim::new(Vec::new());
    let work = claim.work(MessageId(20));
    // 26 of the group was committed after the groups were read. The gap leaves out what is above 20 of it, and 28 is shown.
    claim.read(work, answer(batch([28])));
    assert!(claim.knows(25), "what was read of the group is in memory");
    assert!(!claim.knows(28), "it would overtake 26");
    let low = claim.standing.knowledge.watermarks.low(lane(1));
    assert!(low < MessageId(26), "26 would be passed: {low:?}");
}

#[test]
fn a_watermark_passes_what_had_ended_before_a_group_was_read() {
    let mut claim = Claim::new(Vec::new());
    let work = claim.work(MessageId(20));
    claim.read(work, ReadAnswer { before: Some(snapshot("51:60:")), ..answer(batch([])) });
    assert_eq!(claim.standing.knowledge.watermarks.low(lane(1)), READ_TO);
}

#[test]
fn a_look_from_the_bottom_has_not_seen_what_ended_after_a_group_of_the_lane_was_read() {
    let mut claim = Claim::new(vec![WRITER]);
    let work = claim.work(MessageId::NONE);
    claim.read(work, answer(batch([])));
    let must_rescan =
        |claim: &Claim| [1, 2].map(|number| claim.standing.knowledge.watermarks.must_rescan(lane(number)));
    assert_eq!(must_rescan(&claim), [true, false], "of group a more may have come");
    // The next one begins after that.
    let work = ReadWork { groups: Vec::new(), ..claim.work(MessageId::NONE) };
    claim.read(work, ReadAnswer { before: None, groups: Vec::new(), ..answer(batch([])) });
    assert_eq!(must_rescan(&claim), [false, false]);
}

#[test]
fn where_a_look_shows_no_more_than_it_may_nothing_that_was_read_of_the_lane_is_taken_in() {
    let mut claim = Claim::new(Vec::new());
    // Of a crowd, of which nothing is late.
    (21..=23).for_each(|id| claim.standing.knowledge.crowds.join(&format!("crowd-{id}"), message(id).key));
    claim.schedule.parked.crowds = std::mem::take(&mut claim.standing.knowledge.crowds);
    let found = |id| Found { key: message(id).key, group: Some(Arc::from(format!("crowd-{id}"))) };
    let look = |claim: &mut Claim, found| {
        let mut work = ReadWork { groups: Vec::new(), ..claim.work(MessageId(20)) };
        work.request.groups.clear();
        work.request.gap = work.request.gap.map(|gap| Rescan { most: 2, ..gap });
        let gap = Rescanned { snapshot: snapshot("60:60:"), found, took: Duration::ZERO };
        let mut lanes = batch([28]);
        lanes.messages.iter_mut().for_each(|message| message.group = Some(Arc::from("b")));
        (work, ReadAnswer { before: None, groups: Vec::new(), lanes, gap: Some(gap) })
    };
    let (work, answer) = look(&mut claim, vec![found(21), found(22)]);
    claim.read(work, answer);
    assert!(!claim.knows(28), "a third message may be hidden, which has to go first");
    let (work, answer) = look(&mut claim, vec![found(23)]);
    claim.read(work, answer);
    assert!(claim.knows(28));
}
