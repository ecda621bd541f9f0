//! Settling: writes back what became of messages, in one transaction. Idempotent, so an unknown answer is settled again.

use std::borrow::Cow;

use deadpool_postgres::Object;
use tokio_postgres::types::Type;

use super::{LIMITS, Outbox, OutboxError, Parameter};
use crate::message::{Lane, MessageKey, Outcome, Settlement};

const DELIVER: &str = include_str!("../../sql/queries/deliver.sql");
const DELETE_DELIVERED: &str = include_str!("../../sql/queries/delete_delivered.sql");
const DEFER: &str = include_str!("../../sql/queries/defer.sql");
const BURY: &str = include_str!("../../sql/queries/bury.sql");

/// What the planner may do while settling, for `BEGIN`.
///
/// Under a long transaction the pending partition holds few rows and many dead ones, and for hundreds of keys the planner
/// then prefers to scan it all, each time. Nothing but one index probe a message is ever right here. A page that is read in
/// sequence costs a fortune besides, because PostgreSQL 18 forgets `enable_seqscan` where one partition of a table is left.
///
/// A relay whose host vanishes in between leaves its rows locked, and whoever publishes them next could not settle them as
/// long as PostgreSQL takes the session for alive, which is two hours by default. And where these settings make some plan
/// look dear, as that of a trigger, nothing is compiled for it.
pub const SETTLING: &str = "SET LOCAL idle_in_transaction_session_timeout = 5000; SET LOCAL jit = off; \
    SET LOCAL enable_seqscan = off; SET LOCAL seq_page_cost = 1000000; SET LOCAL enable_bitmapscan = off; \
    SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off";

/// How often to begin again when another transaction was in the way: two relays that settle the same message, of which
/// one finds it moved to another partition (SQLSTATE 40001).
const CONFLICTS: usize = 5;

/// What happens to a row at delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// It moves to the delivered partition, until it is pruned.
    Delivered,
    /// It is deleted.
    Nothing,
}

/// The longest error text that is stored; SQS's sentences are far shorter.
const ERROR_CHARS: usize = 1000;

/// One statement's rows, as columns.
#[derive(Debug, Default)]
struct Columns<'a> {
    lanes: Vec<Lane>,
    ids: Vec<i64>,
    attempts: Vec<i16>,
    waits: Vec<Option<i64>>,
    texts: Vec<Cow<'a, str>>,
}

impl Columns<'_> {
    fn key(&mut self, key: MessageKey) {
        self.lanes.push(key.lane);
        self.ids.push(key.id);
    }

    /// Takes back the last row if it is about this message.
    fn forget(&mut self, key: MessageKey) {
        if self.lanes.last() == Some(&key.lane) && self.ids.last() == Some(&key.id) {
            self.lanes.pop();
            self.ids.pop();
            self.attempts.pop();
            self.waits.pop();
            self.texts.pop();
        }
    }
}

/// What one settling writes: the rows of each of its statements. Pure.
#[derive(Debug, Default)]
pub struct SettlePlan<'a> {
    delivered: Columns<'a>,
    deferred: Columns<'a>,
    dead: Columns<'a>,
}

impl<'a> SettlePlan<'a> {
    /// Sorts outcomes into rows. All relays keep one order, so two that settle the same rows wait for each other and never
    /// deadlock.
    pub fn of(settlements: &'a mut [Settlement]) -> Self {
        settlements.sort_by_key(|settlement| settlement.key);
        let mut plan = Self::default();
        for settlement in &*settlements {
            match &settlement.outcome {
                Outcome::Delivered { sqs_message_id } => {
                    plan.delivered.key(settlement.key);
                    plan.delivered.texts.push(Cow::Borrowed(sqs_message_id));
                }
                Outcome::Deferred { attempts, wait, error } => {
                    // Of two failures of one message the later counts; the order of equal keys is kept.
                    plan.deferred.forget(settlement.key);
                    plan.deferred.key(settlement.key);
                    plan.deferred.attempts.push(*attempts);
                    plan.deferred.waits.push(wait.map(|wait| i64::try_from(wait.as_millis()).unwrap_or(i64::MAX)));
                    plan.deferred.texts.push(shorten(error));
                }
                Outcome::Dead { attempts, error, .. } => {
                    plan.dead.key(settlement.key);
                    plan.dead.attempts.push(*attempts);
                    plan.dead.texts.push(shorten(error));
                }
            }
        }
        plan
    }

    /// How many rows it writes.
    pub fn rows(&self) -> usize {
        self.delivered.ids.len() + self.deferred.ids.len() + self.dead.ids.len()
    }
}

impl Outbox {
    /// Writes outcomes back and returns how many delivered messages were no longer pending: somebody else had settled
    /// them, so they were published twice.
    ///
    /// # Errors
    ///
    /// When a statement fails; then all or nothing was written, and settling all of it again is right.
    pub async fn settle(
        &self,
        destination: &str,
        keep: Keep,
        settlements: &mut [Settlement],
    ) -> Result<u64, OutboxError> {
        let plan = SettlePlan::of(settlements);
        let connection = self.connection().await?;
        let mut conflicts = 0;
        let result = loop {
            let work = async {
                self.bounded("settle", connection.batch_execute(&format!("BEGIN; {LIMITS}; {SETTLING}"))).await?;
                let missing = self.deliver(&connection, destination, keep, &plan.delivered).await?;
                self.defer(&connection, destination, &plan.deferred).await?;
                self.bury(&connection, destination, &plan.dead).await?;
                self.bounded("settle", connection.batch_execute("COMMIT")).await?;
                Ok(missing)
            };
            match work.await {
                Err(OutboxError::Statement { is_conflict: true, .. }) if conflicts < CONFLICTS => conflicts += 1,
                result => break result,
            }
            if let Err(error) = self.bounded("settle", connection.batch_execute("ROLLBACK")).await {
                break Err(error);
            }
        };
        self.keep_if_ok(connection, result).await
    }

    async fn write(
        &self,
        connection: &Object,
        statement: &'static str,
        sql: &str,
        parameters: &[Parameter<'_>],
    ) -> Result<u64, OutboxError> {
        self.bounded(statement, connection.execute_typed(sql, parameters)).await
    }

    async fn deliver(
        &self,
        connection: &Object,
        destination: &str,
        keep: Keep,
        rows: &Columns<'_>,
    ) -> Result<u64, OutboxError> {
        if rows.ids.is_empty() {
            return Ok(0);
        }
        let parameters: [Parameter<'_>; 4] = [
            (&destination, Type::TEXT),
            (&rows.lanes, Type::INT2_ARRAY),
            (&rows.ids, Type::INT8_ARRAY),
            (&rows.texts, Type::TEXT_ARRAY),
        ];
        let settled = match keep {
            Keep::Delivered => self.write(connection, "deliver", DELIVER, &parameters).await?,
            Keep::Nothing => self.write(connection, "delete delivered", DELETE_DELIVERED, &parameters[..3]).await?,
        };
        Ok(u64::try_from(rows.ids.len()).unwrap_or(u64::MAX).saturating_sub(settled))
    }

    async fn defer(&self, connection: &Object, destination: &str, rows: &Columns<'_>) -> Result<(), OutboxError> {
        if rows.ids.is_empty() {
            return Ok(());
        }
        let parameters: [Parameter<'_>; 6] = [
            (&destination, Type::TEXT),
            (&rows.lanes, Type::INT2_ARRAY),
            (&rows.ids, Type::INT8_ARRAY),
            (&rows.attempts, Type::INT2_ARRAY),
            (&rows.waits, Type::INT8_ARRAY),
            (&rows.texts, Type::TEXT_ARRAY),
        ];
        self.write(connection, "defer", DEFER, &parameters).await.map(drop)
    }

    async fn bury(&self, connection: &Object, destination: &str, rows: &Columns<'_>) -> Result<(), OutboxError> {
        if rows.ids.is_empty() {
            return Ok(());
        }
        let parameters: [Parameter<'_>; 5] = [
            (&destination, Type::TEXT),
            (&rows.lanes, Type::INT2_ARRAY),
            (&rows.ids, Type::INT8_ARRAY),
            (&rows.attempts, Type::INT2_ARRAY),
            (&rows.texts, Type::TEXT_ARRAY),
        ];
        self.write(connection, "bury", BURY, &parameters).await.map(drop)
    }
}

/// PostgreSQL's text cannot hold U+0000.
fn shorten(text: &str) -> Cow<'_, str> {
    text.chars().filter(|c| *c != '\0').take(ERROR_CHARS).collect()
}
