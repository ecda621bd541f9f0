//! The table of destinations, and which of those with messages a running relay serves.

use tokio_postgres::types::Type;

use super::{Outbox, OutboxError, Parameter, column};
use crate::config::DestinationRow;
use crate::reading::COUNT_LIMIT;

/// A relay that has not said for this long that it serves a destination does not count; it says so once a minute.
const SILENT_SECONDS: f64 = 180.0;

/// A row of the table, and who wrote it.
#[derive(Clone, Debug, PartialEq)]
pub struct Configured {
    /// The destination.
    pub row: DestinationRow,
    /// When it was written, in seconds since 1970.
    pub changed_at: f64,
    /// Who wrote it.
    pub changed_by: String,
}

impl Outbox {
    /// The rows of `outbox.destinations`, in the order of their names.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn configured(&self) -> Result<Vec<Configured>, OutboxError> {
        const NAME: &str = "read the destinations";
        let configured = |row: &tokio_postgres::Row| {
            let destination = DestinationRow {
                name: column(NAME, row, 0)?,
                target: column(NAME, row, 1)?,
                fair: column(NAME, row, 2)?,
                role: column(NAME, row, 3)?,
                external_id: column(NAME, row, 4)?,
                claim_check: column(NAME, row, 5)?,
                claim_check_above: column(NAME, row, 6)?,
                claim_check_key: column(NAME, row, 7)?,
            };
            Ok(Configured { row: destination, changed_at: column(NAME, row, 8)?, changed_by: column(NAME, row, 9)? })
        };
        self.query(NAME, &self.sql.configured, &[]).await?.iter().map(configured).collect()
    }

    /// Adds a destination to the table, or changes it as a whole. The row is not checked here.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn set_destination(&self, row: &DestinationRow, actor: &str) -> Result<(), OutboxError> {
        let parameters: [Parameter<'_>; 9] = [
            (&row.name, Type::TEXT),
            (&row.target, Type::TEXT),
            (&row.fair, Type::BOOL),
            (&row.role, Type::TEXT),
            (&row.external_id, Type::TEXT),
            (&row.claim_check, Type::TEXT),
            (&row.claim_check_above, Type::INT8),
            (&row.claim_check_key, Type::TEXT),
            (&actor, Type::TEXT),
        ];
        self.execute("set the destination", &self.sql.set_destination, &parameters).await.map(drop)
    }

    /// Removes a destination from the table; returns whether it was there.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn remove_destination(&self, name: &str, actor: &str) -> Result<bool, OutboxError> {
        const NAME: &str = "remove the destination";
        let parameters: [Parameter<'_>; 2] = [(&name, Type::TEXT), (&actor, Type::TEXT)];
        let removed: i64 = column(NAME, &self.query_one(NAME, &self.sql.remove_destination, &parameters).await?, 0)?;
        Ok(removed > 0)
    }

    /// Notes that a running relay serves these destinations.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn serve(&self, destinations: &[&str]) -> Result<(), OutboxError> {
        self.execute("note what is served", &self.sql.serve, &[(&destinations, Type::TEXT_ARRAY)]).await.map(drop)
    }

    /// Destinations with messages that are pending, or scheduled and due, and that no running relay serves, and how many
    /// messages each has, counted up to [`COUNT_LIMIT`] of each kind; at most a hundred. The given ones are served.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn unserved(&self, served: &[&str]) -> Result<Vec<(String, i64)>, OutboxError> {
        const NAME: &str = "find what nobody serves";
        let parameters: [Parameter<'_>; 3] =
            [(&served, Type::TEXT_ARRAY), (&SILENT_SECONDS, Type::FLOAT8), (&COUNT_LIMIT, Type::INT8)];
        let rows = self.probe(NAME, &self.sql.unserved, &parameters).await?;
        rows.iter().map(|row| Ok((column(NAME, row, 0)?, column(NAME, row, 1)?))).collect()
    }
}
