//! The first scan: from where a destination's lanes have to be read, found without one long statement.
//!
//! Below the first pending message of a lane there may be millions of index entries of delivered rows that vacuum could not
//! remove, because some session holds the horizon back. So they are walked in chunks of ids. Pure.

use super::work::{FirstLook, RescanWork, Work};
use crate::message::{Lane, MessageId};
use crate::reading::{ByLane, ChunkWidth, Range, Rescan, Rescanned};

/// What is known at the end of the first scan.
#[derive(Debug)]
pub(super) struct Scanned {
    /// Of each lane an id below which nothing of it was pending.
    pub(super) floors: ByLane<MessageId>,
    /// What was seen before the scan.
    pub(super) first: FirstLook,
}

/// How far the first scan is.
#[derive(Debug, Default)]
pub(super) enum FirstScan {
    /// Nothing is known.
    #[default]
    NotBegun,
    /// Going up.
    Scanning(Box<Scanning>),
    /// Over.
    Done,
}

#[derive(Debug)]
pub(super) struct Scanning {
    first: FirstLook,
    floors: ByLane<Option<MessageId>>,
    above: MessageId,
    width: ChunkWidth,
}

impl FirstScan {
    /// Whether it is over.
    pub(super) fn is_done(&self) -> bool {
        matches!(self, Self::Done)
    }

    /// The next question, until it is over.
    pub(super) fn next(&self) -> Option<Work> {
        match self {
            Self::NotBegun => Some(Work::FirstLook),
            Self::Scanning(scanning) => {
                let upto = scanning.width.end(scanning.above).min(scanning.first.last_id);
                let missing = Lane::all().filter(|lane| scanning.floors[*lane].is_none());
                let ranges = missing.map(|lane| Range { lane, above: scanning.above, upto }).collect();
                // What is held up counts: it has to be read to be known.
                let limit = scanning.width.limit();
                let rescan = Rescan { ranges, most: 1, limit, ..Rescan::default() };
                Some(Work::Rescan(RescanWork { rescan, proof: None, statement: 0 }))
            }
            Self::Done => None,
        }
    }

    /// What is known before the scan has come.
    pub(super) fn looked(&mut self, first: FirstLook) -> Option<Scanned> {
        let floors = ByLane::default();
        let scanning = Scanning { first, floors, above: MessageId::NONE, width: ChunkWidth::default() };
        *self = Self::Scanning(Box::new(scanning));
        self.finish()
    }

    /// A chunk was cut short: the next begins where it began, and is narrower.
    pub(super) fn cut_short(&mut self, work: &RescanWork) {
        if let Self::Scanning(scanning) = self {
            scanning.width.was_cut_short(work.rescan.width());
        }
    }

    /// A chunk has come.
    pub(super) fn rescanned(&mut self, work: &RescanWork, rescanned: &Rescanned) -> Option<Scanned> {
        let Self::Scanning(scanning) = self else { return None };
        scanning.width.took(work.rescan.width(), rescanned.took);
        for found in &rescanned.found {
            scanning.floors[found.key.lane].get_or_insert(found.key.id.previous());
        }
        let upto = work.rescan.ranges.first().map_or(scanning.first.last_id, |range| range.upto);
        scanning.above = scanning.above.max(upto);
        self.finish()
    }

    fn finish(&mut self) -> Option<Scanned> {
        let Self::Scanning(scanning) = self else { return None };
        let is_missing = scanning.floors.iter().any(|(_, floor)| floor.is_none());
        if is_missing && scanning.above < scanning.first.last_id {
            return None;
        }
        let Self::Scanning(scanning) = std::mem::replace(self, Self::Done) else { return None };
        let mut floors = ByLane::all(scanning.first.last_id);
        for (lane, floor) in scanning.floors.iter() {
            floors[lane] = floor.unwrap_or(scanning.first.last_id);
        }
        Some(Scanned { floors, first: scanning.first })
    }
}
