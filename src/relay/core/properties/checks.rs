//! What must hold whatever happens.

use super::super::schedule::Schedule;
use super::database::{Available, Row};
use super::queue::Sent;
use super::scenario::Action;
use super::world::{World, tuning};
use crate::config::{FifoMode, OnDead};
use crate::message::{MessageId, MessageKey, Outcome, Settlement};
use crate::reading::Order;

impl World {
    /// SQS has accepted a message for the first time, in a request with these.
    pub(super) fn accepted(&mut self, message: &Sent, request: &[Sent]) {
        self.note(|| format!("SQS accepts {} (uid {})", message.key.id.0, message.uid));
        // Ids that are given again say nothing about order.
        let sets_back = |(_, action): &(u16, Action)| matches!(action, Action::SetBack { .. });
        if !self.is_ordered() || message.group.is_none() || self.scenario.actions.iter().any(sets_back) {
            return;
        }
        // What was lost with a server is no message any more.
        let Some(row) = self.database.pending.get(&message.key).filter(|row| row.uid == message.uid).cloned() else {
            return;
        };
        let was_before =
            |other: &Row| other.key.id < row.key.id && other.committed < row.committed && other.group == row.group;
        let blocks = self.scenario.on_dead == OnDead::Block;
        let is_batched = self.scenario.fifo_mode == FifoMode::Batched;
        // An entry of a request can fail and the next one not: batched mode says so.
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

    /// Outcomes were written back.
    pub(super) fn recorded(&mut self, settlements: &[Settlement]) {
        for Settlement { key, origin, outcome, .. } in settlements {
            let uid = super::database::uid(*origin);
            if matches!(outcome, Outcome::Delivered { .. }) && !self.queue.accepted.contains_key(&uid) {
                self.fail(format!("{} was recorded and never accepted", key.id.0));
            }
        }
    }

    /// A relay holds no more than it may.
    pub(super) fn check_bounds(&mut self, index: usize) {
        let tuning = tuning(&self.scenario);
        let core = &self.processes[index].core;
        let Some(session) = &core.session else { return };
        let (requests, known) = (session.flight.requests(), Schedule::known(&session.schedule));
        // Three batches, retries that are due, and what groups have read on.
        let most = 3 * tuning.batch_size + 1000 + 64 * 100;
        if requests > tuning.max_in_flight || known > most {
            self.fail(format!("relay {index} has {requests} requests under way and {known} messages in memory"));
        }
    }

    fn order(&self) -> Order {
        match (self.is_ordered(), self.scenario.on_dead) {
            (false, _) => Order::None,
            (true, OnDead::Skip) => Order::Groups,
            (true, OnDead::Block) => Order::GroupsBlockedByDead,
        }
    }

    /// Pending messages that nothing keeps from being delivered and recorded.
    pub(super) fn overdue(&self) -> impl Iterator<Item = &Row> {
        let order = self.order();
        let is_aside =
            move |row: &Row| self.database.quarantine.get(&row.key).is_some_and(|aside| aside.uid == row.uid);
        let is_held = move |row: &Row| self.database.held_by(&row.group, order).is_some();
        let calm_at = self.calm_at.unwrap_or(u64::MAX);
        let counts = move |row: &Row| row.committed <= calm_at && !is_aside(row) && !is_held(row);
        self.database.pending.values().filter(move |row| counts(row))
    }

    /// Everything that went on is over: writers commit, operators let go what they held back, all works again.
    pub(super) fn calm(&mut self) {
        let writers = std::mem::take(&mut self.writers);
        writers.into_values().for_each(|id| self.database.end(id, true));
        let reports = std::mem::take(&mut self.reports);
        reports.into_values().for_each(|id| self.database.end(id, false));
        for row in self.database.pending.values_mut() {
            if row.available == Some(Available::Never) {
                row.available = Some(Available::At(self.now));
            }
        }
        // Whoever sets a sequence back while relays run sets it right again, or else all above is read over and over.
        let last_id = self.database.pending.keys().map(|key| key.id.0).max();
        self.database.last_id = self.database.last_id.max(last_id.unwrap_or_default());
        self.queue_fault(None);
        self.database_fails = false;
        self.slow_by = std::time::Duration::ZERO;
        self.stalled_until = self.now;
        self.control(super::super::Control::Running);
        self.calm_at = Some(self.database.commits);
    }

    /// What must hold at the end.
    pub(super) fn check_end(&mut self) {
        let overdue: Vec<String> = self.overdue().map(|row| format!("{row:?}")).collect();
        if !overdue.is_empty() {
            return self.fail(format!("{} messages are not delivered: {}", overdue.len(), overdue[0]));
        }
        let unsent = |row: &&Row| !self.queue.accepted.contains_key(&row.uid);
        if let Some(row) = self.database.delivered.values().find(unsent) {
            let problem = format!("recorded and never accepted: {row:?}");
            return self.fail(problem);
        }
        let is_at_fault = |action: &Action| matches!(action, Action::Poison { .. } | Action::Failing { .. });
        let is_at_fault = self.scenario.actions.iter().any(|(_, action)| is_at_fault(action));
        if !self.database.dead.is_empty() && !is_at_fault {
            return self.fail("a message died that was at no fault".to_owned());
        }
        let twice = self.queue.accepted.iter().find(|(_, ids)| ids.len() > 1).map(|(uid, ids)| (*uid, ids.len()));
        if let Some((uid, times)) = twice.filter(|_| !self.scenario.may_duplicate()) {
            self.fail(format!("uid {uid} was accepted {times} times although nothing had failed"));
        }
    }
}
