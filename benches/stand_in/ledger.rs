//! What the stand-in has received. It judges nothing: it counts.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher as _, BuildHasherDefault, DefaultHasher};
use std::time::Duration;

use bytes::Bytes;
use serde_json::json;

/// What was received since the last reset.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    pub(super) median: Duration,
    pub(super) dice: fastrand::Rng,
    requests: u64,
    entries: u64,
    /// The entries of all kinds, as a FIFO queue numbers them.
    pub(super) sequence: u64,
    duplicates: u64,
    order_breaks: u64,
    pub(super) illegal: u64,
    first_at: u64,
    last_at: u64,
    /// Microseconds since 1970 at which each number was accepted; 0 if it was not.
    accepted_at: Vec<u64>,
    last_of_group: HashMap<String, u64>,
    /// Entries by the access key that signed the request: those of each relay, if each has a key of its own.
    pub(super) by_key: BTreeMap<String, u64>,
    /// How many entries of those that came twice a FIFO queue drops, because it knows their deduplication ids.
    deduplicated: u64,
    /// A hash of each number's deduplication id in a FIFO queue.
    deduplication: Vec<u64>,
    /// In how many keys numbers must stay in order, by their remainder, whatever the groups are; 0: in the groups.
    keys: u64,
    group_of_key: HashMap<u64, String>,
    /// Whether requests are refused, as in an outage of SQS.
    pub(super) refuses: bool,
}

impl Ledger {
    /// An empty one for the numbers up to this one.
    pub(super) fn of(numbers: usize, median: Duration, keys: u64) -> Ledger {
        let (accepted_at, deduplication) = (vec![0; numbers + 1], vec![0; numbers + 1]);
        Ledger { median, accepted_at, deduplication, keys, ..Ledger::default() }
    }

    pub(super) fn note_request(&mut self) {
        self.requests += 1;
    }

    /// An entry; `deduplication` is what a FIFO queue recognises it by.
    pub(super) fn note_entry(
        &mut self,
        number: Option<u64>,
        group: Option<&str>,
        deduplication: Option<&str>,
        now: u64,
    ) {
        self.sequence += 1;
        // Number 0 only shows that requests come.
        if number == Some(0) {
            return;
        }
        self.entries += 1;
        self.last_at = now;
        if self.first_at == 0 {
            self.first_at = now;
        }
        let number = number.filter(|&number| number < self.accepted_at.len() as u64);
        let Some(number) = number else {
            self.illegal += 1;
            return;
        };
        let index = number as usize;
        let hash = deduplication.map(|id| BuildHasherDefault::<DefaultHasher>::default().hash_one(id));
        if self.accepted_at[index] == 0 {
            self.accepted_at[index] = now;
            self.deduplication[index] = hash.unwrap_or_default();
        } else {
            self.duplicates += 1;
            if hash == Some(self.deduplication[index]) {
                self.deduplicated += 1;
                return;
            }
        }
        let Some(group) = group else { return };
        if self.keys == 0 {
            self.check_order(group, number);
        } else {
            let key = number % self.keys;
            if *self.group_of_key.entry(key).or_insert_with(|| group.to_owned()) != group {
                self.order_breaks += 1;
            }
            self.check_order(&key.to_string(), number);
        }
    }

    /// Numbers of a group must ascend.
    fn check_order(&mut self, group: &str, number: u64) {
        match self.last_of_group.get_mut(group) {
            Some(last) if *last > number => self.order_breaks += 1,
            Some(last) => *last = number,
            None => drop(self.last_of_group.insert(group.to_owned(), number)),
        }
    }

    pub(super) fn counts(&self) -> String {
        json!({
            "requests": self.requests, "entries": self.entries, "duplicates": self.duplicates,
            "order_breaks": self.order_breaks, "illegal": self.illegal, "deduplicated": self.deduplicated,
            "first_at": self.first_at, "last_at": self.last_at,
        })
        .to_string()
    }

    pub(super) fn accepted(&self) -> Bytes {
        self.accepted_at.iter().flat_map(|at| at.to_le_bytes()).collect()
    }
}
