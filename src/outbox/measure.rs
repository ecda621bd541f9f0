//! Lag, backlog and retention: questions about whole tables, which no single delivery can answer.

use std::time::Duration;

use tokio_postgres::types::Type;

use super::look::numbers;
use super::{Outbox, OutboxError, Parameter, column};
use crate::message::{Lane, MessageId};
use crate::reading::{ByLane, COUNT_LIMIT, FloorWalk, Order};

/// Planner settings while pruning, for `BEGIN`; see `sql/queries/prune.sql`.
pub const PRUNING: &str = "SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off; \
    SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off";

/// The backlog of one destination.
#[derive(Clone, Debug, PartialEq)]
pub struct Backlog {
    /// Age of the oldest pending message in seconds, 0 when there is none.
    pub lag: f64,
    /// Pending messages, at most [`COUNT_LIMIT`].
    pub messages: i64,
    /// Dead messages, at most [`COUNT_LIMIT`].
    pub dead: i64,
    /// Messages in quarantine.
    pub quarantined: i64,
    /// Age in seconds of the oldest pending message that nothing holds up and that is not in quarantine.
    pub ready_lag: f64,
    /// The first message of each lane that is not waiting for a retry.
    pub firsts: Vec<(Lane, MessageId)>,
}

/// How many of the latest deliveries of each lane [`Outbox::rate`] considers.
const LATEST: i64 = 2000;

/// The period in seconds over which it counts.
const RATE_SECONDS: f64 = 10.0;

/// How fast a destination delivers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate {
    /// Messages a second over the last ten seconds.
    pub per_second: f64,
    /// Whether the rate may be higher, because only the latest deliveries were considered.
    pub is_capped: bool,
}

/// How many messages of each lane [`Outbox::longest_groups`] looks at.
pub const LOOKED_AT: i64 = 10_000;

/// The result of pruning a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pruned {
    /// The highest id that was looked at; `None` when there was nothing.
    pub highest: Option<i64>,
    /// How many messages were deleted.
    pub deleted: i64,
    /// Whether there may be old messages above it.
    pub may_be_old: bool,
}

impl Outbox {
    /// Finds, for each lane, an id below which nothing but retries is pending. `go_on` is asked before each chunk;
    /// returns `None` if it said no.
    ///
    /// # Errors
    ///
    /// When a statement fails.
    pub async fn floors(
        &self,
        destination: &str,
        mut go_on: impl FnMut() -> bool,
    ) -> Result<Option<ByLane<MessageId>>, OutboxError> {
        let mut walk = FloorWalk::new(self.watch(&[]).await?.0.last_id);
        while let Some((chunk, look)) = walk.next_look() {
            if !go_on() {
                return Ok(None);
            }
            walk.answered(&chunk, self.rescan(destination, &look, None).await?.as_ref());
        }
        Ok(Some(walk.floors()))
    }

    /// Measures a destination's backlog in the table, above these floors, which [`Outbox::floors`] finds.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn backlog(
        &self,
        destination: &str,
        floors: &ByLane<MessageId>,
        order: Order,
    ) -> Result<Backlog, OutboxError> {
        const NAME: &str = "measure the backlog";
        let lanes = numbers(Lane::all());
        let ids: Vec<i64> = floors.iter().map(|(_, floor)| floor.0).collect();
        let (is_kept, is_blocked) = (order.is_kept(), order.is_blocked_by_dead());
        let parameters: [Parameter<'_>; 6] = [
            (&destination, Type::TEXT),
            (&lanes, Type::INT2_ARRAY),
            (&ids, Type::INT8_ARRAY),
            (&COUNT_LIMIT, Type::INT8),
            (&is_kept, Type::BOOL),
            (&is_blocked, Type::BOOL),
        ];
        let connection = self.connection().await?;
        let rows = async { self.bounded(NAME, connection.query_typed(&self.sql.backlog, &parameters)).await };
        let result = self.transaction(NAME, &connection, super::READING, rows).await;
        let rows = self.keep_if_ok(connection, result).await?;
        let row = rows.first().ok_or(OutboxError::Answer { statement: NAME, problem: "no row".to_owned() })?;
        let of_lanes: Vec<i16> = column(NAME, row, 3)?;
        let of_lanes = of_lanes.into_iter().filter_map(Lane::new);
        let firsts = of_lanes.zip(column::<Vec<i64>>(NAME, row, 4)?.into_iter().map(MessageId)).collect();
        Ok(Backlog {
            lag: column::<f64>(NAME, row, 0)?.max(0.0),
            messages: column(NAME, row, 1)?,
            dead: column(NAME, row, 2)?,
            firsts,
            quarantined: column(NAME, row, 5)?,
            ready_lag: column::<f64>(NAME, row, 6)?.max(0.0),
        })
    }

    /// The groups with the most messages to send above these floors, and how many each has, at most [`LOOKED_AT`]; the
    /// longest first.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn longest_groups(
        &self,
        destination: &str,
        floors: &ByLane<MessageId>,
        most: i64,
    ) -> Result<Vec<(String, i64)>, OutboxError> {
        const NAME: &str = "find the longest groups";
        let lanes = numbers(Lane::all());
        let ids: Vec<i64> = floors.iter().map(|(_, floor)| floor.0).collect();
        let parameters: [Parameter<'_>; 5] = [
            (&destination, Type::TEXT),
            (&lanes, Type::INT2_ARRAY),
            (&ids, Type::INT8_ARRAY),
            (&LOOKED_AT, Type::INT8),
            (&most, Type::INT8),
        ];
        let rows = self.probe(NAME, &self.sql.longest_groups, &parameters).await?;
        rows.iter().map(|row| Ok((column(NAME, row, 0)?, column(NAME, row, 1)?))).collect()
    }

    /// How fast a destination delivers, as far as delivered rows are kept.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn rate(&self, destination: &str) -> Result<Rate, OutboxError> {
        const NAME: &str = "measure the rate";
        let parameters: [Parameter<'_>; 3] =
            [(&destination, Type::TEXT), (&RATE_SECONDS, Type::FLOAT8), (&LATEST, Type::INT8)];
        let row = self.query_one(NAME, &self.sql.rate, &parameters).await?;
        let messages: i64 = column(NAME, &row, 0)?;
        let is_capped = column::<Option<bool>>(NAME, &row, 1)?.unwrap_or(false);
        Ok(Rate { per_second: messages as f64 / RATE_SECONDS, is_capped })
    }

    /// Looks at the `chunk` lowest delivered messages of a lane above an id, and deletes those older than the
    /// retention.
    ///
    /// # Errors
    ///
    /// When a statement fails; then nothing was deleted.
    pub async fn prune(
        &self,
        destination: &str,
        lane: Lane,
        above: i64,
        retention: Duration,
        chunk: i64,
    ) -> Result<Pruned, OutboxError> {
        let seconds = retention.as_secs_f64();
        let lane = lane.number();
        let parameters: [Parameter<'_>; 5] = [
            (&destination, Type::TEXT),
            (&lane, Type::INT2),
            (&above, Type::INT8),
            (&seconds, Type::FLOAT8),
            (&chunk, Type::INT8),
        ];
        let connection = self.connection().await?;
        let rows = async { self.bounded("prune", connection.query_typed(&self.sql.prune, &parameters)).await };
        let result = self.transaction("prune", &connection, PRUNING, rows).await;
        let rows = self.keep_if_ok(connection, result).await?;
        let row = rows.first().ok_or(OutboxError::Answer { statement: "prune", problem: "no row".to_owned() })?;
        Ok(Pruned {
            highest: column("prune", row, 0)?,
            deleted: column("prune", row, 1)?,
            may_be_old: column("prune", row, 2)?,
        })
    }
}
