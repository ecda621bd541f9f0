//! What the read-only statements of `sql/queries` return from the simulated database.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use super::{Available, Database, Row};
use crate::clock::Time;
use crate::message::{BodyForm, Content, Event, Hold, Lane, Message, MessageId, MessageKey, TransactionId};
use crate::outbox::{OutboxError, Pending};
use crate::reading::{
    Batch, DueRequest, Found, GroupPosition, HeldGroup, Look, Order, ReadRequest, Rescan, Rescanned, Watch, Writers,
};

impl Database {
    // What holds messages up.

    fn is_quarantined(&self, row: &Row) -> bool {
        self.quarantine.get(&row.key).is_some_and(|aside| aside.uid == row.uid)
    }

    pub(in super::super) fn held_by(&self, group: &Option<Arc<str>>, order: Order) -> Option<MessageId> {
        group.as_ref()?;
        let dead =
            self.dead.values().filter(|row| order.is_blocked_by_dead() && row.group == *group).map(|row| row.key.id);
        let aside = self.quarantine.iter().filter(|(_, aside)| order.is_kept() && aside.group == *group);
        dead.chain(aside.map(|(key, _)| key.id)).min()
    }

    /// The lowest and the highest deferred message of its group before it, if its group is ordered.
    fn behind(&self, row: &Row, order: Order) -> Option<(&Row, &Row)> {
        if !order.is_kept() || row.group.is_none() {
            return None;
        }
        // A group has one lane.
        let before = self.pending.range(MessageKey { id: MessageId::NONE, ..row.key }..row.key).map(|(_, other)| other);
        let deferred = before.filter(|other| other.available.is_some() && other.group == row.group);
        deferred.clone().min_by_key(|row| row.key.id).zip(deferred.max_by_key(|row| row.key.id))
    }

    pub(super) fn is_ready(&self, row: &Row, order: Order) -> bool {
        self.held_by(&row.group, order).is_none() && self.behind(row, order).is_none()
    }

    /// Pending messages that a read of a lane returns.
    fn readable(&self) -> impl Iterator<Item = &Row> {
        self.pending.values().filter(|row| self.is_readable(row))
    }

    fn is_readable(&self, row: &Row) -> bool {
        row.available.is_none() && !self.is_quarantined(row)
    }

    // Reading.

    pub(in super::super) fn watch(&self, now: Time) -> Watch {
        let due = self.pending.values().filter_map(|row| match row.available? {
            Available::At(at) if at <= now => Some(at.since(Time::default()).as_secs_f64()),
            _ => None,
        });
        let latest_due = due.fold(None, |latest: Option<f64>, at| Some(latest.map_or(at, |latest| latest.max(at))));
        Watch { last_id: MessageId(self.last_id), latest_due, last_action: self.actions }
    }

    pub(in super::super) fn look(
        &self,
        lows: &[(Lane, MessageId)],
        order: Order,
        longest_delay: Duration,
        own: &BTreeSet<TransactionId>,
        now: Time,
    ) -> Look {
        let has_work =
            |(lane, low): &&(Lane, MessageId)| self.readable().any(|row| row.key.lane == *lane && row.key.id > *low);
        let due = self.pending.values().filter(|row| is_due(row, longest_delay, now));
        let due = due.filter(|row| self.is_ready(row, order)).map(|row| row.key.lane);
        let due: BTreeSet<Lane> = due.collect();
        Look {
            snapshot: self.snapshot(own),
            next_xid: self.next_xid(),
            last_id: MessageId(self.last_id),
            ready: lows.iter().filter(has_work).map(|(lane, _)| *lane).collect(),
            due: due.into_iter().collect(),
        }
    }

    pub(in super::super) fn writers(&self) -> Writers {
        Writers { transaction_ids: self.writers.iter().copied().collect(), next_xid: Some(self.next_xid()) }
    }

    pub(in super::super) fn rescan(&self, rescan: &Rescan, own: &BTreeSet<TransactionId>) -> Rescanned {
        let mut found = Vec::new();
        for range in &rescan.ranges {
            let is_known = |row: &Row| {
                let after =
                    |group: &Arc<str>| rescan.waiting.iter().find(|(name, _)| name == group).map(|(_, after)| *after);
                row.group.as_ref().and_then(after).is_some_and(|after| row.key.id > after)
            };
            let is_known_group = |row: &Row| row.group.as_ref().is_some_and(|group| rescan.known.contains(group));
            let counts =
                |row: &Row| row.key.id > range.ready_upto || is_known_group(row) || self.is_ready(row, rescan.order);
            let next = MessageKey { lane: range.lane, id: range.above.next() };
            let last = MessageKey { lane: range.lane, id: range.upto.max(next.id) };
            let rows = self.pending.range(next..=last).map(|(_, row)| row);
            let rows = rows.filter(|row| self.is_readable(row) && row.key.id <= range.upto);
            let rows = rows.filter(|row| !is_known(row) && counts(row)).take(rescan.limit);
            found.extend(rows.map(|row| Found { key: row.key, group: row.group.clone() }));
        }
        Rescanned { snapshot: self.snapshot(own), found, took: Duration::from_millis(2) }
    }

    pub(in super::super) fn held_groups(&self, groups: &[Arc<str>], order: Order, now: Time) -> Vec<HeldGroup> {
        // A group has one lane, and the messages of a lane are in the order of ids.
        let mut heads: HashMap<&Arc<str>, &Row> = HashMap::new();
        for row in self.pending.values().filter(|row| row.available.is_some()) {
            if let Some(group) = &row.group {
                heads.entry(group).or_insert(row);
            }
        }
        let held = |group: &Arc<str>| HeldGroup {
            group: Arc::clone(group),
            by: self.held_by(&Some(Arc::clone(group)), order),
            head: heads.get(group).map(|row| (row.key.id, wait(row, now))),
        };
        groups.iter().map(held).collect()
    }

    pub(in super::super) fn pending_left(&self, order: Order) -> Pending {
        let is_free = |row: &Row| self.held_by(&row.group, order).is_none() && !self.is_quarantined(row);
        match () {
            () if self.pending.is_empty() => Pending::Nothing,
            () if self.pending.values().any(is_free) => Pending::Some,
            () => Pending::OnlyHeld,
        }
    }

    fn message(&self, row: &Row, order: Order, now: Time) -> Message {
        let held_by = self.held_by(&row.group, order);
        let behind = self.behind(row, order);
        let hold = held_by.map(|by| Hold::Group { by }).or_else(|| {
            let (head, last) = behind?;
            Some(Hold::Behind { head: head.key.id, last: last.key.id, wait: wait(head, now) })
        });
        let content = match () {
            () if held_by.is_some() => Content::Held,
            () if self.unreadable.contains(&row.uid) => {
                Content::Unreadable { reason: "invalid byte sequence".to_owned() }
            }
            () => Content::Event(Event {
                event_id: row.uid.to_string(),
                event_type: "T".to_owned(),
                stream: None,
                body: row.uid.to_string(),
                form: BodyForm::Json,
                metadata: "{}".to_owned(),
            }),
        };
        Message {
            key: row.key,
            origin: row.origin(),
            group: row.group.clone(),
            attempts: row.attempts,
            superseded: row.superseded,
            age_when_read: Duration::ZERO,
            read_at: now,
            wait: None,
            hold,
            content,
        }
    }

    /// The next messages of some lanes. The batch is cut at the byte limit, as if it were reached after `cut` messages.
    pub(in super::super) fn read_lanes(
        &self,
        request: &ReadRequest,
        cut: usize,
        now: Time,
    ) -> Result<Batch, OutboxError> {
        let mut batch = Batch::default();
        for position in &request.lanes {
            let next = MessageKey { lane: position.lane, id: position.above.next() };
            let last = MessageKey { lane: position.lane, id: MessageId::MAX };
            let rows = self.pending.range(next..=last).map(|(_, row)| row);
            for row in rows.filter(|row| self.is_readable(row)).take(position.limit) {
                batch.next_xid = Some(self.next_xid());
                batch.last_id = MessageId(self.last_id);
                self.can_read(row, request.lookup)?;
                if batch.messages.len() >= cut.max(1) {
                    batch.is_cut = true;
                    break;
                }
                batch.messages.push(self.message(row, request.order, now));
            }
        }
        batch.messages.sort_by_key(|message| message.key.id);
        Ok(batch)
    }

    fn can_read(&self, row: &Row, lookup: crate::reading::Lookup) -> Result<(), OutboxError> {
        let is_unreadable = self.unreadable.contains(&row.uid) && lookup == crate::reading::Lookup::Together;
        if is_unreadable { Err(OutboxError::of_code("22021")) } else { Ok(()) }
    }

    pub(in super::super) fn read_group(
        &self,
        position: &GroupPosition,
        request: &ReadRequest,
        now: Time,
    ) -> Result<Batch, OutboxError> {
        let mut batch = Batch { next_xid: Some(self.next_xid()), ..Batch::default() };
        let next = MessageKey { id: position.after.id.next(), ..position.after };
        let last = MessageKey { id: position.upto.max(next.id), ..position.after };
        let is_next = |row: &&Row| {
            row.group.as_ref() == Some(&position.group) && row.key.id <= position.upto && !self.is_quarantined(row)
        };
        for row in self.pending.range(next..=last).map(|(_, row)| row).filter(is_next).take(position.limit) {
            self.can_read(row, request.lookup)?;
            let mut message = self.message(row, request.order, now);
            message.hold = message.hold.filter(|hold| matches!(hold, Hold::Group { .. }));
            message.wait = row.available.and_then(|available| match available {
                Available::At(at) => (at > now).then(|| at.since(now)),
                Available::Never => Some(Duration::from_secs(100 * 366 * 86_400)),
            });
            batch.messages.push(message);
        }
        Ok(batch)
    }

    pub(in super::super) fn read_due(&self, request: &DueRequest, now: Time) -> Result<Batch, OutboxError> {
        let mut batch = Batch::default();
        let may = |row: &&Row| {
            is_due(row, request.longest_delay, now)
                && request.lanes.contains(&row.key.lane)
                && row.group.as_ref().is_none_or(|group| !request.groups_to_skip.contains(group))
                && self.is_ready(row, request.order)
                && !self.is_quarantined(row)
        };
        let mut due: Vec<&Row> = self.pending.values().filter(may).collect();
        due.sort_by_key(|row| (row.available.map(|available| matches!(available, Available::Never)), row.key.id));
        for row in due.into_iter().take(request.limit) {
            self.can_read(row, request.lookup)?;
            let mut message = self.message(row, request.order, now);
            message.hold = None;
            batch.messages.push(message);
        }
        Ok(batch)
    }
}

/// How long a deferred message waits; `None` if it waits indefinitely.
fn wait(row: &Row, now: Time) -> Option<Duration> {
    match row.available {
        Some(Available::Never) => None,
        Some(Available::At(at)) => Some(at.since(now)),
        None => Some(Duration::ZERO),
    }
}

fn is_due(row: &Row, longest_delay: Duration, now: Time) -> bool {
    match row.available {
        Some(Available::At(at)) => at <= now || (row.attempts > 0 && at.since(now) > longest_delay),
        _ => false,
    }
}
