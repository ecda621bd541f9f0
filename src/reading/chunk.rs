//! Chunks of ids, for looks that walk what vacuum could not remove: each takes a fraction of a second whatever lies in it.

use std::time::Duration;

use crate::message::MessageId;

/// How wide a chunk of ids is, adapted to what chunks cost.
#[derive(Clone, Copy, Debug)]
pub struct ChunkWidth(i64);

impl Default for ChunkWidth {
    fn default() -> Self {
        Self(1 << 18)
    }
}

impl ChunkWidth {
    /// The narrowest and the widest chunk. The widest is so wide that one id that was written by hand at the far end of all
    /// numbers keeps nobody from getting there.
    const WIDTHS: (i64, i64) = (1 << 12, 1 << 62);

    /// What a chunk may cost: enough to make the round trip cheap, little enough to disturb nobody.
    const COST: (Duration, Duration) = (Duration::from_millis(40), Duration::from_millis(160));

    /// Where a chunk ends that begins above this id.
    pub fn end(self, above: MessageId) -> MessageId {
        MessageId(above.0.saturating_add(self.0))
    }

    /// Takes the cost of a chunk into account, of which so many ids were walked.
    pub fn took(&mut self, walked: i64, cost: Duration) {
        if cost < Self::COST.0 {
            self.0 = self.0.saturating_mul(2).min(Self::WIDTHS.1);
        } else if cost > Self::COST.1 {
            // A chunk that was cut short at the last id tells of no more than it walked.
            self.0 = (self.0.min(walked) / 4).max(Self::WIDTHS.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_follow_their_cost() {
        let mut width = ChunkWidth::default();
        let first = width.end(MessageId::NONE).0;
        width.took(first, Duration::from_millis(1));
        assert_eq!(width.end(MessageId(10)).0, 10 + 2 * first);
        width.took(first, Duration::from_millis(100));
        assert_eq!(width.end(MessageId::NONE).0, 2 * first);
        (0..100).for_each(|_| width.took(first, Duration::from_secs(1)));
        assert_eq!(width.end(MessageId::NONE).0, 1 << 12);
        (0..100).for_each(|_| width.took(first, Duration::ZERO));
        assert_eq!(width.end(MessageId::MAX), MessageId::MAX, "the last chunk ends with the ids");
    }

    #[test]
    fn a_chunk_that_was_cut_short_and_took_long_is_followed_by_a_quarter_of_what_it_walked() {
        let mut width = ChunkWidth::default();
        (0..100).for_each(|_| width.took(1_000_000, Duration::ZERO));
        width.took(1_000_000, Duration::from_secs(1));
        assert_eq!(width.end(MessageId::NONE).0, 250_000);
    }
}
