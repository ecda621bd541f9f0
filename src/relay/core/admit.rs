//! Taking in what was read: each message becomes an item of the schedule, stays in the table, dies, or is set aside.
//!
//! Order rests on what is dropped here: see [`super::intake`]. Pure.

use std::collections::HashSet;
use std::sync::Arc;

use super::group::Deferred;
use super::intake::Intake;
use super::item::Item;
use super::limits::Reserved;
use super::parked::ReadOnAnswer;
use super::schedule::Schedule;
use super::standing::{Report, Standing};
use super::watermark::View;
use super::work::{ReadOn, ReadWork};
use crate::clock::Time;
use crate::message::{
    Content, Fault, FaultKind, Hold, Lane, Message, MessageId, MessageKey, Outcome, Quarantined, QueueKind, Settlement,
};
use crate::reading::{Batch, ByLane, Found, Position, Range, ReadAnswer, Rescan, Rescanned, Snapshot};
use crate::sqs::{Composed, compose};

/// What an item takes besides its body and attributes.
const ITEM_BYTES: usize = 1024;

/// Makes an item of a message that is sent for the first time under a claim; its memory comes out of what was reserved for the
/// read.
///
/// # Errors
///
/// A permanent fault when SQS can never accept it.
pub(in crate::relay) fn compose_item(message: Message, kind: QueueKind, memory: &mut Reserved) -> Result<Item, Fault> {
    let group = message.group.clone().filter(|_| kind == QueueKind::Fifo);
    let Message { origin, attempts, age_when_read, read_at, .. } = message;
    let Composed { entry, left_out } = compose(message, kind)?;
    let memory = memory.split(entry.bytes() + ITEM_BYTES);
    Ok(Item {
        entry,
        origin,
        group,
        left_out,
        attempts,
        resends: 0,
        charged: None,
        is_recorded: false,
        age_when_read,
        read_at,
        is_alone: false,
        _memory: memory,
    })
}

/// What could not go on its way while a batch was taken in.
#[derive(Debug, Default)]
pub(super) struct Refused {
    /// Messages that SQS can never accept.
    pub(super) dead: Vec<Settlement>,
    /// Messages that PostgreSQL cannot read.
    pub(super) unreadable: Vec<Quarantined>,
}

/// Whether a read has brought everything that a lane had.
fn is_all(position: &Position, batch: &Batch) -> bool {
    is_all_of(position, batch.messages.iter().filter(|message| message.key.lane == position.lane).count(), batch)
}

/// The same where it is known how many messages of the lane came.
fn is_all_of(position: &Position, count: usize, batch: &Batch) -> bool {
    count < position.most && !batch.is_cut && !batch.lanes_with_more.contains(&position.lane)
}

/// Whether a read of more of a group has brought everything up to where it was to look.
fn is_all_of_group(wanted: &ReadOn, batch: &Batch) -> bool {
    batch.messages.len() < wanted.position.most && !batch.is_cut && batch.lanes_with_more.is_empty()
}

/// Groups of which the lanes, read under a later snapshot, show more: what was committed before that may be missing.
fn shown_after(groups: &[ReadOn], answer: &ReadAnswer) -> HashSet<Arc<str>> {
    let ended = groups.iter().zip(&answer.groups).filter(|(wanted, batch)| is_all_of_group(wanted, batch));
    let ended: HashSet<&Arc<str>> = ended.map(|(wanted, _)| &wanted.position.group).collect();
    if ended.is_empty() {
        return HashSet::new();
    }
    let shown = answer.lanes.messages.iter().filter_map(|message| message.group.as_ref());
    shown.filter(|group| ended.contains(group)).cloned().collect()
}

/// Whether a look has found everything in this range.
fn is_covered(range: &Range, rescan: &Rescan, rescanned: &Rescanned) -> bool {
    rescanned.found.iter().filter(|found| found.key.lane == range.lane).count() < rescan.most
}

/// The ranges in which a look has found everything.
fn covered<'a>(rescan: &'a Rescan, rescanned: &'a Rescanned) -> impl Iterator<Item = &'a Range> {
    rescan.ranges.iter().filter(move |range| is_covered(range, rescan, rescanned))
}

/// Whether more of a group of this lane was read.
fn reads_groups_of(work: &ReadWork, lane: Lane) -> bool {
    work.groups.iter().any(|wanted| wanted.position.after.lane == lane)
}

/// Whether a look at a gap began at the bottom.
fn is_from_bottom(gap: &Rescan) -> bool {
    gap.ranges.iter().all(|range| range.above == MessageId::NONE)
}

/// Everything that taking in a batch works on.
pub(super) struct Admission<'a> {
    pub(super) intake: &'a mut Intake,
    pub(super) schedule: &'a mut Schedule,
    pub(super) standing: &'a mut Standing,
    pub(super) refused: Refused,
    pub(super) now: Time,
}

impl Admission<'_> {
    /// Applies a read; returns whether it brought something.
    pub(super) fn read(&mut self, mut work: ReadWork, answer: ReadAnswer) -> bool {
        let mut is_new = false;
        let mut late = Vec::new();
        if let Some((rescan, rescanned)) = work.request.gap.as_ref().zip(answer.gap.as_ref()) {
            let watermarks = &mut self.standing.knowledge.watermarks;
            let shows_late = self.standing.kind == QueueKind::Fifo && watermarks.shows_late(&rescanned.snapshot);
            // A look that began at the bottom has seen what such writers left.
            if shows_late && !is_from_bottom(rescan) {
                self.schedule.not_read_on(&work.groups);
                return true;
            }
            late = self.gap(&work, rescan, rescanned, answer.before.as_ref());
            if is_from_bottom(rescan) {
                self.seen_from_bottom(&work, rescan, rescanned, shows_late);
            }
            is_new = !late.is_empty();
        }
        let watermarks = &self.standing.knowledge.watermarks;
        let is_whole = |lane: Lane| {
            let position = work.request.lanes.iter().find(|position| position.lane == lane);
            position
                .is_some_and(|position| position.above == watermarks.position(lane) && is_all(position, &answer.lanes))
        };
        // See [`Schedule::next_to_read_on`].
        let is_too_early = |wanted: &ReadOn| {
            let after = wanted.position.after;
            late.contains(&after.lane) || (after.id > watermarks.position(after.lane) && !is_whole(after.lane))
        };
        let too_early: Vec<bool> = work.groups.iter().map(is_too_early).collect();
        let goes_on = shown_after(&work.groups, &answer);
        for ((wanted, batch), is_too_early) in work.groups.iter().zip(answer.groups).zip(too_early) {
            is_new = true;
            if is_too_early {
                self.schedule.not_read_on(std::slice::from_ref(wanted));
            } else {
                let is_all = is_all_of_group(wanted, &batch) && !goes_on.contains(&wanted.position.group);
                self.group(wanted, batch, is_all, &mut work.memory);
            }
        }
        // A rescan from the bottom may have set a lane back since the read began.
        let watermarks = &self.standing.knowledge.watermarks;
        let is_in_place = |position: &Position| {
            watermarks.position(position.lane) == position.above && !late.contains(&position.lane)
        };
        let in_place: Vec<Position> = work.request.lanes.iter().copied().filter(is_in_place).collect();
        if !work.request.lanes.is_empty() {
            is_new |= self.lanes(&in_place, answer.lanes, &mut work.memory);
        }
        is_new
    }

    /// Applies a look at the gap: watermarks move up over what it settles, and back below what it found; returns the lanes
    /// where it found something, or more than it may show, so that something may be hidden. It leaves out what is known to
    /// wait in the table, and of groups that were read in the same answer that is known from before that read: of their
    /// lanes it settles what had ended by then.
    fn gap(
        &mut self,
        work: &ReadWork,
        rescan: &Rescan,
        rescanned: &Rescanned,
        before_groups: Option<&Snapshot>,
    ) -> Vec<Lane> {
        let seen = covered(rescan, rescanned).map(|range| (range.lane, range.upto));
        let (with_groups, others): (Vec<_>, Vec<_>) = seen.partition(|(lane, _)| reads_groups_of(work, *lane));
        let watermarks = &mut self.standing.knowledge.watermarks;
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

    /// A look at the gap began at the bottom. If it shows that a writer has ended who was overtaken, his messages are missing
    /// where groups were read in the same answer, if he ended after that.
    fn seen_from_bottom(&mut self, work: &ReadWork, rescan: &Rescan, rescanned: &Rescanned, shows_late: bool) {
        let knowledge = &mut self.standing.knowledge;
        knowledge.scan.was_at_once(&rescan.ranges, rescanned.took);
        let epoch = knowledge.watermarks.epoch();
        for range in covered(rescan, rescanned) {
            if !(shows_late && reads_groups_of(work, range.lane)) {
                knowledge.watermarks.rescanned_from_the_bottom(range.lane, epoch);
            }
        }
    }

    /// Sets lanes back below what a rescan found and nobody knew; returns them.
    pub(super) fn find_late(&mut self, rescan: &Rescan, found: &[Found]) -> Vec<Lane> {
        let mut late = Vec::new();
        for Found { key, group } in found {
            let ready_upto = rescan.ranges.iter().find(|range| range.lane == key.lane).map(|range| range.ready_upto);
            let is_ready = ready_upto.is_some_and(|ready_upto| key.id <= ready_upto);
            let is_known = self.schedule.knows(*key)
                || self.schedule.is_left(*key, group.as_ref())
                || !is_ready && self.has_joined(*key, group.as_ref());
            if !is_known && is_ready && self.schedule.leave_crowd(*key, group.as_ref()) {
                self.intake.happened();
            } else if !is_known {
                self.standing.knowledge.watermarks.rewind(key.lane, key.id);
                self.intake.read_to_end[key.lane] = false;
                late.push(key.lane);
            }
        }
        if !late.is_empty() {
            self.standing.report(Report::Late(late.len() as u64));
            self.intake.next_read = self.now;
            self.intake.happened();
        }
        late
    }

    /// Whether this message was read, and its group is one of a crowd. The low watermark may have passed it since it was asked
    /// for, which it does only when all before it was seen.
    fn has_joined(&self, key: MessageKey, group: Option<&Arc<str>>) -> bool {
        let crowds = &self.schedule.parked.crowds;
        let is_passed = key.id <= self.standing.knowledge.watermarks.low(key.lane);
        crowds.has_seen(key) || is_passed && group.is_some_and(|group| crowds.has(key.lane, group))
    }

    fn group(&mut self, wanted: &ReadOn, batch: Batch, is_all: bool, memory: &mut Reserved) {
        self.intake.follow(batch.is_cut);
        let position = &wanted.position;
        if let Some(Hold::Group { by }) = batch.messages.iter().find_map(|message| message.hold) {
            self.schedule.block(&position.group, MessageKey { lane: position.after.lane, id: by });
            return;
        }
        let mut read = ReadOnAnswer { is_all, ..ReadOnAnswer::default() };
        for message in batch.messages {
            if let Some(wait) = message.wait {
                // It comes when it is due, and what is behind it after that.
                read.head = Some(Deferred::Head { id: message.key.id, due: Some(message.read_at + wait) });
                break;
            }
            read.last = Some(message.key.id);
            read.items.extend(self.item(message, memory));
        }
        self.schedule.read_on(wanted, read);
    }

    /// Takes in what was read of lanes that are where they were; returns whether there was anything.
    fn lanes(&mut self, in_place: &[Position], mut batch: Batch, memory: &mut Reserved) -> bool {
        self.intake.follow(batch.is_cut);
        let mut is_in_place = ByLane::all(false);
        in_place.iter().for_each(|position| is_in_place[position.lane] = true);
        batch.messages.retain(|message| is_in_place[message.key.lane]);
        self.intake.full.clear();
        // How many came of each lane, and the last of them: each message is looked at once.
        let mut came: ByLane<(usize, Option<MessageId>)> = ByLane::default();
        for message in &batch.messages {
            let (count, last) = &mut came[message.key.lane];
            *count += 1;
            *last = Some(message.key.id);
        }
        for position in in_place {
            let (count, last) = came[position.lane];
            if let Some((last, next_xid)) = last.zip(batch.next_xid) {
                let watermarks = &mut self.standing.knowledge.watermarks;
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
            self.admit(message, memory);
        }
        is_new
    }

    /// Takes in a message that was read in its turn, or leaves it in the table.
    fn admit(&mut self, message: Message, memory: &mut Reserved) {
        if self.schedule.knows(message.key) {
            return;
        }
        let group = message.group.clone().filter(|_| self.standing.kind == QueueKind::Fifo);
        // Before it is composed: of a blocked or hot group there may be many.
        if let Some(group) = &group
            && self.schedule.leaves_in_table(group, message.key, message.hold, self.now)
        {
            return;
        }
        if let Some(item) = self.item(message, memory) {
            self.schedule.admit(item);
        }
    }

    /// Takes in what is due; returns whether anything of it was new. A retry that a relay recorded is the head of its group;
    /// what was deferred by hand may stand anywhere in it, and its group is read from where that comes in its turn.
    pub(super) fn due(&mut self, batch: Batch, memory: &mut Reserved) -> bool {
        self.intake.follow(batch.is_cut);
        let mut is_new = false;
        for message in batch.messages {
            if self.schedule.knows(message.key) {
                continue;
            }
            let (key, attempts) = (message.key, message.attempts);
            let group = message.group.clone().filter(|_| self.standing.kind == QueueKind::Fifo);
            let read_to = self.standing.knowledge.watermarks.position(key.lane);
            match group {
                Some(group) if attempts == 0 => is_new |= self.schedule.start_over(&group, key, read_to),
                _ => {
                    if let Some(item) = self.item(message, memory) {
                        self.schedule.admit_head(item, read_to);
                    }
                    // Dead, set aside, or on its way; but not if its group leaves it in the table.
                    is_new |= self.schedule.knows(key);
                }
            }
        }
        is_new
    }

    /// Makes an item of a message that is not in memory yet. One that SQS can never accept is dead, and one that PostgreSQL
    /// cannot read is set aside.
    fn item(&mut self, message: Message, memory: &mut Reserved) -> Option<Item> {
        if self.schedule.knows(message.key) {
            return None;
        }
        let kind = self.standing.kind;
        let group = message.group.clone().filter(|_| kind == QueueKind::Fifo);
        let (key, origin, attempts) = (message.key, message.origin, message.attempts);
        let reason = match &message.content {
            Content::Unreadable { reason } => Some(reason.clone()),
            // It was not read although nothing holds it up: what held it up is over, and it comes with the next read.
            Content::Held => return None,
            _ => None,
        };
        if let Some(reason) = reason {
            self.set_aside(Quarantined { key, origin, group, outcome: None, reason });
            return None;
        }
        match compose_item(message, kind, memory) {
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
