//! Jobs: the work under way in the simulated world. Statements and requests to SQS, and their answers, take time.

use std::time::Duration;

use super::super::super::work::{Completion, Work};
use super::super::process::{self, Job, JobState, Stepped, Surroundings};
use super::super::trace::answer_shown;
use super::{Event, STATEMENT_TIMEOUT, World, broken, tuning};
use crate::message::TransactionId;

impl World {
    // Statements.

    pub(super) fn statement(&mut self, number: u64) {
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
            rng: &mut self.rng,
        };
        match surroundings.step(*work, partial) {
            Stepped::Again(work, partial) => {
                job.state = JobState::Statements { work, claim, partial };
                self.jobs.insert(number, job);
                self.commit_between_statements();
                let next = Duration::from_micros(self.rng.u64(10..1000)) + self.slow_by / 4;
                self.plan(next, Event::Statement { job: number });
            }
            Stepped::Done(completion) => {
                if let Completion::Claimed(Ok(Some(claimed))) = &*completion {
                    let claim = claimed.proof.transaction_id;
                    self.plan(Duration::from_millis(1), Event::ClaimChecked { claim });
                }
                if matches!(*completion, Completion::Settled { .. }) {
                    self.check_deaths();
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

    pub(super) fn check_claim(&mut self, claim: TransactionId) {
        let Some(open) = self.database.claims.get(&claim) else { return };
        let ends_at = open.heard_at + open.idle_timeout;
        if ends_at > self.now {
            let wait = ends_at.since(self.now);
            return self.plan(wait, Event::ClaimChecked { claim });
        }
        self.note(|| format!("the server ends claim {}", claim.0));
        self.database.end_claim(claim);
        self.database.timed_out.insert(claim);
        self.notice_lost_claims();
    }

    /// Relays whose claims have ended notice it soon.
    pub(in super::super) fn notice_lost_claims(&mut self) {
        let notices_at = self.now + Duration::from_millis(self.rng.u64(0..50));
        for process in &mut self.processes {
            let lives = process.claim.as_ref().is_none_or(|proof| self.database.is_claimed(Some(proof)).is_ok());
            if !lives {
                process.notices_at.get_or_insert(notices_at);
            }
        }
    }

    // Requests.

    pub(super) fn written(&mut self, number: u64) {
        let Some(job) = self.jobs.get_mut(&number) else { return };
        let frozen_until = self.processes[job.process].frozen_until;
        if frozen_until > self.now {
            let wait = frozen_until.since(self.now);
            return self.plan(wait, Event::Written { job: number });
        }
        let JobState::Request { work, claim, published } = &mut job.state else { return };
        let Work::Publish { items, until, .. } = &**work else { return };
        let (entries, claim) = (items.len(), *claim);
        if self.now >= *until {
            *published = Some(process::too_late(entries));
            return self.plan(Duration::ZERO, Event::Answered { job: number });
        }
        let sent = process::sent(work);
        if claim.is_some_and(|claim| self.database.timed_out.contains(&claim)) {
            return self.fail(format!("a relay sends {sent:?} although the server has ended its claim"));
        }
        self.requests.insert(number, sent);
        let timeout = tuning(&self.scenario).request_timeout;
        let deadline = (job.began_at + timeout).since(self.now);
        let way = if self.rng.u8(0..200) == 0 { self.way_to_queue() * 20 } else { self.way_to_queue() };
        self.plan(way, Event::Arrived { job: number });
        self.plan(deadline, Event::Answered { job: number });
    }

    pub(super) fn arrived(&mut self, number: u64) {
        let Some(sent) = self.requests.remove(&number) else { return };
        let (answer, new) = self.queue.arrive(&sent, &mut self.rng);
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

    pub(super) fn answered(&mut self, number: u64) {
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
            JobState::Request { work, published, .. } => {
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
}
