//! Connections: a small pool with limits on every wait, and errors that say what to do.

use std::pin::Pin;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use deadpool_postgres::{
    ConfigConnectImpl, Connect, Hook, HookError, Manager, ManagerConfig, Object, Pool, PoolError, QueueMode,
    RecyclingMethod, Runtime, Timeouts,
};
use tokio::task::JoinHandle;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::error::{OutboxError, explain};
use super::{Outbox, tls};
use crate::config::{DatabaseConfig, TlsMode};

/// How long to wait for a free connection, or for a new one to be ready. Connecting includes TLS and authentication, which
/// `connect_timeout` does not bound, and which take up to seven round trips.
const POOL_TIMEOUT: Duration = Duration::from_secs(15);

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
        let tls = match config.tls {
            TlsMode::Disable => None,
            _ => Some(tls::connector(config)?),
        };
        let connection = config.connection.clone();
        let way = Way { config: config.clone(), tls: tls.clone() };
        let manager = Manager::from_connect(connection, way, manager_config);
        let forgotten_at = Arc::new(Mutex::new(None));
        let forgotten = Arc::clone(&forgotten_at);
        let rest_millis = Arc::new(AtomicU64::new(0));
        let rest = Arc::clone(&rest_millis);
        let pool = Pool::builder(manager)
            .max_size(connections)
            // The connection used last has its caches warm; the others rest.
            .queue_mode(QueueMode::Lifo)
            .runtime(Runtime::Tokio1)
            .timeouts(Timeouts { wait: Some(POOL_TIMEOUT), create: Some(POOL_TIMEOUT), recycle: Some(POOL_TIMEOUT) })
            .pre_recycle(Hook::sync_fn(move |_, metrics| {
                let is_forgotten = lock(&forgotten).is_some_and(|at| metrics.created <= at);
                // Half the time, so that no statement meets a session that the server ends at that moment.
                let rest = Duration::from_millis(rest.load(Ordering::Relaxed) / 2);
                let is_rested = !rest.is_zero() && metrics.last_used() >= rest;
                if is_forgotten {
                    return Err(HookError::message("it is from before a failure"));
                }
                if is_rested { Err(HookError::message("it has rested for too long")) } else { Ok(()) }
            }))
            .build()
            .map_err(|error| OutboxError::Setup(error.to_string()))?;
        let version = Arc::new(AtomicI32::new(0));
        let place = config.place().into();
        Ok(Self { pool, forgotten_at, claims: Arc::default(), version, rest_millis, place, tls })
    }

    /// Gives up all connections there are: those that rest in the pool now, those in use when they come back. What one of
    /// them has met, the others would meet one after the other: a wire gone silent, each for a whole
    /// [`super::STATEMENT_TIMEOUT`], or a server that only reads since a failover, and that shows old rows for ever.
    ///
    /// The server that answers next may give the ids of this process's claims to writers, so no claim counts as ended any more.
    pub fn forget_connections(&self) {
        *lock(&self.forgotten_at) = Some(Instant::now());
        self.claims.lock().unwrap_or_else(PoisonError::into_inner).clear();
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

/// The way to the server: each connection is made with the password that is valid then.
struct Way {
    config: DatabaseConfig,
    tls: Option<MakeRustlsConnect>,
}

type Connecting<'a> =
    Pin<Box<dyn Future<Output = Result<(Client, JoinHandle<()>), tokio_postgres::Error>> + Send + 'a>>;

impl Connect for Way {
    fn connect(&self, _: &tokio_postgres::Config) -> Connecting<'_> {
        Box::pin(async move {
            let config = self.config.connection_now();
            match self.tls.clone() {
                None => ConfigConnectImpl { tls: NoTls }.connect(&config).await,
                Some(tls) => ConfigConnectImpl { tls }.connect(&config).await,
            }
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
