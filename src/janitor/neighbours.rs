//! Who else works on this database: relays that are connected and replays that run, for people to read.

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
}

impl Neighbourhood {
    /// Looks at once.
    pub(super) fn new() -> Self {
        Self { next: Instant::now() }
    }

    /// Looks if it is time to. Nothing depends on it, so a failure changes nothing; what was known stays.
    pub(super) async fn look(&mut self, outbox: &Outbox, board: &Board) {
        let now = Instant::now();
        if now < self.next {
            return;
        }
        self.next = now + EVERY;
        match ask(outbox).await {
            Ok(neighbours) => board.set_neighbours(neighbours, Time::now()),
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
