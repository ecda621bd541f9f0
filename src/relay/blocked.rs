//! Blocked groups: with `OUTBOX_RELAY_ON_DEAD=block` a group with a dead message gets nothing more until an operator redrives
//! or discards that message.
//!
//! Which groups those are stands in the table and nowhere else. It is asked when a lane is opened, so it holds for every
//! relay and over restarts, and again each second while there are any. [`super::schedule`] keeps nothing of them in memory,
//! and sweeps pass over them.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::schedule::GoesOn;
use super::stream::{Event, Stream};
use super::{Destination, Relay};
use crate::config::OnDead;
use crate::message::{Lane, MessageKey, QueueKind};
use crate::outbox::{DeadGroup, OutboxError};

/// How often is asked whether a blocked group may go on.
const RECHECK: Duration = Duration::from_secs(1);

/// How soon to ask anew when the answer was worth nothing.
const RECHECK_SOON: Duration = Duration::from_millis(50);

impl Destination {
    /// Whether a dead message holds up its group. A standard queue has no order to keep.
    pub(super) fn blocks(&self) -> bool {
        self.tuning.on_dead == OnDead::Block && self.queue.kind() == QueueKind::Fifo
    }
}

impl Stream<'_> {
    /// Nothing more of this group goes out, because that message is dead.
    pub(super) fn block(&mut self, group: &Arc<str>, dead: MessageKey) {
        self.schedule.block(group, dead);
        self.feed.next_recheck.get_or_insert_with(|| Instant::now() + RECHECK);
    }

    pub(super) fn start_rechecking(&mut self, now: Instant) {
        // A burial that is not recorded yet is not in the table either, and its group would be taken for free.
        if self.feed.is_rechecking || self.burying > 0 || self.feed.next_recheck.is_none_or(|at| now < at) {
            return;
        }
        self.feed.is_rechecking = true;
        let blocked = self.schedule.blocked();
        let lanes = distinct(blocked.iter().map(|(lane, _)| *lane));
        let (destination, burials) = (self.destination.clone(), self.burials);
        self.tasks.push(Box::pin(async move {
            let result = destination.outbox.dead_groups(&destination.name, &lanes).await;
            Event::Rechecked { blocked, burials, result }
        }));
    }

    /// Of the groups that were blocked when the question was asked, those go on of which nothing is dead.
    pub(super) fn rechecked(&mut self, blocked: &[(Lane, Arc<str>)], burials: u64, dead: &[DeadGroup]) {
        self.feed.is_rechecking = false;
        if self.burials != burials {
            // The answer may be from before a burial, of one of these groups for all that is known.
            self.feed.next_recheck = Some(Instant::now() + RECHECK_SOON);
            return;
        }
        let dead = names(dead);
        for (_, group) in blocked.iter().filter(|(_, group)| !dead.contains(&**group)) {
            self.schedule.unblock(group);
            self.touch(Instant::now());
        }
        let are_left = !self.schedule.blocked().is_empty();
        self.feed.next_recheck = are_left.then(|| Instant::now() + RECHECK);
    }
}

impl Relay {
    /// Between claims: a group whose dead message is gone has work again.
    pub(super) async fn recheck_the_blocked(&mut self) -> Result<(), OutboxError> {
        let now = Instant::now();
        let blocked = self.remembered.iter().filter(|group| group.goes_on == GoesOn::Unblocked);
        let lanes = distinct(blocked.map(|group| group.lane));
        if lanes.is_empty() || now < self.next_recheck {
            return Ok(());
        }
        self.next_recheck = now + RECHECK;
        let dead = self.destination.outbox.dead_groups(&self.destination.name, &lanes).await?;
        let dead = names(&dead);
        for group in &mut self.remembered {
            if group.goes_on == GoesOn::Unblocked && !dead.contains(&*group.group) {
                group.goes_on = GoesOn::Now;
            }
        }
        Ok(())
    }

    /// Dead messages hold up no group any more.
    pub(super) fn unblock_all(&mut self) {
        let blocked = self.remembered.iter_mut().filter(|group| group.goes_on == GoesOn::Unblocked);
        blocked.for_each(|group| group.goes_on = GoesOn::Now);
        self.contended = None;
    }

    /// Whether nothing is pending, or only what waits behind dead messages; which of the two goes to the exit code.
    pub(super) async fn is_all_done(&mut self) -> Result<bool, OutboxError> {
        let Destination { name, outbox, .. } = &self.destination;
        if !outbox.is_pending(name).await? {
            self.ended.is_blocked = false;
            return Ok(true);
        }
        self.ended.is_blocked = self.destination.blocks() && outbox.is_all_blocked(name).await?;
        Ok(self.ended.is_blocked)
    }
}

fn names(dead: &[DeadGroup]) -> HashSet<&str> {
    dead.iter().map(|group| &*group.name).collect()
}

fn distinct(lanes: impl Iterator<Item = Lane>) -> Vec<Lane> {
    let mut lanes: Vec<Lane> = lanes.collect();
    lanes.sort_unstable();
    lanes.dedup();
    lanes
}
