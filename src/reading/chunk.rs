//! Chunks of ids, for looks that walk what vacuum could not remove: each takes a fraction of a second whatever lies in it. [`super::walk`] goes
//! over all ids once; what is looked at over and over has [`CautiousWidth`]. Pure.

use std::time::Duration;

use super::Range;
use crate::message::MessageId;

/// How wide a chunk of ids is, adapted to what chunks cost.
#[derive(Clone, Copy, Debug)]
pub struct ChunkWidth(i64);

impl Default for ChunkWidth {
    /// Everything: mostly there is little, and where there is more the server says so in half a second.
    fn default() -> Self {
        Self(Self::WIDTHS.1)
    }
}

impl ChunkWidth {
    /// The narrowest and the widest chunk. The widest is so wide that one id that was written by hand at the far end of all
    /// numbers keeps nobody from getting there.
    const WIDTHS: (i64, i64) = (1 << 12, 1 << 62);

    /// What a chunk may cost: enough to make the round trip cheap, little enough to disturb nobody.
    const COST: (Duration, Duration) = (Duration::from_millis(40), Duration::from_millis(160));

    /// How long the server may work on a chunk before it is cut short, and asked for again narrower.
    const LIMIT: Duration = Duration::from_millis(500);

    /// Where a chunk ends that begins above this id.
    pub fn end(self, above: MessageId) -> MessageId {
        MessageId(above.0.saturating_add(self.0))
    }

    /// After what time the server is to cut a chunk short. The narrowest has no limit: a slow server gets further as well.
    pub fn limit(self) -> Option<Duration> {
        (self.0 > Self::WIDTHS.0).then_some(Self::LIMIT)
    }

    /// The server cut a chunk of so many ids short: the next is to be narrower.
    pub fn was_cut_short(&mut self, walked: i64) {
        self.narrow(walked, 16);
    }

    fn narrow(&mut self, walked: i64, by: i64) {
        // A chunk that ended at the last id tells of no more than it walked.
        self.0 = (self.0.min(walked) / by).max(Self::WIDTHS.0);
    }

    /// Takes the cost of a chunk into account, of which so many ids were walked.
    pub fn took(&mut self, walked: i64, cost: Duration) {
        if cost < Self::COST.0 {
            self.0 = self.0.saturating_mul(2).max(walked).min(Self::WIDTHS.1);
        } else if cost > Self::COST.1 {
            self.narrow(walked, 4);
        }
    }
}

/// The same for looks that are made over and over while others wait for what comes. Dead entries lie together: behind millions of
/// ids of other destinations come millions of one's own. So it is remembered where ids were dear to walk; outside chunks are as
/// wide as they are cheap and end where the dear ones begin, inside none is wider than what would not take long if it were as dear
/// as the dearest of the last ones. Where dear ones are met that nobody knew of, the server cuts the chunk short.
#[derive(Clone, Debug)]
pub struct CautiousWidth {
    outside: ChunkWidth,
    inside: ChunkWidth,
    ceiling: i64,
    /// Between which ids the last pass was dear, in order.
    dear: Vec<(MessageId, MessageId)>,
    /// The same of this pass.
    found: Vec<(MessageId, MessageId)>,
}

impl Default for CautiousWidth {
    fn default() -> Self {
        let (outside, inside) = (ChunkWidth::default(), ChunkWidth::default());
        Self { outside, inside, ceiling: i64::MAX, dear: Vec::new(), found: Vec::new() }
    }
}

impl CautiousWidth {
    /// What a chunk of the ceiling's width would have cost.
    const WORST: Duration = Duration::from_millis(80);

    /// A moment in which everything was slow makes the ceiling no lower.
    const LOWEST: i64 = 1 << 16;

    /// With each chunk the dearest is forgotten by one part in so many.
    const FORGET: i64 = 32;

    /// Places that are remembered; beyond that those at the end count as one.
    const PLACES: usize = 64;

    /// A pass begins at the bottom: where the last one was dear this one will be.
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

    /// After what time the server is to cut a chunk short that begins above this id.
    pub fn limit(&self, above: MessageId) -> Option<Duration> {
        match self.next_dear(above) {
            Some((from, _)) if above >= from => self.inside.limit(),
            _ => self.outside.limit(),
        }
    }

    /// The server cut a chunk of these ranges short: the next is to be narrower.
    pub fn was_cut_short(&mut self, ranges: &[Range]) {
        let Some(widest) = ranges.iter().max_by_key(|range| range.width()) else { return };
        if self.is_dear(widest.above) {
            self.inside.was_cut_short(widest.width());
            self.lower_ceiling(widest.width(), ChunkWidth::LIMIT);
        } else {
            // Somewhere in it; where, narrower ones will tell.
            self.outside.was_cut_short(widest.width());
        }
    }

    /// Takes the cost of a chunk of these ranges into account.
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

    /// What a chunk takes where three million dead ids lie above these.
    fn cost(dead_above: i64, above: MessageId, upto: MessageId) -> Duration {
        let within = |id: MessageId| id.0.clamp(dead_above, dead_above + 3_000_000);
        Duration::from_nanos((within(upto) - within(above)).unsigned_abs() * 250)
    }

    /// Makes a pass over all ids; returns the dearest chunk and how many there were, those that were cut short included.
    fn pass(width: &mut CautiousWidth, dead_above: i64, top: MessageId) -> (Duration, usize) {
        let (mut above, mut dearest, mut chunks) = (MessageId::NONE, Duration::ZERO, 0);
        width.begin();
        while above < top {
            let upto = width.end(above).min(top);
            let cost = cost(dead_above, above, upto);
            chunks += 1;
            match width.limit(above).filter(|limit| cost > *limit) {
                Some(limit) => {
                    dearest = dearest.max(limit);
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
    fn a_cautious_chunk_is_not_dear_when_cheap_ids_are_followed_by_dear_ones() {
        for dead_above in [0, 1_000_000, 3_000_000, 100_000_000, 1_000_000_000_000] {
            let mut width = CautiousWidth::default();
            let top = MessageId(dead_above + 4_000_000);
            // The first looks for where they are, and the next does so more exactly.
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
    fn a_cautious_pass_gets_to_the_far_end_of_all_numbers_however_dear_the_first_ids_are() {
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
    fn a_chunk_that_was_cut_short_and_took_long_is_followed_by_a_quarter_of_what_it_walked() {
        let mut width = ChunkWidth::default();
        (0..100).for_each(|_| width.took(1_000_000, Duration::ZERO));
        width.took(1_000_000, Duration::from_secs(1));
        assert_eq!(width.end(MessageId::NONE).0, 250_000);
    }

    #[test]
    fn what_is_cut_short_is_asked_for_narrower_until_it_may_take_as_long_as_it_takes() {
        let (mut width, mut cautious) = (ChunkWidth::default(), CautiousWidth::default());
        (0..40).for_each(|_| width.took(0, Duration::ZERO));
        (0..40).for_each(|_| cautious.took(&range(MessageId::NONE, MessageId::NONE), Duration::ZERO));
        let mut tries = 0;
        while width.limit().is_some() || cautious.limit(MessageId::NONE).is_some() {
            width.was_cut_short(width.end(MessageId::NONE).0);
            let upto = cautious.end(MessageId::NONE);
            cautious.was_cut_short(&range(MessageId::NONE, upto));
            tries += 1;
            assert!(tries < 40, "{width:?} {cautious:?}");
        }
        assert_eq!((width.end(MessageId::NONE).0, cautious.end(MessageId::NONE).0), (1 << 12, 1 << 12));
    }
}
