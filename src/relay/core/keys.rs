//! A set of messages by their keys. Pure.

use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hasher};

use crate::message::MessageKey;

/// A set of message keys. Each message is looked up several times, and the standard library's hash, which resists
/// collision attacks, costs ten times as much. That is safe here: the database assigns the ids, and a user who can
/// choose them can write any row anyway.
pub(super) type KeySet = HashSet<MessageKey, BuildHasherDefault<KeyHasher>>;

/// 2^64 divided by the golden ratio, so that consecutive numbers are spread far apart.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// Multiplies and folds: the set takes the bucket from the low bits and the tag from the high bits.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct KeyHasher(u64);

impl KeyHasher {
    fn add(&mut self, number: u64) {
        self.0 = (self.0.rotate_left(5) ^ number).wrapping_mul(FACTOR);
    }
}

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        let mixed = (self.0 ^ (self.0 >> 32)).wrapping_mul(FACTOR);
        mixed ^ (mixed >> 32)
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.add(u64::from(*byte)));
    }

    fn write_u8(&mut self, number: u8) {
        self.add(u64::from(number));
    }

    fn write_i64(&mut self, number: i64) {
        self.add(number.cast_unsigned());
    }
}

#[cfg(test)]
mod tests {
    use std::hash::BuildHasher as _;

    use super::*;
    use crate::message::{Lane, MessageId};

    #[test]
    fn consecutive_keys_are_spread_far_apart() {
        let hasher = BuildHasherDefault::<KeyHasher>::default();
        let key = |id: i64| MessageKey { lane: Lane::new((id % 16) as i16).unwrap(), id: MessageId(id) };
        for step in [1, 16, 1024, 1 << 32] {
            let hashes = || (1..=4096).map(|number| hasher.hash_one(key(number * step)));
            // Random hashes of 4096 keys would fill 63 % of as many buckets, and nearly all of the 128 tags.
            let places: HashSet<u64> = hashes().map(|hash| hash % 4096).collect();
            let marks: HashSet<u64> = hashes().map(|hash| hash >> 57).collect();
            assert!(places.len() > 2000 && marks.len() > 100, "{step}: {} places, {} marks", places.len(), marks.len());
        }
    }
}
