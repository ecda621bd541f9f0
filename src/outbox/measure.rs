//! Lag, backlog and retention: questions about the tables that no publisher's view can answer.

use std::time::Duration;

use tokio_postgres::types::Type;

use super::{Outbox, OutboxError, Parameter, column};
use crate::message::{LANES, Lane};

const BACKLOG: &str = include_str!("../../sql/queries/backlog.sql");
const PRUNE: &str = include_str!("../../sql/queries/prune.sql");

/// Where counting stops: beyond this number an operator asks "how fast does it shrink", not "how many exactly".
const COUNT_LIMIT: i64 = 100_000;

/// What waits in one destination.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Backlog {
    /// Age of the oldest pending message in seconds, 0 when there is none.
    pub lag: f64,
    /// Pending messages, at most [`COUNT_LIMIT`].
    pub messages: i64,
    /// Dead messages, at most [`COUNT_LIMIT`].
    pub dead: i64,
}

impl Outbox {
    /// Measures a destination's backlog in the table.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn backlog(&self, destination: &str) -> Result<Backlog, OutboxError> {
        let lanes: Vec<Lane> = (0..LANES).collect();
        let parameters: [Parameter<'_>; 3] =
            [(&destination, Type::TEXT), (&lanes, Type::INT2_ARRAY), (&COUNT_LIMIT, Type::INT8)];
        let row = self.query_one("measure the backlog", BACKLOG, &parameters).await?;
        Ok(Backlog {
            lag: column::<f64>("measure the backlog", &row, 0)?.max(0.0),
            messages: column("measure the backlog", &row, 1)?,
            dead: column("measure the backlog", &row, 2)?,
        })
    }

    /// Deletes up to `chunk` delivered messages of a lane that are older than the retention; returns how many.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn prune(
        &self,
        destination: &str,
        lane: Lane,
        retention: Duration,
        chunk: i64,
    ) -> Result<u64, OutboxError> {
        let seconds = retention.as_secs_f64();
        let parameters: [Parameter<'_>; 4] =
            [(&destination, Type::TEXT), (&lane, Type::INT2), (&seconds, Type::FLOAT8), (&chunk, Type::INT8)];
        self.execute("prune", PRUNE, &parameters).await
    }
}
