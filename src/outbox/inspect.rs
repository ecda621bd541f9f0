//! Inspecting: what `outbox-relay check` needs to know about the server. [`crate::cli`] judges it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{Outbox, OutboxError, column};

/// The state of the server.
#[derive(Clone, Debug)]
pub struct Inspected {
    /// The version as the server writes it.
    pub version: String,
    /// 150004 for 15.4.
    pub version_number: i32,
    /// Whether it only replays another server's changes.
    pub is_standby: bool,
    /// Whether transactions are read-only by default.
    pub is_read_only: bool,
    /// Whether autovacuum runs at all.
    pub has_autovacuum: bool,
    /// Whether a committed transaction survives a crash of the machine.
    pub is_durable: bool,
    /// How far the server's clock is ahead of this host's, in seconds, as precisely as one round trip can show.
    pub clock_ahead: f64,
    /// The role of this login.
    pub role: String,
    /// Privileges that the relay needs and this role lacks.
    pub missing_rights: Vec<String>,
    /// Indexes and partitions that are missing or invalid.
    pub broken: Vec<String>,
    /// Tables for which autovacuum is turned off.
    pub unvacuumed: Vec<String>,
}

impl Outbox {
    /// Inspects the server.
    ///
    /// # Errors
    ///
    /// When the statement fails, as without the schema.
    pub async fn inspect(&self) -> Result<Inspected, OutboxError> {
        const NAME: &str = "inspect the server";
        let asked_at = SystemTime::now();
        let row = self.query_one(NAME, &self.sql.inspect, &[]).await?;
        // The server read its clock somewhere between the question and the answer.
        let half = asked_at.elapsed().unwrap_or(Duration::ZERO) / 2;
        let here = (asked_at + half).duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        Ok(Inspected {
            version: column(NAME, &row, 0)?,
            version_number: column(NAME, &row, 1)?,
            is_standby: column(NAME, &row, 2)?,
            is_read_only: column(NAME, &row, 3)?,
            has_autovacuum: column(NAME, &row, 4)?,
            is_durable: column(NAME, &row, 5)?,
            clock_ahead: column::<f64>(NAME, &row, 6)? - here,
            role: column(NAME, &row, 7)?,
            missing_rights: column(NAME, &row, 8)?,
            broken: column(NAME, &row, 9)?,
            unvacuumed: column(NAME, &row, 10)?,
        })
    }
}
