//! Rest: how a relay waits between claims, for news, for a time, or for the end of a pause. Every wait is bounded.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::Relay;
use super::schedule::GoesOn;
use super::stream::STREAM_FOR;

impl Relay {
    /// Whether nothing is known to have come that the last look did not see. Before the climb nothing is known.
    pub(super) fn is_quiet(&mut self) -> bool {
        let settled_to = self.bounds.lowest();
        self.is_climbed
            && self.ear.is_quiet(settled_to)
            && self.remembered.iter().all(|group| group.goes_on != GoesOn::Now)
    }

    /// Sleeps until the lookout sees something or the next sweep is due; returns whether something was seen.
    pub(super) async fn listen(&mut self, drain: &CancellationToken) -> bool {
        let heads = self.remembered.iter().filter_map(|group| match group.goes_on {
            GoesOn::At(until) => Some(until),
            GoesOn::Now | GoesOn::Unblocked => None,
        });
        let until_sweep = heads.fold(self.sweeping.next(), Instant::min).saturating_duration_since(Instant::now());
        tokio::select! {
            is_news = self.ear.listen(self.bounds.lowest(), until_sweep) => is_news,
            () = drain.cancelled() => true,
        }
    }

    pub(super) async fn wait(&self, pause: Duration, drain: &CancellationToken) {
        let mut left = pause;
        // In pieces, so that a long pause does not look like a loop that hangs.
        while !left.is_zero() {
            let piece = left.min(Duration::from_secs(1));
            tokio::select! {
                () = tokio::time::sleep(piece) => {}
                () = drain.cancelled(), if self.unsettled.is_empty() => return,
            }
            self.reports.pulse.tick();
            left -= piece;
            // An operator may just have shortened the pause.
            if self.helm.has_news() {
                return;
            }
        }
    }

    /// Waits for the end of the pause, but not for ever, so that a pulse is felt.
    pub(super) async fn until_resumed(&mut self, drain: &CancellationToken) {
        tokio::select! {
            () = self.helm.until_resumed() => self.failing_since = None,
            () = drain.cancelled() => {}
            () = tokio::time::sleep(STREAM_FOR) => {}
        }
    }
}
