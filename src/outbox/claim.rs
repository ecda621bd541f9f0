//! The claim: an open transaction that has lane rows locked.
//!
//! While it is open no other relay publishes those lanes. It dies with its connection: PostgreSQL releases the locks when
//! the process is gone, and `idle_in_transaction_session_timeout` when the host vanished or the process is frozen. That
//! timer starts later than [`Claim::taken_at`], so a holder that stops sending before `taken_at` plus the limit never
//! sends after somebody else took its lanes.
//!
//! docs/decisions/0001-claim-by-lanes.md tells why not rows and why not a lease.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use deadpool_postgres::Object;
use tokio_postgres::types::Type;

use super::{LIMITS, Outbox, OutboxError, Parameter, column};
use crate::message::{LANES, Lane};

const CLAIM: &str = include_str!("../../sql/queries/claim.sql");
const CREATE_LANES: &str = include_str!("../../sql/queries/create_lanes.sql");

/// Locking rows has given the claim's transaction an id.
const OWN_TRANSACTION: &str = "SELECT pg_current_xact_id()::text::bigint";

/// A connection with a transaction open. Unless that was committed, it is closed and never goes back to the pool, whose
/// next user would find the transaction; whoever is the last to let go of it sees to that.
#[derive(Debug)]
struct ClaimConnection {
    object: Option<Object>,
    is_committed: AtomicBool,
}

impl ClaimConnection {
    fn object(&self) -> Result<&Object, OutboxError> {
        self.object.as_ref().ok_or(OutboxError::ClaimLost)
    }
}

impl Drop for ClaimConnection {
    fn drop(&mut self) {
        if !self.is_committed.load(Ordering::Acquire)
            && let Some(object) = self.object.take()
        {
            drop(Object::take(object));
        }
    }
}

/// The exclusive right to some lanes of a destination for a few seconds. Dropping it ends it, by closing the connection.
#[derive(Debug)]
pub struct Claim {
    connection: Arc<ClaimConnection>,
    outbox: Outbox,
    destination: Arc<str>,
    lanes: Vec<Lane>,
    taken_at: Instant,
    transaction_id: i64,
}

impl Outbox {
    /// Makes sure that a destination has its lanes.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn create_lanes(&self, destination: &str) -> Result<(), OutboxError> {
        self.execute("create lanes", CREATE_LANES, &[(&destination, Type::TEXT)]).await.map(drop)
    }

    /// Takes up to `most` of the wanted lanes, or nothing when all of them are held by others. The server ends the claim
    /// by itself after `limit` without a statement.
    ///
    /// # Errors
    ///
    /// When the statement fails; then nothing is held.
    pub async fn claim(
        &self,
        destination: &Arc<str>,
        wanted: &[Lane],
        most: usize,
        limit: Duration,
    ) -> Result<Option<Claim>, OutboxError> {
        let taken_at = Instant::now();
        let connection =
            Arc::new(ClaimConnection { object: Some(self.connection().await?), is_committed: AtomicBool::new(false) });
        // The transaction writes nothing but row locks, so its commit need not wait for the disk.
        let begin = format!(
            "BEGIN; {LIMITS}; SET LOCAL idle_in_transaction_session_timeout = {}; SET LOCAL synchronous_commit = off",
            limit.as_millis()
        );
        self.bounded("claim", connection.object()?.batch_execute(&begin)).await?;
        let destination = Arc::clone(destination);
        let mut claim =
            Claim { transaction_id: 0, connection, outbox: self.clone(), destination, lanes: Vec::new(), taken_at };
        claim.lanes = claim.take_more(wanted, most).await?;
        if claim.lanes.is_empty() {
            claim.release().await?;
            return Ok(None);
        }
        let own = claim.connection.object()?.query_typed(OWN_TRANSACTION, &[]);
        let rows = self.bounded("claim", own).await?;
        claim.transaction_id = rows.first().map_or(Ok(0), |row| column("claim", row, 0))?;
        Ok(Some(claim))
    }
}

impl Claim {
    /// The lanes held.
    pub fn lanes(&self) -> &[Lane] {
        &self.lanes
    }

    /// Just before the claim was asked for.
    pub fn taken_at(&self) -> Instant {
        self.taken_at
    }

    /// The claim's own transaction, which runs all the time and writes no messages.
    pub fn transaction_id(&self) -> i64 {
        self.transaction_id
    }

    /// Whether PostgreSQL has ended the claim, as far as this side can know.
    pub fn is_lost(&self) -> bool {
        self.connection.object().is_ok_and(|object| object.is_closed())
    }

    /// Asks for more lanes under the same claim; the answer goes to [`Claim::add`].
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub fn take_more(
        &self,
        wanted: &[Lane],
        most: usize,
    ) -> impl Future<Output = Result<Vec<Lane>, OutboxError>> + Send + 'static {
        let connection = Arc::clone(&self.connection);
        let (outbox, destination, wanted) = (self.outbox.clone(), Arc::clone(&self.destination), wanted.to_vec());
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let first = fastrand::i16(0..LANES);
        async move {
            let destination: &str = &destination;
            let parameters: [Parameter<'_>; 4] =
                [(&destination, Type::TEXT), (&wanted, Type::INT2_ARRAY), (&most, Type::INT8), (&first, Type::INT2)];
            let rows = outbox.bounded("claim", connection.object()?.query_typed(CLAIM, &parameters)).await?;
            rows.iter().map(|row| column("claim", row, 0)).collect()
        }
    }

    /// The lanes that [`Claim::take_more`] won.
    pub fn add(&mut self, lanes: &[Lane]) {
        self.lanes.extend_from_slice(lanes);
    }

    /// Ends the claim, so that other relays can take the lanes.
    ///
    /// # Errors
    ///
    /// When the claim had been lost. The lanes are free in any case.
    pub async fn release(self) -> Result<(), OutboxError> {
        self.outbox.bounded("release the claim", self.connection.object()?.batch_execute("COMMIT")).await?;
        self.connection.is_committed.store(true, Ordering::Release);
        Ok(())
    }
}
