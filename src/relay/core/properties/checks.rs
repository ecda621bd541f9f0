//! What must hold in every scenario.

use std::collections::BTreeMap;

use super::super::schedule::Schedule;
use super::database::{Available, Row};
use super::queue::{InQueue, Sent};
use super::scenario::Action;
use super::world::{World, tuning};
use crate::config::{FifoMode, OnDead};
use crate::message::{MessageId, MessageKey, Outcome, SequenceNumber, Settlement};
use crate::reading::Order;

impl World {
    /// SQS has accepted a copy of a message; `request` holds all messages of its request.
    pub(super) fn accepted(&mut self, message: &Sent, request: &[Sent]) {
        self.note(|| format!("SQS accepts {} (uid {}, copy {:?})", message.key.id.0, message.uid, message.superseded));
        let is_copy = message.superseded.is_some();
        if !self.is_ordered() || message.group.is_none() || is_copy || self.sets_back() {
            return;
        }
        // A message that was lost in a failover does not count.
        let Some(row) = self.database.pending.get(&message.key).filter(|row| row.uid == message.uid).cloned() else {
            return;
        };
        let was_before =
            |other: &Row| other.key.id < row.key.id && other.committed < row.committed && other.group == row.group;
        let blocks = self.scenario.on_dead == OnDead::Block;
        let is_batched = self.scenario.fifo_mode == FifoMode::Batched;
        // In batched mode an entry of a request may fail and a later one be accepted.
        let may_fail_alone = |other: &Row| is_batched && request.iter().any(|sent| sent.uid == other.uid);
        let is_settled = |other: &Row| self.queue.accepted.contains_key(&other.uid);
        let keeps_order = |other: &Row| blocks || !other.is_redriven;
        let waits =
            |other: &&Row| was_before(other) && keeps_order(other) && !is_settled(other) && !may_fail_alone(other);
        let dead = self.database.dead.values().filter(|_| blocks);
        // A group has one lane.
        let lane = MessageKey { id: MessageId::NONE, ..row.key }..row.key;
        let overtaken = self.database.pending.range(lane).map(|(_, other)| other).chain(dead).find(waits).cloned();
        if let Some(other) = overtaken {
            self.fail(format!("{} of {:?} has overtaken {other:?}", row.key.id.0, row.group));
        }
    }

    /// Outcomes were recorded.
    pub(super) fn recorded(&mut self, settlements: &[Settlement]) {
        for Settlement { key, origin, outcome, .. } in settlements {
            let uid = super::database::uid(*origin);
            let is_accepted = matches!(outcome, Outcome::Delivered { .. } | Outcome::Superseded { .. });
            if is_accepted && !self.queue.accepted.contains_key(&uid) {
                self.fail(format!("{} was recorded as accepted, but SQS never accepted it", key.id.0));
            }
        }
    }

    /// A message dies only if it has failed since it was written or last redriven.
    pub(super) fn check_deaths(&mut self) {
        let died = std::mem::take(&mut self.database.died);
        if let Some(row) = died.iter().find(|row| !self.queue.failures.contains_key(&row.uid)) {
            self.fail(format!(
                "{} died, but it has not failed since it was written or last redriven: {row:?}",
                row.key.id.0
            ));
        }
    }

    /// A relay stays within its limits of requests in flight and of messages in memory.
    pub(super) fn check_bounds(&mut self, index: usize) {
        let tuning = tuning(&self.scenario);
        let core = &self.processes[index].core;
        let Some(session) = &core.session else { return };
        let (requests, known) = (session.in_flight.requests(), Schedule::known(&session.schedule));
        // Three batches, the due retries of one read, and the windows of the groups that one read continues.
        let limit = 3 * tuning.batch_size + 1000 + 64 * 100;
        if requests > tuning.max_in_flight || known > limit {
            self.fail(format!("relay {index} has {requests} requests in flight and {known} messages in memory"));
        }
    }

    fn order(&self) -> Order {
        match (self.is_ordered(), self.scenario.on_dead) {
            (false, _) => Order::None,
            (true, OnDead::Skip) => Order::Groups,
            (true, OnDead::Block) => Order::GroupsBlockedByDead,
        }
    }

    /// Pending messages that should have been delivered: committed before the faults ended, and held up by nothing.
    pub(super) fn overdue(&self) -> impl Iterator<Item = &Row> {
        let order = self.order();
        let is_quarantined =
            move |row: &Row| self.database.quarantine.get(&row.key).is_some_and(|aside| aside.uid == row.uid);
        let is_held = move |row: &Row| self.database.held_by(&row.group, order).is_some();
        let last_commit = self.last_commit_with_faults.unwrap_or(u64::MAX);
        let counts = move |row: &Row| row.committed <= last_commit && !is_quarantined(row) && !is_held(row);
        self.database.pending.values().filter(move |row| counts(row))
    }

    /// Ends everything that lasts: writers commit, operators make due what they held back, and no fault remains.
    pub(super) fn end_faults(&mut self) {
        let writers = std::mem::take(&mut self.writers);
        writers.into_values().for_each(|id| self.database.end(id, true));
        let reports = std::mem::take(&mut self.reports);
        reports.into_values().for_each(|id| self.database.end(id, false));
        for row in self.database.pending.values_mut() {
            if row.available == Some(Available::Never) {
                row.available = Some(Available::At(self.now));
            }
        }
        // An operator who has set the sequence back must correct it: until then every message above it is read
        // repeatedly.
        let last_id = self.database.pending.keys().map(|key| key.id.0).max();
        self.database.last_id = self.database.last_id.max(last_id.unwrap_or_default());
        self.queue_fault(None);
        self.database_fails = false;
        self.slow_by = std::time::Duration::ZERO;
        self.stalled_until = self.now;
        self.control(super::super::Control::Running);
        self.last_commit_with_faults = Some(self.database.commits);
    }

    /// What must hold at the end.
    pub(super) fn check_end(&mut self) {
        let overdue: Vec<String> = self.overdue().map(|row| format!("{row:?}")).collect();
        if !overdue.is_empty() {
            return self.fail(format!("{} messages are not delivered, such as {}", overdue.len(), overdue[0]));
        }
        let unsent = |row: &&Row| !self.queue.accepted.contains_key(&row.uid);
        if let Some(row) = self.database.delivered.values().find(unsent) {
            let problem = format!("recorded as delivered, but SQS never accepted it: {row:?}");
            return self.fail(problem);
        }
        let is_at_fault = |action: &Action| matches!(action, Action::Poison { .. } | Action::Failing { .. });
        let is_at_fault = self.scenario.actions.iter().any(|(_, action)| is_at_fault(action));
        if !self.database.dead.is_empty() && !is_at_fault {
            return self.fail("a message died, but none was at fault".to_owned());
        }
        if let Some(problem) = self.wrong_order() {
            return self.fail(problem);
        }
        let may_repair = self.scenario.may_repair();
        let is_twice =
            |copies: &[InQueue]| copies.iter().any(|copy| copy.times > 1) || (copies.len() > 1 && !may_repair);
        let twice = self.queue.accepted.iter().find(|(_, copies)| is_twice(copies));
        let twice = twice.map(|(uid, copies)| format!("SQS accepted uid {uid} twice: {copies:?}"));
        if let Some(problem) = twice.filter(|_| !self.scenario.may_duplicate()) {
            self.fail(format!("{problem}, but nothing happened that allows duplicates"));
        }
    }

    /// The last copies of the messages of a group arrived in the order of their ids: each behind those that were
    /// committed before it.
    fn wrong_order(&self) -> Option<String> {
        if !self.is_ordered() || self.sets_back() {
            return None;
        }
        let blocks = self.scenario.on_dead == OnDead::Block;
        let mut groups: BTreeMap<&str, Vec<(&Row, SequenceNumber)>> = BTreeMap::new();
        for row in self.database.delivered.values() {
            let copies = self.queue.accepted.get(&row.uid);
            if let (Some(group), Some(last)) = (&row.group, copies.and_then(|copies| copies.last())) {
                groups.entry(group).or_default().push((row, last.number));
            }
        }
        for rows in groups.values() {
            for (index, (row, number)) in rows.iter().enumerate() {
                let is_before = |other: &Row| other.committed < row.committed && (blocks || !other.is_redriven);
                let before = rows.iter().take(index).find(|(other, last)| is_before(other) && last > number);
                if let Some((other, _)) = before {
                    return Some(format!("the last copy of {row:?} arrived before the one of {other:?}"));
                }
            }
        }
        None
    }

    /// Whether ids are assigned again. Then they say nothing about order.
    fn sets_back(&self) -> bool {
        let sets_back = |(_, action): &(u16, Action)| matches!(action, Action::SetBack { .. });
        self.scenario.actions.iter().any(sets_back)
    }
}
