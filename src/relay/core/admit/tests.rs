//! How a read is applied whose statements saw different snapshots. `relay/core/properties.rs` tests all rules together.

use std::time::{Duration, SystemTime};

use super::super::destination::Knowledge;
use super::super::handover::{GoesOn, ParkedGroup};
use super::super::limits::MemoryBudget;
use super::super::schedule::ScheduleLimits;
use super::super::watermark::Watermarks;
use super::super::work::Baseline;
use super::*;
use crate::config::Tuning;
use crate::message::{Accepts, BodyForm, Event, EventPosition, Origin, TransactionId};
use crate::reading::{ByLane, ReadRequest, Writers};

/// The read position when a test begins.
const READ_TO: MessageId = MessageId(27);

/// A writer that has taken ids up to 27 and not committed yet.
const WRITER: TransactionId = TransactionId(50);

fn lane(number: i16) -> Lane {
    Lane::new(number).unwrap()
}

fn message(id: i64) -> Message {
    let event = Event {
        event_id: id.to_string(),
        event_type: "T".to_owned(),
        stream: None,
        body: "{}".to_owned(),
        form: BodyForm::Json,
        metadata: "{}".to_owned(),
    };
    Message {
        key: MessageKey { lane: lane(1), id: MessageId(id) },
        origin: Origin { event_position: EventPosition(id), enqueued_at: SystemTime::UNIX_EPOCH },
        group: Some(Arc::from("a")),
        attempts: 0,
        superseded: None,
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
    destination: DestinationState,
}

impl Claim {
    fn new(overtaken: Vec<TransactionId>) -> Self {
        let now = Time::default();
        let memory = MemoryBudget::new(1 << 20).share();
        let mut destination = DestinationState::new(
            Accepts::queue(DestinationKind::Fifo),
            Tuning::default(),
            memory,
            fastrand::Rng::with_seed(1),
            now,
        );
        let writers = Writers { transaction_ids: overtaken, next_xid: Some(TransactionId(40)) };
        let first = Baseline { incarnations: ByLane::default(), last_id: MessageId(20), writers };
        let mut watermarks = Watermarks::start(&ByLane::all(MessageId(20)), &first);
        watermarks.read(lane(1), READ_TO, TransactionId(WRITER.0 + 1), READ_TO, now);
        destination.knowledge = Knowledge::new(watermarks, ByLane::default(), now);
        let mut schedule = Schedule::new(ScheduleLimits {
            request_size: 10,
            per_group: 1,
            window: 10,
            max_parked: 10,
            request_bytes: 1_048_576,
        });
        let (after, upto) = (MessageId(20), MessageId(25));
        let left = ParkedGroup { group: Arc::from("a"), lane: lane(1), after, upto, goes_on: GoesOn::Now };
        schedule.take_over(&left);
        Self { intake: Intake::new(now), schedule, destination }
    }

    /// A read of the rest of group a and of lane 1 above 27, and a rescan of the gap from here up.
    fn work(&mut self, gap_above: MessageId) -> ReadWork {
        let groups = self.schedule.next_to_read_on(1, &|_| READ_TO);
        let ranges = [1, 2].map(|number| Range::new(lane(number), gap_above, READ_TO));
        let request = ReadRequest {
            groups: groups.iter().map(|wanted| wanted.position.clone()).collect(),
            lanes: vec![Position { lane: lane(1), above: READ_TO, limit: 10 }],
            gap: Some(Rescan { ranges: ranges.to_vec(), limit: 100, ..Rescan::default() }),
            ..ReadRequest::default()
        };
        let memory = self.destination.memory.reserve(0);
        ReadWork { request, groups, began_at: Time::default(), statement: 1, memory }
    }

    fn read(&mut self, work: ReadWork, answer: ReadAnswer) {
        let Self { intake, schedule, destination } = self;
        let now = Time::default() + Duration::from_secs(1);
        Admission { intake, schedule, destination, refused: Refused::default(), now }.apply_read(work, answer);
    }

    fn knows(&self, id: i64) -> bool {
        self.schedule.knows(MessageKey { lane: lane(1), id: MessageId(id) })
    }
}

fn snapshot(text: &str) -> Snapshot {
    Snapshot::parse(text).unwrap()
}

/// The answer of a read if the writer ended after the groups were read.
fn answer(lanes: Batch) -> ReadAnswer {
    let gap = Rescanned { snapshot: snapshot("60:60:"), found: Vec::new(), took: Duration::ZERO };
    ReadAnswer { before: Some(snapshot("50:60:50")), groups: vec![batch(21..=25)], lanes, gap: Some(gap) }
}

#[test]
fn a_message_committed_after_its_group_was_read_is_neither_passed_nor_overtaken() {
    let mut claim = Claim::new(Vec::new());
    let work = claim.work(MessageId(20));
    // 26 of the group was committed after the groups were read. The rescan of the gap leaves out the group above 20,
    // and the lanes show 28.
    claim.read(work, answer(batch([28])));
    assert!(claim.knows(25), "the messages read of the group are in memory");
    assert!(!claim.knows(28), "it would overtake 26");
    let low = claim.destination.knowledge.watermarks.low(lane(1));
    assert!(low < MessageId(26), "26 would be passed: {low:?}");
}

#[test]
fn a_watermark_passes_writers_that_had_ended_before_a_group_was_read() {
    let mut claim = Claim::new(Vec::new());
    let work = claim.work(MessageId(20));
    claim.read(work, ReadAnswer { before: Some(snapshot("51:60:")), ..answer(batch([])) });
    assert_eq!(claim.destination.knowledge.watermarks.low(lane(1)), READ_TO);
}

#[test]
fn a_rescan_from_the_bottom_does_not_cover_a_writer_that_ended_after_a_group_was_read() {
    let mut claim = Claim::new(vec![WRITER]);
    let work = claim.work(MessageId::NONE);
    claim.read(work, answer(batch([])));
    let must_rescan =
        |claim: &Claim| [1, 2].map(|number| claim.destination.knowledge.watermarks.must_rescan(lane(number)));
    assert_eq!(must_rescan(&claim), [true, false], "group a may have more messages");
    // The next one begins after that.
    let work = ReadWork { groups: Vec::new(), ..claim.work(MessageId::NONE) };
    claim.read(work, ReadAnswer { before: None, groups: Vec::new(), ..answer(batch([])) });
    assert_eq!(must_rescan(&claim), [false, false]);
}

#[test]
fn if_a_rescan_is_full_nothing_that_was_read_of_the_lane_is_admitted() {
    let mut claim = Claim::new(Vec::new());
    // The messages belong to a crowd, and none of them is late.
    (21..=23).for_each(|id| claim.destination.knowledge.crowds.join(&format!("crowd-{id}"), message(id).key));
    claim.schedule.parked.crowds = std::mem::take(&mut claim.destination.knowledge.crowds);
    let found = |id| Found { key: message(id).key, group: Some(Arc::from(format!("crowd-{id}"))) };
    let look = |claim: &mut Claim, found| {
        let mut work = ReadWork { groups: Vec::new(), ..claim.work(MessageId(20)) };
        work.request.groups.clear();
        work.request.gap = work.request.gap.map(|gap| Rescan { limit: 2, ..gap });
        let gap = Rescanned { snapshot: snapshot("60:60:"), found, took: Duration::ZERO };
        let mut lanes = batch([28]);
        lanes.messages.iter_mut().for_each(|message| message.group = Some(Arc::from("b")));
        (work, ReadAnswer { before: None, groups: Vec::new(), lanes, gap: Some(gap) })
    };
    let (work, answer) = look(&mut claim, vec![found(21), found(22)]);
    claim.read(work, answer);
    assert!(!claim.knows(28), "a third message may be hidden and has to go first");
    let (work, answer) = look(&mut claim, vec![found(23)]);
    claim.read(work, answer);
    assert!(claim.knows(28));
}
