//! The deduplication of a FIFO queue: for five minutes a queue knows each id, even after the message was deleted. Pure.

use std::collections::{HashMap, VecDeque};

/// How long an id is known, in milliseconds (SQS: the deduplication interval).
const INTERVAL: u64 = 300_000;

/// What SQS answers to a copy: the ids of the first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct First {
    pub(super) message_id: String,
    pub(super) number: u64,
}

/// The ids of the last five minutes, each with its group if groups are apart.
#[derive(Clone, Debug, Default)]
pub(super) struct Deduplication {
    known: HashMap<(Option<String>, String), First>,
    /// When each was sent, the oldest first.
    order: VecDeque<(u64, (Option<String>, String))>,
}

impl Deduplication {
    /// The first message with this id, if it came within the interval.
    pub(super) fn first(&mut self, scope: Option<&str>, id: &str, now: u64) -> Option<First> {
        self.forget(now);
        self.known.get(&(scope.map(str::to_owned), id.to_owned())).cloned()
    }

    /// Forgets the ids whose interval is over.
    pub(super) fn forget(&mut self, now: u64) {
        while self.order.front().is_some_and(|(sent, _)| sent + INTERVAL <= now) {
            if let Some((_, key)) = self.order.pop_front() {
                self.known.remove(&key);
            }
        }
    }

    /// Remembers the first message with an id.
    pub(super) fn note(&mut self, scope: Option<&str>, id: &str, first: First, now: u64) {
        let key = (scope.map(str::to_owned), id.to_owned());
        self.order.push_back((now, key.clone()));
        self.known.insert(key, first);
    }

    /// How many ids are known.
    pub(super) fn len(&self) -> usize {
        self.order.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_known_for_five_minutes() {
        let mut deduplication = Deduplication::default();
        let first = First { message_id: "m".to_owned(), number: 1 };
        deduplication.note(None, "a", first.clone(), 1000);
        deduplication.note(Some("g"), "a", First { message_id: "n".to_owned(), number: 2 }, 2000);
        assert_eq!(deduplication.first(None, "a", 300_999), Some(first));
        assert_eq!(deduplication.first(None, "a", 301_000), None);
        assert_eq!(deduplication.len(), 1);
        assert_eq!(deduplication.first(Some("h"), "a", 301_000), None);
        assert_eq!(deduplication.first(Some("g"), "a", 301_000).map(|first| first.number), Some(2));
    }
}
