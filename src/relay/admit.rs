//! Taking in what was read: each message becomes an item of the schedule, stays in the table, or dies.

use std::sync::Arc;

use super::group::Item;
use super::stream::Stream;
use crate::message::{Message, QueueKind};
use crate::outbox::Batch;

impl Stream<'_> {
    /// Takes in a batch, or leaves messages in the table.
    pub(super) fn admit(&mut self, batch: Batch) {
        let is_fifo = self.destination.queue.kind() == QueueKind::Fifo;
        for message in batch.messages {
            let (id, group) = (message.key.id, message.group.as_ref().filter(|_| is_fifo));
            // Before it is composed: of a blocked or hot group there may be many.
            let is_left = |group: &Arc<str>| !self.schedule.knows(id) && self.schedule.leaves_in_table(group, id);
            if group.is_some_and(is_left) {
                continue;
            }
            let until = message.wait.map(|wait| message.read_at + wait);
            if let Some(item) = self.item(message) {
                self.schedule.admit(item, until);
            }
        }
    }

    /// Takes in what is due. A retry that a relay recorded is the head of its group; what an operator redrove may stand
    /// anywhere in it, and its group is read from where that is certain to come in its turn.
    pub(super) fn admit_due(&mut self, mut batch: Batch) {
        if self.destination.queue.kind() == QueueKind::Fifo {
            batch.messages.retain(|message| match &message.group {
                Some(group) if message.attempts == 0 => {
                    self.schedule.start_over(group, message.key, self.memory.bounds.cursor(message.key.lane));
                    false
                }
                _ => true,
            });
        }
        self.admit(batch);
    }

    /// Makes an item of a message that is not in memory yet; buries one that SQS can never accept.
    pub(super) fn item(&mut self, message: Message) -> Option<Item> {
        let (key, attempts) = (message.key, message.attempts);
        if self.schedule.knows(key.id) {
            return None;
        }
        let kind = self.destination.queue.kind();
        let group = message.group.clone().filter(|_| kind == QueueKind::Fifo);
        match Item::of(message, kind) {
            Ok(item) => Some(item),
            Err(fault) => {
                self.schedule.pass_over(key.id, group.as_ref());
                self.bury(key, attempts, &fault);
                if let Some(group) = group.filter(|_| self.destination.blocks()) {
                    self.block(&group, key);
                }
                None
            }
        }
    }
}
