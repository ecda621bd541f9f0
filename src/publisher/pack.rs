//! Packing: how much goes into one request. Pure arithmetic.

/// The bytes of bodies for a bucket that one request may wait for, if it has more than one entry. A larger body goes
/// alone: whatever happens to it concerns no other message.
const MAX_OFFLOADED: usize = 4 * 1024 * 1024;

/// The size of an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// What the service counts.
    pub bytes: usize,
    /// The body that goes to a bucket.
    pub offloaded: usize,
}

impl std::ops::Add for Size {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self { bytes: self.bytes + other.bytes, offloaded: self.offloaded + other.offloaded }
    }
}

/// How full a request is.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    entries: usize,
    size: Size,
    most_entries: usize,
    most_bytes: usize,
}

impl Load {
    /// An empty request that may hold so many entries and so many bytes.
    pub fn new(most_entries: usize, most_bytes: usize) -> Self {
        Self { entries: 0, size: Size::default(), most_entries, most_bytes }
    }

    /// Whether an entry of this size fits beside what is there.
    pub fn fits(&self, size: Size) -> bool {
        self.fits_together(1, size)
    }

    /// Whether so many entries with this sum of sizes fit beside what is there.
    pub fn fits_together(&self, entries: usize, size: Size) -> bool {
        let sum = self.size + size;
        let may_wait = self.entries == 0 || sum.offloaded <= MAX_OFFLOADED;
        self.entries + entries <= self.most_entries && sum.bytes <= self.most_bytes && may_wait
    }

    /// Adds an entry. Check [`Load::fits`] first.
    pub fn add(&mut self, size: Size) {
        self.entries += 1;
        self.size = self.size + size;
    }

    /// Whether no further entry can be added.
    pub fn is_full(&self) -> bool {
        self.entries >= self.most_entries || self.size.bytes >= self.most_bytes || self.size.offloaded >= MAX_OFFLOADED
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

    fn sized(bytes: usize) -> Size {
        Size { bytes, offloaded: 0 }
    }

    fn offloaded(offloaded: usize) -> Size {
        Size { bytes: 100, offloaded }
    }

    #[test]
    fn a_request_takes_ten_entries_and_no_eleventh() {
        let mut load = Load::new(10, MAX_MESSAGE_BYTES);
        for _ in 0..10 {
            assert!(load.fits(sized(100)));
            load.add(sized(100));
        }
        assert!(!load.fits(sized(1)));
        assert!(load.is_full());
    }

    #[test]
    fn a_request_to_a_topic_takes_256_kib_and_not_a_byte_more() {
        let mut load = Load::new(10, MAX_TOPIC_MESSAGE_BYTES);
        load.add(sized(262_000));
        assert!(load.fits(sized(144)) && !load.fits(sized(145)));
    }

    #[test]
    fn a_request_waits_for_few_bodies_and_a_large_one_goes_alone() {
        let mut load = Load::new(10, MAX_MESSAGE_BYTES);
        load.add(offloaded(MAX_OFFLOADED - 10));
        assert!(load.fits(offloaded(10)) && load.fits(sized(100)) && !load.fits(offloaded(11)));
        let mut load = Load::new(10, MAX_MESSAGE_BYTES);
        assert!(load.fits(offloaded(10 * MAX_OFFLOADED)));
        load.add(offloaded(10 * MAX_OFFLOADED));
        assert!(load.is_full() && !load.fits(sized(100)));
        let mut load = Load::new(10, MAX_MESSAGE_BYTES);
        load.add(sized(100));
        assert!(!load.fits(offloaded(10 * MAX_OFFLOADED)), "a small message does not wait for it");
    }

    #[test]
    fn a_request_takes_a_mebibyte_and_not_a_byte_more() {
        let mut load = Load::new(10, MAX_MESSAGE_BYTES);
        load.add(sized(1_000_000));
        assert!(load.fits(sized(48_576)));
        assert!(!load.fits(sized(48_577)));
        load.add(sized(48_576));
        assert!(load.is_full());
    }
}

#[cfg(test)]
mod properties;
