//! A relay's process in the simulation: the core as it ships, its claim, and the works under way, step by step.

use std::collections::BTreeSet;
use std::time::Duration;

use super::super::work::{Completion, FirstLook, Work};
use super::super::{Control, Core, MemoryBudget, Until};
use super::database::Database;
use super::queue::{Answer, Sent};
use crate::clock::Time;
use crate::config::Tuning;
use crate::message::{Fault, FaultKind, MessageId, QueueKind, TransactionId};
use crate::outbox::{Claimed, OutboxError};
use crate::reading::{ByLane, ClaimProof, Incarnation, ReadAnswer};
use crate::sqs::Published;

/// Below this id the server cuts one chunk in forty short that may be.
const DEAR: MessageId = MessageId(1 << 20);

/// How many groups a relay remembers one by one; the days have no more than six.
const MOST_PARKED: [usize; 3] = [10_000, 3, 1];

/// How many messages that it did not know of a look shows a relay.
const MOST_UNKNOWN: [usize; 2] = [100, 1];

/// One relay of the destination.
pub(super) struct Process {
    pub(super) core: Core,
    pub(super) claim: Option<ClaimProof>,
    /// Transactions of claims that this process knows to be its own.
    pub(super) own: BTreeSet<TransactionId>,
    /// When it learns that its claim's connection is closed.
    pub(super) notices_at: Option<Time>,
    pub(super) frozen_until: Time,
    /// Steps that were planned before count no more.
    pub(super) generation: u64,
    /// Works begun.
    pub(super) begun: u64,
}

impl Process {
    pub(super) fn new(kind: QueueKind, tuning: Tuning, memory: usize, seed: u64, now: Time) -> Self {
        let share = MemoryBudget::new(memory).share();
        let mut core = Core::new(kind, tuning, Until::Drained, share, fastrand::Rng::with_seed(seed), now);
        core.standing.max_parked = MOST_PARKED[seed as usize % MOST_PARKED.len()];
        core.standing.max_unknown = MOST_UNKNOWN[(seed >> 8) as usize % MOST_UNKNOWN.len()];
        core.control(Control::Running, now);
        Self { core, claim: None, own: BTreeSet::new(), notices_at: None, frozen_until: now, generation: 0, begun: 0 }
    }

    /// Whether its claim's connection was closed, as far as it knows by now; true once.
    pub(super) fn has_lost_claim(&mut self, now: Time) -> bool {
        let is_lost = self.claim.is_some() && self.notices_at.is_some_and(|at| at <= now);
        if is_lost {
            self.forget_claim();
        }
        is_lost
    }

    pub(super) fn forget_claim(&mut self) {
        self.notices_at = None;
        if let Some(proof) = self.claim.take() {
            self.own.remove(&proof.transaction_id);
        }
    }
}

/// A work under way.
pub(super) struct Job {
    pub(super) process: usize,
    pub(super) began_at: Time,
    /// The connections that were open when it began.
    pub(super) connections: u64,
    pub(super) state: JobState,
}

pub(super) enum JobState {
    /// Statements are left to be run.
    Statements { work: Box<Work>, claim: Option<ClaimProof>, partial: Box<Partial> },
    /// The answer is on its way back.
    Answered(Box<Completion>),
    /// A request to SQS; the answer, as soon as there is one.
    Request { work: Box<Work>, published: Option<Published> },
}

/// What the first statements of a work have brought.
#[derive(Default)]
pub(super) struct Partial {
    steps: usize,
    incarnations: ByLane<Option<Incarnation>>,
    last_id: MessageId,
    read: ReadAnswer,
    writes_in: Option<TransactionId>,
}

/// What a step has led to.
pub(super) enum Stepped {
    /// More statements follow.
    Again(Box<Work>, Box<Partial>),
    Done(Box<Completion>),
}

/// The surroundings of a statement.
pub(super) struct Surroundings<'a> {
    pub(super) database: &'a mut Database,
    pub(super) own: &'a BTreeSet<TransactionId>,
    pub(super) claim: Option<&'a ClaimProof>,
    pub(super) began_at: Time,
    pub(super) now: Time,
    pub(super) dice: &'a mut fastrand::Rng,
}

impl Surroundings<'_> {
    /// Runs the next statement of a work.
    pub(super) fn step(&mut self, work: Work, mut partial: Box<Partial>) -> Stepped {
        partial.steps += 1;
        match work {
            Work::FirstLook => self.first_look(partial),
            Work::Read(work) => match self.read(&work, &mut partial) {
                Ok(true) => done(Completion::Read(work, Ok(partial.read))),
                Ok(false) => Stepped::Again(Box::new(Work::Read(work)), partial),
                Err(error) => done(Completion::Read(work, Err(error))),
            },
            Work::Settle { settlements, proof } => {
                // Its transaction begins, and commits with the next step.
                let Some(id) = partial.writes_in else {
                    let id = self.database.begin();
                    self.database.lock_as_writer(id);
                    partial.writes_in = Some(id);
                    return Stepped::Again(Box::new(Work::Settle { settlements, proof }), partial);
                };
                let answer = match self.database.is_running(id) {
                    true => self.database.settle(&settlements, proof.as_ref(), self.now),
                    false => Err(OutboxError::ClaimLost),
                };
                self.database.end(id, true);
                done(Completion::Settled { settlements, took: self.now.since(self.began_at), answer })
            }
            work => done(self.in_one(work)),
        }
    }

    fn first_look(&mut self, mut partial: Box<Partial>) -> Stepped {
        match partial.steps {
            1 => partial.incarnations = self.database.incarnations(),
            2 => partial.last_id = self.database.watch(self.now).last_id,
            _ => {
                let (incarnations, last_id) = (partial.incarnations, partial.last_id);
                let writers = self.database.writers();
                return done(Completion::FirstLooked(Ok(FirstLook { incarnations, last_id, writers })));
            }
        }
        Stepped::Again(Box::new(Work::FirstLook), partial)
    }

    /// What has ended, then groups, then lanes, then the gap, each under a snapshot of its own; whether that was all.
    fn read(&mut self, work: &super::super::work::ReadWork, partial: &mut Partial) -> Result<bool, OutboxError> {
        let request = &work.request;
        match self.claim {
            Some(proof) => self.database.is_claimed(Some(proof))?,
            None => return Err(OutboxError::ClaimLost),
        }
        match partial.steps {
            1 => partial.read.before = (!request.groups.is_empty()).then(|| self.database.snapshot(self.own)),
            2 => {
                for position in &request.groups {
                    partial.read.groups.push(self.database.read_group(position, request, self.now)?);
                }
            }
            3 if !request.lanes.is_empty() => {
                let cut = if self.dice.u8(0..20) == 0 { self.dice.usize(1..4) } else { usize::MAX };
                partial.read.lanes = self.database.read_lanes(request, cut, self.now)?;
            }
            4 => partial.read.gap = request.gap.as_ref().map(|gap| self.database.rescan(gap, self.own)),
            _ => {}
        }
        Ok(partial.steps == 4)
    }

    fn in_one(&mut self, work: Work) -> Completion {
        let (database, now) = (&mut *self.database, self.now);
        match work {
            Work::Prepare => {
                database.create_lanes();
                Completion::Prepared(Ok(()))
            }
            Work::Rescan(work) => {
                let answer = database.is_claimed(work.proof.as_ref());
                // As if the ids that were handed out were dear to walk.
                let is_dear = work.rescan.ranges.iter().any(|range| range.above < DEAR);
                let is_cut_short = is_dear && work.rescan.limit.is_some() && self.dice.u8(0..40) == 0;
                let answer = answer.map(|()| (!is_cut_short).then(|| database.rescan(&work.rescan, self.own)));
                Completion::Rescanned(work, answer)
            }
            Work::Look { lows, order, longest_delay } => {
                Completion::Looked(Ok(database.look(&lows, order, longest_delay, self.own, now)))
            }
            Work::Writers { asked_at } => Completion::Writers { asked_at, answer: Ok(database.writers()) },
            Work::CheckHeld { groups, order, deaths } => {
                Completion::HeldChecked { deaths, answer: Ok(database.held_groups(&groups, order, now)) }
            }
            Work::CheckPending { order } => Completion::PendingChecked(Ok(database.pending_left(order))),
            Work::Claim { lanes, most, limit } => {
                let first = self.dice.usize(0..16);
                let claimed = database.claim(&lanes, most, first, limit, now);
                let asked_at = self.began_at;
                Completion::Claimed(Ok(claimed.map(|(lanes, proof)| Claimed { lanes, proof, asked_at })))
            }
            Work::ReadDue { request, statement, memory } => {
                let answer = match self.claim {
                    Some(proof) => database.is_claimed(Some(proof)).and_then(|()| database.read_due(&request, now)),
                    None => Err(OutboxError::ClaimLost),
                };
                Completion::DueRead { statement, memory, answer }
            }
            Work::SetAside { messages } => {
                database.set_aside(&messages);
                Completion::SetAside { messages, answer: Ok(()) }
            }
            work => self.of_claim(work),
        }
    }

    fn of_claim(&mut self, work: Work) -> Completion {
        let (database, now) = (&mut *self.database, self.now);
        let lives = |proof: &&ClaimProof| database.is_claimed(Some(proof)).is_ok();
        let Some(id) = self.claim.filter(lives).map(|proof| proof.transaction_id) else {
            return failed(work, OutboxError::ClaimLost);
        };
        match work {
            Work::Extend { use_for, limit, asked_at } => {
                let claim = database.claims.get_mut(&id).unwrap();
                (claim.limit, claim.heard_at) = (limit, now);
                Completion::Extended { use_for, limit, asked_at, answer: Ok(()) }
            }
            Work::Widen { lanes, most } => Completion::Widened(Ok(database.widen(id, &lanes, most, now))),
            _ => {
                database.end_claim(id);
                Completion::Released(Ok(()))
            }
        }
    }
}

fn done(completion: Completion) -> Stepped {
    Stepped::Done(Box::new(completion))
}

/// A work that could not be done.
pub(super) fn failed(work: Work, error: OutboxError) -> Completion {
    match work {
        Work::Prepare => Completion::Prepared(Err(error)),
        Work::FirstLook => Completion::FirstLooked(Err(error)),
        Work::Rescan(work) => Completion::Rescanned(work, Err(error)),
        Work::Look { .. } => Completion::Looked(Err(error)),
        Work::Writers { asked_at } => Completion::Writers { asked_at, answer: Err(error) },
        Work::CheckHeld { deaths, .. } => Completion::HeldChecked { deaths, answer: Err(error) },
        Work::CheckPending { .. } => Completion::PendingChecked(Err(error)),
        Work::Claim { .. } => Completion::Claimed(Err(error)),
        Work::Extend { use_for, limit, asked_at } => {
            Completion::Extended { use_for, limit, asked_at, answer: Err(error) }
        }
        Work::Widen { .. } => Completion::Widened(Err(error)),
        Work::Read(work) => Completion::Read(work, Err(error)),
        Work::ReadDue { statement, memory, .. } => Completion::DueRead { statement, memory, answer: Err(error) },
        Work::Settle { settlements, .. } => {
            Completion::Settled { settlements, took: Duration::from_millis(10), answer: Err(error) }
        }
        Work::SetAside { messages } => Completion::SetAside { messages, answer: Err(error) },
        Work::Release => Completion::Released(Err(error)),
        Work::Publish { .. } => unreachable!("a request fails otherwise"),
    }
}

/// The same, but its answer was lost.
pub(super) fn lost(completion: Completion, error: OutboxError) -> Completion {
    match completion {
        Completion::Prepared(_) => Completion::Prepared(Err(error)),
        Completion::FirstLooked(_) => Completion::FirstLooked(Err(error)),
        Completion::Rescanned(work, _) => Completion::Rescanned(work, Err(error)),
        Completion::Looked(_) => Completion::Looked(Err(error)),
        Completion::Writers { asked_at, .. } => Completion::Writers { asked_at, answer: Err(error) },
        Completion::HeldChecked { deaths, .. } => Completion::HeldChecked { deaths, answer: Err(error) },
        Completion::PendingChecked(_) => Completion::PendingChecked(Err(error)),
        Completion::Claimed(_) => Completion::Claimed(Err(error)),
        Completion::Extended { use_for, limit, asked_at, .. } => {
            Completion::Extended { use_for, limit, asked_at, answer: Err(error) }
        }
        Completion::Widened(_) => Completion::Widened(Err(error)),
        Completion::Read(work, _) => Completion::Read(work, Err(error)),
        Completion::DueRead { statement, memory, .. } => Completion::DueRead { statement, memory, answer: Err(error) },
        Completion::Settled { settlements, took, .. } => Completion::Settled { settlements, took, answer: Err(error) },
        Completion::SetAside { messages, .. } => Completion::SetAside { messages, answer: Err(error) },
        Completion::Released(_) => Completion::Released(Err(error)),
        other @ (Completion::Published { .. } | Completion::ClaimLost) => other,
    }
}

/// What is sent of some items.
pub(super) fn sent(work: &Work) -> Vec<Sent> {
    let Work::Publish { items, .. } = work else { return Vec::new() };
    let sent = |item: &super::super::item::Item| Sent {
        uid: super::database::uid(item.origin),
        key: item.key(),
        group: item.group.clone(),
    };
    items.iter().map(sent).collect()
}

/// What SQS answered, as the client has it.
pub(super) fn published(answer: Answer, entries: usize, took: Duration) -> Option<Published> {
    match answer {
        Answer::Entries(results) => Some(Published { results, request_fault: None, duration: took }),
        Answer::Failed(fault) => Some(request_failed(fault, entries)),
        Answer::None => None,
    }
}

pub(super) fn request_failed(fault: Fault, entries: usize) -> Published {
    Published { results: vec![Err(fault.clone()); entries], request_fault: Some(fault), duration: Duration::ZERO }
}

pub(super) fn timed_out(entries: usize) -> Published {
    request_failed(Fault::new(FaultKind::Ambiguous, "Timeout", "simulated"), entries)
}

pub(super) fn too_late(entries: usize) -> Published {
    request_failed(Fault::new(FaultKind::NotSent, "ClaimOver", "simulated"), entries)
}
