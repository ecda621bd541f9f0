//! The initial scan: finds from where a destination's lanes have to be read, without one long statement.
//!
//! Below the first pending message of a lane there may be millions of index entries of delivered rows that vacuum could
//! not remove, because a session holds the xmin horizon back. So they are walked in chunks of ids. Pure.

use super::work::{Baseline, RescanWork, Work};
use crate::message::MessageId;
use crate::reading::{ByLane, FloorWalk, Rescanned};

/// The result of the initial scan.
#[derive(Debug)]
pub(super) struct Scanned {
    /// For each lane an id below which nothing was pending.
    pub(super) floors: ByLane<MessageId>,
    /// What was read before the scan.
    pub(super) first: Baseline,
}

/// The state of the initial scan.
#[derive(Debug, Default)]
pub(super) enum InitialScan {
    /// Not started.
    #[default]
    NotBegun,
    /// Going up in chunks.
    Scanning(Box<Scanning>),
    /// Finished.
    Done,
}

#[derive(Debug)]
pub(super) struct Scanning {
    first: Baseline,
    walk: FloorWalk,
}

impl InitialScan {
    /// Whether it is finished.
    pub(super) fn is_done(&self) -> bool {
        matches!(self, Self::Done)
    }

    /// The next question, until it is finished.
    pub(super) fn next(&self) -> Option<Work> {
        match self {
            Self::NotBegun => Some(Work::ReadBaseline),
            Self::Scanning(scanning) => {
                let (_, rescan) = scanning.walk.next_look()?;
                Some(Work::Rescan(RescanWork { rescan, proof: None, statement: 0 }))
            }
            Self::Done => None,
        }
    }

    /// Starts the scan with what was read before it.
    pub(super) fn looked(&mut self, first: Baseline) -> Option<Scanned> {
        let walk = FloorWalk::new(first.last_id);
        *self = Self::Scanning(Box::new(Scanning { first, walk }));
        self.finish()
    }

    /// Applies the answer to a chunk; `None` when it was cut short.
    pub(super) fn rescanned(&mut self, rescanned: Option<&Rescanned>) -> Option<Scanned> {
        let Self::Scanning(scanning) = self else { return None };
        // Only one chunk is under way at a time.
        let (chunk, _) = scanning.walk.next_look()?;
        scanning.walk.answered(&chunk, rescanned);
        self.finish()
    }

    fn finish(&mut self) -> Option<Scanned> {
        let Self::Scanning(scanning) = self else { return None };
        if scanning.walk.next_look().is_some() {
            return None;
        }
        let Self::Scanning(scanning) = std::mem::replace(self, Self::Done) else { return None };
        Some(Scanned { floors: scanning.walk.floors(), first: scanning.first })
    }
}
