//! The pool of connections: small, with a limit on every wait. Connections are made in `dial.rs`.

use std::ops::Deref;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use deadpool::Runtime;
use deadpool::managed::{Hook, HookError, Metrics, Pool, PoolError, QueueMode, RecycleError, RecycleResult, Timeouts};
use deadpool_postgres::ClientWrapper;
use tokio_postgres::NoTls;
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument as _;

use super::dial::{self, DialError, Session};
use super::error::OutboxError;
use super::statements::Statements;
use super::{Outbox, password, tls};
use crate::config::{DatabaseConfig, HostOrder, Server, TlsMode};

/// How long to wait until another user of the pool returns a connection. Making one is bounded by itself: each address
/// has a limit ([`crate::config::Timeouts`]).
const POOL_TIMEOUT: Duration = Duration::from_secs(15);

/// How long to try to tell the server that a statement was given up.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(2);

/// A connection on loan from the pool.
pub(super) type Object = deadpool::managed::Object<Manager>;

/// A connection.
pub(super) struct Connection {
    client: ClientWrapper,
    /// How it is encrypted; a request to cancel must be as well.
    tls: Option<MakeRustlsConnect>,
    /// From now on another connection is used.
    expires: Instant,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("is_encrypted", &self.tls.is_some()).finish_non_exhaustive()
    }
}

impl Deref for Connection {
    type Target = tokio_postgres::Client;

    fn deref(&self) -> &tokio_postgres::Client {
        &self.client
    }
}

impl Connection {
    /// Asks the server to cancel the current statement. A server that does not answer cannot be told either.
    pub(super) async fn cancel(&self) {
        let token = self.client.cancel_token();
        let cancelled = async {
            match &self.tls {
                Some(tls) => token.cancel_query(tls.clone()).await,
                None => token.cancel_query(NoTls).await,
            }
        };
        drop(tokio::time::timeout(CANCEL_TIMEOUT, cancelled).await);
    }
}

/// When a connection that could not be replaced is replaced after all.
const RENEW_AGAIN: Duration = Duration::from_secs(60);

/// The first and the longest delay after a server has refused a login, or after any failure if a program or a service gives
/// the password. Servers lock accounts, and write a line each time.
const REFUSED_DELAYS: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(5));

/// Makes connections for the pool.
#[derive(Debug)]
pub(super) struct Manager(Arc<Maker>);

#[derive(Debug)]
struct Maker {
    config: DatabaseConfig,
    state: Mutex<State>,
    /// After a refusal one at a time tries again, and the others hear what it heard.
    turn: tokio::sync::Mutex<()>,
}

/// What is known of earlier connections.
#[derive(Debug, Default)]
struct State {
    /// The server that was used last. It is tried first, so that one that is away costs no time at each connection.
    last: Option<Server>,
    /// Why the last connection was made without TLS.
    fallback: Option<String>,
    /// A refusal, until when it stands, and the delay after the next one.
    refused: Option<(DialError, Instant, Duration)>,
    /// A connection that will replace one that has reached its age.
    renewal: Option<AbortOnDropHandle<Result<Connection, DialError>>>,
}

impl Maker {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn make(&self) -> Result<Connection, DialError> {
        let refused = self.state().refused.as_ref().map(|(error, ..)| error.clone());
        let _turn = match refused {
            Some(error) => Some(tokio::time::timeout(POOL_TIMEOUT, self.turn.lock()).await.map_err(|_| error)?),
            None => None,
        };
        if let Some((error, until, _)) = &self.state().refused
            && Instant::now() < *until
        {
            return Err(error.clone());
        }
        let config = self.config.clone();
        // Reading files may block, and other work waits for this thread.
        let config = tokio::task::spawn_blocking(move || config.now()).await;
        let config = config.unwrap_or_else(|_| self.config.clone());
        let last = self.state().last.clone();
        match dial::dial(&config, last.as_ref()).await {
            Ok(session) => {
                self.note(&session);
                // Replicas that were started together do not replace their connections together.
                let age = config.connection_max_age.mul_f64(0.9 + 0.2 * fastrand::f64());
                Ok(Connection {
                    client: ClientWrapper::new(session.client, session.task),
                    tls: session.tls,
                    expires: Instant::now() + age,
                })
            }
            Err(error) => {
                // A program or a service that is asked for the password is spared as well.
                if error.is_final || password::is_costly(&config) {
                    let mut state = self.state();
                    let (first, longest) = REFUSED_DELAYS;
                    let delay = state.refused.take().map_or(first, |(_, _, delay)| delay);
                    state.refused = Some((error.clone(), Instant::now() + delay, (delay * 2).min(longest)));
                }
                Err(error)
            }
        }
    }

    fn note(&self, session: &Session) {
        let mut state = self.state();
        state.refused = None;
        let has_choice = self.config.servers.len() > 1 && self.config.order == HostOrder::AsGiven;
        if has_choice && state.last.as_ref() != Some(&session.server) {
            // Which of several servers is in use is nowhere else to be seen.
            tracing::info!(server = %session.server, "connected to PostgreSQL");
        }
        if let Some(problem) = session.fallback.as_ref().filter(|problem| state.fallback.as_ref() != Some(problem)) {
            tracing::warn!(problem, "connected to PostgreSQL without TLS, because TLS failed (sslmode=prefer)");
        }
        state.fallback.clone_from(&session.fallback);
        state.last = Some(session.server.clone());
    }
}

impl Manager {
    fn new(config: DatabaseConfig) -> Self {
        Self(Arc::new(Maker { config, state: Mutex::default(), turn: tokio::sync::Mutex::default() }))
    }

    /// A connection that replaces one that has reached its age, if it is there already. It is made beside the work, so that
    /// no statement waits for it.
    async fn renewal(&self) -> Option<Result<Connection, DialError>> {
        let finished = {
            let mut state = self.0.state();
            match state.renewal.take() {
                Some(renewal) if renewal.is_finished() => Some(renewal),
                Some(running) => {
                    state.renewal = Some(running);
                    None
                }
                None => {
                    let maker = Arc::clone(&self.0);
                    // In the span of the database, whose name belongs into its log lines.
                    let made = tokio::spawn(async move { maker.make().await }.in_current_span());
                    state.renewal = Some(AbortOnDropHandle::new(made));
                    None
                }
            }
        };
        finished?.await.ok()
    }
}

impl deadpool::managed::Manager for Manager {
    type Type = Connection;
    type Error = DialError;

    async fn create(&self) -> Result<Connection, DialError> {
        self.0.make().await
    }

    /// Only checks whether the socket is closed, which costs no round trip. A statement on a dead connection fails in
    /// bounded time, and the connection is discarded.
    async fn recycle(&self, connection: &mut Connection, _: &Metrics) -> RecycleResult<DialError> {
        if connection.is_closed() {
            return Err(RecycleError::message("it was closed"));
        }
        if Instant::now() < connection.expires {
            return Ok(());
        }
        // The old one works, so it is given up only for one that works as well: in the middle of a rotation the new
        // password may not have arrived yet.
        match self.renewal().await {
            None => Ok(()),
            Some(Ok(new)) if !new.is_closed() => {
                *connection = new;
                Ok(())
            }
            Some(Ok(_)) => Ok(()),
            // There is room for as many as the pool has, so this one goes first.
            Some(Err(error)) if error.is_full => Err(RecycleError::message("it reached its age")),
            Some(Err(error)) => {
                tracing::warn!(
                    problem = error.problem,
                    "a connection to PostgreSQL reached its age and cannot be replaced; it stays in use"
                );
                connection.expires = Instant::now() + RENEW_AGAIN;
                Ok(())
            }
        }
    }
}

impl Outbox {
    /// The server to which the last connection was made.
    pub fn server(&self) -> Option<String> {
        self.pool.manager().0.state().last.as_ref().map(ToString::to_string)
    }

    /// Prepares a pool of at most `connections`; it connects when the first statement needs a connection.
    ///
    /// # Errors
    ///
    /// When a certificate cannot be used.
    pub fn new(config: &DatabaseConfig, connections: usize) -> Result<Self, OutboxError> {
        if config.tls.mode != TlsMode::Disable {
            // Certificates are read again for each connection; a mistake in them is found now.
            tls::client_config(&config.tls).map_err(OutboxError::Setup)?;
        }
        let forgotten_at = Arc::new(Mutex::new(None));
        let forgotten = Arc::clone(&forgotten_at);
        let rest_millis = Arc::new(AtomicU64::new(0));
        let rest = Arc::clone(&rest_millis);
        let pool = Pool::builder(Manager::new(config.clone()))
            .max_size(connections)
            // Each takes its turn, so each is renewed when it reaches its age. If the one used last were used next, those
            // that are seldom needed would stay for ever.
            .queue_mode(QueueMode::Fifo)
            .runtime(Runtime::Tokio1)
            .timeouts(Timeouts { wait: Some(POOL_TIMEOUT), create: None, recycle: Some(POOL_TIMEOUT) })
            .pre_recycle(Hook::sync_fn(move |_, metrics| {
                let is_forgotten = lock(&forgotten).is_some_and(|at| metrics.created <= at);
                // Half the idle limit, so that no statement meets a session just as the server ends it.
                let rest = Duration::from_millis(rest.load(Ordering::Relaxed) / 2);
                let is_rested = !rest.is_zero() && metrics.last_used() >= rest;
                if is_forgotten {
                    return Err(HookError::message("it was opened before a failure"));
                }
                if is_rested { Err(HookError::message("it was idle for too long")) } else { Ok(()) }
            }))
            .build()
            .map_err(|error| OutboxError::Setup(error.to_string()))?;
        let version = Arc::new(AtomicI32::new(0));
        Ok(Self {
            pool,
            forgotten_at,
            claims: Arc::default(),
            version,
            rest_millis,
            schema: config.schema.clone(),
            sql: Arc::new(Statements::of(&config.schema)),
            relays_are_called: config.relays_are_called().into(),
            place: config.place_of_outbox().into(),
            login: config.user.as_str().into(),
        })
    }

    /// Discards all connections: idle ones now, those in use when they are returned. A fault met by one of them would
    /// be met by the others one after the other: a silent network, each time for a whole [`super::STATEMENT_TIMEOUT`],
    /// or a server that is read-only since a failover and would show old rows without end.
    ///
    /// The server that answers next may assign the transaction ids of this process's claims to writers, so claims no
    /// longer count as ended.
    pub fn forget_connections(&self) {
        *lock(&self.forgotten_at) = Some(Instant::now());
        self.claims.lock().unwrap_or_else(PoisonError::into_inner).clear();
        // One that is being made may have been opened before the failure as well.
        self.pool.manager().0.state().renewal = None;
        self.pool.retain(|_, _| false);
    }

    pub(super) async fn connection(&self) -> Result<Object, OutboxError> {
        self.pool.get().await.map_err(|error| {
            let (problem, shown, is_final) = match error {
                PoolError::Backend(DialError { problem, shown, is_final, .. }) => (problem, shown, is_final),
                other => {
                    let problem = match other {
                        PoolError::Timeout(_) => format!("no connection within {}s", POOL_TIMEOUT.as_secs()),
                        other => other.to_string(),
                    };
                    (problem.clone(), problem, false)
                }
            };
            OutboxError::Connect { place: self.place.to_string(), problem, shown, is_final }
        })
    }
}

/// An instant is always intact, even if another thread panicked.
fn lock(instant: &Mutex<Option<Instant>>) -> MutexGuard<'_, Option<Instant>> {
    instant.lock().unwrap_or_else(PoisonError::into_inner)
}
