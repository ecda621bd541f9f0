//! The order that a FIFO queue reports: the highest SequenceNumber of each group, by which [`super::repair`] tells
//! whether a message arrived behind those that were accepted before it.
//!
//! SQS promises that numbers rise within a group (SQS API reference, SendMessageBatchResultEntry). An entry whose
//! deduplication id is known gets the number of the first one, so a message that is sent again may have a lower number
//! than one with a higher id. That is its right place. Only a number that is lower than that of a message with a lower
//! id shows that the two are in the wrong order.
//!
//! The memory is bounded: groups that were not heard of for long are forgotten, and their next number is not compared.
//! What other relays have sent is not known either.
//!
//! A queue whose numbers do not follow its order (moto's are random) must not be sent copies without end. So the first
//! order break ends the belief in its numbers: later ones are compared and counted, and cause no copies. Pure.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;

use crate::message::{MessageId, SequenceNumber};

/// Groups of each generation. The number of groups that is remembered is between this and twice as many, which takes
/// less than a megabyte.
const GENERATION: usize = 5000;

/// The message with the highest number of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Last {
    id: MessageId,
    number: SequenceNumber,
}

/// What is known of the numbers of groups, by the hashes of their names, which may be long.
#[derive(Debug, Default)]
pub(super) struct Sequences {
    hasher: RandomState,
    young: HashMap<u64, Last>,
    old: HashMap<u64, Last>,
    has_broken: bool,
}

impl Sequences {
    /// Whether a low number shows that a message is in the wrong place, so that a copy puts it right.
    pub(super) fn are_believed(&self) -> bool {
        !self.has_broken
    }

    /// A message was accepted under this number. Returns whether that is in order, and remembers it only then.
    pub(super) fn note(&mut self, group: &str, id: MessageId, number: SequenceNumber) -> bool {
        let group = self.hasher.hash_one(group);
        match self.last_of(group) {
            Some(last) if number < last.number => id < last.id,
            // The last message was sent again, and SQS recognised it.
            Some(last) if number == last.number => id <= last.id,
            Some(last) => {
                *last = Last { id, number };
                true
            }
            None => {
                self.insert(group, Last { id, number });
                true
            }
        }
    }

    /// The queue has not kept order. Whatever was known of the group, numbers are compared with this one from now on.
    pub(super) fn broken(&mut self, group: &str, id: MessageId, number: SequenceNumber) {
        self.has_broken = true;
        let group = self.hasher.hash_one(group);
        match self.last_of(group) {
            Some(last) => *last = Last { id, number },
            None => self.insert(group, Last { id, number }),
        }
    }

    fn last_of(&mut self, group: u64) -> Option<&mut Last> {
        if !self.old.is_empty()
            && let Some(last) = self.old.remove(&group)
        {
            self.insert(group, last);
        }
        self.young.get_mut(&group)
    }

    fn insert(&mut self, group: u64, last: Last) {
        if self.young.len() >= GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(group, last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(number: u64) -> SequenceNumber {
        SequenceNumber::parse(&number.to_string()).unwrap()
    }

    #[test]
    fn numbers_must_rise_in_the_order_of_ids_within_a_group() {
        let (group, other) = ("a", "b");
        let mut sequences = Sequences::default();
        let mut note = |group, id, at| sequences.note(group, MessageId(id), number(at));
        assert!(note(group, 5, 100));
        assert!(note(other, 6, 50), "groups have nothing to do with each other");
        assert!(!note(group, 6, 99), "behind a later one");
        assert!(!note(group, 6, 100), "two messages with one number");
        assert!(note(group, 6, 101));
        assert!(note(group, 5, 100) && note(group, 6, 101), "both were sent again, and SQS recognised them");
        assert!(note(group, 4, 102), "redriven, or committed late");
        assert!(note(group, 7, 103));
    }

    #[test]
    fn after_a_break_numbers_are_compared_with_the_new_one() {
        let group = "a";
        let mut sequences = Sequences::default();
        assert!(sequences.note(group, MessageId(5), number(100)));
        assert!(!sequences.note(group, MessageId(6), number(1)));
        assert!(sequences.are_believed());
        sequences.broken(group, MessageId(6), number(1));
        assert!(sequences.note(group, MessageId(7), number(2)));
        assert!(!sequences.are_believed());
    }

    #[test]
    fn groups_that_are_in_use_stay_known_and_others_are_forgotten() {
        let mut sequences = Sequences::default();
        assert!(sequences.note("busy", MessageId(1), number(100)));
        for index in 0..10 * GENERATION as i64 {
            assert!(sequences.note(&index.to_string(), MessageId(index), number(100)));
            if index % 1000 == 0 {
                assert!(!sequences.note("busy", MessageId(2), number(99)), "{index}");
            }
        }
        assert!(sequences.young.len() + sequences.old.len() <= 2 * GENERATION);
        assert!(sequences.note("1", MessageId(2), number(99)), "it is still known");
    }
}
