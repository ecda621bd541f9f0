//! Settling, a part at a time: no transaction gets more than the database writes while a statement may last.
//!
//! [`super::outcomes`] settles under a claim; what could not be written there is written here before the next one.

use std::time::{Duration, Instant};

use super::pace::Pace;
use super::{Destination, Relay};
use crate::message::{Outcome, Settlement};
use crate::outbox::OutboxError;

impl Destination {
    /// Writes outcomes back, as [`crate::outbox::Outbox::settle`]; and how long that took.
    pub(super) async fn settle(&self, settlements: &mut [Settlement]) -> (Duration, Result<u64, OutboxError>) {
        let started = Instant::now();
        let result = self.outbox.settle(&self.name, self.keep, settlements).await;
        let took = started.elapsed();
        self.metrics.settle_duration.observe(took.as_secs_f64());
        (took, result)
    }

    /// Settles the first of these and takes them off. Returns them and what [`Destination::settle`] does.
    pub(super) async fn settle_first(
        &self,
        settlements: &mut Vec<Settlement>,
        pace: &mut Pace,
    ) -> Result<(Vec<Settlement>, u64), OutboxError> {
        let most = settlements.len().min(pace.most_written());
        let (took, result) = self.settle(&mut settlements[..most]).await;
        pace.note(most, took, &result);
        let published_twice = result?;
        Ok((settlements.drain(..most).collect(), published_twice))
    }
}

impl Relay {
    /// Writes what a claim could not: deliveries, because SQS has accepted those messages whoever has their lanes now.
    pub(super) async fn settle_the_unsettled(&mut self) -> Result<(), OutboxError> {
        while !self.unsettled.is_empty() {
            let (settled, published_twice) = self.destination.settle_first(&mut self.unsettled, &mut self.pace).await?;
            self.database_answered();
            self.reports.pulse.tick();
            let is_delivered = |settlement: &&Settlement| matches!(settlement.outcome, Outcome::Delivered { .. });
            let delivered = settled.iter().filter(is_delivered).count() as u64;
            let metrics = &self.destination.metrics;
            metrics.delivered.inc_by(delivered);
            metrics.possible_duplicates.inc_by(published_twice);
            self.ended.delivered += delivered;
        }
        Ok(())
    }
}
