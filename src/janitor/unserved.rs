//! Messages that nobody will deliver: each relay notes which destinations it serves, and counts the messages of those that
//! no relay serves.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Served;
use crate::board::Board;
use crate::metrics::Metrics;
use crate::outbox::Outbox;

/// How often. What a relay serves is written less often, about once a minute: an idle relay should write next to nothing.
const EVERY: Duration = Duration::from_secs(30);

/// The most names in a log line.
const NAMES: usize = 10;

/// When to look again, and what was found.
#[derive(Debug)]
pub(super) struct Unserved {
    next_serve: Instant,
    next: Instant,
    logged: Vec<String>,
}

impl Unserved {
    /// Looks at once.
    pub(super) fn new() -> Self {
        let now = Instant::now();
        Self { next_serve: now, next: now, logged: Vec::new() }
    }

    /// Notes what this relay serves if it is time to. It is noted in time as long as the database takes statements at all.
    pub(super) async fn serve(&mut self, outbox: &Outbox, served: &[Served]) {
        let now = Instant::now();
        if now < self.next_serve || served.is_empty() {
            return;
        }
        let names: Vec<&str> = served.iter().map(|served| &*served.name).collect();
        match outbox.serve(&names).await {
            Ok(()) => self.next_serve = now + EVERY,
            Err(error) => tracing::debug!(%error, "what this relay serves cannot be noted"),
        }
    }

    /// Looks if it is time to. A failure changes nothing: what was known stays.
    pub(super) async fn look(
        &mut self,
        outbox: &Outbox,
        served: &[Served],
        (metrics, board): (&Arc<Metrics>, &Arc<Board>),
    ) {
        let now = Instant::now();
        if now < self.next {
            return;
        }
        self.next = now + EVERY;
        let names: Vec<&str> = served.iter().map(|served| &*served.name).collect();
        match outbox.unserved(&names).await {
            Ok(unserved) => {
                metrics.unserved.set(unserved.iter().map(|(_, messages)| messages).sum());
                let names: Vec<String> = unserved.into_iter().map(|(name, _)| name).collect();
                if !names.is_empty() && names != self.logged {
                    let shown = names.iter().take(NAMES).map(String::as_str).collect::<Vec<_>>().join(",");
                    tracing::warn!(destinations = shown, "messages wait for destinations that no running relay serves");
                }
                self.logged.clone_from(&names);
                board.set_unserved(names);
            }
            Err(error) => tracing::debug!(%error, "destinations that nobody serves cannot be found"),
        }
    }
}
