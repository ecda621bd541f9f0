//! The vacuum horizon: what keeps PostgreSQL from removing dead rows, so that the outbox grows.

use super::{Outbox, OutboxError, column};

/// The state of the horizon.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Horizon {
    /// Whether the sessions of other roles are visible: PostgreSQL shows their transactions only to members of
    /// `pg_read_all_stats`.
    pub sees_all_sessions: bool,
    /// What holds it back; at most one holder of each kind.
    pub holders: Vec<HorizonHolder>,
}

/// The oldest holder of a kind.
#[derive(Clone, Debug, PartialEq)]
pub struct HorizonHolder {
    /// The kind, as the statement names it.
    pub kind: String,
    /// For how many seconds, if PostgreSQL knows it.
    pub seconds: Option<f64>,
    /// The transaction id that it holds.
    pub transaction_id: String,
}

impl Outbox {
    /// What holds the horizon back.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn horizon(&self) -> Result<Horizon, OutboxError> {
        const NAME: &str = "read the horizon";
        let mut horizon = Horizon::default();
        for row in &self.query(NAME, &self.sql.horizon, &[]).await? {
            horizon.sees_all_sessions = column(NAME, row, 0)?;
            if let Some(kind) = column(NAME, row, 1)? {
                let (seconds, transaction_id) = (column(NAME, row, 2)?, column(NAME, row, 3)?);
                horizon.holders.push(HorizonHolder { kind, seconds, transaction_id });
            }
        }
        Ok(horizon)
    }

    /// The connections that are idle, those in use, and the maximum.
    pub fn connections(&self) -> Connections {
        let status = self.pool.status();
        let count = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        let idle = count(status.available);
        Connections { idle, in_use: count(status.size) - idle, max: count(status.max_size) }
    }
}

/// The state of the connection pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connections {
    /// Open and unused.
    pub idle: i64,
    /// In use.
    pub in_use: i64,
    /// The most that may be open.
    pub max: i64,
}
