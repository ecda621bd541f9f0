//! The simulated world: time, relays, and what happens to them. It runs one [`Scenario`] and says what went wrong.
//!
//! Nothing in it sleeps: it goes from event to event. The same scenario always runs the same way.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::super::work::{Completion, Work};
use super::super::{Control, Report};
use super::database::{Database, Row};
use super::process::{self, Job, JobState, Process, Stepped, Surroundings};
use super::queue::{Queue, QueueFault, Sent};
use super::scenario::{Action, Scenario};
use crate::clock::Time;
use crate::config::Tuning;
use crate::message::{Lane, MessageId, MessageKey, QueueKind, TransactionId};
use crate::outbox::OutboxError;

/// What a statement may take before the relay gives it up.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(10);

/// How often a relay is told what was seen of all destinations.
const WATCH_EVERY: Duration = Duration::from_millis(50);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Event {
    /// A relay looks what is to be done.
    Step { process: usize, generation: u64 },
    /// A statement reaches the database.
    Statement { job: u64 },
    /// A request is written.
    Written { job: u64 },
    /// A request reaches SQS.
    Arrived { job: u64 },
    /// An answer reaches the relay.
    Answered { job: u64 },
    /// A relay is told what was seen.
    Watched { process: usize },
    /// The server looks whether a claim's holder was silent for too long.
    ClaimChecked { claim: TransactionId },
    /// Something of the scenario.
    Happens { index: usize },
    /// Something that lasted is over.
    Over { index: usize },
    /// An application begins one of its long transactions.
    LongWriterBegins,
    /// It commits it.
    LongWriterEnds { transaction: TransactionId },
}

pub(super) struct World {
    pub(super) scenario: Scenario,
    pub(super) now: Time,
    pub(super) dice: fastrand::Rng,
    events: BinaryHeap<Reverse<(Time, u64, Event)>>,
    sequence: u64,
    pub(super) database: Database,
    /// What the standby has got, once it lags.
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
    /// How many transactions had committed when all misfortune was over.
    pub(super) calm_at: Option<u64>,
    pub(super) next_uid: u64,
    pub(super) problem: Option<String>,
    trace: VecDeque<String>,
    steps_at_once: (Time, u32),
}

impl World {
    pub(super) fn new(scenario: Scenario) -> Self {
        let now = Time::default() + Duration::from_secs(1000);
        let mut dice = fastrand::Rng::with_seed(scenario.seed);
        let tuning = tuning(&scenario);
        let relays = usize::from(scenario.relays);
        let processes: Vec<Process> =
            (0..relays).map(|_| Process::new(scenario.kind, tuning, 1 << 20, dice.u64(..), now)).collect();
        let mut world = Self {
            scenario,
            now,
            dice,
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
            calm_at: None,
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

    /// Notes what happened, for whoever has to find out why.
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

    /// Runs until then, or until something goes wrong.
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

    /// The time for one way between relay and database.
    fn way(&mut self) -> Duration {
        // A server that is near answers now soon, now later; one that is far away answers always late.
        let most = u64::from(self.scenario.database_millis) * 500;
        let least = if most > 10_000 { most / 2 } else { 50 };
        Duration::from_micros(self.dice.u64(least..most.max(51))) + self.slow_by / 2
    }

    fn way_to_queue(&mut self) -> Duration {
        let most = u64::from(self.scenario.queue_millis) * 500;
        Duration::from_micros(self.dice.u64(100..most.max(101)))
    }

    // A relay's turn, as `Relay::run` makes it.

    fn step(&mut self, index: usize) {
        let now = self.now;
        if self.postpones(index) {
            return;
        }
        self.steps_at_once = if self.steps_at_once.0 == now { (now, self.steps_at_once.1 + 1) } else { (now, 0) };
        if self.steps_at_once.1 > 10_000 {
            return self.fail("a relay turns on the spot".to_owned());
        }
        let process = &mut self.processes[index];
        if process.has_lost_claim(now) {
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

    /// A stopped process does nothing; then it looks again when it goes on.
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

    /// A claim that was not released ends with its connection.
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
            // Its transaction still counts as the process's own while the answer is on its way.
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
            true => JobState::Request { work, published: None },
            false => JobState::Statements { work, claim, partial: Box::default() },
        };
        self.jobs.insert(job, Job { process: index, began_at: self.now, connections: self.connections, state });
        if is_request {
            let building = Duration::from_micros(self.dice.u64(0..2000));
            let building = if self.dice.u8(0..50) == 0 { building * 100 } else { building };
            self.plan(building, Event::Written { job });
        } else {
            let way = self.way();
            self.plan(way, Event::Statement { job });
        }
    }

    // Statements.

    fn statement(&mut self, number: u64) {
        let Some(mut job) = self.jobs.remove(&number) else { return };
        let JobState::Statements { work, claim, partial } = job.state else { return };
        let is_old = job.connections != self.connections;
        let gives_up_at = job.began_at + STATEMENT_TIMEOUT;
        if self.stalled_until > self.now && self.now < gives_up_at {
            let wait = self.stalled_until.min(gives_up_at).since(self.now);
            job.state = JobState::Statements { work, claim, partial };
            self.jobs.insert(number, job);
            return self.plan(wait, Event::Statement { job: number });
        }
        if is_old || self.database_fails || self.now >= gives_up_at {
            job.state = JobState::Answered(Box::new(process::failed(*work, broken())));
            self.jobs.insert(number, job);
            return self.answer_later(number);
        }
        let own = self.processes[job.process].own.clone();
        let mut surroundings = Surroundings {
            database: &mut self.database,
            own: &own,
            claim: claim.as_ref(),
            began_at: job.began_at,
            now: self.now,
            dice: &mut self.dice,
        };
        match surroundings.step(*work, partial) {
            Stepped::Again(work, partial) => {
                job.state = JobState::Statements { work, claim, partial };
                self.jobs.insert(number, job);
                self.commit_between_statements();
                let next = Duration::from_micros(self.dice.u64(10..1000)) + self.slow_by / 4;
                self.plan(next, Event::Statement { job: number });
            }
            Stepped::Done(completion) => {
                if let Completion::Claimed(Ok(Some(claimed))) = &*completion {
                    let claim = claimed.proof.transaction_id;
                    self.plan(Duration::from_millis(1), Event::ClaimChecked { claim });
                }
                job.state = JobState::Answered(completion);
                self.jobs.insert(number, job);
                self.answer_later(number);
            }
        }
    }

    fn answer_later(&mut self, job: u64) {
        let way = self.way();
        self.plan(way, Event::Answered { job });
    }

    fn check_claim(&mut self, claim: TransactionId) {
        let Some(open) = self.database.claims.get(&claim) else { return };
        let ends_at = open.heard_at + open.limit;
        if ends_at > self.now {
            let wait = ends_at.since(self.now);
            return self.plan(wait, Event::ClaimChecked { claim });
        }
        self.note(|| format!("the server ends claim {}", claim.0));
        self.database.end_claim(claim);
        self.notice_lost_claims();
    }

    /// Relays whose claims are gone will see that soon.
    pub(super) fn notice_lost_claims(&mut self) {
        let notices_at = self.now + Duration::from_millis(self.dice.u64(0..50));
        for process in &mut self.processes {
            let lives = process.claim.as_ref().is_none_or(|proof| self.database.is_claimed(Some(proof)).is_ok());
            if !lives {
                process.notices_at.get_or_insert(notices_at);
            }
        }
    }

    // Requests.

    fn written(&mut self, number: u64) {
        let Some(job) = self.jobs.get_mut(&number) else { return };
        let frozen_until = self.processes[job.process].frozen_until;
        if frozen_until > self.now {
            let wait = frozen_until.since(self.now);
            return self.plan(wait, Event::Written { job: number });
        }
        let JobState::Request { work, published } = &mut job.state else { return };
        let Work::Publish { items, until, .. } = &**work else { return };
        let entries = items.len();
        if self.now >= *until {
            *published = Some(process::too_late(entries));
            return self.plan(Duration::ZERO, Event::Answered { job: number });
        }
        self.requests.insert(number, process::sent(work));
        let timeout = tuning(&self.scenario).request_timeout;
        let deadline = (job.began_at + timeout).since(self.now);
        let way = if self.dice.u8(0..200) == 0 { self.way_to_queue() * 20 } else { self.way_to_queue() };
        self.plan(way, Event::Arrived { job: number });
        self.plan(deadline, Event::Answered { job: number });
    }

    fn arrived(&mut self, number: u64) {
        let Some(sent) = self.requests.remove(&number) else { return };
        let (answer, new) = self.queue.arrive(&sent, &mut self.dice);
        for message in &new {
            self.accepted(message, &sent);
        }
        let way = self.way_to_queue();
        let Some(Job { state: JobState::Request { published, .. }, .. }) = self.jobs.get_mut(&number) else { return };
        *published = process::published(answer, sent.len(), way * 2);
        if published.is_some() {
            self.plan(way, Event::Answered { job: number });
        }
    }

    // Answers.

    fn answered(&mut self, number: u64) {
        let Some(job) = self.jobs.get(&number) else { return };
        let (index, frozen_until) = (job.process, self.processes[job.process].frozen_until);
        if frozen_until > self.now {
            let wait = frozen_until.since(self.now);
            return self.plan(wait, Event::Answered { job: number });
        }
        let Some(job) = self.jobs.remove(&number) else { return };
        let completion = match job.state {
            JobState::Answered(completion) if job.connections != self.connections => {
                process::lost(*completion, broken())
            }
            JobState::Answered(completion) => *completion,
            JobState::Request { work, published } => {
                let Work::Publish { items, .. } = *work else { return };
                let published = published.unwrap_or_else(|| process::timed_out(items.len()));
                Completion::Published { items, published }
            }
            JobState::Statements { .. } => return,
        };
        self.complete(index, number, completion);
    }

    fn complete(&mut self, index: usize, number: u64, completion: Completion) {
        if let Some(shown) = answer_shown(&completion) {
            self.note(|| format!("relay {index} gets {number}: {shown}"));
        }
        let process = &mut self.processes[index];
        if let Completion::Claimed(Ok(Some(claimed))) = &completion {
            process.claim = Some(claimed.proof.clone());
            process.own.insert(claimed.proof.transaction_id);
            self.notice_lost_claims();
        }
        if matches!(completion, Completion::Released(_)) {
            self.processes[index].own.clear();
        }
        let next = self.processes[index].core.apply(completion, self.now);
        if let Some(work) = next {
            self.begin(index, work);
        }
        self.step(index);
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
            other => self.note(|| format!("relay {index} reports {other:?}")),
        }
    }

    pub(super) fn control(&mut self, control: Control) {
        for index in 0..self.processes.len() {
            self.processes[index].core.control(control, self.now);
        }
    }

    /// Kills a process and starts another one. What it has sent arrives all the same.
    pub(super) fn kill(&mut self, index: usize) {
        self.close_claim(index);
        let was_killed = |job: &Job| job.process == index;
        self.jobs.retain(|_, job| !was_killed(job) || matches!(job.state, JobState::Statements { .. }));
        // A statement that was sent may run; nobody reads its answer.
        let pending: Vec<u64> =
            self.jobs.iter().filter(|(_, job)| was_killed(job)).map(|(number, _)| *number).collect();
        for number in pending {
            let Some(Job { state: JobState::Statements { work, .. }, .. }) = self.jobs.remove(&number) else {
                continue;
            };
            if let Work::Settle { settlements, proof } = *work
                && self.dice.bool()
                && !self.database_fails
            {
                // It fails or not; nobody hears of it.
                drop(self.database.settle(&settlements, proof.as_ref(), self.now));
            }
        }
        let generation = self.processes[index].generation + 1;
        let seed = self.dice.u64(..);
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

    /// A new message; each group has one of three lanes, and what has no group has one by its id.
    pub(super) fn row(&mut self, group: u8, id: i64) -> Row {
        self.next_uid += 1;
        let lane = if group == 0 { id % 3 } else { i64::from(group) % 3 };
        let key = MessageKey { lane: Lane::new(lane as i16).unwrap(), id: MessageId(id) };
        let group: Option<Arc<str>> = (group > 0).then(|| Arc::from(format!("g{group}")));
        Row { uid: self.next_uid, key, group, attempts: 0, available: None, committed: 0, is_redriven: false }
    }

    pub(super) fn is_ordered(&self) -> bool {
        self.scenario.kind == QueueKind::Fifo
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
        max_attempts: if scenario.has_failing_entries() { i16::MAX } else { 4 },
        retry_max: Duration::from_secs(5),
        ..Tuning::default()
    }
}

fn broken() -> OutboxError {
    OutboxError::Timeout { statement: "simulated", place: String::new() }
}

/// What is worth a line of a work that begins.
fn shown(work: &Work) -> Option<String> {
    let text = match work {
        Work::Publish { items, until, .. } => {
            let ids: Vec<i64> = items.iter().map(|item| item.key().id.0).collect();
            format!("publish {ids:?} until {until:?}")
        }
        Work::Settle { settlements, .. } => {
            let ids: Vec<_> = settlements.iter().map(|one| (one.key.id.0, &one.outcome)).collect();
            format!("settle {ids:?}")
        }
        Work::Read(work) if !work.request.groups.is_empty() => format!("reads on {:?}", work.groups),
        Work::Release | Work::SetAside { .. } | Work::Extend { .. } => format!("{work:?}").chars().take(200).collect(),
        _ => return None,
    };
    Some(text)
}

/// What is worth a line of an answer.
fn answer_shown(completion: &Completion) -> Option<String> {
    let text = match completion {
        Completion::Read(work, Ok(answer)) => {
            let ids = |messages: &[crate::message::Message]| {
                messages.iter().map(|one| (one.key.id.0, one.hold, one.wait)).collect::<Vec<_>>()
            };
            let gap = answer.gap.as_ref().filter(|gap| !gap.found.is_empty());
            if answer.lanes.messages.is_empty() && answer.groups.is_empty() && gap.is_none() {
                return None;
            }
            let lanes: Vec<_> =
                work.request.lanes.iter().map(|one| (one.lane.number(), one.above.0)).filter(|one| one.0 < 3).collect();
            let groups = work.request.groups.iter().zip(&answer.groups);
            let groups: Vec<_> =
                groups.map(|(one, batch)| (&one.group, one.after.id.0, ids(&batch.messages))).collect();
            let gap = gap.map(|gap| gap.found.iter().map(|found| found.key.id.0).collect::<Vec<_>>());
            format!("read {lanes:?} {:?} groups {groups:?} gap {gap:?}", ids(&answer.lanes.messages))
        }
        Completion::Claimed(Ok(None)) => return None,
        Completion::Claimed(Ok(Some(claimed))) => {
            let lanes: Vec<i16> = claimed.lanes.iter().map(|(lane, _)| lane.number()).collect();
            format!("claims {lanes:?} by {}", claimed.proof.transaction_id.0)
        }
        Completion::DueRead { answer: Ok(batch), .. } if batch.messages.is_empty() => return None,
        Completion::DueRead { answer: Ok(batch), .. } => {
            format!("due {:?}", batch.messages.iter().map(|one| one.key.id.0).collect::<Vec<_>>())
        }
        Completion::Rescanned(_, Ok(Some(rescanned))) if rescanned.found.is_empty() => return None,
        Completion::Looked(Ok(look)) if look.ready.is_empty() && look.due.is_empty() => return None,
        Completion::Looked(Ok(look)) => format!("looked {:?} {:?}", look.ready, look.due),
        Completion::Rescanned(work, Ok(Some(rescanned))) => {
            let found: Vec<i64> = rescanned.found.iter().map(|found| found.key.id.0).collect();
            format!("rescan {:?} waiting {:?} found {found:?}", work.rescan.ranges.first(), work.rescan.waiting)
        }
        Completion::Published { items, published } => {
            let ids: Vec<i64> = items.iter().map(|item| item.key().id.0).collect();
            format!("published {ids:?} {:?}", published.results)
        }
        Completion::Settled { answer, .. } => format!("settled {answer:?}"),
        other => format!("{other:?}"),
    };
    Some(text.chars().take(600).collect())
}
