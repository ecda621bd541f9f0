//! The vacuum horizon: who keeps PostgreSQL from removing delivered rows, so that the outbox grows.

use super::{Outbox, OutboxError, column};

const HORIZON: &str = include_str!("../../sql/queries/horizon.sql");

/// The oldest holder of a kind.
#[derive(Clone, Debug, PartialEq)]
pub struct HorizonHolder {
    /// The kind, as the statement names it.
    pub kind: String,
    /// For how many seconds, where PostgreSQL knows it.
    pub seconds: Option<f64>,
    /// The transaction id that it holds.
    pub transaction_id: String,
}

impl Outbox {
    /// Who holds the horizon back, at most one of each kind.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn horizon(&self) -> Result<Vec<HorizonHolder>, OutboxError> {
        const NAME: &str = "look at the horizon";
        let rows = self.query(NAME, HORIZON, &[]).await?;
        let holder = |row: &tokio_postgres::Row| {
            Ok(HorizonHolder {
                kind: column(NAME, row, 0)?,
                seconds: column(NAME, row, 1)?,
                transaction_id: column(NAME, row, 2)?,
            })
        };
        rows.iter().map(holder).collect()
    }

    /// Connections that are idle, in use, and the most there may be.
    pub fn connections(&self) -> Connections {
        let status = self.pool.status();
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        let idle = count(status.available);
        Connections { idle, in_use: count(status.size) - idle, most: count(status.max_size) }
    }
}

/// What the pool of connections does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connections {
    /// Open and unused.
    pub idle: i64,
    /// In use.
    pub in_use: i64,
    /// Most that may be open.
    pub most: i64,
}
