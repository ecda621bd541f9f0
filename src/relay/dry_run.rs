//! The dry run: what the relay computes for each message, without PostgreSQL and without SQS.
//!
//! `make test` counts its instructions and compares them with committed figures, because a clock is too noisy to show
//! a change of ten percent (`benches/instructions.rs`). It runs the core that ships through a claim: every question is
//! answered at once, from memory. The clock is its own, so that two runs decide the same.
//!
//! The work is in four functions, [`turn`], [`read`], [`publish`] and [`settle`], which are never inlined, so that the
//! instructions of each can be counted.

use std::collections::VecDeque;
use std::time::Duration;

use super::core::work::{Baseline, Completion, ReadWork, Work};
use super::core::{Control, Core, Item, MemoryBudget, Reserved, Until};
use crate::clock::Time;
use crate::config::Tuning;
use crate::message::{
    Accepts, DestinationKind, Fault, FaultKind, Lane, Message, MessageId, SequenceNumber, Settlement, TransactionId,
};
use crate::outbox::{Claimed, SettlePlan, Settled};
use crate::publisher::{Accepted, Published, build_request};
use crate::reading::{Batch, ByLane, ClaimProof, Look, ReadAnswer, Rescan, Rescanned, Snapshot, Writers};

/// How long each turn takes by the clock of the dry run.
const TURN: Duration = Duration::from_micros(100);

/// A run takes a few turns per thousand messages. One that takes this many goes in a circle.
const MAX_TURNS: usize = 1_000_000;

/// The next transaction that would begin. None is running.
const NEXT_XID: TransactionId = TransactionId(1000);

/// The result of a dry run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DryRun {
    /// Requests that would have been sent.
    pub requests: usize,
    /// Rows that would have been written.
    pub rows: usize,
}

/// Takes messages from the first look to the last settling, as if SQS accepted each at once. They must be in the order
/// of their ids.
///
/// # Errors
///
/// A message that SQS can never accept, a request that cannot be built, or a relay that stops before the end.
pub fn dry_run(messages: Vec<Message>, kind: DestinationKind) -> Result<DryRun, Fault> {
    let mut now = Time::default() + Duration::from_secs(1000);
    let memory = MemoryBudget::new(usize::MAX / 2).share();
    let mut core =
        Core::new(Accepts::queue(kind), Tuning::default(), Until::Drained, memory, fastrand::Rng::with_seed(1), now);
    core.control(Control::Running, now);
    let total = messages.len();
    let mut outside = Outside::new(messages, kind);
    for _ in 0..MAX_TURNS {
        let mut work = VecDeque::from(turn(&mut core, now));
        if work.is_empty() {
            now = core.wake_at(now);
        }
        while let Some(next) = work.pop_front() {
            work.extend(outside.perform(&mut core, next, now)?);
        }
        drop(core.reports());
        now = now + TURN;
        if outside.done.rows >= total {
            return Ok(outside.done);
        }
    }
    Err(Fault::new(FaultKind::Internal, "DryRunStopped", format!("{:?} of {total}", outside.done)))
}

/// The decisions of one turn of the loop.
#[inline(never)]
fn turn(core: &mut Core, now: Time) -> Vec<Work> {
    core.due(now)
}

/// Everything about a read but the statement: its messages become entries and are admitted.
#[inline(never)]
fn read(core: &mut Core, work: Box<ReadWork>, answer: ReadAnswer, now: Time) -> Option<Work> {
    core.apply(Completion::Read(work, Ok(answer)), now)
}

/// Everything about a request but sending it: it is built, and its answer is applied.
#[inline(never)]
fn publish(
    core: &mut Core,
    kind: DestinationKind,
    items: Vec<Item>,
    memory: Reserved,
    now: Time,
) -> Result<Option<Work>, Fault> {
    let entries: Vec<_> = items.iter().map(|item| &item.entry).collect();
    let request = build_request(&entries)
        .map_err(|error| Fault::new(FaultKind::Internal, "RequestNotBuilt", error.to_string()))?;
    // Message ids ascend within a group, as the numbers of a FIFO queue do. A standard queue gives none.
    let number = |item: &Item| match kind {
        DestinationKind::Standard | DestinationKind::Fair => None,
        DestinationKind::Fifo => SequenceNumber::parse(&item.entry.key().id.0.to_string()),
    };
    let results = request.into_iter().zip(&items);
    let results =
        results.map(|(entry, item)| Ok(Accepted { sqs_message_id: entry.id, sequence_number: number(item) })).collect();
    drop(memory);
    let published = Published { results, request_fault: None, duration: TURN, request_id: None };
    Ok(core.apply(Completion::Published { items, published }, now))
}

/// Everything about a settling but the statement: its columns are made, and its answer is applied.
#[inline(never)]
fn settle(core: &mut Core, settlements: Vec<Settlement>, now: Time) -> (usize, Option<Work>) {
    let rows = SettlePlan::of(&settlements).rows();
    (rows, core.apply(Completion::Settled { settlements, took: TURN, answer: Ok(Settled::default()) }, now))
}

/// What stands for PostgreSQL and SQS.
struct Outside {
    kind: DestinationKind,
    /// Messages that were not read yet.
    pending: ByLane<VecDeque<Message>>,
    last_id: MessageId,
    done: DryRun,
}

impl Outside {
    fn new(messages: Vec<Message>, kind: DestinationKind) -> Self {
        let last_id = messages.last().map_or(MessageId::NONE, |message| message.key.id);
        let mut pending = ByLane::<VecDeque<Message>>::default();
        messages.into_iter().for_each(|message| pending[message.key.lane].push_back(message));
        Self { kind, pending, last_id, done: DryRun::default() }
    }

    /// Does a piece of work at once and applies its result; returns the work that follows from it.
    fn perform(&mut self, core: &mut Core, work: Work, now: Time) -> Result<Option<Work>, Fault> {
        let completion = match work {
            Work::Read(work) => {
                let answer = self.answer(&work);
                return Ok(read(core, work, answer, now));
            }
            Work::Publish { items, memory, .. } => {
                self.done.requests += 1;
                return publish(core, self.kind, items, memory, now);
            }
            Work::Settle { settlements, .. } => {
                let (rows, next) = settle(core, settlements, now);
                self.done.rows += rows;
                return Ok(next);
            }
            Work::Prepare => Completion::Prepared(Ok(())),
            Work::ReadBaseline => Completion::BaselineRead(Ok(Baseline {
                incarnations: ByLane::all(Some("1".into())),
                last_id: MessageId::NONE,
                writers: writers(),
            })),
            Work::Rescan(work) => Completion::Rescanned(work, Ok(Some(rescanned()))),
            Work::Look { .. } => Completion::Looked(Ok(self.look())),
            Work::Writers { asked_at } => Completion::Writers { asked_at, answer: Ok(writers()) },
            Work::CheckHeld { deaths, .. } => Completion::HeldChecked { deaths, answer: Ok(Vec::new()) },
            Work::Claim { lanes, .. } => Completion::Claimed(Ok(Some(claimed(&lanes, now)))),
            Work::Widen { .. } => Completion::Widened(Ok(Vec::new())),
            Work::Extend { use_for, idle_timeout, asked_at } => {
                Completion::Extended { use_for, idle_timeout, asked_at, answer: Ok(()) }
            }
            Work::ReadDue { request, statement, memory } => {
                Completion::DueRead { statement, memory, lookup: request.lookup, answer: Ok(Batch::default()) }
            }
            Work::Release => Completion::Released(Ok(())),
            other @ (Work::CheckPending { .. } | Work::Quarantine { .. }) => {
                return Err(Fault::new(FaultKind::Internal, "DryRunAsked", format!("{other:?}")));
            }
        };
        Ok(core.apply(completion, now))
    }

    fn look(&self) -> Look {
        let ready: Vec<Lane> =
            self.pending.iter().filter(|(_, messages)| !messages.is_empty()).map(|(lane, _)| lane).collect();
        Look { snapshot: snapshot(), next_xid: NEXT_XID, last_id: self.last_id, ready, due: Vec::new() }
    }

    fn answer(&mut self, work: &ReadWork) -> ReadAnswer {
        let mut messages = Vec::new();
        for position in &work.request.lanes {
            let pending = &mut self.pending[position.lane];
            messages.extend(pending.drain(..position.limit.min(pending.len())));
        }
        let is_empty = messages.is_empty();
        let lanes =
            Batch { messages, next_xid: (!is_empty).then_some(NEXT_XID), last_id: self.last_id, ..Batch::default() };
        let groups: Vec<Batch> = work.request.groups.iter().map(|_| Batch::default()).collect();
        let before = (!groups.is_empty()).then(snapshot);
        ReadAnswer { before, groups, lanes, gap: work.request.gap.as_ref().map(|_: &Rescan| rescanned()) }
    }
}

fn snapshot() -> Snapshot {
    Snapshot::new(NEXT_XID, Vec::new())
}

fn writers() -> Writers {
    Writers { transaction_ids: Vec::new(), next_xid: Some(NEXT_XID) }
}

fn rescanned() -> Rescanned {
    Rescanned { snapshot: snapshot(), found: Vec::new(), took: TURN }
}

fn claimed(lanes: &[Lane], now: Time) -> Claimed {
    Claimed {
        lanes: lanes.iter().map(|lane| (*lane, "1".into())).collect(),
        proof: ClaimProof { transaction_id: TransactionId(1), server: "1".to_owned() },
        asked_at: now,
    }
}
