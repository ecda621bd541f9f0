//! When events were recorded, for `outbox-relay dev`, which shows how long each message took.

use std::collections::HashMap;
use std::time::SystemTime;

use tokio_postgres::types::Type;

use super::{Outbox, OutboxError, column};

/// When an event was recorded, by the database's clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// Its transaction committed.
    Committed(SystemTime),
    /// Its row was written; the server does not keep the time of commits.
    Written(SystemTime),
}

impl Outbox {
    /// When each of these events was recorded. An id that is not there is left out.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn events_recorded(&self, event_ids: &[&str]) -> Result<HashMap<String, Recorded>, OutboxError> {
        const NAME: &str = "ask when events were recorded";
        let rows = self.query(NAME, &self.sql.recorded, &[(&event_ids, Type::TEXT_ARRAY)]).await?;
        let recorded = |row: &tokio_postgres::Row| {
            let committed: Option<SystemTime> = column(NAME, row, 1)?;
            let written = column(NAME, row, 2)?;
            Ok((column(NAME, row, 0)?, committed.map_or(Recorded::Written(written), Recorded::Committed)))
        };
        rows.iter().map(recorded).collect()
    }
}
