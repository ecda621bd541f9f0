//! Applies the results of work to a claim session. Pure.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::admit::{Admission, Refused};
use super::destination::{DestinationState, Report};
use super::item::Item;
use super::lease::CloseReason;
use super::outcomes::Written;
use super::repair::check_order;
use super::session::{Session, defer};
use super::verdict::{Judgement, Verdict, judge};
use super::work::{Answer, Completion, ReadWork, RescanWork, Work};
use crate::clock::Time;
use crate::message::{DestinationKind, Lane, MessageId, MessageKey, Outcome, Quarantined, Settlement};
use crate::outbox::{OutboxError, Settled};
use crate::publisher::{Accepted, Published};
use crate::reading::{Batch, HeldGroup, Incarnation, Lookup, ReadAnswer, Rescanned};

impl Session {
    /// Applies a result; returns the work to start at once.
    pub(super) fn apply(
        &mut self,
        completion: Completion,
        destination: &mut DestinationState,
        now: Time,
    ) -> Option<Work> {
        self.under_way -= usize::from(!matches!(completion, Completion::ClaimLost));
        let next = match completion {
            Completion::Read(work, answer) => self.on_read(*work, answer, destination, now),
            Completion::DueRead { statement, memory, lookup, answer } => {
                let next = self.on_due_read(memory, lookup, answer, destination, now);
                self.intake.statements.end(statement, &mut self.schedule);
                next
            }
            Completion::Settled { settlements, took, answer } => {
                self.on_settled(settlements, took, answer, destination, now)
            }
            Completion::Published { items, published } => {
                self.on_published(items, published, destination, now);
                None
            }
            other => {
                self.apply_other(other, destination, now);
                None
            }
        };
        self.under_way += usize::from(next.is_some());
        next
    }

    fn apply_other(&mut self, completion: Completion, destination: &mut DestinationState, now: Time) {
        match completion {
            Completion::Rescanned(work, answer) => self.on_rescanned(&work, answer, destination, now),
            Completion::Quarantined { messages, answer } => self.on_quarantined(messages, answer, destination, now),
            Completion::Widened(answer) => self.on_widened(answer, destination, now),
            Completion::Extended { use_for, idle_timeout, asked_at, answer } => {
                self.lease.is_extending = false;
                match answer {
                    Ok(()) => self.lease.extended(use_for, idle_timeout, asked_at),
                    Err(error) => self.close(CloseReason::Broken(error)),
                }
            }
            Completion::HeldChecked { deaths, answer } => self.on_held_checked(deaths, answer, destination, now),
            Completion::Writers { asked_at, answer } => {
                self.is_asking_writers = false;
                match answer {
                    Ok(writers) => destination.knowledge.watermarks.note_writers(writers, asked_at, now),
                    Err(error) => self.close(CloseReason::Broken(error)),
                }
            }
            Completion::ClaimLost => {
                self.ending.lost();
                self.close(CloseReason::Broken(OutboxError::ClaimLost));
            }
            Completion::Released(answer) => self.ending.released(answer.err(), &mut self.closing),
            other => debug_assert!(false, "not asked for under a claim: {other:?}"),
        }
    }

    /// Notes an event that may bring more.
    fn happened(&mut self, now: Time) {
        self.intake.happened();
        self.active_at = now;
    }

    fn admission<'a>(&'a mut self, destination: &'a mut DestinationState, now: Time) -> Admission<'a> {
        Admission {
            intake: &mut self.intake,
            schedule: &mut self.schedule,
            destination,
            refused: Refused::default(),
            now,
        }
    }

    fn on_read(
        &mut self,
        work: ReadWork,
        answer: Answer<ReadAnswer>,
        destination: &mut DestinationState,
        now: Time,
    ) -> Option<Work> {
        let statement = work.statement;
        let jitter = destination.rng.f64();
        let mut refused = Refused::default();
        match answer {
            Ok(answer) => {
                // This comes before applying the answer, which may find a reason to read again at once.
                self.intake.read_ended(now, jitter);
                let mut admission = self.admission(destination, now);
                let is_new = admission.apply_read(work, answer);
                refused = admission.refused;
                if is_new { self.happened(now) } else { self.intake.read_showed_nothing() }
            }
            Err(error) => {
                self.schedule.not_read_on(&work.groups);
                self.intake.read_ended(now, jitter);
                self.cannot_read(error, work.request.lookup, now);
            }
        }
        self.intake.statements.end(statement, &mut self.schedule);
        self.refuse(refused, destination, now)
    }

    fn on_due_read(
        &mut self,
        mut memory: super::limits::Reserved,
        lookup: Lookup,
        answer: Answer<Batch>,
        destination: &mut DestinationState,
        now: Time,
    ) -> Option<Work> {
        self.intake.due_ended(now);
        match answer {
            Ok(batch) => {
                if batch.messages.is_empty() {
                    self.intake.nothing_was_due(now);
                }
                let mut admission = self.admission(destination, now);
                let is_new = admission.apply_due(batch, &mut memory);
                let refused = admission.refused;
                if is_new {
                    self.happened(now)
                } else {
                    self.intake.due_showed_nothing()
                }
                self.refuse(refused, destination, now)
            }
            Err(error) => {
                self.cannot_read(error, lookup, now);
                None
            }
        }
    }

    /// If PostgreSQL cannot read some row, rows are read one by one to find it; any other error is a failure of the database.
    /// A read that began before the switch fails for the same row.
    fn cannot_read(&mut self, error: OutboxError, lookup: Lookup, now: Time) {
        if error.is_about_a_row() && lookup == Lookup::Together {
            self.intake.look_up_one_by_one(now);
        } else {
            self.close(CloseReason::Broken(error));
        }
    }

    /// Handles messages that cannot be sent.
    fn refuse(&mut self, refused: Refused, destination: &mut DestinationState, now: Time) -> Option<Work> {
        let blocks = destination.order().is_blocked_by_dead();
        for settlement in refused.dead {
            if let Some(group) = settlement.group.as_ref().filter(|_| blocks) {
                self.schedule.block(group, settlement.key);
            }
            destination.outcomes.push(settlement, now);
        }
        for message in &refused.unreadable {
            if let Some(group) = &message.group {
                self.schedule.block(group, message.key);
            }
        }
        let messages = refused.unreadable;
        (!messages.is_empty()).then_some(Work::Quarantine { messages })
    }

    fn on_rescanned(
        &mut self,
        work: &RescanWork,
        answer: Answer<Option<Rescanned>>,
        destination: &mut DestinationState,
        now: Time,
    ) {
        self.intake.is_rescanning = false;
        match answer {
            Ok(None) => destination.knowledge.full_rescan.timed_out(&work.rescan, now),
            Ok(Some(rescanned)) => {
                self.admission(destination, now).find_late(&work.rescan, &rescanned.found);
                let knowledge = &mut destination.knowledge;
                let watermarks = &knowledge.watermarks;
                let top = |lane: Lane| watermarks.position(lane);
                // A lane with more messages than the answer holds goes no further before they are read.
                let count = |lane: Lane| rescanned.found.iter().filter(|found| found.key.lane == lane).count();
                let is_whole = |lane: Lane| count(lane) < work.rescan.limit;
                let done = knowledge.full_rescan.came_back(&work.rescan.ranges, is_whole, top, rescanned.took, now);
                for (lane, epoch) in done {
                    knowledge.watermarks.rescanned_from_the_bottom(lane, epoch);
                }
            }
            Err(error) => self.close(CloseReason::Broken(error)),
        }
        self.intake.statements.end(work.statement, &mut self.schedule);
    }

    fn on_widened(&mut self, answer: Answer<Vec<(Lane, Incarnation)>>, destination: &mut DestinationState, now: Time) {
        self.widening.answered();
        match answer {
            Ok(lanes) if lanes.is_empty() || self.closing.is_some() => {}
            Ok(lanes) if destination.knowledge.is_about(&lanes) => {
                let lanes: Vec<Lane> = lanes.into_iter().map(|(lane, _)| lane).collect();
                self.open(&lanes, destination, now);
            }
            // The lanes were created after a crash, on a server that is not the claim's.
            Ok(_) => self.close(CloseReason::Broken(OutboxError::ClaimLost)),
            Err(error) => self.close(CloseReason::Broken(error)),
        }
    }

    fn on_held_checked(
        &mut self,
        deaths: u64,
        answer: Answer<Vec<HeldGroup>>,
        destination: &DestinationState,
        now: Time,
    ) {
        self.held_check.answered();
        match answer {
            Ok(held) if deaths == destination.outcomes.deaths() => {
                for held in &held {
                    if self.schedule.apply_hold(held, now) {
                        self.happened(now);
                    }
                }
            }
            // The answer may predate a death in one of these groups.
            Ok(_) => self.held_check.hurry(now),
            Err(error) => self.close(CloseReason::Broken(error)),
        }
    }

    fn on_published(&mut self, items: Vec<Item>, published: Published, destination: &mut DestinationState, now: Time) {
        self.in_flight.came_back(items.iter().map(|item| item.entry.memory_bytes()).sum(), items.len());
        self.happened(now);
        let fault = published.request_fault;
        let judgement = judge(
            items,
            published.results,
            fault.as_ref(),
            &mut destination.breaker,
            &destination.tuning,
            &mut destination.rng,
            now,
        );
        let Judgement { mut messages, retried, possible_duplicates, halt, has_recovered, accepted } = judgement;
        let waits_for_dead = destination.order().is_blocked_by_dead();
        let order = check_order(&mut messages, &mut destination.sequences, waits_for_dead);
        let (mut done, mut again, mut dead) = (Vec::with_capacity(messages.len()), Vec::new(), Vec::new());
        let (mut ages, mut dropped_attributes) = (Vec::with_capacity(messages.len()), 0);
        for (item, verdict) in messages {
            match verdict {
                Verdict::Accepted(Accepted { sqs_message_id, sequence_number }) => {
                    ages.push(item.age(now));
                    dropped_attributes += item.dropped_attributes;
                    if let Some(group) = &item.group {
                        destination.hot.accepted(group);
                    }
                    let outcome = Outcome::Delivered { sqs_message_id, sequence_number };
                    destination.outcomes.push(item.with_outcome(outcome), now);
                    done.push(item);
                }
                Verdict::Superseded(sequence_number) => {
                    destination.outcomes.push(item.with_outcome(Outcome::Superseded { sequence_number }), now);
                    again.push((item, None));
                }
                Verdict::Dead(fault) => {
                    let outcome = Outcome::Dead { attempts: item.attempts, kind: fault.kind, error: fault.to_string() };
                    destination.outcomes.push(item.with_outcome(outcome), now);
                    dead.extend(item.group.clone().map(|group| (group, item.key())));
                    done.push(item);
                }
                Verdict::Again(until) => again.push((item, until)),
            }
        }
        self.record_early(&mut again, destination, now);
        self.schedule.finish(&done, again);
        // Until the death is recorded, another relay may send the message again. So the group waits at least until
        // then.
        dead.iter().for_each(|(group, key)| self.schedule.block(group, *key));
        if accepted > 0 && fault.is_none() {
            destination.concurrency.accepted();
        }
        destination.report(Report::Accepted { ages, dropped_attributes });
        retried.into_iter().for_each(|kind| destination.report(Report::Retried(kind)));
        if possible_duplicates > 0 {
            destination.report(Report::PossibleDuplicates(possible_duplicates));
        }
        order.report_to(destination);
        if has_recovered {
            destination.report(Report::Recovered);
        }
        if let Some(fault) = halt {
            self.close(CloseReason::Halted(fault));
        }
    }

    /// Records a retry that is due after the claim. It will not be sent under this claim, so waiting gains nothing, and
    /// a crash would lose it. Only the head of a group is recorded: a message recorded with a time counts as the head.
    fn record_early(&self, again: &mut [(Item, Option<Time>)], destination: &mut DestinationState, now: Time) {
        let mut groups: HashSet<Arc<str>> = HashSet::new();
        for (item, until) in again {
            let is_head = item.group.as_ref().is_none_or(|group| groups.insert(Arc::clone(group)));
            let is_late = |until: &Time| *until >= self.lease.use_until;
            if let Some(until) = until.filter(|until| is_head && item.charged_error.is_some() && is_late(until)) {
                item.is_recorded = true;
                defer(item, Some(until.since(now)), destination, now);
            }
        }
    }

    fn on_settled(
        &mut self,
        settlements: Vec<Settlement>,
        took: Duration,
        answer: Answer<Settled>,
        destination: &mut DestinationState,
        now: Time,
    ) -> Option<Work> {
        destination.write_rate.note(settlements.len(), took, answer.is_ok());
        match destination.outcomes.written(settlements, answer, now) {
            Written::Done(settlements, settled) => {
                // A message that stays pending stays in memory until the claim ends.
                let is_over = |settlement: &&Settlement| !settlement.stays();
                let keys = settlements.iter().filter(is_over).map(|settlement| settlement.key).collect();
                self.intake.statements.settled(keys, &mut self.schedule);
                if !destination.order().is_blocked_by_dead() {
                    self.skip_dead(&settlements, destination, now);
                }
                destination.recorded(settlements, settled);
                let messages = destination.outcomes.take_culprits(true);
                (!messages.is_empty()).then_some(Work::Quarantine { messages })
            }
            Written::Divided => None,
            Written::Failed(error) => {
                if !self.ending.has_begun() || self.ending.failed(&self.lease, &mut destination.rng, now) {
                    self.close(CloseReason::Broken(error));
                }
                None
            }
        }
    }

    /// The deaths of these messages are recorded, and their groups go on. If a message in quarantine holds up a group,
    /// the next read of the group says so.
    fn skip_dead(&mut self, settlements: &[Settlement], destination: &DestinationState, now: Time) {
        let dead = settlements.iter().filter(|settlement| settlement.is_dead());
        for group in dead.filter_map(|settlement| settlement.group.as_ref()) {
            if !destination.outcomes.is_dying(group) && self.schedule.unblock(group) {
                self.happened(now);
            }
        }
    }

    fn on_quarantined(
        &mut self,
        messages: Vec<Quarantined>,
        answer: Answer<()>,
        destination: &mut DestinationState,
        now: Time,
    ) {
        destination.outcomes.quarantined(&messages, answer.is_ok(), now);
        match answer {
            Ok(()) => {
                let keys: Vec<MessageKey> = messages.iter().map(|message| message.key).collect();
                for message in &messages {
                    if let Some(group) =
                        message.group.as_ref().filter(|_| destination.accepts.kind == DestinationKind::Fifo)
                    {
                        self.schedule.block(group, message.key);
                    }
                }
                self.intake.statements.settled(keys, &mut self.schedule);
                destination.report(Report::Quarantined(messages));
            }
            Err(error) => {
                // A message that cannot be read is read again, and set aside again.
                for message in messages.iter().filter(|message| message.outcome.is_none()) {
                    destination.knowledge.watermarks.rewind(message.key.lane, MessageId(message.key.id.0));
                }
                self.close(CloseReason::Broken(error));
            }
        }
    }
}
