//! Scheduled messages: making those pending that have fallen due, and counting the others.

use tokio_postgres::types::Type;

use super::{Outbox, OutboxError, Parameter, column};
use crate::reading::COUNT_LIMIT;

/// The scheduled messages of a destination.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Scheduled {
    /// How many there are, counted up to [`COUNT_LIMIT`].
    pub messages: i64,
    /// When the next one falls due, in seconds since 1970.
    pub next: Option<f64>,
}

impl Outbox {
    /// Makes scheduled messages pending that have fallen due, at most so many, the earliest first, after passing over some.
    /// Returns how many; none also while another relay is doing it, or while somebody has locked them.
    ///
    /// # Errors
    ///
    /// When the statement fails; then nothing was changed.
    pub async fn enqueue_due(&self, destination: &str, limit: i64, passed_over: i64) -> Result<i64, OutboxError> {
        const NAME: &str = "enqueue what is due";
        let parameters: [Parameter<'_>; 3] =
            [(&destination, Type::TEXT), (&limit, Type::INT8), (&passed_over, Type::INT8)];
        let connection = self.connection().await?;
        let rows = async { self.bounded(NAME, connection.query_typed(&self.sql.enqueue_due, &parameters)).await };
        let result = self.transaction(NAME, &connection, "", rows).await;
        let rows = self.keep_if_ok(connection, result).await?;
        let row = rows.first().ok_or(OutboxError::Answer { statement: NAME, problem: "no row".to_owned() })?;
        column(NAME, row, 0)
    }

    /// The scheduled messages of a destination.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn scheduled(&self, destination: &str) -> Result<Scheduled, OutboxError> {
        const NAME: &str = "count scheduled messages";
        let parameters: [Parameter<'_>; 2] = [(&destination, Type::TEXT), (&COUNT_LIMIT, Type::INT8)];
        let row = self.query_one(NAME, &self.sql.scheduled, &parameters).await?;
        Ok(Scheduled { messages: column(NAME, &row, 0)?, next: column(NAME, &row, 1)? })
    }
}
