//! The outbox in PostgreSQL: look, claim, read, settle, measure, prune, migrate. The only module that uses the
//! database.
//!
//! There is one method per statement; the statements are `sql/queries/*.sql`, which `statements.rs` rewrites for the schema
//! of the outbox. [`crate::relay`] decides what to do with the rows. Every statement is unnamed and none needs a session, so the relay runs behind PgBouncer in transaction
//! mode. Every wait is bounded; a connection on which a statement failed is discarded.

mod claim;
mod configured;
mod connect;
mod dead;
mod dial;
mod error;
mod horizon;
mod inspect;
mod look;
mod measure;
mod migrate;
mod password;
mod quarantine;
mod read;
#[cfg(feature = "dev")]
mod recorded;
mod replay;
mod routes;
mod row;
mod scheduled;
mod settle;
mod statements;
mod steer;
mod suitable;
mod tls;
mod transaction;
mod way;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicI32, AtomicU64};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};

use connect::{Manager, Object};
use statements::Statements;

use crate::message::TransactionId;
use crate::reading::Snapshot;
use crate::schema::Schema;

pub use claim::{Claim, Claimed};
pub use configured::Configured;
pub use dead::{DeadAction, DeadCount, DeadFilter, DeadLine, DeadMessage, Since};
pub use error::OutboxError;
pub use horizon::{Connections, Horizon, HorizonHolder};
pub use inspect::Inspected;
pub use look::Pending;
pub use measure::{Backlog, LOOKED_AT, PRUNING, Pruned, Rate};
pub use migrate::{MIGRATIONS, Migration, script};
pub use quarantine::QuarantinedLine;
pub use read::READING;
#[cfg(feature = "dev")]
pub use recorded::Recorded;
pub use replay::{ReplayCount, ReplayOf, ReplayStep};
pub use routes::RoutedTo;
pub use scheduled::{Enqueued, MOST_DUE, MOST_REFUSED, Scheduled, is_in_parts};
pub use settle::{Keep, SETTLING, SettlePlan, Settled};
pub use steer::Destination;
pub use way::walk;

/// How long a statement may take before its connection is given up. All statements are bounded in what they touch, so
/// one that takes longer is not slow but has lost its server.
pub const STATEMENT_TIMEOUT: Duration = Duration::from_secs(10);

/// A parameter and its type: with the types given, unnamed statements need not ask the server for them.
type Parameter<'a> = (&'a (dyn ToSql + Sync), Type);

/// Access to one outbox; cheap to clone.
#[derive(Clone)]
pub struct Outbox {
    pool: deadpool::managed::Pool<Manager>,
    /// Connections opened before this moment are not used again.
    forgotten_at: Arc<Mutex<Option<Instant>>>,
    /// The transactions of this process's claims, which run for seconds and write no messages.
    claims: Arc<Mutex<BTreeSet<TransactionId>>>,
    /// The server's version number as last seen; 0 before that.
    version: Arc<AtomicI32>,
    /// How long the server lets a session stay idle before it ends the session, in milliseconds, as last seen; 0 means
    /// no limit.
    rest_millis: Arc<AtomicU64>,
    schema: Schema,
    sql: Arc<Statements>,
    /// What the application names of its relays begin with.
    relays_are_called: Arc<str>,
    place: Arc<str>,
    login: Arc<str>,
}

impl std::fmt::Debug for Outbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outbox").field("place", &self.place).finish_non_exhaustive()
    }
}

impl Outbox {
    /// Its schema.
    pub fn schema(&self) -> &Schema {
        &self.schema
    }

    /// The role that logs in to the database.
    pub fn login(&self) -> &str {
        &self.login
    }

    async fn query(
        &self,
        name: &'static str,
        sql: &str,
        parameters: &[Parameter<'_>],
    ) -> Result<Vec<Row>, OutboxError> {
        let connection = self.connection().await?;
        let result = self.bounded(name, connection.query_typed(sql, parameters)).await;
        self.keep_if_ok(connection, result).await
    }

    /// The same in a transaction in which the planner may only probe indexes.
    async fn probe(
        &self,
        name: &'static str,
        sql: &str,
        parameters: &[Parameter<'_>],
    ) -> Result<Vec<Row>, OutboxError> {
        let connection = self.connection().await?;
        let rows = self.bounded(name, connection.query_typed(sql, parameters));
        let result = self.transaction(name, &connection, READING, rows).await;
        self.keep_if_ok(connection, result).await
    }

    async fn probe_one(&self, name: &'static str, sql: &str, parameters: &[Parameter<'_>]) -> Result<Row, OutboxError> {
        one(name, self.probe(name, sql, parameters).await?)
    }

    async fn query_one(&self, name: &'static str, sql: &str, parameters: &[Parameter<'_>]) -> Result<Row, OutboxError> {
        one(name, self.query(name, sql, parameters).await?)
    }

    async fn execute(&self, name: &'static str, sql: &str, parameters: &[Parameter<'_>]) -> Result<u64, OutboxError> {
        let connection = self.connection().await?;
        let result = self.bounded(name, connection.execute_typed(sql, parameters)).await;
        self.keep_if_ok(connection, result).await
    }

    async fn bounded<T>(
        &self,
        statement: &'static str,
        work: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, OutboxError> {
        self.within(STATEMENT_TIMEOUT, statement, work).await
    }

    async fn within<T>(
        &self,
        timeout: Duration,
        statement: &'static str,
        work: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, OutboxError> {
        match tokio::time::timeout(timeout, work).await {
            Ok(result) => result.map_err(|error| OutboxError::of_statement(statement, &self.place, &error)),
            Err(_) => Err(OutboxError::Timeout { statement, place: self.place.to_string() }),
        }
    }

    /// After a failure it is unknown what the server will still answer on a connection, or whether it is the right
    /// server; a refused row, however, says nothing about either. A statement that is given up is cancelled: PostgreSQL
    /// does not notice that its client is gone while it waits for a lock or walks an index, and such sessions would
    /// pile up.
    async fn keep_if_ok<T>(&self, connection: Object, result: Result<T, OutboxError>) -> Result<T, OutboxError> {
        if let Err(error) = &result {
            if error.is_about_a_row() {
                return result;
            }
            if matches!(error, OutboxError::Timeout { .. }) {
                connection.cancel().await;
            }
            drop(Object::take(connection));
        }
        result
    }

    /// Parses a snapshot, in which the claims of this process count as ended.
    fn snapshot(&self, statement: &'static str, text: &str) -> Result<Snapshot, OutboxError> {
        let claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        let snapshot = Snapshot::parse(text).map(|snapshot| snapshot.without(&claims));
        snapshot.ok_or_else(|| OutboxError::Answer { statement, problem: format!("{text:?} is no snapshot") })
    }
}

/// The only row of a statement's answer.
fn one(statement: &'static str, rows: Vec<Row>) -> Result<Row, OutboxError> {
    rows.into_iter().next().ok_or(OutboxError::Answer { statement, problem: "no row".to_owned() })
}

/// Reads a column. A mismatch is an error in one of the statements in `sql/queries`; it is reported and does not panic.
fn column<'a, T: tokio_postgres::types::FromSql<'a>>(
    statement: &'static str,
    row: &'a Row,
    index: usize,
) -> Result<T, OutboxError> {
    row.try_get(index).map_err(|error| OutboxError::Answer { statement, problem: error.to_string() })
}

/// Reads a lane.
fn lane(statement: &'static str, row: &Row, index: usize) -> Result<crate::message::Lane, OutboxError> {
    let number: i16 = column(statement, row, index)?;
    crate::message::Lane::new(number)
        .ok_or_else(|| OutboxError::Answer { statement, problem: format!("{number} is no lane") })
}
