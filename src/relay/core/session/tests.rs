use std::sync::Arc;
use std::time::SystemTime;

use super::super::destination::Knowledge;
use super::super::lease::USE_FOR;
use super::super::limits::MemoryBudget;
use super::super::watermark::Watermarks;
use super::super::work::{Baseline, Completion};
use super::*;
use crate::config::Tuning;
use crate::message::{
    Accepts, BodyForm, ClaimCheck, Content, DestinationKind, Event, EventPosition, Message, MessageId, MessageKey,
    Origin, TransactionId,
};
use crate::reading::{Batch, ByLane, ClaimProof, ReadAnswer, Writers};

const MIB: usize = 1024 * 1024;

fn claimed(now: Time) -> Claimed {
    let proof = ClaimProof { transaction_id: TransactionId(40), server: "1".to_owned() };
    Claimed { lanes: Lane::all().map(|lane| (lane, Arc::from("1"))).collect(), proof, asked_at: now }
}

fn destination(now: Time) -> DestinationState {
    with_memory(Accepts::queue(DestinationKind::Standard), &MemoryBudget::new(1 << 20), now)
}

fn with_memory(accepts: Accepts, memory: &Arc<MemoryBudget>, now: Time) -> DestinationState {
    let memory = memory.share();
    let mut destination = DestinationState::new(accepts, Tuning::default(), memory, fastrand::Rng::with_seed(1), now);
    let writers = Writers { transaction_ids: Vec::new(), next_xid: Some(TransactionId(40)) };
    let first = Baseline { incarnations: ByLane::default(), last_id: MessageId(0), writers };
    let watermarks = Watermarks::start(&ByLane::all(MessageId(0)), &first);
    destination.knowledge = Knowledge::new(watermarks, ByLane::default(), now);
    destination
}

fn one_message() -> Batch {
    batch([message(7, 2)])
}

fn batch(messages: impl IntoIterator<Item = Message>) -> Batch {
    Batch {
        messages: messages.into_iter().collect(),
        next_xid: Some(TransactionId(60)),
        last_id: MessageId(100),
        ..Batch::default()
    }
}

fn message(id: i64, bytes: usize) -> Message {
    let event = Event {
        event_id: "e".to_owned(),
        event_type: "T".to_owned(),
        stream: None,
        body: "x".repeat(bytes),
        form: BodyForm::Json,
        metadata: "{}".to_owned(),
    };
    Message {
        key: MessageKey { lane: Lane::new(1).unwrap(), id: MessageId(id) },
        origin: Origin { event_position: EventPosition(id), enqueued_at: SystemTime::UNIX_EPOCH },
        group: None,
        attempts: 0,
        superseded: None,
        age_when_read: Duration::ZERO,
        read_at: Time::default(),
        wait: None,
        hold: None,
        content: Content::Event(event),
    }
}

/// A session whose first read takes this long; returns whether its message is sent, and how often more time was asked
/// for.
fn first_read_takes(time: Duration) -> (bool, u32) {
    let mut now = Time::default();
    let (claim, mut destination) = (claimed(now), destination(now));
    let (mut session, extend) = Session::new(&claim, &mut destination, now);
    assert!(extend.is_none(), "the claim was answered at once");
    let (read_ends, mut read, mut extended) = (now + time, None, 0);
    while now < read_ends + Duration::from_secs(1) {
        for work in session.due(&mut destination, now) {
            match work {
                Work::Read(work) if read.is_none() && now < read_ends => read = Some(work),
                Work::Publish { until, .. } => {
                    assert!(now < until && until == session.lease.use_until, "after the end of the claim");
                    return (true, extended);
                }
                Work::Extend { use_for, idle_timeout, asked_at } => {
                    assert!(now < session.lease.ends_at, "the server has ended the claim");
                    extended += 1;
                    let agreed = Completion::Extended { use_for, idle_timeout, asked_at, answer: Ok(()) };
                    session.apply(agreed, &mut destination, now);
                }
                _ => {}
            }
        }
        if let Some(work) = read.take_if(|_| now >= read_ends) {
            let answer = ReadAnswer { lanes: one_message(), ..ReadAnswer::default() };
            session.apply(Completion::Read(work, Ok(answer)), &mut destination, now);
        }
        now = now + Duration::from_millis(10);
    }
    (false, extended)
}

#[test]
fn a_claim_whose_first_read_is_slow_is_extended_until_something_was_sent() {
    assert_eq!(first_read_takes(Duration::from_millis(500)), (true, 0));
    assert_eq!(first_read_takes(USE_FOR - Duration::from_millis(1)), (true, 1));
    assert_eq!(first_read_takes(USE_FOR + Duration::from_secs(1)), (true, 1));
    assert_eq!(first_read_takes(Duration::from_secs(10)), (true, 2), "the longest time that a statement may take");
}

/// The requests that go out when these bodies for a bucket were read, by their ids.
fn requests(bodies: &[usize]) -> Vec<Vec<i64>> {
    const BUDGET: usize = 64 * MIB;
    let now = Time::default();
    let check = ClaimCheck {
        bucket: "b".to_owned(),
        prefix: String::new(),
        relay: String::new(),
        above: 1024,
        max_bytes: BUDGET / 8,
    };
    let accepts = Accepts { claim_check: Some(Arc::new(check)), ..Accepts::queue(DestinationKind::Standard) };
    let mut destination = with_memory(accepts, &MemoryBudget::new(BUDGET), now);
    let (mut session, _) = Session::new(&claimed(now), &mut destination, now);
    let mut work = session.due(&mut destination, now);
    let read = work.drain(..).find_map(|work| if let Work::Read(read) = work { Some(read) } else { None });
    let messages = bodies.iter().zip(1..).map(|(bytes, id)| message(id, *bytes));
    let answer = ReadAnswer { lanes: batch(messages), ..ReadAnswer::default() };
    session.apply(Completion::Read(read.unwrap(), Ok(answer)), &mut destination, now);
    let work = session.due(&mut destination, now);
    assert!(!work.iter().any(|work| matches!(work, Work::Read(_))) || bodies.iter().sum::<usize>() < 8 * MIB);
    let published = |work: Work| if let Work::Publish { items, .. } = work { Some(items) } else { None };
    work.into_iter().filter_map(published).map(|items| items.iter().map(|item| item.id().0).collect()).collect()
}

#[test]
fn bodies_for_a_bucket_are_stored_a_few_at_a_time_and_no_more_are_read_meanwhile() {
    assert_eq!(requests(&[6 * MIB; 6]), [[1], [2]]);
    assert_eq!(requests(&[MIB; 20]).concat(), (1..=8).collect::<Vec<_>>());
}
