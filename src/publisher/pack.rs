//! Packing: how much goes into one request. Pure arithmetic.

/// How full a request is.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    entries: usize,
    bytes: usize,
    most_entries: usize,
    most_bytes: usize,
}

impl Load {
    /// An empty request that may hold so many entries and so many bytes.
    pub fn new(most_entries: usize, most_bytes: usize) -> Self {
        Self { entries: 0, bytes: 0, most_entries, most_bytes }
    }

    /// Whether an entry of this size fits beside what is there.
    pub fn fits(&self, bytes: usize) -> bool {
        self.fits_together(1, bytes)
    }

    /// Whether so many entries with this sum of bytes fit beside what is there.
    pub fn fits_together(&self, entries: usize, bytes: usize) -> bool {
        self.entries + entries <= self.most_entries && self.bytes + bytes <= self.most_bytes
    }

    /// Adds an entry. Check [`Load::fits`] first.
    pub fn add(&mut self, bytes: usize) {
        self.entries += 1;
        self.bytes += bytes;
    }

    /// Whether no further entry can be added.
    pub fn is_full(&self) -> bool {
        self.entries >= self.most_entries || self.bytes >= self.most_bytes
    }

    /// How many entries there are.
    pub fn entries(&self) -> usize {
        self.entries
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{MAX_MESSAGE_BYTES, MAX_TOPIC_MESSAGE_BYTES};

    #[test]
    fn a_request_takes_ten_entries_and_no_eleventh() {
        let mut load = Load::new(10, MAX_MESSAGE_BYTES);
        for _ in 0..10 {
            assert!(load.fits(100));
            load.add(100);
        }
        assert!(!load.fits(1));
        assert!(load.is_full());
    }

    #[test]
    fn a_request_to_a_topic_takes_256_kib_and_not_a_byte_more() {
        let mut load = Load::new(10, MAX_TOPIC_MESSAGE_BYTES);
        load.add(262_000);
        assert!(load.fits(144) && !load.fits(145));
    }

    #[test]
    fn a_request_takes_a_mebibyte_and_not_a_byte_more() {
        let mut load = Load::new(10, MAX_MESSAGE_BYTES);
        load.add(1_000_000);
        assert!(load.fits(48_576));
        assert!(!load.fits(48_577));
        load.add(48_576);
        assert!(load.is_full());
    }
}

#[cfg(test)]
mod properties;
