//! Lag, backlog and retention: questions about the tables that no publisher's view can answer.

use std::time::Duration;

use tokio_postgres::types::Type;

use super::{Outbox, OutboxError, Parameter, column};
use crate::message::Lane;

const BACKLOG: &str = include_str!("../../sql/queries/backlog.sql");
const PRUNE: &str = include_str!("../../sql/queries/prune.sql");

/// Where counting stops: beyond this number an operator asks "how fast does it shrink", not "how many exactly".
const COUNT_LIMIT: i64 = 100_000;

/// What waits in one destination.
#[derive(Clone, Debug, PartialEq)]
pub struct Backlog {
    /// Age of the oldest pending message in seconds, 0 when there is none.
    pub lag: f64,
    /// Pending messages, at most [`COUNT_LIMIT`].
    pub messages: i64,
    /// Dead messages, at most [`COUNT_LIMIT`].
    pub dead: i64,
    /// The first message of each lane that has one and that waits for no retry.
    pub firsts: Vec<(Lane, i64)>,
}

impl Outbox {
    /// Measures a destination's backlog in the table, above these floors, as a [`Climb`](super::Climb) finds them.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn backlog(&self, destination: &str, floors: &[(Lane, i64)]) -> Result<Backlog, OutboxError> {
        const NAME: &str = "measure the backlog";
        let (lanes, ids): (Vec<Lane>, Vec<i64>) = floors.iter().copied().unzip();
        let parameters: [Parameter<'_>; 4] = [
            (&destination, Type::TEXT),
            (&lanes, Type::INT2_ARRAY),
            (&ids, Type::INT8_ARRAY),
            (&COUNT_LIMIT, Type::INT8),
        ];
        let row = self.query_one(NAME, BACKLOG, &parameters).await?;
        let firsts: Vec<Lane> = column(NAME, &row, 3)?;
        let firsts = firsts.into_iter().zip(column::<Vec<i64>>(NAME, &row, 4)?).collect();
        Ok(Backlog {
            lag: column::<f64>(NAME, &row, 0)?.max(0.0),
            messages: column(NAME, &row, 1)?,
            dead: column(NAME, &row, 2)?,
            firsts,
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
