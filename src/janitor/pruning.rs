//! Pruning: delivered messages older than the retention are deleted, lane by lane, in chunks small enough that deliveries
//! do not wait for them.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::{Janitor, Served};
use crate::message::Lane;
use crate::outbox::OutboxError;

/// The most rows in one statement: a few milliseconds of locks and WAL.
const CHUNK: i64 = 1000;

/// The most chunks of one lane before the next lane.
const CHUNKS_A_TURN: u32 = 20;

/// The pause between two chunks, so that pruning a large remainder leaves capacity for deliveries.
const CHUNK_PAUSE: Duration = Duration::from_millis(20);

/// One lane of one destination; the number is its index in [`Janitor::destinations`].
pub(super) type Spot = (usize, Lane);

/// The state of pruning.
#[derive(Default)]
pub(super) struct Pruning {
    /// The lanes still to come in this round.
    pub(super) turns: VecDeque<Spot>,
    /// The id up to which a lane was looked at, if there may be more.
    looked_to: HashMap<Spot, i64>,
    /// Whether it was logged that pruning fails.
    is_logged: bool,
}

impl Janitor {
    /// Everything to prune in a round.
    pub(super) fn spots(&self) -> VecDeque<Spot> {
        if self.retention.is_zero() {
            return VecDeque::new();
        }
        // Each relay starts at a different lane, so that several relays seldom meet.
        let first = fastrand::usize(0..Lane::all().count());
        let lanes = |destination| {
            let lanes = Lane::all().cycle().skip(first).take(Lane::all().count());
            lanes.map(move |lane| (destination, lane))
        };
        (0..self.destinations.len()).flat_map(lanes).collect()
    }

    /// One turn of a lane. When it fails, the round is over.
    pub(super) async fn prune(&self, spot: Spot, pruning: &mut Pruning, stop: &CancellationToken) {
        let destination = &self.destinations[spot.0].name;
        match self.prune_lane(spot, pruning, stop).await {
            Ok(()) => {
                // A lane with nothing to prune does not prove that pruning works; a whole round does.
                pruning.is_logged &= !pruning.turns.is_empty();
                return;
            }
            // When the database cannot be used at all, the relays report it.
            Err(error @ (OutboxError::Statement { .. } | OutboxError::Timeout { .. }))
                if !std::mem::replace(&mut pruning.is_logged, true) =>
            {
                tracing::warn!(destination = %destination, error = %error, "delivered messages cannot be pruned; trying again");
            }
            Err(error) => tracing::debug!(destination = %destination, error = %error, "pruning is put off"),
        }
        pruning.turns.clear();
    }

    /// Continues where the last turn ended. A lane that still had old messages gets another turn in this round. A lane
    /// in which many low ids were delivered late, and so must stay, is continued in the next round.
    async fn prune_lane(&self, spot: Spot, pruning: &mut Pruning, stop: &CancellationToken) -> Result<(), OutboxError> {
        let (destination, lane) = spot;
        let Served { name, metrics, .. } = &self.destinations[destination];
        let mut above = pruning.looked_to.remove(&spot).unwrap_or(0);
        let mut deleted = 0;
        for _ in 0..CHUNKS_A_TURN {
            let pruned = self.outbox.prune(name, lane, above, self.retention, CHUNK).await?;
            metrics.pruned.inc_by(u64::try_from(pruned.deleted).unwrap_or(0));
            let Some(highest) = pruned.highest.filter(|_| pruned.may_be_old) else { return Ok(()) };
            above = highest;
            deleted += pruned.deleted;
            tokio::select! {
                () = tokio::time::sleep(CHUNK_PAUSE) => {}
                () = stop.cancelled() => return Ok(()),
            }
        }
        pruning.looked_to.insert(spot, above);
        if deleted > 0 {
            pruning.turns.push_back(spot);
        }
        Ok(())
    }
}
