//! Chunks of ids, for scans that walk rows vacuum could not remove: each chunk takes a fraction of a second whatever it
//! contains. [`super::walk`] goes over all ids once; repeated scans use [`CautiousWidth`]. Pure.

use std::time::Duration;

use super::Range;
use crate::message::MessageId;

/// The width of a chunk in ids, adapted to the cost of chunks.
#[derive(Clone, Copy, Debug)]
pub struct ChunkWidth(i64);

impl Default for ChunkWidth {
    /// Everything: usually there is little, and if there is more the server says so within half a second.
    fn default() -> Self {
        Self(Self::WIDTHS.1)
    }
}

impl ChunkWidth {
    /// The narrowest and the widest chunk. The widest is wide enough to reach the largest possible id, should somebody
    /// have written one by hand.
    const WIDTHS: (i64, i64) = (1 << 12, 1 << 62);

    /// The range of acceptable cost of a chunk: enough to make the round trip cheap, little enough to disturb nothing.
    const COST: (Duration, Duration) = (Duration::from_millis(40), Duration::from_millis(160));

    /// How long the server may work on a chunk before it is cut short and repeated with fewer ids.
    const LIMIT: Duration = Duration::from_millis(500);

    /// Where a chunk ends that begins above this id.
    pub fn end(self, above: MessageId) -> MessageId {
        MessageId(above.0.saturating_add(self.0))
    }

    /// After what time the server is to cut a chunk short. The narrowest has no limit, so that a slow server makes
    /// progress too.
    pub fn timeout(self) -> Option<Duration> {
        (self.0 > Self::WIDTHS.0).then_some(Self::LIMIT)
    }

    /// The server cut short a chunk of this many ids: the next one is narrower.
    pub fn was_cut_short(&mut self, walked: i64) {
        self.narrow(walked, 16);
    }

    fn narrow(&mut self, walked: i64, by: i64) {
        // A chunk that ended at the last id says nothing about more ids than it walked.
        self.0 = (self.0.min(walked) / by).max(Self::WIDTHS.0);
    }

    /// Adapts the width to the cost of a chunk in which this many ids were walked.
    pub fn took(&mut self, walked: i64, cost: Duration) {
        if cost < Self::COST.0 {
            self.0 = self.0.saturating_mul(2).max(walked).min(Self::WIDTHS.1);
        } else if cost > Self::COST.1 {
            self.narrow(walked, 4);
        }
    }
}

/// The width for scans that are repeated while messages wait for their results. Dead entries lie together: millions of
/// ids of other destinations may be followed by millions of one's own. So the places where ids were expensive to walk
/// are remembered. Outside them, chunks are as wide as they are cheap and end where an expensive place begins. Inside
/// them, a chunk is at most as wide as would be acceptable if all its ids cost as much as the most expensive recent
/// ones. If a chunk meets an expensive place that is not known, the server cuts it short.
#[derive(Clone, Debug)]
pub struct CautiousWidth {
    outside: ChunkWidth,
    inside: ChunkWidth,
    ceiling: i64,
    /// The ranges of ids that were expensive in the last pass, in order.
    dear: Vec<(MessageId, MessageId)>,
    /// The same for this pass.
    found: Vec<(MessageId, MessageId)>,
}

impl Default for CautiousWidth {
    fn default() -> Self {
        let (outside, inside) = (ChunkWidth::default(), ChunkWidth::default());
        Self { outside, inside, ceiling: i64::MAX, dear: Vec::new(), found: Vec::new() }
    }
}

impl CautiousWidth {
    /// The assumed cost of a chunk of the ceiling's width.
    const WORST: Duration = Duration::from_millis(80);

    /// The lowest ceiling, so that a moment in which everything was slow does not lower it further.
    const LOWEST: i64 = 1 << 16;

    /// With each chunk the ceiling rises again by one part in this many.
    const FORGET: i64 = 32;

    /// The most places that are remembered; beyond that, the last ones are merged.
    const PLACES: usize = 64;

    /// A pass begins at the bottom and is expected to be expensive where the last one was.
    pub fn begin(&mut self) {
        self.dear = std::mem::take(&mut self.found);
    }

    /// Where a chunk ends that begins above this id.
    pub fn end(&self, above: MessageId) -> MessageId {
        match self.next_dear(above) {
            None => self.outside.end(above),
            Some((from, _)) if above < from => self.outside.end(above).min(from),
            Some((_, upto)) => self.inside.end(above).min(MessageId(above.0.saturating_add(self.ceiling))).min(upto),
        }
    }

    /// After what time the server is to cut short a chunk that begins above this id.
    pub fn timeout(&self, above: MessageId) -> Option<Duration> {
        match self.next_dear(above) {
            Some((from, _)) if above >= from => self.inside.timeout(),
            _ => self.outside.timeout(),
        }
    }

    /// The server cut short a chunk of these ranges: the next one is narrower.
    pub fn was_cut_short(&mut self, ranges: &[Range]) {
        let Some(widest) = ranges.iter().max_by_key(|range| range.width()) else { return };
        if self.is_dear(widest.above) {
            self.inside.was_cut_short(widest.width());
            self.lower_ceiling(widest.width(), ChunkWidth::LIMIT);
        } else {
            // The expensive place is somewhere in it; narrower chunks will show where.
            self.outside.was_cut_short(widest.width());
        }
    }

    /// Adapts the widths to the cost of a chunk of these ranges.
    pub fn took(&mut self, ranges: &[Range], cost: Duration) {
        let Some(widest) = ranges.iter().max_by_key(|range| range.width()) else { return };
        let width = if self.is_dear(widest.above) { &mut self.inside } else { &mut self.outside };
        width.took(widest.width(), cost);
        self.ceiling = self.ceiling.saturating_add(self.ceiling / Self::FORGET);
        if cost >= ChunkWidth::COST.0 {
            self.lower_ceiling(widest.width(), cost);
            self.note_dear(ranges);
        }
    }

    fn next_dear(&self, above: MessageId) -> Option<(MessageId, MessageId)> {
        self.dear.iter().copied().find(|(_, upto)| *upto > above)
    }

    fn is_dear(&self, above: MessageId) -> bool {
        self.next_dear(above).is_some_and(|(from, _)| above >= from)
    }

    fn note_dear(&mut self, ranges: &[Range]) {
        for places in [&mut self.dear, &mut self.found] {
            places.extend(ranges.iter().map(|range| (range.above, range.upto)));
            places.sort_unstable();
            let mut joined: Vec<(MessageId, MessageId)> = Vec::with_capacity(places.len());
            for (from, upto) in places.drain(..) {
                let is_full = joined.len() >= Self::PLACES;
                match joined.last_mut() {
                    Some(last) if from <= last.1 || is_full => last.1 = last.1.max(upto),
                    _ => joined.push((from, upto)),
                }
            }
            *places = joined;
        }
    }

    fn lower_ceiling(&mut self, walked: i64, cost: Duration) {
        let bearable = walked as f64 * (Self::WORST.as_secs_f64() / cost.as_secs_f64());
        self.ceiling = self.ceiling.min((bearable as i64).max(Self::LOWEST));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Lane;

    fn range(above: MessageId, upto: MessageId) -> [Range; 1] {
        [Range::new(Lane::all().next().unwrap(), above, upto)]
    }

    /// The cost of a chunk if three million dead ids lie above this id.
    fn cost(dead_above: i64, above: MessageId, upto: MessageId) -> Duration {
        let within = |id: MessageId| id.0.clamp(dead_above, dead_above + 3_000_000);
        Duration::from_nanos((within(upto) - within(above)).unsigned_abs() * 250)
    }

    /// Makes a pass over all ids; returns the cost of the most expensive chunk, and the number of chunks, including
    /// those cut short.
    fn pass(width: &mut CautiousWidth, dead_above: i64, top: MessageId) -> (Duration, usize) {
        let (mut above, mut dearest, mut chunks) = (MessageId::NONE, Duration::ZERO, 0);
        width.begin();
        while above < top {
            let upto = width.end(above).min(top);
            let cost = cost(dead_above, above, upto);
            chunks += 1;
            match width.timeout(above).filter(|timeout| cost > *timeout) {
                Some(timeout) => {
                    dearest = dearest.max(timeout);
                    width.was_cut_short(&range(above, upto));
                }
                None => {
                    dearest = dearest.max(cost);
                    width.took(&range(above, upto), cost);
                    above = upto;
                }
            }
        }
        (dearest, chunks)
    }

    #[test]
    fn a_cautious_chunk_is_not_expensive_when_cheap_ids_are_followed_by_expensive_ones() {
        for dead_above in [0, 1_000_000, 3_000_000, 100_000_000, 1_000_000_000_000] {
            let mut width = CautiousWidth::default();
            let top = MessageId(dead_above + 4_000_000);
            // The first pass finds where they are, and the next ones do so more precisely.
            for _ in 0..3 {
                let (_, chunks) = pass(&mut width, dead_above, top);
                assert!(chunks <= 100, "{chunks} chunks at first with {dead_above} cheap ids");
            }
            for _ in 0..20 {
                let (dearest, chunks) = pass(&mut width, dead_above, top);
                assert!(dearest <= 2 * CautiousWidth::WORST, "{dearest:?} with {dead_above} cheap ids");
                assert!(chunks <= 60, "{chunks} chunks with {dead_above} cheap ids");
            }
        }
    }

    #[test]
    fn a_cautious_pass_reaches_the_largest_id_however_expensive_the_first_ids_are() {
        let mut width = CautiousWidth::default();
        for _ in 0..3 {
            let (_, chunks) = pass(&mut width, 0, MessageId::MAX);
            assert!(chunks <= 100, "{chunks} chunks");
        }
    }

    #[test]
    fn chunks_follow_their_cost() {
        let mut width = ChunkWidth(1 << 18);
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
    fn a_chunk_that_took_long_is_followed_by_a_quarter_of_the_ids_it_walked() {
        let mut width = ChunkWidth::default();
        (0..100).for_each(|_| width.took(1_000_000, Duration::ZERO));
        width.took(1_000_000, Duration::from_secs(1));
        assert_eq!(width.end(MessageId::NONE).0, 250_000);
    }

    #[test]
    fn chunks_that_are_cut_short_get_narrower_until_the_narrowest_has_no_limit() {
        let (mut width, mut cautious) = (ChunkWidth::default(), CautiousWidth::default());
        (0..40).for_each(|_| width.took(0, Duration::ZERO));
        (0..40).for_each(|_| cautious.took(&range(MessageId::NONE, MessageId::NONE), Duration::ZERO));
        let mut tries = 0;
        while width.timeout().is_some() || cautious.timeout(MessageId::NONE).is_some() {
            width.was_cut_short(width.end(MessageId::NONE).0);
            let upto = cautious.end(MessageId::NONE);
            cautious.was_cut_short(&range(MessageId::NONE, upto));
            tries += 1;
            assert!(tries < 40, "{width:?} {cautious:?}");
        }
        assert_eq!((width.end(MessageId::NONE).0, cautious.end(MessageId::NONE).0), (1 << 12, 1 << 12));
    }
}
