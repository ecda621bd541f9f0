//! Where destinations come from: the environment, or the rows of `outbox.destinations`, which are watched.
//!
//! The rows are few, so they are read as a whole and compared. Nothing is assembled or drained here; `daemon.rs` does that
//! when [`Source::changed`] returns.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::board::Board;
use crate::config::{ConfiguredDestinations, Difference, RefusedRow, RelayConfig};
use crate::health::{Dependency, Heartbeat};
use crate::metrics::Metrics;
use crate::outbox::{Outbox, OutboxError};
use crate::relay::Until;

/// How often the table is read.
const ASK_EVERY: Duration = Duration::from_secs(2);

/// How long `--until-empty` tries to read it.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where the destinations come from.
#[derive(Debug)]
pub(super) enum Source {
    /// `OUTBOX_RELAY_DESTINATIONS`.
    Environment { outbox: Outbox, config: Box<RelayConfig> },
    /// `outbox.destinations`.
    Table(Table),
}

/// The table and who is told about it.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) outbox: Outbox,
    /// What it held when this was assembled; `None` if it was never read.
    pub(super) known: Option<ConfiguredDestinations>,
    /// Names of rows that could be read, and for which no publisher can be made.
    pub(super) unusable: Vec<String>,
    pub(super) until: Until,
    pub(super) board: Arc<Board>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) database: Arc<Dependency>,
    pub(super) heartbeat: Arc<Heartbeat>,
}

impl Source {
    /// Waits until other destinations are to be served. Those of the environment never change.
    ///
    /// # Errors
    ///
    /// Only with [`Until::Empty`]: the table cannot be read, and waiting did not help.
    pub(super) async fn changed(self) -> Result<ConfiguredDestinations, OutboxError> {
        match self {
            Self::Table(table) => table.changed().await,
            Self::Environment { outbox, config } => {
                say_what_is_overridden(&outbox, &config).await;
                std::future::pending().await
            }
        }
    }
}

/// Whoever stops to wait for a change stops the loop.
impl Drop for Table {
    fn drop(&mut self) {
        self.heartbeat.finish();
    }
}

impl Table {
    async fn changed(mut self) -> Result<ConfiguredDestinations, OutboxError> {
        let began_at = Instant::now();
        loop {
            self.heartbeat.tick();
            match read(&self.outbox).await {
                Ok(now) => {
                    self.answered();
                    if let Some(now) = self.compared(now) {
                        return Ok(now);
                    }
                }
                Err(error) => {
                    let is_over = error.is_final() || began_at.elapsed() > PATIENCE;
                    if self.until == Until::Empty && self.known.is_none() && is_over {
                        return Err(error);
                    }
                    self.failed(&error);
                }
            }
            tokio::time::sleep(ASK_EVERY).await;
        }
    }

    /// Returns what the table holds if other destinations are to be served.
    fn compared(&mut self, now: ConfiguredDestinations) -> Option<ConfiguredDestinations> {
        let before = self.known.as_ref();
        let known = before.map_or(&[][..], |before| &before.refused);
        for RefusedRow { problem, .. } in now.refused.iter().filter(|row| !known.contains(row)) {
            tracing::warn!("a row of outbox.destinations is left out: {problem}");
        }
        let refused = now.refused.iter().map(|row| row.name.clone());
        self.board.set_refused(refused.chain(self.unusable.iter().cloned()).collect());
        if before.is_none_or(|before| before.served != now.served) {
            say_what_changed(before, &now);
            return Some(now);
        }
        self.known = Some(now);
        None
    }

    fn answered(&self) {
        if self.database.report_up() {
            tracing::info!("outbox.destinations can be read again");
        }
        self.metrics.database_up.set(i64::from(self.database.is_up()));
    }

    fn failed(&self, error: &OutboxError) {
        self.outbox.forget_connections();
        self.metrics.database_up.set(0);
        if self.database.report_down_as(&error.to_string(), &error.shown()) {
            tracing::warn!(error = %error, "outbox.destinations cannot be read; what was read last stands; trying again");
        }
    }
}

async fn read(outbox: &Outbox) -> Result<ConfiguredDestinations, OutboxError> {
    let rows = outbox.configured().await?;
    if rows.is_empty() {
        // Perhaps row level security hides them: then what was read last stands.
        outbox.check_suitable().await?;
    }
    Ok(ConfiguredDestinations::read(rows.iter().map(|configured| &configured.row)))
}

fn say_what_changed(before: Option<&ConfiguredDestinations>, now: &ConfiguredDestinations) {
    if now.served.is_empty() {
        tracing::warn!(
            "no destination: OUTBOX_RELAY_DESTINATIONS is not set and outbox.destinations has none; waiting for one"
        );
    }
    let difference = Difference::between(before.map_or(&[], |before| &before.served), &now.served);
    let Difference { added, removed, changed } = difference;
    if !(added.is_empty() && removed.is_empty() && changed.is_empty()) {
        let [added, removed, changed] = [added, removed, changed].map(|names| names.join(","));
        tracing::info!(added, removed, changed, "outbox.destinations has changed; its destinations are taken up");
    }
}

/// Says once which rows the environment overrides, as soon as the table can be read. The relays report a database that
/// cannot be used.
async fn say_what_is_overridden(outbox: &Outbox, config: &RelayConfig) {
    let rows = loop {
        match read(outbox).await {
            Ok(rows) => break rows,
            // The role may lack the privilege, and `check` says so.
            Err(error) if error.is_denied() => return,
            Err(error) => tracing::debug!(%error, "outbox.destinations cannot be read"),
        }
        tokio::time::sleep(ASK_EVERY).await;
    };
    let number = rows.served.len() + rows.refused.len();
    if number > 0 {
        let in_table = config.with_destinations(rows.served);
        let difference = Difference::between(&in_table.destinations, &config.destinations);
        let differing = difference.names().join(",");
        tracing::info!(rows = number, differing, "OUTBOX_RELAY_DESTINATIONS overrides outbox.destinations");
    }
}
