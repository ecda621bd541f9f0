//! A relay's process in the simulation: the core that ships, its claim, and its work, one statement after another.

use std::collections::BTreeSet;
use std::time::Duration;

use super::super::work::{Baseline, Completion, Work};
use super::super::{Control, Core, MemoryBudget, Until};
use super::database::Database;
use super::queue::{Answer, Sent};
use crate::clock::Time;
use crate::config::Tuning;
use crate::message::{Accepts, DestinationKind, Fault, FaultKind, MessageId, TransactionId};
use crate::outbox::{Claimed, OutboxError};
use crate::publisher::Published;
use crate::reading::{ByLane, ClaimProof, Incarnation, ReadAnswer};

/// A rescan that begins below this id takes long. The server cuts one in forty of them short, if they have a timeout.
const SLOW_BELOW: MessageId = MessageId(1 << 20);

/// Choices for how many groups a relay remembers one by one. No scenario has more than six groups.
const MAX_PARKED_CHOICES: [usize; 3] = [10_000, 3, 1];

/// Choices for how many unknown messages of a lane a rescan shows.
const MAX_UNKNOWN_CHOICES: [usize; 2] = [100, 1];

/// Choices for the most messages of one group in memory.
const MAX_WINDOW_CHOICES: [usize; 3] = [usize::MAX, 4, 2];

/// One relay of the destination.
pub(super) struct Process {
    pub(super) core: Core,
    pub(super) claim: Option<ClaimProof>,
    /// The transactions of claims that this process knows as its own.
    pub(super) own: BTreeSet<TransactionId>,
    /// When it notices that its claim's connection is closed.
    pub(super) notices_at: Option<Time>,
    pub(super) frozen_until: Time,
    /// Steps that were planned under an earlier generation do not run.
    pub(super) generation: u64,
    /// How many pieces of work it has begun.
    pub(super) begun: u64,
}

impl Process {
    pub(super) fn new(kind: DestinationKind, tuning: Tuning, memory: usize, seed: u64, now: Time) -> Self {
        let share = MemoryBudget::new(memory).share();
        let mut core =
            Core::new(Accepts::queue(kind), tuning, Until::Drained, share, fastrand::Rng::with_seed(seed), now);
        core.destination.max_parked = MAX_PARKED_CHOICES[seed as usize % MAX_PARKED_CHOICES.len()];
        core.destination.max_unknown = MAX_UNKNOWN_CHOICES[(seed >> 8) as usize % MAX_UNKNOWN_CHOICES.len()];
        core.destination.max_window = MAX_WINDOW_CHOICES[(seed >> 16) as usize % MAX_WINDOW_CHOICES.len()];
        core.control(Control::Running, now);
        Self { core, claim: None, own: BTreeSet::new(), notices_at: None, frozen_until: now, generation: 0, begun: 0 }
    }

    /// Whether the process has noticed that its claim's connection is closed; true once.
    pub(super) fn take_lost_claim(&mut self, now: Time) -> bool {
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

/// A piece of work under way.
pub(super) struct Job {
    pub(super) process: usize,
    pub(super) began_at: Time,
    /// The world's `connections` when it began; the connection is closed once that number has grown.
    pub(super) connections: u64,
    pub(super) state: JobState,
}

pub(super) enum JobState {
    /// Some of its statements have not run yet.
    Statements { work: Box<Work>, claim: Option<ClaimProof>, partial: Box<Partial> },
    /// The answer is on its way to the relay.
    Answered(Box<Completion>),
    /// A request to SQS, with the answer once there is one.
    Request { work: Box<Work>, claim: Option<TransactionId>, published: Option<Published> },
}

/// The results of the statements of a piece of work that have run so far.
#[derive(Default)]
pub(super) struct Partial {
    steps: usize,
    incarnations: ByLane<Option<Incarnation>>,
    last_id: MessageId,
    read: ReadAnswer,
    writes_in: Option<TransactionId>,
}

/// The result of a step.
pub(super) enum Stepped {
    /// More statements follow.
    Again(Box<Work>, Box<Partial>),
    Done(Box<Completion>),
}

/// What a statement runs in.
pub(super) struct Surroundings<'a> {
    pub(super) database: &'a mut Database,
    pub(super) own: &'a BTreeSet<TransactionId>,
    pub(super) claim: Option<&'a ClaimProof>,
    pub(super) began_at: Time,
    pub(super) now: Time,
    pub(super) rng: &'a mut fastrand::Rng,
}

impl Surroundings<'_> {
    /// Runs the next statement of a piece of work.
    pub(super) fn step(&mut self, work: Work, mut partial: Box<Partial>) -> Stepped {
        partial.steps += 1;
        match work {
            Work::ReadBaseline => self.read_baseline(partial),
            Work::Read(work) => match self.read(&work, &mut partial) {
                Ok(true) => done(Completion::Read(work, Ok(partial.read))),
                Ok(false) => Stepped::Again(Box::new(Work::Read(work)), partial),
                Err(error) => done(Completion::Read(work, Err(error))),
            },
            Work::Settle { settlements, proof } => {
                // The first step begins its transaction, and the next one commits it.
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
            work => done(self.single_statement(work)),
        }
    }

    fn read_baseline(&mut self, mut partial: Box<Partial>) -> Stepped {
        match partial.steps {
            1 => partial.incarnations = self.database.incarnations(),
            2 => partial.last_id = self.database.watch(self.now).last_id,
            _ => {
                let (incarnations, last_id) = (partial.incarnations, partial.last_id);
                let writers = self.database.writers();
                return done(Completion::BaselineRead(Ok(Baseline { incarnations, last_id, writers })));
            }
        }
        Stepped::Again(Box::new(Work::ReadBaseline), partial)
    }

    /// Runs the next statement of a read: which transactions have ended, then groups, then lanes, then the gap, each
    /// under its own snapshot. Returns whether that was the last one.
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
                let cut = if self.rng.u8(0..20) == 0 { self.rng.usize(1..4) } else { usize::MAX };
                partial.read.lanes = self.database.read_lanes(request, cut, self.now)?;
            }
            4 => partial.read.gap = request.gap.as_ref().map(|gap| self.database.rescan(gap, self.own)),
            _ => {}
        }
        Ok(partial.steps == 4)
    }

    fn single_statement(&mut self, work: Work) -> Completion {
        let (database, now) = (&mut *self.database, self.now);
        match work {
            Work::Prepare => {
                database.create_lanes();
                Completion::Prepared(Ok(()))
            }
            Work::Rescan(work) => {
                let answer = database.is_claimed(work.proof.as_ref());
                // Walking the ids that the sequence has handed out takes long; the empty range above them does not.
                let is_slow = work.rescan.ranges.iter().any(|range| range.above < SLOW_BELOW);
                let is_cut_short = is_slow && work.rescan.timeout.is_some() && self.rng.u8(0..40) == 0;
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
            Work::Claim { lanes, max_lanes, idle_timeout } => {
                let first = self.rng.usize(0..16);
                let claimed = database.claim(&lanes, max_lanes, first, idle_timeout, now);
                let asked_at = self.began_at;
                Completion::Claimed(Ok(claimed.map(|(lanes, proof)| Claimed { lanes, proof, asked_at })))
            }
            Work::ReadDue { request, statement, memory } => {
                let answer = match self.claim {
                    Some(proof) => database.is_claimed(Some(proof)).and_then(|()| database.read_due(&request, now)),
                    None => Err(OutboxError::ClaimLost),
                };
                Completion::DueRead { statement, memory, lookup: request.lookup, answer }
            }
            Work::Quarantine { messages } => {
                database.put_into_quarantine(&messages);
                Completion::Quarantined { messages, answer: Ok(()) }
            }
            work => self.on_claim(work),
        }
    }

    fn on_claim(&mut self, work: Work) -> Completion {
        let (database, now) = (&mut *self.database, self.now);
        let lives = |proof: &&ClaimProof| database.is_claimed(Some(proof)).is_ok();
        let Some(id) = self.claim.filter(lives).map(|proof| proof.transaction_id) else {
            return failed(work, OutboxError::ClaimLost);
        };
        match work {
            Work::Extend { use_for, idle_timeout, asked_at } => {
                let claim = database.claims.get_mut(&id).unwrap();
                (claim.idle_timeout, claim.heard_at) = (idle_timeout, now);
                Completion::Extended { use_for, idle_timeout, asked_at, answer: Ok(()) }
            }
            Work::Widen { lanes, max_lanes } => Completion::Widened(Ok(database.widen(id, &lanes, max_lanes, now))),
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

/// The completion of a piece of work that failed.
pub(super) fn failed(work: Work, error: OutboxError) -> Completion {
    match work {
        Work::Prepare => Completion::Prepared(Err(error)),
        Work::ReadBaseline => Completion::BaselineRead(Err(error)),
        Work::Rescan(work) => Completion::Rescanned(work, Err(error)),
        Work::Look { .. } => Completion::Looked(Err(error)),
        Work::Writers { asked_at } => Completion::Writers { asked_at, answer: Err(error) },
        Work::CheckHeld { deaths, .. } => Completion::HeldChecked { deaths, answer: Err(error) },
        Work::CheckPending { .. } => Completion::PendingChecked(Err(error)),
        Work::Claim { .. } => Completion::Claimed(Err(error)),
        Work::Extend { use_for, idle_timeout, asked_at } => {
            Completion::Extended { use_for, idle_timeout, asked_at, answer: Err(error) }
        }
        Work::Widen { .. } => Completion::Widened(Err(error)),
        Work::Read(work) => Completion::Read(work, Err(error)),
        Work::ReadDue { statement, memory, request } => {
            Completion::DueRead { statement, memory, lookup: request.lookup, answer: Err(error) }
        }
        Work::Settle { settlements, .. } => {
            Completion::Settled { settlements, took: Duration::from_millis(10), answer: Err(error) }
        }
        Work::Quarantine { messages } => Completion::Quarantined { messages, answer: Err(error) },
        Work::Release => Completion::Released(Err(error)),
        Work::Publish { .. } => unreachable!("a request has its own failures"),
    }
}

/// A completion whose answer was lost.
pub(super) fn lost(completion: Completion, error: OutboxError) -> Completion {
    match completion {
        Completion::Prepared(_) => Completion::Prepared(Err(error)),
        Completion::BaselineRead(_) => Completion::BaselineRead(Err(error)),
        Completion::Rescanned(work, _) => Completion::Rescanned(work, Err(error)),
        Completion::Looked(_) => Completion::Looked(Err(error)),
        Completion::Writers { asked_at, .. } => Completion::Writers { asked_at, answer: Err(error) },
        Completion::HeldChecked { deaths, .. } => Completion::HeldChecked { deaths, answer: Err(error) },
        Completion::PendingChecked(_) => Completion::PendingChecked(Err(error)),
        Completion::Claimed(_) => Completion::Claimed(Err(error)),
        Completion::Extended { use_for, idle_timeout, asked_at, .. } => {
            Completion::Extended { use_for, idle_timeout, asked_at, answer: Err(error) }
        }
        Completion::Widened(_) => Completion::Widened(Err(error)),
        Completion::Read(work, _) => Completion::Read(work, Err(error)),
        Completion::DueRead { statement, memory, lookup, .. } => {
            Completion::DueRead { statement, memory, lookup, answer: Err(error) }
        }
        Completion::Settled { settlements, took, .. } => Completion::Settled { settlements, took, answer: Err(error) },
        Completion::Quarantined { messages, .. } => Completion::Quarantined { messages, answer: Err(error) },
        Completion::Released(_) => Completion::Released(Err(error)),
        other @ (Completion::Published { .. } | Completion::ClaimLost) => other,
    }
}

/// The messages that a request sends.
pub(super) fn sent(work: &Work) -> Vec<Sent> {
    let Work::Publish { items, .. } = work else { return Vec::new() };
    let sent = |item: &super::super::item::Item| Sent {
        uid: super::database::uid(item.origin),
        key: item.key(),
        group: item.group.clone(),
        superseded: item.entry.superseded(),
    };
    items.iter().map(sent).collect()
}

/// The answer of SQS as the client reports it; `None` if there is none.
pub(super) fn published(answer: Answer, entries: usize, took: Duration) -> Option<Published> {
    match answer {
        Answer::Entries(results) => Some(Published { results, request_fault: None, duration: took, request_id: None }),
        Answer::Failed(fault) => Some(request_failed(fault, entries)),
        Answer::None => None,
    }
}

pub(super) fn request_failed(fault: Fault, entries: usize) -> Published {
    let results = vec![Err(fault.clone()); entries];
    Published { results, request_fault: Some(fault), duration: Duration::ZERO, request_id: None }
}

pub(super) fn timed_out(entries: usize) -> Published {
    request_failed(Fault::new(FaultKind::Ambiguous, "Timeout", "simulated"), entries)
}

pub(super) fn too_late(entries: usize) -> Published {
    request_failed(Fault::new(FaultKind::NotSent, "ClaimOver", "simulated"), entries)
}
