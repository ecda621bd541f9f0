//! Packing: how much goes into one request. Pure arithmetic.

/// The largest sum over the entries of a request; it is also the limit of a single entry (SQS, SendMessageBatch).
pub const MAX_BYTES: usize = crate::message::MAX_MESSAGE_BYTES;

/// How full a request is.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    entries: usize,
    bytes: usize,
    most_entries: usize,
}

impl Load {
    /// An empty request that may hold this many entries.
    pub fn new(most_entries: usize) -> Self {
        Self { entries: 0, bytes: 0, most_entries }
    }

    /// Whether an entry of this size fits beside what is there.
    pub fn fits(&self, bytes: usize) -> bool {
        self.fits_together(1, bytes)
    }

    /// Whether so many entries with this sum of bytes fit beside what is there.
    pub fn fits_together(&self, entries: usize, bytes: usize) -> bool {
        self.entries + entries <= self.most_entries && self.bytes + bytes <= MAX_BYTES
    }

    /// Adds an entry. Check [`Load::fits`] first.
    pub fn add(&mut self, bytes: usize) {
        self.entries += 1;
        self.bytes += bytes;
    }

    /// Whether no further entry can be added.
    pub fn is_full(&self) -> bool {
        self.entries >= self.most_entries || self.bytes >= MAX_BYTES
    }

    /// How many entries there are.
    pub fn entries(&self) -> usize {
        self.entries
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_takes_ten_entries_and_no_eleventh() {
        let mut load = Load::new(10);
        for _ in 0..10 {
            assert!(load.fits(100));
            load.add(100);
        }
        assert!(!load.fits(1));
        assert!(load.is_full());
    }

    #[test]
    fn a_request_takes_a_mebibyte_and_not_a_byte_more() {
        let mut load = Load::new(10);
        load.add(1_000_000);
        assert!(load.fits(48_576));
        assert!(!load.fits(48_577));
        load.add(48_576);
        assert!(load.is_full());
    }
}

#[cfg(test)]
mod properties;
