//! The simulated world: time, relays, and what happens to them. It runs one [`Scenario`] and reports the first problem.
//!
//! It never sleeps; time jumps from event to event. The same scenario always runs the same way.

mod jobs;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::super::work::Work;
use super::super::{Control, Report};
use super::database::{Database, Row};
use super::process::{Job, JobState, Process};
use super::queue::{Queue, QueueFault, Sent};
use super::scenario::{Action, Scenario};
use super::trace::shown;
use crate::clock::Time;
use crate::config::Tuning;
use crate::message::{DestinationKind, Lane, MessageId, MessageKey, TransactionId};
use crate::outbox::OutboxError;

/// How long a statement may take before the relay gives up on it.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(10);

/// How often the poller tells a relay what it has seen.
const WATCH_EVERY: Duration = Duration::from_millis(50);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Event {
    /// A relay looks for work to do.
    Step { process: usize, generation: u64 },
    /// The next statement of a job reaches the database.
    Statement { job: u64 },
    /// A request is written to the socket.
    Written { job: u64 },
    /// A request reaches SQS.
    Arrived { job: u64 },
    /// An answer reaches the relay.
    Answered { job: u64 },
    /// The poller tells a relay what it has seen.
    Watched { process: usize },
    /// The server checks whether a claim's holder has been silent for too long.
    ClaimChecked { claim: TransactionId },
    /// An action of the scenario happens.
    Happens { index: usize },
    /// The effect of an action ends.
    Over { index: usize },
    /// The long writer begins a transaction.
    LongWriterBegins,
    /// The long writer commits a transaction.
    LongWriterEnds { transaction: TransactionId },
}

pub(super) struct World {
    pub(super) scenario: Scenario,
    pub(super) now: Time,
    pub(super) rng: fastrand::Rng,
    events: BinaryHeap<Reverse<(Time, u64, Event)>>,
    sequence: u64,
    pub(super) database: Database,
    /// The state of the standby; `None` while it does not lag.
    pub(super) standby: Option<Database>,
    pub(super) queue: Queue,
    pub(super) processes: Vec<Process>,
    jobs: BTreeMap<u64, Job>,
    /// Requests on their way to SQS.
    requests: BTreeMap<u64, Vec<Sent>>,
    next_job: u64,
    /// Grows whenever all connections are closed.
    pub(super) connections: u64,
    pub(super) database_fails: bool,
    pub(super) stalled_until: Time,
    pub(super) slow_by: Duration,
    pub(super) writers: BTreeMap<u8, TransactionId>,
    pub(super) reports: BTreeMap<usize, TransactionId>,
    /// The number of the last commit before the faults ended.
    pub(super) last_commit_with_faults: Option<u64>,
    pub(super) next_uid: u64,
    pub(super) problem: Option<String>,
    trace: VecDeque<String>,
    steps_at_once: (Time, u32),
}

impl World {
    pub(super) fn new(scenario: Scenario) -> Self {
        let now = Time::default() + Duration::from_secs(1000);
        let mut rng = fastrand::Rng::with_seed(scenario.seed);
        let tuning = tuning(&scenario);
        let relays = usize::from(scenario.relays);
        let processes: Vec<Process> =
            (0..relays).map(|_| Process::new(scenario.kind, tuning, 1 << 20, rng.u64(..), now)).collect();
        let mut world = Self {
            scenario,
            now,
            rng,
            events: BinaryHeap::new(),
            sequence: 0,
            database: Database::new(),
            standby: None,
            queue: Queue::default(),
            processes,
            jobs: BTreeMap::new(),
            requests: BTreeMap::new(),
            next_job: 0,
            connections: 0,
            database_fails: false,
            stalled_until: now,
            slow_by: Duration::ZERO,
            writers: BTreeMap::new(),
            reports: BTreeMap::new(),
            last_commit_with_faults: None,
            next_uid: 0,
            problem: None,
            trace: VecDeque::new(),
            steps_at_once: (now, 0),
        };
        for process in 0..relays {
            world.plan(Duration::ZERO, Event::Step { process, generation: 0 });
            world.plan(Duration::ZERO, Event::Watched { process });
        }
        world.plan(Duration::ZERO, Event::LongWriterBegins);
        let mut at = Duration::ZERO;
        for (index, (wait, _)) in world.scenario.actions.clone().into_iter().enumerate() {
            at += Duration::from_millis(u64::from(wait));
            world.plan(at, Event::Happens { index });
        }
        world
    }

    pub(super) fn plan(&mut self, after: Duration, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((self.now + after, self.sequence, event)));
    }

    /// Adds a line to the trace.
    pub(super) fn note(&mut self, what: impl FnOnce() -> String) {
        let since = self.now.since(Time::default() + Duration::from_secs(1000));
        if self.trace.len() >= 3000 {
            self.trace.pop_front();
        }
        self.trace.push_back(format!("{:>9.3} {}", since.as_secs_f64(), what()));
    }

    pub(super) fn trace(&self) -> String {
        self.trace.iter().map(|line| format!("{line}\n")).collect()
    }

    pub(super) fn fail(&mut self, problem: String) {
        self.note(|| format!("PROBLEM {problem}"));
        self.problem.get_or_insert(problem);
    }

    /// Runs until `end`, or until `is_over`, or until the first problem.
    pub(super) fn run_until(&mut self, end: Time, is_over: impl Fn(&Self) -> bool) {
        while self.problem.is_none() && !is_over(self) {
            let Some(Reverse((at, _, _))) = self.events.peek() else { return };
            if *at > end {
                self.now = end;
                return;
            }
            let Some(Reverse((at, _, event))) = self.events.pop() else { return };
            self.now = at;
            self.happen(event);
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Step { process, generation } => {
                if self.processes[process].generation == generation {
                    self.step(process);
                }
            }
            Event::Statement { job } => self.statement(job),
            Event::Written { job } => self.written(job),
            Event::Arrived { job } => self.arrived(job),
            Event::Answered { job } => self.answered(job),
            Event::Watched { process } => self.watched(process),
            Event::ClaimChecked { claim } => self.check_claim(claim),
            Event::Happens { index } => self.act(index),
            Event::Over { index } => self.over(index),
            Event::LongWriterBegins => self.begin_long_writer(),
            Event::LongWriterEnds { transaction } => self.database.end(transaction, true),
        }
    }

    /// How long one way between relay and database takes.
    fn way(&mut self) -> Duration {
        // The answers of a near server vary a lot; those of a distant one always take long.
        let limit = u64::from(self.scenario.database_millis) * 500;
        let least = if limit > 10_000 { limit / 2 } else { 50 };
        Duration::from_micros(self.rng.u64(least..limit.max(51))) + self.slow_by / 2
    }

    fn way_to_queue(&mut self) -> Duration {
        let limit = u64::from(self.scenario.queue_millis) * 500;
        Duration::from_micros(self.rng.u64(100..limit.max(101)))
    }

    // One turn of a relay, as in `Relay::run`.

    fn step(&mut self, index: usize) {
        let now = self.now;
        if self.postpones(index) {
            return;
        }
        self.steps_at_once = if self.steps_at_once.0 == now { (now, self.steps_at_once.1 + 1) } else { (now, 0) };
        if self.steps_at_once.1 > 10_000 {
            return self.fail("a relay loops without time passing".to_owned());
        }
        let process = &mut self.processes[index];
        if process.take_lost_claim(now) {
            process.core.claim_lost(now);
        }
        for work in self.processes[index].core.due(now) {
            self.begin(index, work);
        }
        let process = &mut self.processes[index];
        if !process.core.needs_claim() && process.claim.is_some() {
            self.close_claim(index);
        }
        let reports = self.processes[index].core.reports();
        for report in reports {
            self.reported(index, &report);
        }
        self.check_bounds(index);
        let process = &mut self.processes[index];
        let wake = process.core.wake_at(now).since(now).max(Duration::from_micros(200));
        process.generation += 1;
        let generation = process.generation;
        self.plan(wake, Event::Step { process: index, generation });
    }

    /// A stopped process does nothing, and its step is postponed until it goes on. Returns whether it is stopped.
    fn postpones(&mut self, index: usize) -> bool {
        let process = &mut self.processes[index];
        let is_frozen = process.frozen_until > self.now;
        if is_frozen {
            process.generation += 1;
            let (generation, wait) = (process.generation, process.frozen_until.since(self.now));
            self.plan(wait, Event::Step { process: index, generation });
        }
        is_frozen
    }

    /// Closes the connection of a claim that was not released, which ends the claim.
    fn close_claim(&mut self, index: usize) {
        if let Some(proof) = self.processes[index].claim.clone() {
            if self.database.is_claimed(Some(&proof)).is_ok() {
                self.database.end_claim(proof.transaction_id);
            }
            self.processes[index].forget_claim();
        }
    }

    fn begin(&mut self, index: usize, work: Work) {
        let process = &mut self.processes[index];
        process.begun += 1;
        let claim = process.claim.clone();
        if matches!(work, Work::Release) {
            // Until the answer has arrived, its transaction still counts as the process's own.
            process.claim = None;
        }
        self.next_job += 1;
        let job = self.next_job;
        if let Some(shown) = shown(&work) {
            self.note(|| format!("relay {index} begins {job}: {shown}"));
        }
        let is_request = matches!(work, Work::Publish { .. });
        let work = Box::new(work);
        let state = match is_request {
            true => JobState::Request { work, claim: claim.map(|proof| proof.transaction_id), published: None },
            false => JobState::Statements { work, claim, partial: Box::default() },
        };
        self.jobs.insert(job, Job { process: index, began_at: self.now, connections: self.connections, state });
        if is_request {
            let building = Duration::from_micros(self.rng.u64(0..2000));
            let building = if self.rng.u8(0..50) == 0 { building * 100 } else { building };
            self.plan(building, Event::Written { job });
        } else {
            let way = self.way();
            self.plan(way, Event::Statement { job });
        }
    }

    fn watched(&mut self, index: usize) {
        self.plan(WATCH_EVERY, Event::Watched { process: index });
        let is_frozen = self.processes[index].frozen_until > self.now;
        if is_frozen || self.database_fails || self.stalled_until > self.now {
            return;
        }
        let watch = self.database.watch(self.now);
        self.processes[index].core.watched(watch, self.now);
        self.step(index);
    }

    fn reported(&mut self, index: usize, report: &Report) {
        match report {
            Report::Accepted { .. } | Report::DatabaseAnswered => {}
            Report::Recorded(settlements) => self.recorded(settlements),
            Report::OrderBroken(messages) => self.fail(format!("{messages:?} break the order, says relay {index}")),
            other => self.note(|| format!("relay {index} reports {other:?}")),
        }
    }

    pub(super) fn control(&mut self, control: Control) {
        for index in 0..self.processes.len() {
            self.processes[index].core.control(control, self.now);
        }
    }

    /// Kills a process and starts another one. The requests that it has sent still arrive.
    pub(super) fn kill(&mut self, index: usize) {
        self.close_claim(index);
        // A claim that it was releasing ends with its connection as well.
        for claim in std::mem::take(&mut self.processes[index].own) {
            if self.database.claims.contains_key(&claim) {
                self.database.end_claim(claim);
            }
        }
        let was_killed = |job: &Job| job.process == index;
        self.jobs.retain(|_, job| !was_killed(job) || matches!(job.state, JobState::Statements { .. }));
        // A statement that was sent may still run; nobody reads its answer.
        let pending: Vec<u64> =
            self.jobs.iter().filter(|(_, job)| was_killed(job)).map(|(number, _)| *number).collect();
        for number in pending {
            let Some(Job { state: JobState::Statements { work, .. }, .. }) = self.jobs.remove(&number) else {
                continue;
            };
            if let Work::Settle { settlements, proof } = *work
                && self.rng.bool()
                && !self.database_fails
            {
                // Nobody learns whether it failed.
                drop(self.database.settle(&settlements, proof.as_ref(), self.now));
            }
        }
        let generation = self.processes[index].generation + 1;
        let seed = self.rng.u64(..);
        let mut process = Process::new(self.scenario.kind, tuning(&self.scenario), 1 << 20, seed, self.now);
        process.generation = generation;
        process.begun = self.processes[index].begun;
        self.processes[index] = process;
        self.plan(Duration::ZERO, Event::Step { process: index, generation });
    }

    pub(super) fn end_all_connections(&mut self) {
        self.connections += 1;
        let claims: Vec<TransactionId> = self.database.claims.keys().copied().collect();
        claims.into_iter().for_each(|claim| self.database.end_claim(claim));
        self.notice_lost_claims();
    }

    /// A new message. There are three lanes, chosen by group, or by id for a message without a group.
    pub(super) fn row(&mut self, group: u8, id: i64) -> Row {
        self.next_uid += 1;
        let lane = if group == 0 { id % 3 } else { i64::from(group) % 3 };
        let key = MessageKey { lane: Lane::new(lane as i16).unwrap(), id: MessageId(id) };
        let group: Option<Arc<str>> = (group > 0).then(|| Arc::from(format!("g{group}")));
        Row {
            uid: self.next_uid,
            key,
            group,
            attempts: 0,
            available: None,
            committed: 0,
            is_redriven: false,
            superseded: None,
        }
    }

    pub(super) fn is_ordered(&self) -> bool {
        self.scenario.kind == DestinationKind::Fifo
    }

    pub(super) fn queue_fault(&mut self, fault: Option<QueueFault>) {
        self.queue.fault = fault;
    }

    pub(super) fn action(&self, index: usize) -> Action {
        self.scenario.actions[index].1
    }
}

pub(super) fn tuning(scenario: &Scenario) -> Tuning {
    Tuning {
        batch_size: scenario.batch_size,
        request_size: scenario.request_size,
        max_in_flight: 8,
        fifo_mode: scenario.fifo_mode,
        on_dead: scenario.on_dead,
        max_attempts: if scenario.has_failing_entries() { i16::MAX as usize } else { 4 },
        retry_max: Duration::from_secs(5),
        ..Tuning::default()
    }
}

fn broken() -> OutboxError {
    OutboxError::Timeout { statement: "simulated", place: String::new() }
}
