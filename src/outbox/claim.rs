//! The claim: an open transaction that holds locks on lane rows.
//!
//! While it is open, no other relay publishes those lanes. It ends with its connection: PostgreSQL releases the locks
//! when the process is gone, and after `idle_in_transaction_session_timeout` when the host has vanished or the process
//! is frozen. That timer starts later than [`Claimed::asked_at`]. So a holder that stops sending before `asked_at` plus
//! the limit never sends after another relay took its lanes.
//!
//! docs/decisions/0001-claim-by-lanes.md says why the claim locks neither message rows nor uses a lease.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::connect::Object;
use tokio_postgres::types::Type;

use super::transaction::COMMIT;
use super::{Outbox, OutboxError, Parameter, column, lane};
use crate::clock::Time;
use crate::message::{LANES, Lane, TransactionId};
use crate::reading::{ByLane, ClaimProof, Incarnation};

/// A connection with an open transaction. Unless the transaction was committed, the last owner closes the connection.
/// It never returns to the pool, where its next user would find the transaction open.
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

/// A claim that was taken.
#[derive(Clone, Debug)]
pub struct Claimed {
    /// The lanes, with the history that each belongs to.
    pub lanes: Vec<(Lane, Incarnation)>,
    /// The proof by which later statements run only under this claim.
    pub proof: ClaimProof,
    /// The time just before the server was asked.
    pub asked_at: Time,
}

/// The exclusive right to some lanes of a destination for a few seconds. Dropping the last clone ends it by closing the
/// connection. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Claim {
    connection: Arc<ClaimConnection>,
    outbox: Outbox,
    destination: Arc<str>,
    transaction_id: TransactionId,
}

impl Outbox {
    /// Creates the lanes of a destination that do not exist yet.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn create_lanes(&self, destination: &str) -> Result<(), OutboxError> {
        self.execute("create lanes", &self.sql.create_lanes, &[(&destination, Type::TEXT)]).await.map(drop)
    }

    /// The history that each lane of a destination belongs to; `None` for a lane that has to be created.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn incarnations(&self, destination: &str) -> Result<ByLane<Option<Incarnation>>, OutboxError> {
        const NAME: &str = "read incarnations";
        let mut incarnations = ByLane::default();
        for row in &self.query(NAME, &self.sql.incarnations, &[(&destination, Type::TEXT)]).await? {
            incarnations[lane(NAME, row, 0)?] = Some(Arc::from(column::<&str>(NAME, row, 1)?));
        }
        Ok(incarnations)
    }

    /// Takes up to `max_lanes` of the wanted lanes, or none when all of them are held by others. The server ends the claim
    /// by itself after `idle_timeout` without a statement.
    ///
    /// # Errors
    ///
    /// When the statement fails; then nothing is held.
    pub async fn claim(
        &self,
        destination: &Arc<str>,
        wanted: &[Lane],
        max_lanes: usize,
        idle_timeout: Duration,
    ) -> Result<Option<(Claim, Claimed)>, OutboxError> {
        let object = Some(self.connection().await?);
        let connection = Arc::new(ClaimConnection { object, is_committed: AtomicBool::new(false) });
        // The transaction writes only row locks, so its commit need not wait for the disk.
        let begin = self.begin(&format!("SET LOCAL synchronous_commit = off; {}", wait_for(idle_timeout)));
        let transaction_id = TransactionId(0);
        let mut claim =
            Claim { connection, outbox: self.clone(), destination: Arc::clone(destination), transaction_id };
        let asked_at = Time::now();
        let begin = self.bounded("claim", claim.connection.object()?.batch_execute(&begin));
        let (begun, taken) = tokio::join!(biased; begin, claim.take(wanted, max_lanes));
        begun?;
        let (lanes, proof) = taken?;
        let Some(proof) = proof else {
            claim.release().await?;
            return Ok(None);
        };
        claim.transaction_id = proof.transaction_id;
        self.claims.lock().unwrap_or_else(PoisonError::into_inner).insert(proof.transaction_id);
        Ok(Some((claim, Claimed { lanes, proof, asked_at })))
    }
}

/// How long the server waits for a statement of the claim's holder before it ends the claim.
fn wait_for(idle_timeout: Duration) -> String {
    format!("SET LOCAL idle_in_transaction_session_timeout = {}", idle_timeout.as_millis())
}

type Taken = (Vec<(Lane, Incarnation)>, Option<ClaimProof>);

impl Claim {
    /// Whether PostgreSQL has ended the claim, as far as this side can know.
    pub fn is_lost(&self) -> bool {
        self.connection.object().is_ok_and(|object| object.is_closed())
    }

    /// Claims more lanes in the same transaction; returns those it got.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn widen(&self, wanted: &[Lane], max_lanes: usize) -> Result<Vec<(Lane, Incarnation)>, OutboxError> {
        Ok(self.take(wanted, max_lanes).await?.0)
    }

    /// Sets how long the server waits for a statement of this claim, from now on.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn extend(&self, idle_timeout: Duration) -> Result<(), OutboxError> {
        self.outbox.bounded("extend the claim", self.connection.object()?.batch_execute(&wait_for(idle_timeout))).await
    }

    async fn take(&self, wanted: &[Lane], max_lanes: usize) -> Result<Taken, OutboxError> {
        const NAME: &str = "claim";
        let wanted: Vec<i16> = wanted.iter().map(|lane| lane.number()).collect();
        let max_lanes = i64::try_from(max_lanes).unwrap_or(i64::MAX);
        let first = fastrand::i16(0..LANES as i16);
        let destination: &str = &self.destination;
        let parameters: [Parameter<'_>; 4] =
            [(&destination, Type::TEXT), (&wanted, Type::INT2_ARRAY), (&max_lanes, Type::INT8), (&first, Type::INT2)];
        let rows = self
            .outbox
            .bounded(NAME, self.connection.object()?.query_typed(&self.outbox.sql.claim, &parameters))
            .await?;
        let (mut lanes, mut proof) = (Vec::with_capacity(rows.len()), None);
        for row in &rows {
            lanes.push((lane(NAME, row, 0)?, Arc::from(column::<&str>(NAME, row, 3)?)));
            let transaction_id = column::<&str>(NAME, row, 1)?.parse().map(TransactionId);
            let transaction_id = transaction_id.map_err(|error| OutboxError::Answer {
                statement: NAME,
                problem: format!("no transaction id: {error}"),
            })?;
            proof = Some(ClaimProof { transaction_id, server: column(NAME, row, 2)? });
        }
        Ok((lanes, proof))
    }

    /// Ends the claim, so that other relays can take the lanes.
    ///
    /// # Errors
    ///
    /// When the claim had been lost. The lanes are free in either case.
    pub async fn release(self) -> Result<(), OutboxError> {
        self.outbox.bounded("release the claim", self.connection.object()?.batch_execute(COMMIT)).await?;
        self.connection.is_committed.store(true, Ordering::Release);
        Ok(())
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // The last clone ends the claim; from then on its transaction id counts as a possible writer's again.
        if Arc::strong_count(&self.connection) == 1 {
            let mut claims = self.outbox.claims.lock().unwrap_or_else(PoisonError::into_inner);
            claims.remove(&self.transaction_id);
        }
    }
}
