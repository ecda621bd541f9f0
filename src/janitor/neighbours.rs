//! Who else works on this database: relays that are connected and replays that run. People read it, and relays share the
//! time for measuring among them.

use std::time::{Duration, Instant};

use crate::board::{Board, Neighbours};
use crate::clock::Time;
use crate::outbox::{Outbox, OutboxError};

/// How often to look.
const EVERY: Duration = Duration::from_secs(10);

/// When to look again.
#[derive(Debug)]
pub(super) struct Neighbourhood {
    next: Instant,
    /// How many relays there are, this one included.
    relays: u32,
}

impl Neighbourhood {
    /// Looks at once.
    pub(super) fn new() -> Self {
        Self { next: Instant::now(), relays: 1 }
    }

    /// How many relays were connected at the last look, this one included: those that keep the name that they have by
    /// default, each counted once.
    pub(super) fn relays(&self) -> u32 {
        self.relays
    }

    /// Looks if it is time to. A failure changes nothing: what was known stays.
    pub(super) async fn look(&mut self, outbox: &Outbox, board: &Board) {
        let now = Instant::now();
        if now < self.next {
            return;
        }
        self.next = now + EVERY;
        match ask(outbox).await {
            Ok(neighbours) => {
                self.relays = u32::try_from(neighbours.relays.len()).unwrap_or(u32::MAX).max(1);
                board.set_neighbours(neighbours, Time::now());
            }
            Err(error) => tracing::debug!(error = %error, "relays and replays cannot be listed"),
        }
    }
}

async fn ask(outbox: &Outbox) -> Result<Neighbours, OutboxError> {
    let relays = outbox.relays().await?;
    let may_list = outbox.may_list_replays().await?;
    let replays = if may_list { Some(outbox.replays().await?) } else { None };
    Ok(Neighbours { relays, replays })
}
