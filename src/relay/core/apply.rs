//! What came of the work of a claim session, applied to it. Pure.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::admit::{Admission, Refused};
use super::item::Item;
use super::lease::Closing;
use super::outcomes::Written;
use super::session::{Session, defer};
use super::standing::{Report, Standing};
use super::verdict::{Judgement, Verdict, judge};
use super::work::{Answer, Completion, ReadWork, RescanWork, Work};
use crate::clock::Time;
use crate::message::{Lane, MessageId, MessageKey, Outcome, Quarantined, QueueKind, Settlement};
use crate::outbox::{OutboxError, Settled};
use crate::reading::{Batch, HeldGroup, Incarnation, ReadAnswer, Rescanned};
use crate::sqs::Published;

impl Session {
    /// Takes what came of some work; returns what is to begin at once.
    pub(super) fn apply(&mut self, completion: Completion, standing: &mut Standing, now: Time) -> Option<Work> {
        self.under_way -= usize::from(!matches!(completion, Completion::ClaimLost));
        let next = match completion {
            Completion::Read(work, answer) => self.read(*work, answer, standing, now),
            Completion::DueRead { statement, memory, answer } => {
                let next = self.due_read(memory, answer, standing, now);
                self.intake.statements.end(statement, &mut self.schedule);
                next
            }
            Completion::Settled { settlements, took, answer } => self.settled(settlements, took, answer, standing, now),
            Completion::Published { items, published } => {
                self.published(items, published, standing, now);
                None
            }
            other => {
                self.apply_other(other, standing, now);
                None
            }
        };
        self.under_way += usize::from(next.is_some());
        next
    }

    fn apply_other(&mut self, completion: Completion, standing: &mut Standing, now: Time) {
        match completion {
            Completion::Rescanned(work, answer) => self.rescanned(&work, answer, standing, now),
            Completion::SetAside { messages, answer } => self.was_set_aside(messages, answer, standing, now),
            Completion::Widened(answer) => self.widened(answer, standing, now),
            Completion::Extended { use_for, limit, asked_at, answer } => {
                self.lease.is_extending = false;
                match answer {
                    Ok(()) => {
                        self.lease.use_until = asked_at + use_for;
                        self.lease.ends_at = asked_at + limit;
                    }
                    Err(error) => self.close(Closing::Broken(error)),
                }
            }
            Completion::HeldChecked { deaths, answer } => self.held_checked(deaths, answer, standing, now),
            Completion::Writers { asked_at, answer } => {
                self.is_asking_writers = false;
                match answer {
                    Ok(writers) => standing.knowledge.watermarks.note_writers(writers, asked_at, now),
                    Err(error) => self.close(Closing::Broken(error)),
                }
            }
            Completion::ClaimLost => {
                self.ending.lost();
                self.close(Closing::Broken(OutboxError::ClaimLost));
            }
            Completion::Released(answer) => self.ending.released(answer.err(), &mut self.closing),
            other => debug_assert!(false, "not asked for under a claim: {other:?}"),
        }
    }

    /// Something happened that may bring more.
    fn happened(&mut self, now: Time) {
        self.intake.happened();
        self.active_at = now;
    }

    fn admission<'a>(&'a mut self, standing: &'a mut Standing, now: Time) -> Admission<'a> {
        Admission { intake: &mut self.intake, schedule: &mut self.schedule, standing, refused: Refused::default(), now }
    }

    fn read(&mut self, work: ReadWork, answer: Answer<ReadAnswer>, standing: &mut Standing, now: Time) -> Option<Work> {
        let statement = work.statement;
        let jitter = standing.dice.f64();
        let mut refused = Refused::default();
        match answer {
            Ok(answer) => {
                // Before it is applied, which may find a reason to read again at once.
                self.intake.read_ended(now, jitter);
                let mut admission = self.admission(standing, now);
                let is_new = admission.read(work, answer);
                refused = admission.refused;
                if is_new { self.happened(now) } else { self.intake.read_showed_nothing() }
            }
            Err(error) => {
                self.schedule.not_read_on(&work.groups);
                self.intake.read_ended(now, jitter);
                self.cannot_read(error, now);
            }
        }
        self.intake.statements.end(statement, &mut self.schedule);
        self.refuse(refused, standing, now)
    }

    fn due_read(
        &mut self,
        mut memory: super::limits::Reserved,
        answer: Answer<Batch>,
        standing: &mut Standing,
        now: Time,
    ) -> Option<Work> {
        self.intake.due_ended(now);
        match answer {
            Ok(batch) => {
                if batch.messages.is_empty() {
                    self.intake.nothing_was_due(now);
                }
                let mut admission = self.admission(standing, now);
                let is_new = admission.due(batch, &mut memory);
                let refused = admission.refused;
                if is_new {
                    self.happened(now)
                } else {
                    self.intake.due_showed_nothing()
                }
                self.refuse(refused, standing, now)
            }
            Err(error) => {
                self.cannot_read(error, now);
                None
            }
        }
    }

    /// What PostgreSQL cannot read is found one by one; anything else is a failure of the database.
    fn cannot_read(&mut self, error: OutboxError, now: Time) {
        if error.is_about_a_row() && !self.intake.looks_up_one_by_one(now) {
            self.intake.look_up_one_by_one(now);
        } else {
            self.close(Closing::Broken(error));
        }
    }

    /// Messages that cannot go on their way.
    fn refuse(&mut self, refused: Refused, standing: &mut Standing, now: Time) -> Option<Work> {
        let blocks = standing.order().is_blocked_by_dead();
        for settlement in refused.dead {
            if let Some(group) = settlement.group.as_ref().filter(|_| blocks) {
                self.schedule.block(group, settlement.key);
            }
            standing.outcomes.push(settlement, now);
        }
        for message in &refused.unreadable {
            if let Some(group) = &message.group {
                self.schedule.block(group, message.key);
            }
        }
        let messages = refused.unreadable;
        (!messages.is_empty()).then_some(Work::SetAside { messages })
    }

    fn rescanned(&mut self, work: &RescanWork, answer: Answer<Option<Rescanned>>, standing: &mut Standing, now: Time) {
        self.intake.is_rescanning = false;
        match answer {
            Ok(None) => standing.knowledge.scan.cut_short(&work.rescan, now),
            Ok(Some(rescanned)) => {
                self.admission(standing, now).find_late(&work.rescan, &rescanned.found);
                let knowledge = &mut standing.knowledge;
                let watermarks = &knowledge.watermarks;
                let top = |lane: Lane| watermarks.position(lane);
                // A lane in which there was too much goes no further before that is read.
                let count = |lane: Lane| rescanned.found.iter().filter(|found| found.key.lane == lane).count();
                let is_whole = |lane: Lane| count(lane) < work.rescan.most;
                let done = knowledge.scan.came_back(&work.rescan.ranges, is_whole, top, rescanned.took, now);
                for (lane, epoch) in done {
                    knowledge.watermarks.rescanned_from_the_bottom(lane, epoch);
                }
            }
            Err(error) => self.close(Closing::Broken(error)),
        }
        self.intake.statements.end(work.statement, &mut self.schedule);
    }

    fn widened(&mut self, answer: Answer<Vec<(Lane, Incarnation)>>, standing: &mut Standing, now: Time) {
        self.widening.answered();
        match answer {
            Ok(lanes) if lanes.is_empty() || self.closing.is_some() => {}
            Ok(lanes) if standing.knowledge.is_about(&lanes) => {
                let lanes: Vec<Lane> = lanes.into_iter().map(|(lane, _)| lane).collect();
                self.open(&lanes, standing, now);
            }
            // Made after the crash of a server that is not the claim's.
            Ok(_) => self.close(Closing::Broken(OutboxError::ClaimLost)),
            Err(error) => self.close(Closing::Broken(error)),
        }
    }

    fn held_checked(&mut self, deaths: u64, answer: Answer<Vec<HeldGroup>>, standing: &Standing, now: Time) {
        self.held_check.answered();
        match answer {
            Ok(held) if deaths == standing.outcomes.deaths() => {
                for held in &held {
                    if self.schedule.hear(held, now) {
                        self.happened(now);
                    }
                }
            }
            // The answer may be from before a death, of one of these groups for all that is known.
            Ok(_) => self.held_check.hurry(now),
            Err(error) => self.close(Closing::Broken(error)),
        }
    }

    fn published(&mut self, items: Vec<Item>, published: Published, standing: &mut Standing, now: Time) {
        self.flight.came_back(items.iter().map(|item| item.entry.bytes()).sum(), items.len());
        self.happened(now);
        let fault = published.request_fault;
        let judgement = judge(
            items,
            published.results,
            fault.as_ref(),
            &mut standing.breaker,
            &standing.tuning,
            &mut standing.dice,
            now,
        );
        let Judgement { messages, retried, possible_duplicates, halt, is_back, accepted } = judgement;
        let (mut done, mut again, mut dead) = (Vec::with_capacity(messages.len()), Vec::new(), Vec::new());
        let (mut ages, mut left_out) = (Vec::with_capacity(messages.len()), 0);
        for (item, verdict) in messages {
            match verdict {
                Verdict::Accepted(sqs_message_id) => {
                    ages.push(item.age_when_read + now.since(item.read_at));
                    left_out += item.left_out;
                    standing.outcomes.push(item.settled(Outcome::Delivered { sqs_message_id }), now);
                    done.push(item);
                }
                Verdict::Dead(fault) => {
                    let outcome = Outcome::Dead { attempts: item.attempts, kind: fault.kind, error: fault.to_string() };
                    standing.outcomes.push(item.settled(outcome), now);
                    dead.extend(item.group.clone().map(|group| (group, item.key())));
                    done.push(item);
                }
                Verdict::Again(until) => again.push((item, until)),
            }
        }
        self.record_early(&mut again, standing, now);
        self.schedule.finish(&done, again);
        // Until its death is recorded a message may be sent once more by another relay, so what follows waits for that at least.
        dead.iter().for_each(|(group, key)| self.schedule.block(group, *key));
        if accepted > 0 && fault.is_none() {
            standing.concurrency.accepted();
        }
        standing.report(Report::Accepted { ages, left_out });
        retried.into_iter().for_each(|kind| standing.report(Report::Retried(kind)));
        if possible_duplicates > 0 {
            standing.report(Report::PossibleDuplicates(possible_duplicates));
        }
        if is_back {
            standing.report(Report::Back);
        }
        if let Some(fault) = halt {
            self.close(Closing::Halted(fault));
        }
    }

    /// A retry that comes after the claim will not be sent under it, so nothing is gained by waiting, and a crash would lose
    /// it. Only the head of a group: what is recorded with a time is taken for that.
    fn record_early(&self, again: &mut [(Item, Option<Time>)], standing: &mut Standing, now: Time) {
        let mut groups: HashSet<Arc<str>> = HashSet::new();
        for (item, until) in again {
            let is_head = item.group.as_ref().is_none_or(|group| groups.insert(Arc::clone(group)));
            let is_late = |until: &Time| *until >= self.lease.use_until;
            if let Some(until) = until.filter(|until| is_head && item.charged.is_some() && is_late(until)) {
                item.is_recorded = true;
                defer(item, Some(until.since(now)), standing, now);
            }
        }
    }

    fn settled(
        &mut self,
        settlements: Vec<Settlement>,
        took: Duration,
        answer: Answer<Settled>,
        standing: &mut Standing,
        now: Time,
    ) -> Option<Work> {
        standing.write_rate.note(settlements.len(), took, answer.is_ok());
        match standing.outcomes.written(settlements, answer, now) {
            Written::Done(settlements, settled) => {
                // What is deferred stays in memory until the claim ends.
                let is_over = |settlement: &&Settlement| !matches!(settlement.outcome, Outcome::Deferred { .. });
                let keys = settlements.iter().filter(is_over).map(|settlement| settlement.key).collect();
                self.intake.statements.settled(keys, &mut self.schedule);
                if !standing.order().is_blocked_by_dead() {
                    self.skip_dead(&settlements, standing, now);
                }
                standing.recorded(settlements, settled);
                let messages = standing.outcomes.take_culprits(true);
                (!messages.is_empty()).then_some(Work::SetAside { messages })
            }
            Written::Divided => None,
            Written::Failed(error) => {
                if !self.ending.has_begun() || self.ending.failed(&self.lease, &mut standing.dice, now) {
                    self.close(Closing::Broken(error));
                }
                None
            }
        }
    }

    /// The deaths of these messages are recorded, and their groups go on. A group that a message in quarantine holds up is told so
    /// by what is read of it.
    fn skip_dead(&mut self, settlements: &[Settlement], standing: &Standing, now: Time) {
        let dead = settlements.iter().filter(|settlement| settlement.is_dead());
        for group in dead.filter_map(|settlement| settlement.group.as_ref()) {
            if !standing.outcomes.is_dying(group) && self.schedule.unblock(group) {
                self.happened(now);
            }
        }
    }

    fn was_set_aside(&mut self, messages: Vec<Quarantined>, answer: Answer<()>, standing: &mut Standing, now: Time) {
        standing.outcomes.set_aside(&messages, answer.is_ok(), now);
        match answer {
            Ok(()) => {
                let keys: Vec<MessageKey> = messages.iter().map(|message| message.key).collect();
                for message in &messages {
                    if let Some(group) = message.group.as_ref().filter(|_| standing.kind == QueueKind::Fifo) {
                        self.schedule.block(group, message.key);
                    }
                }
                self.intake.statements.settled(keys, &mut self.schedule);
                standing.report(Report::Quarantined(messages));
            }
            Err(error) => {
                // What cannot be read is read again, and set aside again.
                for message in messages.iter().filter(|message| message.outcome.is_none()) {
                    standing.knowledge.watermarks.rewind(message.key.lane, MessageId(message.key.id.0));
                }
                self.close(Closing::Broken(error));
            }
        }
    }
}
