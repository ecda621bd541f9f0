//! Connections: a small pool with limits on every wait, and errors that say what to do.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use deadpool_postgres::{
    Hook, HookError, Manager, ManagerConfig, Object, Pool, PoolError, QueueMode, RecyclingMethod, Runtime, Timeouts,
};
use tokio_postgres::NoTls;
use tokio_postgres::error::SqlState;

use super::{Outbox, tls};
use crate::config::{DatabaseConfig, TlsMode};

/// How long to wait for a free connection, or for a new one to be ready. Connecting includes TLS and authentication, which
/// `connect_timeout` does not bound.
const POOL_TIMEOUT: Duration = Duration::from_secs(10);

/// What can go wrong between the relay and its tables.
#[derive(Debug, thiserror::Error)]
pub enum OutboxError {
    /// No connection could be made.
    #[error("cannot connect to PostgreSQL at {place}: {problem}")]
    Connect {
        /// Host, port and database.
        place: String,
        /// The cause.
        problem: String,
        /// Whether waiting cannot help: a wrong password, a database that does not exist.
        is_final: bool,
    },
    /// The schema is missing or too old.
    #[error("the database at {place} is not migrated ({problem}); run `outbox-relay migrate`")]
    NotMigrated {
        /// Host, port and database.
        place: String,
        /// What is missing.
        problem: String,
    },
    /// The schema is newer than this program.
    #[error(
        "the database at {place} has schema version {found}, this outbox-relay knows up to {known}; install a newer outbox-relay"
    )]
    TooNew {
        /// Host, port and database.
        place: String,
        /// The version in the database.
        found: i32,
        /// The newest version this program knows.
        known: i32,
    },
    /// A migration in the database differs from the one in this program.
    #[error(
        "migration {version} ({name}) in the database at {place} is not the one in this outbox-relay; restore the file or the database it came from"
    )]
    Changed {
        /// Host, port and database.
        place: String,
        /// Which migration.
        version: i32,
        /// Its name.
        name: String,
    },
    /// A statement failed.
    #[error("{statement} failed at {place}: {problem}")]
    Statement {
        /// Whether another transaction was in the way and the same statements may succeed at once: SQLSTATE 40001, 40P01.
        is_conflict: bool,
        /// Whether the role lacks a right: SQLSTATE 42501.
        is_denied: bool,
        /// Which statement.
        statement: &'static str,
        /// Host, port and database.
        place: String,
        /// What PostgreSQL said.
        problem: String,
    },
    /// A statement did not end in time.
    #[error("{statement} got no answer from {place} in time")]
    Timeout {
        /// Which statement.
        statement: &'static str,
        /// Host, port and database.
        place: String,
    },
    /// The answer does not fit the statement.
    #[error("{statement} answered what it should not: {problem}")]
    Answer {
        /// Which statement.
        statement: &'static str,
        /// What is odd.
        problem: String,
    },
    /// The connection that held the claim is gone.
    #[error("the connection that held the claim is gone")]
    ClaimLost,
    /// A TLS setting cannot be used.
    #[error("{0}")]
    Tls(String),
}

impl OutboxError {
    /// Whether trying again later cannot help without somebody changing something here.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Connect { is_final, .. } => *is_final,
            Self::NotMigrated { .. } | Self::TooNew { .. } | Self::Changed { .. } | Self::Tls(_) => true,
            Self::Statement { .. } | Self::Timeout { .. } | Self::Answer { .. } | Self::ClaimLost => false,
        }
    }

    /// Whether the role lacks a right (SQLSTATE 42501, insufficient_privilege).
    pub fn is_denied(&self) -> bool {
        matches!(self, Self::Statement { is_denied: true, .. })
    }

    pub(super) fn of_statement(statement: &'static str, place: &str, error: &tokio_postgres::Error) -> Self {
        let missing = [
            SqlState::UNDEFINED_TABLE,
            SqlState::INVALID_SCHEMA_NAME,
            SqlState::UNDEFINED_COLUMN,
            SqlState::UNDEFINED_FUNCTION,
        ];
        match error.as_db_error() {
            Some(cause) if missing.contains(cause.code()) => {
                Self::NotMigrated { place: place.to_owned(), problem: cause.message().to_owned() }
            }
            cause => {
                let conflicts = [SqlState::T_R_SERIALIZATION_FAILURE, SqlState::T_R_DEADLOCK_DETECTED];
                let is_conflict = cause.is_some_and(|cause| conflicts.contains(cause.code()));
                let is_denied = cause.is_some_and(|cause| *cause.code() == SqlState::INSUFFICIENT_PRIVILEGE);
                Self::Statement { is_conflict, is_denied, statement, place: place.to_owned(), problem: explain(error) }
            }
        }
    }
}

/// tokio-postgres keeps PostgreSQL's own words in the source of its error.
pub(super) fn explain(error: &tokio_postgres::Error) -> String {
    if let Some(cause) = error.as_db_error() {
        return format!("{} (SQLSTATE {})", cause.message(), cause.code().code());
    }
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

impl Outbox {
    /// Prepares a pool of at most `connections`; connects when the first statement needs it.
    ///
    /// # Errors
    ///
    /// When the root certificate cannot be used.
    pub fn new(config: &DatabaseConfig, connections: usize) -> Result<Self, OutboxError> {
        // Fast only asks whether the socket is closed, which costs no round trip; a statement on a dead connection fails
        // in bounded time and the connection is thrown away.
        let manager_config = ManagerConfig { recycling_method: RecyclingMethod::Fast };
        let connection = config.connection.clone();
        let tls = match config.tls {
            TlsMode::Disable => None,
            _ => Some(tls::connector(config)?),
        };
        let manager = match &tls {
            None => Manager::from_config(connection, NoTls, manager_config),
            Some(tls) => Manager::from_config(connection, tls.clone(), manager_config),
        };
        let forgotten_at = Arc::new(Mutex::new(None));
        let forgotten = Arc::clone(&forgotten_at);
        let generation = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&generation);
        let pool = Pool::builder(manager)
            .max_size(connections)
            // The connection used last has its caches warm; the others rest.
            .queue_mode(QueueMode::Lifo)
            .runtime(Runtime::Tokio1)
            .timeouts(Timeouts { wait: Some(POOL_TIMEOUT), create: Some(POOL_TIMEOUT), recycle: Some(POOL_TIMEOUT) })
            .post_create(Hook::sync_fn(move |_, _| {
                counter.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }))
            .pre_recycle(Hook::sync_fn(move |_, metrics| {
                let is_forgotten = lock(&forgotten).is_some_and(|at| metrics.created <= at);
                if is_forgotten { Err(HookError::message("it is from before a failure")) } else { Ok(()) }
            }))
            .build()
            .map_err(|error| OutboxError::Tls(error.to_string()))?;
        Ok(Self { pool, generation, forgotten_at, place: config.place().into(), tls })
    }

    /// Gives up all connections there are: those that rest in the pool now, those in use when they come back. What one of
    /// them has met, the others would meet one after the other: a wire gone silent, each for a whole
    /// [`super::STATEMENT_TIMEOUT`], or a server that only reads since a failover, and that shows old rows for ever.
    pub fn forget_connections(&self) {
        *lock(&self.forgotten_at) = Some(Instant::now());
        self.pool.retain(|_, _| false);
    }

    pub(super) async fn connection(&self) -> Result<Object, OutboxError> {
        self.pool.get().await.map_err(|error| {
            let (problem, is_final) = match &error {
                PoolError::Backend(cause) => (explain(cause), is_final(cause)),
                PoolError::Timeout(_) => (format!("no connection within {}s", POOL_TIMEOUT.as_secs()), false),
                other => (other.to_string(), false),
            };
            OutboxError::Connect { place: self.place.to_string(), problem, is_final }
        })
    }
}

/// An instant is whole, whoever panicked meanwhile.
fn lock(instant: &Mutex<Option<Instant>>) -> MutexGuard<'_, Option<Instant>> {
    instant.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_final(error: &tokio_postgres::Error) -> bool {
    let final_states =
        [SqlState::INVALID_PASSWORD, SqlState::INVALID_AUTHORIZATION_SPECIFICATION, SqlState::INVALID_CATALOG_NAME];
    error.code().is_some_and(|code| final_states.contains(code))
}
