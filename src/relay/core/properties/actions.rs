//! What the actions of a scenario do to the simulated world.

use std::time::Duration;

use super::super::Control;
use super::database::{Available, Row};
use super::scenario::Action;
use super::world::{Event, World};
use crate::message::{MessageId, MessageKey, TransactionId};

impl World {
    pub(super) fn act(&mut self, index: usize) {
        let action = self.action(index);
        self.note(|| format!("ACTION {action:?}"));
        let millis = match action {
            Action::Put { .. }
            | Action::Begin { .. }
            | Action::Write { .. }
            | Action::End { .. }
            | Action::PutFarAhead { .. }
            | Action::SetBack { .. } => return self.write(action),
            Action::Hold { .. }
            | Action::Unhold { .. }
            | Action::Redrive { .. }
            | Action::Discard { .. }
            | Action::Refuse { .. }
            | Action::Unreadable { .. }
            | Action::Poison { .. }
            | Action::Failing { .. } => return self.act_on_message(action),
            Action::Disconnect | Action::Restart | Action::Lag | Action::Promote { .. } => {
                return self.fail_over(action);
            }
            Action::Kill { process } => {
                let process = usize::from(process) % self.processes.len();
                return self.kill(process);
            }
            Action::Freeze { process, millis } => {
                let process = usize::from(process) % self.processes.len();
                self.processes[process].frozen_until = self.now + Duration::from_millis(u64::from(millis));
                return;
            }
            Action::DatabaseStalls { millis } => {
                self.stalled_until = self.now + Duration::from_millis(u64::from(millis));
                return;
            }
            Action::Report { millis } => {
                let id = self.database.begin();
                self.reports.insert(index, id);
                millis
            }
            Action::Queue { fault, millis } => {
                self.queue_fault(Some(fault));
                millis
            }
            Action::DatabaseFails { millis } => {
                self.database_fails = true;
                millis
            }
            Action::DatabaseIsSlow { by_millis, millis } => {
                self.slow_by = Duration::from_millis(u64::from(by_millis));
                millis
            }
            Action::Pause { millis } => {
                self.control(Control::Paused);
                millis
            }
        };
        self.plan(Duration::from_millis(u64::from(millis)), Event::Over { index });
    }

    pub(super) fn over(&mut self, index: usize) {
        let action = self.action(index);
        self.note(|| format!("OVER {action:?}"));
        match action {
            Action::Queue { .. } => self.queue_fault(None),
            Action::DatabaseFails { .. } => self.database_fails = false,
            Action::DatabaseIsSlow { .. } => self.slow_by = Duration::ZERO,
            Action::Pause { .. } => self.control(Control::Running),
            Action::Report { .. } => {
                if let Some(id) = self.reports.remove(&index) {
                    self.database.end(id, false);
                }
            }
            _ => {}
        }
    }

    fn next_id(&mut self) -> i64 {
        loop {
            self.database.last_id += 1;
            let id = MessageId(self.database.last_id);
            // The primary key refuses an id that exists, and the application tries the next one.
            if !self.database.pending.keys().any(|key| key.id == id) {
                return id.0;
            }
        }
    }

    fn insert(&mut self, transaction: TransactionId, group: u8) {
        let id = self.next_id();
        let row = self.row(group, id);
        self.database.insert(transaction, row);
    }

    pub(super) fn begin_long_writer(&mut self) {
        let Some((every, open)) = self.scenario.long_writers else { return };
        let transaction = self.database.begin();
        let group = self.rng.u8(0..7);
        self.insert(transaction, group);
        self.plan(Duration::from_millis(u64::from(open)), Event::LongWriterEnds { transaction });
        self.plan(Duration::from_millis(u64::from(every)), Event::LongWriterBegins);
    }

    /// The writer's transaction; it begins if none is running.
    fn writer(&mut self, writer: u8) -> TransactionId {
        let known = self.writers.get(&writer).copied().filter(|id| self.database.is_running(*id));
        let id = known.unwrap_or_else(|| self.database.begin());
        self.writers.insert(writer, id);
        id
    }

    /// Between two statements of a relay's transaction a writer may commit, and then the next writer of each of its
    /// groups, which waited for it.
    pub(super) fn commit_between_statements(&mut self) {
        if self.rng.u8(0..4) > 0 {
            return;
        }
        let Some((writer, id)) = self.writers.iter().next().map(|(writer, id)| (*writer, *id)) else { return };
        self.writers.remove(&writer);
        let groups = self.database.groups_of(id);
        self.database.end(id, true);
        self.note(|| {
            format!("writer {writer} commits between two statements, and then the next writers of {groups:?}")
        });
        for group in groups {
            let next = self.database.begin();
            let mut row = self.row(0, 0);
            row.key = MessageKey { lane: group.1, id: MessageId(self.next_id()) };
            row.group = Some(group.0);
            self.database.insert(next, row);
            self.database.end(next, true);
        }
    }

    fn write(&mut self, action: Action) {
        match action {
            Action::Put { group, count } => {
                let id = self.database.begin();
                (0..count).for_each(|_| self.insert(id, group));
                self.database.end(id, true);
            }
            Action::Begin { writer } => drop(self.writer(writer)),
            Action::Write { writer, group } => {
                let id = self.writer(writer);
                self.insert(id, group);
            }
            Action::End { writer, commits } => {
                if let Some(id) = self.writers.remove(&writer) {
                    self.database.end(id, commits);
                }
            }
            Action::PutFarAhead { group } => {
                let id = self.database.begin();
                let far = 9_000_000_000_000_000_000 + self.next_uid as i64;
                let row = self.row(group, far);
                self.database.insert(id, row);
                self.database.end(id, true);
            }
            Action::SetBack { by } => self.database.last_id = (self.database.last_id - i64::from(by)).max(0),
            _ => {}
        }
    }

    fn nth_pending(&self, nth: u8) -> Option<Row> {
        let rows = &self.database.pending;
        rows.values().nth(usize::from(nth) % rows.len().max(1)).cloned()
    }

    fn nth_dead(&self, nth: u8) -> Option<MessageKey> {
        let rows = &self.database.dead;
        rows.keys().nth(usize::from(nth) % rows.len().max(1)).copied()
    }

    fn act_on_message(&mut self, action: Action) {
        match action {
            Action::Hold { nth, millis } => {
                let available = match millis {
                    Some(millis) => Available::At(self.now + Duration::from_millis(u64::from(millis))),
                    None => Available::Never,
                };
                // Before an operator can see a message and hold it back, other transactions commit.
                let is_seen = |row: &Row| row.committed + 5 <= self.database.commits;
                if let Some(row) = self.nth_pending(nth).filter(is_seen) {
                    self.database.pending.get_mut(&row.key).unwrap().available = Some(available);
                }
            }
            Action::Unhold { nth } => {
                // As docs/operations.md says: due now, so that later messages of its group still wait for it.
                if let Some(row) = self.nth_pending(nth).filter(|row| row.available.is_some()) {
                    self.database.pending.get_mut(&row.key).unwrap().available = Some(Available::At(self.now));
                }
            }
            Action::Redrive { nth } => {
                if let Some(row) = self.nth_dead(nth).and_then(|key| self.database.dead.remove(&key)) {
                    // What made it fail has been corrected.
                    self.queue.refused.remove(&row.uid);
                    self.queue.failures.remove(&row.uid);
                    self.database.actions += 1;
                    let available = row.group.as_ref().map(|_| Available::At(self.now));
                    self.database.pending.insert(row.key, Row { attempts: 0, is_redriven: true, available, ..row });
                }
            }
            Action::Discard { nth } => {
                if let Some(key) = self.nth_dead(nth) {
                    self.database.dead.remove(&key);
                    self.database.actions += 1;
                }
            }
            Action::Refuse { nth, count } => {
                if let Some(row) = self.nth_pending(nth) {
                    let rows = self.database.pending.range(row.key..).take(usize::from(count));
                    self.database.refused.extend(rows.map(|(_, row)| row.uid));
                }
            }
            Action::Unreadable { nth } => {
                if let Some(row) = self.nth_pending(nth) {
                    self.database.unreadable.insert(row.uid);
                }
            }
            Action::Poison { nth } => {
                if let Some(row) = self.nth_pending(nth) {
                    self.queue.refused.insert(row.uid);
                }
            }
            Action::Failing { nth, times } => {
                if let Some(row) = self.nth_pending(nth) {
                    self.queue.failing.insert(row.uid, u32::from(times));
                }
            }
            _ => {}
        }
    }

    fn fail_over(&mut self, action: Action) {
        match action {
            Action::Lag => {
                self.standby.get_or_insert_with(|| self.database.clone());
                return;
            }
            Action::Restart => self.database.restart(),
            Action::Promote { behind_pooler } => {
                let standby = self.standby.take().unwrap_or_else(|| self.database.clone());
                let skipped = if self.rng.bool() { 32 } else { 0 };
                self.database.promote(&standby, skipped);
                // A pooler keeps its clients' connections and opens new ones to the server that took over; only the
                // transactions of claims end.
                if behind_pooler {
                    return self.notice_lost_claims();
                }
            }
            _ => {}
        }
        self.end_all_connections();
    }
}
