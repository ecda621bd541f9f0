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
    Accepts, BodyForm, Content, DestinationKind, Event, EventPosition, Message, MessageId, MessageKey, Origin,
    TransactionId,
};
use crate::reading::{Batch, ByLane, ClaimProof, ReadAnswer, Writers};

fn claimed(now: Time) -> Claimed {
    let proof = ClaimProof { transaction_id: TransactionId(40), server: "1".to_owned() };
    Claimed { lanes: Lane::all().map(|lane| (lane, Arc::from("1"))).collect(), proof, asked_at: now }
}

fn destination(now: Time) -> DestinationState {
    let (accepts, memory) = (Accepts::queue(DestinationKind::Standard), MemoryBudget::new(1 << 20).share());
    let mut destination = DestinationState::new(accepts, Tuning::default(), memory, fastrand::Rng::with_seed(1), now);
    let writers = Writers { transaction_ids: Vec::new(), next_xid: Some(TransactionId(40)) };
    let first = Baseline { incarnations: ByLane::default(), last_id: MessageId(0), writers };
    let watermarks = Watermarks::start(&ByLane::all(MessageId(0)), &first);
    destination.knowledge = Knowledge::new(watermarks, ByLane::default(), now);
    destination
}

fn one_message() -> Batch {
    let event = Event {
        event_id: "e".to_owned(),
        event_type: "T".to_owned(),
        stream: None,
        body: "{}".to_owned(),
        form: BodyForm::Json,
        metadata: "{}".to_owned(),
    };
    let message = Message {
        key: MessageKey { lane: Lane::new(1).unwrap(), id: MessageId(7) },
        origin: Origin { event_position: EventPosition(7), enqueued_at: SystemTime::UNIX_EPOCH },
        group: None,
        attempts: 0,
        superseded: None,
        age_when_read: Duration::ZERO,
        read_at: Time::default(),
        wait: None,
        hold: None,
        content: Content::Event(event),
    };
    Batch { messages: vec![message], next_xid: Some(TransactionId(60)), last_id: MessageId(7), ..Batch::default() }
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
