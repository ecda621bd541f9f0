//! The first scan: from where a destination's lanes have to be read, found without one long statement.
//!
//! Below the first pending message of a lane there may be millions of index entries of delivered rows that vacuum could not
//! remove, because some session holds the horizon back. So they are walked in chunks of ids. Pure.

use super::work::{FirstLook, RescanWork, Work};
use crate::message::MessageId;
use crate::reading::{ByLane, FloorWalk, Rescanned};

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
    walk: FloorWalk,
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
                let (_, rescan) = scanning.walk.next_look()?;
                Some(Work::Rescan(RescanWork { rescan, proof: None, statement: 0 }))
            }
            Self::Done => None,
        }
    }

    /// What is known before the scan has come.
    pub(super) fn looked(&mut self, first: FirstLook) -> Option<Scanned> {
        let walk = FloorWalk::new(first.last_id);
        *self = Self::Scanning(Box::new(Scanning { first, walk }));
        self.finish()
    }

    /// A chunk has come; nothing when it was cut short.
    pub(super) fn rescanned(&mut self, rescanned: Option<&Rescanned>) -> Option<Scanned> {
        let Self::Scanning(scanning) = self else { return None };
        // Only one is asked for at a time.
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
