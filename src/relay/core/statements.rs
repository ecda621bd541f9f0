//! Which statements are under way, and which messages they may still show. Pure.

use super::schedule::Schedule;
use crate::message::MessageKey;

/// Statements in the order in which they began. A message is not forgotten while one of them may still show it.
#[derive(Debug, Default)]
pub(super) struct Statements {
    next: u64,
    under_way: Vec<u64>,
    /// Settled messages, with the last statement that may have seen them pending.
    settled: Vec<(u64, Vec<MessageKey>)>,
}

impl Statements {
    /// A statement begins.
    pub(super) fn begin(&mut self) -> u64 {
        self.next += 1;
        self.under_way.push(self.next);
        self.next
    }

    /// A statement has come back and was applied.
    pub(super) fn end(&mut self, statement: u64, schedule: &mut Schedule) {
        self.under_way.retain(|other| *other != statement);
        self.forget(schedule);
    }

    /// These messages are settled. They stay known while a statement is under way that may have seen them pending.
    pub(super) fn settled(&mut self, keys: Vec<MessageKey>, schedule: &mut Schedule) {
        self.settled.push((self.next, keys));
        self.forget(schedule);
    }

    fn forget(&mut self, schedule: &mut Schedule) {
        let oldest = self.under_way.first().copied().unwrap_or(u64::MAX);
        self.settled.retain(|(last, keys)| {
            let is_over = *last < oldest;
            if is_over {
                keys.iter().for_each(|key| schedule.forget(*key));
            }
            !is_over
        });
    }
}
