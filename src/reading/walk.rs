//! Walks in chunks over all ids that were handed out, for questions that are asked once and may meet rows that vacuum
//! could not remove. Pure.

use std::time::Duration;

use super::{ByLane, ChunkWidth, Range, Rescan, Rescanned};
use crate::message::{Lane, MessageId};

/// A part of a walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Above this id.
    pub above: MessageId,
    /// Up to and including this one.
    pub upto: MessageId,
    /// After what time the server is to cut it short.
    pub timeout: Option<Duration>,
}

impl Chunk {
    fn width(&self) -> i64 {
        self.upto.0.saturating_sub(self.above.0)
    }
}

/// A walk from the bottom to some id.
#[derive(Debug)]
pub struct Walk {
    above: MessageId,
    top: MessageId,
    width: ChunkWidth,
}

impl Walk {
    /// A walk up to this id.
    pub fn new(top: MessageId) -> Self {
        Self { above: MessageId::NONE, top, width: ChunkWidth::default() }
    }

    /// The highest id of the walk.
    pub fn top(&self) -> MessageId {
        self.top
    }

    /// The next chunk to ask for; `None` when the walk is finished.
    pub fn next_chunk(&self) -> Option<Chunk> {
        let upto = self.width.end(self.above).min(self.top);
        (self.above < self.top).then(|| Chunk { above: self.above, upto, timeout: self.width.timeout() })
    }

    /// The server cut this chunk short: the next one starts at the same place and is narrower.
    pub fn was_cut_short(&mut self, chunk: &Chunk) {
        self.width.was_cut_short(chunk.width());
    }

    /// The server worked this long on this chunk.
    pub fn took(&mut self, chunk: &Chunk, cost: Duration) {
        self.width.took(chunk.width(), cost);
        self.above = chunk.upto;
    }
}

/// A walk that finds, for each lane, an id below which nothing but retries is pending.
#[derive(Debug)]
pub struct FloorWalk {
    walk: Walk,
    floors: ByLane<Option<MessageId>>,
}

impl FloorWalk {
    /// A walk up to this id.
    pub fn new(top: MessageId) -> Self {
        Self { walk: Walk::new(top), floors: ByLane::default() }
    }

    /// The next chunk to ask for; `None` when the walk is finished.
    pub fn next_look(&self) -> Option<(Chunk, Rescan)> {
        let missing: Vec<Lane> = Lane::all().filter(|lane| self.floors[*lane].is_none()).collect();
        let chunk = self.walk.next_chunk().filter(|_| !missing.is_empty())?;
        let range = |lane| Range::new(lane, chunk.above, chunk.upto);
        // Held-up messages count: they have to be read to be known.
        let ranges = missing.into_iter().map(range).collect();
        Some((chunk, Rescan { ranges, limit: 1, timeout: chunk.timeout, ..Rescan::default() }))
    }

    /// Applies the answer to this chunk; `None` when the server cut it short.
    pub fn answered(&mut self, chunk: &Chunk, rescanned: Option<&Rescanned>) {
        let Some(rescanned) = rescanned else { return self.walk.was_cut_short(chunk) };
        for found in &rescanned.found {
            self.floors[found.key.lane].get_or_insert(found.key.id.previous());
        }
        self.walk.took(chunk, rescanned.took);
    }

    /// The floors. For a lane in which nothing was found it is the top of the walk.
    pub fn floors(&self) -> ByLane<MessageId> {
        let mut floors = ByLane::all(self.walk.top());
        for (lane, floor) in self.floors.iter() {
            floors[lane] = floor.unwrap_or(self.walk.top());
        }
        floors
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::MessageKey;
    use crate::reading::{Found, Snapshot};

    #[test]
    fn a_walk_whose_chunks_are_cut_short_goes_over_all_ids_in_order() {
        let top = MessageId(1 << 30);
        let (mut walk, mut above) = (Walk::new(top), MessageId::NONE);
        while let Some(chunk) = walk.next_chunk() {
            assert!(chunk.above == above && chunk.upto > above, "{chunk:?} after {above:?}");
            // Each id costs a microsecond.
            let cost = Duration::from_micros(chunk.width().unsigned_abs());
            if chunk.timeout.is_some_and(|timeout| cost > timeout) {
                walk.was_cut_short(&chunk);
            } else {
                walk.took(&chunk, cost);
                above = chunk.upto;
            }
        }
        assert_eq!(above, top);
    }

    #[test]
    fn a_floor_is_below_the_first_message_found_or_at_the_top_of_the_walk() {
        let lane = Lane::all().next().unwrap();
        let mut walk = FloorWalk::new(MessageId(100));
        let (chunk, look) = walk.next_look().unwrap();
        walk.answered(&chunk, None);
        assert_eq!(look.ranges.len(), Lane::all().count());
        let (chunk, _) = walk.next_look().unwrap();
        assert_eq!(chunk.above, MessageId::NONE, "a chunk that was cut short is repeated");
        let found = vec![Found { key: MessageKey { lane, id: MessageId(40) }, group: None }];
        let snapshot = Snapshot::parse("1:1:").unwrap();
        walk.answered(&chunk, Some(&Rescanned { snapshot, found, took: Duration::ZERO }));
        assert!(walk.next_look().is_none());
        let floors = walk.floors();
        assert_eq!(floors[lane], MessageId(39));
        assert!(Lane::all().skip(1).all(|lane| floors[lane] == MessageId(100)));
    }
}
