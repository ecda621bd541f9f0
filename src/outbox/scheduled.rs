//! Scheduled messages: making those pending that have fallen due, and counting the others.

use tokio_postgres::types::Type;

use super::{Outbox, OutboxError, Parameter, column};
use crate::message::MessageId;
use crate::reading::COUNT_LIMIT;

/// The scheduled messages of a destination.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Scheduled {
    /// How many there are, counted up to [`COUNT_LIMIT`].
    pub messages: i64,
    /// When the next one falls due, in seconds since 1970.
    pub next: Option<f64>,
}

/// What became of scheduled messages that were due.
#[derive(Debug, Default)]
pub struct Enqueued {
    /// How many are pending now; none also while another relay is doing it, or while somebody has locked them.
    pub messages: i64,
    /// The one that PostgreSQL refused when it was tried alone, and why.
    pub refused: Option<(MessageId, OutboxError)>,
}

/// How many messages become pending in one statement. Each statement walks the dead index entries of those before it, so
/// many small ones would be slow when a million fall due together.
pub const MOST_DUE: i64 = 5000;

/// The most refused messages that are passed over.
pub const MOST_REFUSED: usize = 1000;

impl Outbox {
    /// Makes scheduled messages pending that have fallen due, at most so many, the earliest first, but for some.
    ///
    /// # Errors
    ///
    /// When the statement fails; then nothing was changed. If it took one message only, a refusal is no error.
    pub async fn enqueue_due(
        &self,
        destination: &str,
        limit: i64,
        passed_over: &[MessageId],
    ) -> Result<Enqueued, OutboxError> {
        const NAME: &str = "enqueue what is due";
        let ids: Vec<i64> = passed_over.iter().map(|id| id.0).collect();
        let parameters: [Parameter<'_>; 3] =
            [(&destination, Type::TEXT), (&limit, Type::INT8), (&ids, Type::INT8_ARRAY)];
        let connection = self.connection().await?;
        let rows = async { self.bounded(NAME, connection.query_typed(&self.sql.enqueue_due, &parameters)).await };
        let result = self.transaction(NAME, &connection, "", rows).await;
        let rows = self.keep_if_ok(connection, result).await?;
        let row = rows.first().ok_or(OutboxError::Answer { statement: NAME, problem: "no row".to_owned() })?;
        let refused = match column::<Option<i64>>(NAME, row, 1)? {
            None => None,
            Some(id) => {
                let error = OutboxError::of_refusal(NAME, &self.place, column(NAME, row, 2)?, column(NAME, row, 3)?);
                Some((MessageId(id), error))
            }
        };
        Ok(Enqueued { messages: column(NAME, row, 0)?, refused })
    }

    /// Makes all messages of a destination pending that are due; returns what PostgreSQL refuses, and whether any other is
    /// left, because another relay is doing it or somebody has locked it.
    ///
    /// # Errors
    ///
    /// When a statement fails for a reason that is not one of its messages.
    pub async fn enqueue_all_due(&self, destination: &str) -> Result<(Vec<MessageId>, bool), OutboxError> {
        let (mut refused, mut most) = (Vec::new(), MOST_DUE);
        loop {
            match self.enqueue_due(destination, most, &refused).await {
                Ok(Enqueued { refused: Some((id, error)), .. }) => {
                    if !error.is_about_a_row() || refused.len() >= MOST_REFUSED {
                        return Err(error);
                    }
                    refused.push(id);
                }
                Ok(Enqueued { messages: 0, .. }) => break,
                Ok(_) => most = (most * 2).min(MOST_DUE),
                Err(error) if most > 1 && is_in_parts(&error) => most /= 2,
                Err(error) => return Err(error),
            }
        }
        let is_left = self.is_due(destination, &refused).await?;
        Ok((refused, is_left))
    }

    /// Whether a scheduled message of a destination is due, but for some.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn is_due(&self, destination: &str, passed_over: &[MessageId]) -> Result<bool, OutboxError> {
        const NAME: &str = "look for scheduled messages that are due";
        let ids: Vec<i64> = passed_over.iter().map(|id| id.0).collect();
        let parameters: [Parameter<'_>; 2] = [(&destination, Type::TEXT), (&ids, Type::INT8_ARRAY)];
        column(NAME, &self.query_one(NAME, &self.sql.is_due, &parameters).await?, 0)
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

/// Whether a part of the messages may become pending although all of them together do not: one of them is refused, or they
/// take too long.
pub fn is_in_parts(error: &OutboxError) -> bool {
    error.is_about_a_row() || error.is_cut_short() || matches!(error, OutboxError::Timeout { .. })
}
