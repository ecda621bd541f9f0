//! The outbox in PostgreSQL: look, claim, read, settle, measure, prune, migrate. The only module that speaks to the database.
//!
//! One method a statement; the statements are `sql/queries/*.sql`. What to do with the rows is [`crate::relay`]'s business.
//! Every statement is unnamed and none needs a session, so the relay runs behind PgBouncer in transaction mode. Every
//! wait is bounded; a connection on which a statement failed is thrown away.

mod claim;
mod connect;
mod dead;
mod error;
mod horizon;
mod inspect;
mod look;
mod measure;
mod migrate;
mod quarantine;
mod read;
mod replay;
mod row;
mod settle;
mod steer;
mod suitable;
mod tls;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use deadpool_postgres::Object;
use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};

use crate::message::TransactionId;
use crate::reading::Snapshot;

pub use claim::{Claim, Claimed};
pub use dead::{DeadAction, DeadCount, DeadFilter, DeadLine, DeadMessage, Since};
pub use error::OutboxError;
pub use horizon::{Connections, Horizon, HorizonHolder};
pub use inspect::Inspected;
pub use look::Pending;
pub use measure::{Backlog, COUNT_LIMIT, PRUNING, Pruned, Rate};
pub use migrate::{MIGRATIONS, Migration, script};
pub use quarantine::QuarantinedLine;
pub use read::READING;
pub use replay::{Replay, ReplayCount, ReplayOf, ReplayStep};
pub use settle::{Keep, SETTLING, SettlePlan, Settled};
pub use steer::{ALL_DESTINATIONS, Destination, Pause, Setting, Steering};

/// How long a statement may take before its connection is given up. All of them are bounded in what they touch, so one that
/// takes longer is not slow but has lost its server.
pub const STATEMENT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long to try to tell the server that a statement was given up.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(2);

/// PostgreSQL 17 knows this one more timeout of a role that would end a claim.
const TRANSACTION_TIMEOUT_SINCE: i32 = 170_000;

/// A parameter and its type: unnamed statements do not ask the server what they need.
type Parameter<'a> = (&'a (dyn ToSql + Sync), Type);

/// The way to one database, cheap to clone.
#[derive(Clone)]
pub struct Outbox {
    pool: deadpool_postgres::Pool,
    /// Connections made until then are not used again.
    forgotten_at: Arc<Mutex<Option<Instant>>>,
    /// Transactions of this process's claims, which run for seconds and write no messages.
    claims: Arc<Mutex<BTreeSet<TransactionId>>>,
    /// The server's version number as it was last seen, 0 before that.
    version: Arc<AtomicI32>,
    /// How long the server lets a session rest before it ends it, in milliseconds, as it was last seen; 0 for ever.
    rest_millis: Arc<AtomicU64>,
    place: Arc<str>,
    tls: Option<tokio_postgres_rustls::MakeRustlsConnect>,
}

impl std::fmt::Debug for Outbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outbox").field("place", &self.place).finish_non_exhaustive()
    }
}

impl Outbox {
    /// What every transaction begins with, so that the server itself gives up before [`STATEMENT_TIMEOUT`]: on a lock that
    /// somebody holds, or on a statement that runs too long; and so that shorter limits of the server or the role do not count.
    fn limits(&self) -> &'static str {
        if self.version.load(Ordering::Relaxed) >= TRANSACTION_TIMEOUT_SINCE {
            "SET LOCAL lock_timeout = '5s'; SET LOCAL statement_timeout = '9s'; SET LOCAL transaction_timeout = 0"
        } else {
            "SET LOCAL lock_timeout = '5s'; SET LOCAL statement_timeout = '9s'"
        }
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

    /// The same in a transaction in which the planner may do nothing but probe indexes.
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

    /// Runs statements in one transaction. All is sent at once: PostgreSQL runs the statements of a connection one after the
    /// other, in the order in which they are polled first, and under READ COMMITTED gives each a snapshot of its own. Where
    /// one fails the others do not run, and COMMIT rolls back.
    async fn transaction<T>(
        &self,
        name: &'static str,
        connection: &Object,
        settings: &str,
        statements: impl Future<Output = Result<T, OutboxError>>,
    ) -> Result<T, OutboxError> {
        let begin = format!("BEGIN ISOLATION LEVEL READ COMMITTED; {}; {settings}", self.limits());
        let begin = self.bounded(name, connection.batch_execute(&begin));
        let commit = self.bounded(name, connection.batch_execute("COMMIT"));
        let (begun, result, committed) = tokio::join!(biased; begin, statements, commit);
        begun?;
        let value = result?;
        committed?;
        Ok(value)
    }

    /// The same for one look, which the server cuts short after this time; then there is none.
    async fn cut_short_after<T>(
        &self,
        limit: Option<Duration>,
        name: &'static str,
        connection: &Object,
        statement: impl Future<Output = Result<T, OutboxError>>,
    ) -> Result<Option<T>, OutboxError> {
        let Some(limit) = limit else {
            return self.transaction(name, connection, READING, statement).await.map(Some);
        };
        let settings = format!("{READING}; SET LOCAL statement_timeout = {}", limit.as_millis());
        match self.transaction(name, connection, &settings, statement).await {
            Err(error) if error.is_cut_short() => Ok(None),
            result => result.map(Some),
        }
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
        limit: Duration,
        statement: &'static str,
        work: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, OutboxError> {
        match tokio::time::timeout(limit, work).await {
            Ok(result) => result.map_err(|error| OutboxError::of_statement(statement, &self.place, &error)),
            Err(_) => Err(OutboxError::Timeout { statement, place: self.place.to_string() }),
        }
    }

    /// After a failure nobody knows what the server will still answer on a connection, or whether it is the right server; but
    /// a row that is refused says nothing about either. A statement that is given up is cancelled: PostgreSQL does not notice
    /// that its client is gone while it waits for a lock or walks an index, and such sessions would pile up.
    async fn keep_if_ok<T>(&self, connection: Object, result: Result<T, OutboxError>) -> Result<T, OutboxError> {
        if let Err(error) = &result {
            if error.is_about_a_row() {
                return result;
            }
            if matches!(error, OutboxError::Timeout { .. }) {
                let token = connection.cancel_token();
                let cancelled = async {
                    match &self.tls {
                        Some(tls) => token.cancel_query(tls.clone()).await,
                        None => token.cancel_query(tokio_postgres::NoTls).await,
                    }
                };
                // A server that does not answer cannot be told either.
                drop(tokio::time::timeout(CANCEL_TIMEOUT, cancelled).await);
            }
            drop(Object::take(connection));
        }
        result
    }

    /// Reads a snapshot, in which the claims of this process count as ended.
    fn snapshot(&self, statement: &'static str, text: &str) -> Result<Snapshot, OutboxError> {
        let claims = self.claims.lock().unwrap_or_else(PoisonError::into_inner);
        let snapshot = Snapshot::parse(text).map(|snapshot| snapshot.without(&claims));
        snapshot.ok_or_else(|| OutboxError::Answer { statement, problem: format!("{text:?} is no snapshot") })
    }
}

/// The row of a statement that has one.
fn one(statement: &'static str, rows: Vec<Row>) -> Result<Row, OutboxError> {
    rows.into_iter().next().ok_or(OutboxError::Answer { statement, problem: "no row".to_owned() })
}

/// Reads a column; a mismatch is an error of a statement in `sql/queries`, reported and not a panic.
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
