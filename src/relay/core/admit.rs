//! Admission of what was read: each message becomes an item of the schedule, stays in the table, is declared dead, or
//! is set aside.
//!
//! Order depends on what is dropped here: see [`super::intake`]. Pure.

use std::collections::HashSet;
use std::sync::Arc;

use super::destination::{DestinationState, Report};
use super::group::Deferred;
use super::intake::Intake;
use super::item::Item;
use super::limits::Reserved;
use super::parked::ReadOnAnswer;
use super::schedule::Schedule;
use super::watermark::View;
use super::work::{ReadOn, ReadWork};
use crate::clock::Time;
use crate::message::{
    Accepts, Content, DestinationKind, Fault, FaultKind, Hold, Lane, Message, MessageId, MessageKey, Outcome,
    Quarantined, Settlement,
};
use crate::publisher::{Composed, compose};
use crate::reading::{Batch, ByLane, Found, Position, Range, ReadAnswer, Rescan, Rescanned, Snapshot};

/// The memory of an item besides its body and attributes.
const ITEM_BYTES: usize = 1024;

/// Makes an item of a message that is sent for the first time under a claim. Its memory is taken from what was reserved
/// for the read.
///
/// # Errors
///
/// A permanent fault when SQS can never accept it.
pub(in crate::relay) fn compose_item(
    message: Message,
    accepts: &Accepts,
    memory: &mut Reserved,
) -> Result<Item, Fault> {
    let group = message.group.clone().filter(|_| accepts.kind == DestinationKind::Fifo);
    let Message { origin, attempts, age_when_read, read_at, .. } = message;
    let Composed { entry, dropped_attributes } = compose(message, accepts)?;
    let memory = memory.split(entry.memory_bytes() + ITEM_BYTES);
    Ok(Item {
        entry,
        origin,
        group,
        dropped_attributes,
        attempts,
        resends: 0,
        charged_error: None,
        is_recorded: false,
        age_when_read,
        read_at,
        is_alone: false,
        is_unsure: false,
        is_last_of_group: false,
        repairs_by_number: 0,
        _memory: memory,
    })
}

/// Messages of a batch that could not be sent.
#[derive(Debug, Default)]
pub(super) struct Refused {
    /// Messages that SQS can never accept.
    pub(super) dead: Vec<Settlement>,
    /// Messages that PostgreSQL cannot read.
    pub(super) unreadable: Vec<Quarantined>,
}

/// Whether a read has returned everything of a lane.
fn is_all(position: &Position, batch: &Batch) -> bool {
    is_all_of(position, batch.messages.iter().filter(|message| message.key.lane == position.lane).count(), batch)
}

/// The same when the number of messages of the lane is known.
fn is_all_of(position: &Position, count: usize, batch: &Batch) -> bool {
    count < position.limit && !batch.is_cut && !batch.lanes_with_more.contains(&position.lane)
}

/// Whether a read of more of a group has returned everything up to its limit.
fn is_all_of_group(wanted: &ReadOn, batch: &Batch) -> bool {
    batch.messages.len() < wanted.position.limit && !batch.is_cut && batch.lanes_with_more.is_empty()
}

/// Groups of which the lanes, read under a later snapshot, show more: a message that was committed earlier may be
/// missing.
fn shown_after(groups: &[ReadOn], batches: &[Batch], lanes: &Batch) -> HashSet<Arc<str>> {
    let ended = groups.iter().zip(batches).filter(|(wanted, batch)| is_all_of_group(wanted, batch));
    let ended: HashSet<&Arc<str>> = ended.map(|(wanted, _)| &wanted.position.group).collect();
    if ended.is_empty() {
        return HashSet::new();
    }
    let shown = lanes.messages.iter().filter_map(|message| message.group.as_ref());
    shown.filter(|group| ended.contains(group)).cloned().collect()
}

/// Whether a rescan has found everything in this range.
fn is_covered(range: &Range, rescan: &Rescan, rescanned: &Rescanned) -> bool {
    rescanned.found.iter().filter(|found| found.key.lane == range.lane).count() < rescan.limit
}

/// The ranges in which a rescan has found everything.
fn covered<'a>(rescan: &'a Rescan, rescanned: &'a Rescanned) -> impl Iterator<Item = &'a Range> {
    rescan.ranges.iter().filter(move |range| is_covered(range, rescan, rescanned))
}

/// Whether the read continued a group of this lane.
fn reads_groups_of(work: &ReadWork, lane: Lane) -> bool {
    work.groups.iter().any(|wanted| wanted.position.after.lane == lane)
}

/// Whether a rescan of the gap began at the bottom.
fn is_from_bottom(gap: &Rescan) -> bool {
    gap.ranges.iter().all(|range| range.above == MessageId::NONE)
}

/// The state that admission of a batch works on.
pub(super) struct Admission<'a> {
    pub(super) intake: &'a mut Intake,
    pub(super) schedule: &'a mut Schedule,
    pub(super) destination: &'a mut DestinationState,
    pub(super) refused: Refused,
    pub(super) now: Time,
}

impl Admission<'_> {
    /// Applies a read; returns whether it brought something new. The rules are those of `docs/late-commits.md`.
    pub(super) fn apply_read(&mut self, mut work: ReadWork, answer: ReadAnswer) -> bool {
        let Some(late) = self.apply_gap_rescan(&work, &answer) else {
            // An overtaken writer has ended (rule 5): the lanes are rescanned first, and all of this is read again.
            self.schedule.not_read_on(&work.groups);
            return true;
        };
        let ReadAnswer { groups, lanes, .. } = answer;
        let is_new = !late.is_empty() || !groups.is_empty();
        self.apply_groups(&mut work, groups, &lanes, &late);
        let has_messages = self.apply_lanes(&mut work, lanes, &late);
        is_new || has_messages
    }

    /// Applies the rescan of the gap, if there was one. Returns the lanes of which nothing may be admitted, because
    /// something late was found or may be hidden; `None` if nothing of the whole read may be.
    fn apply_gap_rescan(&mut self, work: &ReadWork, answer: &ReadAnswer) -> Option<Vec<Lane>> {
        let Some((rescan, rescanned)) = work.request.gap.as_ref().zip(answer.gap.as_ref()) else {
            return Some(Vec::new());
        };
        let watermarks = &mut self.destination.knowledge.watermarks;
        let has_ended = self.destination.accepts.kind == DestinationKind::Fifo
            && watermarks.note_ended_writers(&rescanned.snapshot);
        // A rescan that began at the bottom has seen the rows of such writers.
        if has_ended && !is_from_bottom(rescan) {
            return None;
        }
        let late = self.apply_gap(work, rescan, rescanned, answer.before.as_ref());
        if is_from_bottom(rescan) {
            self.apply_from_bottom(work, rescan, rescanned, has_ended);
        }
        Some(late)
    }

    /// Admits what was read of groups, except of those whose lane has to be read first.
    fn apply_groups(&mut self, work: &mut ReadWork, groups: Vec<Batch>, lanes: &Batch, late: &[Lane]) {
        let goes_on = shown_after(&work.groups, &groups, lanes);
        let watermarks = &self.destination.knowledge.watermarks;
        let is_whole = |lane: Lane| {
            let position = work.request.lanes.iter().find(|position| position.lane == lane);
            position.is_some_and(|position| position.above == watermarks.position(lane) && is_all(position, lanes))
        };
        // See [`Schedule::next_to_read_on`].
        let is_too_early = |wanted: &ReadOn| {
            let after = wanted.position.after;
            late.contains(&after.lane) || (after.id > watermarks.position(after.lane) && !is_whole(after.lane))
        };
        let too_early: Vec<bool> = work.groups.iter().map(is_too_early).collect();
        for ((wanted, batch), is_too_early) in work.groups.iter().zip(groups).zip(too_early) {
            if is_too_early {
                self.schedule.not_read_on(std::slice::from_ref(wanted));
            } else {
                let is_all = is_all_of_group(wanted, &batch) && !goes_on.contains(&wanted.position.group);
                self.apply_group(wanted, batch, is_all, &mut work.memory);
            }
        }
    }

    /// Applies a rescan of the gap. Watermarks move up past what it settles, and back below what it found. Returns the
    /// lanes in which it found something, or found more than the answer holds, so that something may be hidden. The
    /// rescan leaves out what is known to wait in the table. For groups that were continued in the same answer, that
    /// knowledge predates the answer; so for their lanes it settles only what had ended before the groups were read.
    fn apply_gap(
        &mut self,
        work: &ReadWork,
        rescan: &Rescan,
        rescanned: &Rescanned,
        before_groups: Option<&Snapshot>,
    ) -> Vec<Lane> {
        let seen = covered(rescan, rescanned).map(|range| (range.lane, range.upto));
        let (with_groups, others): (Vec<_>, Vec<_>) = seen.partition(|(lane, _)| reads_groups_of(work, *lane));
        let watermarks = &mut self.destination.knowledge.watermarks;
        let began_at = work.began_at;
        watermarks.rescanned(&others, View { snapshot: &rescanned.snapshot, began_at }, self.now);
        if let Some(snapshot) = before_groups {
            watermarks.rescanned(&with_groups, View { snapshot, began_at }, self.now);
        }
        let mut late = self.find_late(rescan, &rescanned.found);
        let hidden = rescan.ranges.iter().filter(|range| !is_covered(range, rescan, rescanned));
        late.extend(hidden.map(|range| range.lane));
        late
    }

    /// Applies a rescan of the gap that began at the bottom. If it shows that an overtaken writer has ended, that
    /// writer may have ended after groups were read in the same answer. Then its messages are missing there, and the
    /// lanes of those groups are not marked.
    fn apply_from_bottom(&mut self, work: &ReadWork, rescan: &Rescan, rescanned: &Rescanned, has_ended: bool) {
        let knowledge = &mut self.destination.knowledge;
        knowledge.full_rescan.took_one_statement(&rescan.ranges, rescanned.took);
        let epoch = knowledge.watermarks.epoch();
        for range in covered(rescan, rescanned) {
            if !(has_ended && reads_groups_of(work, range.lane)) {
                knowledge.watermarks.rescanned_from_the_bottom(range.lane, epoch);
            }
        }
    }

    /// Sets lanes back below each unknown message that a rescan found; returns those lanes.
    pub(super) fn find_late(&mut self, rescan: &Rescan, found: &[Found]) -> Vec<Lane> {
        let mut late = Vec::new();
        for Found { key, group } in found {
            let ready_upto = rescan.ranges.iter().find(|range| range.lane == key.lane).map(|range| range.ready_upto);
            let is_ready = ready_upto.is_some_and(|ready_upto| key.id <= ready_upto);
            let is_known = self.schedule.knows(*key)
                || self.schedule.is_left(*key, group.as_ref())
                || !is_ready && self.has_joined(*key, group.as_ref());
            if !is_known && is_ready && self.schedule.take_from_crowd(*key, group.as_ref()) {
                self.intake.happened();
            } else if !is_known {
                self.destination.knowledge.watermarks.rewind(key.lane, key.id);
                self.intake.read_to_end[key.lane] = false;
                late.push(key.lane);
            }
        }
        if !late.is_empty() {
            self.destination.report(Report::Late(late.len() as u64));
            self.intake.next_read = self.now;
            self.intake.happened();
        }
        late
    }

    /// Whether this message was read and its group belongs to a crowd. The low watermark may have passed the message
    /// since the rescan was sent; it does so only when everything below it was seen.
    fn has_joined(&self, key: MessageKey, group: Option<&Arc<str>>) -> bool {
        let crowds = &self.schedule.parked.crowds;
        let is_passed = key.id <= self.destination.knowledge.watermarks.low(key.lane);
        crowds.has_seen(key) || is_passed && group.is_some_and(|group| crowds.has(key.lane, group))
    }

    fn apply_group(&mut self, wanted: &ReadOn, batch: Batch, is_all: bool, memory: &mut Reserved) {
        self.intake.follow(batch.is_cut);
        let position = &wanted.position;
        if let Some(Hold::Group { by }) = batch.messages.iter().find_map(|message| message.hold) {
            self.schedule.block(&position.group, MessageKey { lane: position.after.lane, id: by });
            return;
        }
        let mut read = ReadOnAnswer { is_all, ..ReadOnAnswer::default() };
        for message in batch.messages {
            if let Some(wait) = message.wait {
                // It comes when it is due, and the messages behind it come after that.
                read.head = Some(Deferred::Head { id: message.key.id, due: Some(message.read_at + wait) });
                break;
            }
            read.last = Some(message.key.id);
            read.items.extend(self.item(message, memory));
        }
        self.schedule.read_on(wanted, read);
    }

    /// Admits what was read of lanes whose position has not changed; returns whether there was anything.
    fn apply_lanes(&mut self, work: &mut ReadWork, mut batch: Batch, late: &[Lane]) -> bool {
        if work.request.lanes.is_empty() {
            return false;
        }
        self.intake.follow(batch.is_cut);
        // A rescan from the bottom may have set a lane back since the read began.
        let watermarks = &self.destination.knowledge.watermarks;
        let is_here = |position: &&Position| {
            watermarks.position(position.lane) == position.above && !late.contains(&position.lane)
        };
        let in_place: Vec<Position> = work.request.lanes.iter().filter(is_here).copied().collect();
        let mut is_in_place = ByLane::all(false);
        in_place.iter().for_each(|position| is_in_place[position.lane] = true);
        batch.messages.retain(|message| is_in_place[message.key.lane]);
        self.intake.full.clear();
        // The number of messages of each lane, and its last one; this visits each message once.
        let mut came: ByLane<(usize, Option<MessageId>)> = ByLane::default();
        for message in &batch.messages {
            let (count, last) = &mut came[message.key.lane];
            *count += 1;
            *last = Some(message.key.id);
        }
        for position in &in_place {
            let (count, last) = came[position.lane];
            if let Some((last, next_xid)) = last.zip(batch.next_xid) {
                let watermarks = &mut self.destination.knowledge.watermarks;
                watermarks.read(position.lane, last, next_xid, batch.last_id, self.now);
            }
            let is_all = is_all_of(position, count, &batch);
            self.intake.read_to_end[position.lane] = is_all;
            if !is_all {
                self.intake.full.push(position.lane);
            }
        }
        let is_new = !batch.messages.is_empty();
        for message in batch.messages {
            self.admit(message, &mut work.memory);
        }
        is_new
    }

    /// Admits a message that was read in order, or leaves it in the table.
    fn admit(&mut self, message: Message, memory: &mut Reserved) {
        if self.schedule.knows(message.key) {
            return;
        }
        let group = message.group.clone().filter(|_| self.destination.accepts.kind == DestinationKind::Fifo);
        // This comes before composing: a blocked or hot group may have many messages.
        if let Some(group) = &group
            && self.schedule.keep_in_table_if_held(group, message.key, message.hold, self.now)
        {
            return;
        }
        if let Some(item) = self.item(message, memory) {
            self.schedule.admit(item);
        }
    }

    /// Admits what is due; returns whether any of it was new. A retry recorded by a relay is the head of its group. A
    /// message deferred by hand may be anywhere in its group, so the group is read again in order from that message on.
    pub(super) fn apply_due(&mut self, batch: Batch, memory: &mut Reserved) -> bool {
        self.intake.follow(batch.is_cut);
        let mut is_new = false;
        for message in batch.messages {
            if self.schedule.knows(message.key) {
                continue;
            }
            let (key, attempts) = (message.key, message.attempts);
            let group = message.group.clone().filter(|_| self.destination.accepts.kind == DestinationKind::Fifo);
            let read_to = self.destination.knowledge.watermarks.position(key.lane);
            match group {
                Some(group) if attempts == 0 => is_new |= self.schedule.start_over(&group, key, read_to),
                _ => {
                    if let Some(item) = self.item(message, memory) {
                        self.schedule.admit_head(item, read_to);
                    }
                    // Known means dead, set aside, or on its way; it is not known if its group leaves it in the table.
                    is_new |= self.schedule.knows(key);
                }
            }
        }
        is_new
    }

    /// Makes an item of a message that is not in memory yet. A message that SQS can never accept is dead, and one that
    /// PostgreSQL cannot read is set aside.
    fn item(&mut self, message: Message, memory: &mut Reserved) -> Option<Item> {
        if self.schedule.knows(message.key) {
            return None;
        }
        let group = message.group.clone().filter(|_| self.destination.accepts.kind == DestinationKind::Fifo);
        let (key, origin, attempts) = (message.key, message.origin, message.attempts);
        let reason = match &message.content {
            Content::Unreadable { reason } => Some(reason.clone()),
            // Its body was not read although nothing holds it up any more; it comes with the next read.
            Content::Held => return None,
            _ => None,
        };
        if let Some(reason) = reason {
            self.set_aside(Quarantined { key, origin, group, outcome: None, reason });
            return None;
        }
        match compose_item(message, &self.destination.accepts, memory) {
            Ok(item) => Some(item),
            Err(fault) => {
                self.dies(key, origin, group, attempts, &fault);
                None
            }
        }
    }

    fn dies(
        &mut self,
        key: MessageKey,
        origin: crate::message::Origin,
        group: Option<Arc<str>>,
        attempts: i16,
        fault: &Fault,
    ) {
        debug_assert_eq!(fault.kind, FaultKind::MessagePermanent);
        self.schedule.pass_over(key, group.as_ref());
        let outcome = Outcome::Dead { attempts, kind: fault.kind, error: fault.to_string() };
        self.refused.dead.push(Settlement { key, origin, group, outcome });
    }

    fn set_aside(&mut self, message: Quarantined) {
        self.schedule.pass_over(message.key, message.group.as_ref());
        self.refused.unreadable.push(message);
    }
}

#[cfg(test)]
mod tests;
