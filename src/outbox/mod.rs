//! The outbox in PostgreSQL: look, claim, read, settle, measure, prune, migrate. The only module that speaks to the database.
//!
//! One method a statement; the statements are `sql/queries/*.sql`. What to do with the rows is [`crate::relay`]'s business.
//! Every statement is unnamed and none needs a session, so the relay runs behind PgBouncer in transaction mode. Every
//! wait is bounded; a connection on which a statement failed is thrown away.

mod claim;
mod climb;
mod connect;
mod dead;
mod horizon;
mod inspect;
mod look;
mod low_bound;
mod measure;
mod migrate;
mod read;
mod replay;
mod settle;
mod snapshot;
mod steer;
mod tls;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use deadpool_postgres::Object;
use tokio_postgres::Row;
use tokio_postgres::types::{ToSql, Type};

pub use claim::Claim;
pub use climb::{Climb, Slices};
pub use connect::OutboxError;
pub use dead::{DeadAction, DeadCount, DeadFilter, DeadGroup, DeadLine, DeadMessage, Since};
pub use horizon::{Connections, Horizon, HorizonHolder};
pub use inspect::Inspected;
pub use look::{Look, Watch};
pub use low_bound::LowBounds;
pub use measure::{Backlog, COUNT_LIMIT, PRUNING, Pruned, Rate};
pub use migrate::{MIGRATIONS, Migration, script};
pub use read::{Batch, DeferredHead, DueElsewhere, Position, READ_BYTES, Range, ReadBudget, Sweep, Swept};
pub use replay::{Replay, ReplayCount, ReplayOf, ReplayStep};
pub use settle::{Keep, SETTLING, SettlePlan};
pub use snapshot::Snapshot;
pub use steer::{ALL_DESTINATIONS, Pause, Setting, Steering};

/// How long a statement may take before its connection is given up. All of them are bounded in what they touch, so one that
/// takes longer is not slow but has lost its server.
pub const STATEMENT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long to try to tell the server that a statement was given up.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(2);

/// What every transaction begins with, so that the server itself gives up before [`STATEMENT_TIMEOUT`]: on a lock that
/// somebody holds, or on a statement that runs too long.
const LIMITS: &str = "SET LOCAL lock_timeout = '5s'; SET LOCAL statement_timeout = '9s'";

/// A parameter and its type: unnamed statements do not ask the server what they need.
type Parameter<'a> = (&'a (dyn ToSql + Sync), Type);

/// The way to one database, cheap to clone.
#[derive(Clone)]
pub struct Outbox {
    pool: deadpool_postgres::Pool,
    generation: Arc<AtomicU64>,
    /// Connections made until then are not used again.
    forgotten_at: Arc<Mutex<Option<Instant>>>,
    place: Arc<str>,
    tls: Option<tokio_postgres_rustls::MakeRustlsConnect>,
}

impl std::fmt::Debug for Outbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outbox").field("place", &self.place).finish_non_exhaustive()
    }
}

impl Outbox {
    /// Grows with every connection that is made. What was learnt under another generation may be about another server.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
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

    async fn query_one(&self, name: &'static str, sql: &str, parameters: &[Parameter<'_>]) -> Result<Row, OutboxError> {
        let rows = self.query(name, sql, parameters).await?;
        rows.into_iter().next().ok_or(OutboxError::Answer { statement: name, problem: "no row".to_owned() })
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
        limit: Duration,
        statement: &'static str,
        work: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, OutboxError> {
        match tokio::time::timeout(limit, work).await {
            Ok(result) => result.map_err(|error| OutboxError::of_statement(statement, &self.place, &error)),
            Err(_) => Err(OutboxError::Timeout { statement, place: self.place.to_string() }),
        }
    }

    /// After a failure nobody knows what the server will still answer on a connection, or whether it is the right server. A
    /// statement that is given up is cancelled: PostgreSQL does not notice that its client is gone while it waits for a
    /// lock or walks an index, and such sessions would pile up.
    async fn keep_if_ok<T>(&self, connection: Object, result: Result<T, OutboxError>) -> Result<T, OutboxError> {
        if let Err(error) = &result {
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
}

/// Reads a column; a mismatch is an error of a statement in `sql/queries`, reported and not a panic.
fn column<'a, T: tokio_postgres::types::FromSql<'a>>(
    statement: &'static str,
    row: &'a Row,
    index: usize,
) -> Result<T, OutboxError> {
    row.try_get(index).map_err(|error| OutboxError::Answer { statement, problem: error.to_string() })
}
