//! Settling: writes outcomes back in one transaction. It is idempotent, so after an unknown answer everything is
//! settled again.

use std::borrow::Cow;
use std::time::SystemTime;

use super::connect::Object;
use tokio_postgres::types::Type;

use super::{Outbox, OutboxError, Parameter, READING, column, lane};
use crate::message::{MessageId, MessageKey, Origin, Outcome, Settlement};
use crate::reading::ClaimProof;

/// Planner settings while settling, for `BEGIN`.
///
/// Under a long transaction the pending partition holds few rows and many dead ones, and for hundreds of keys the
/// planner then prefers to scan all of it, each time. The only right plan here is one index probe per message. A page
/// read sequentially is also given a huge cost, because PostgreSQL 18 ignores `enable_seqscan` when only one partition
/// of a table is left.
///
/// If a relay's host vanishes in between, its rows stay locked. A relay that publishes them next could not settle them
/// while PostgreSQL believes the session to be alive, which is two hours by default. JIT is off because these settings
/// can make a plan look expensive, for example that of a trigger.
pub const SETTLING: &str = "SET LOCAL idle_in_transaction_session_timeout = 5000; SET LOCAL jit = off; \
    SET LOCAL enable_seqscan = off; SET LOCAL seq_page_cost = 1000000; SET LOCAL enable_bitmapscan = off; \
    SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off";

/// How often to retry when another transaction conflicted: two relays settle the same message, and one finds it moved
/// to another partition (SQLSTATE 40001).
const CONFLICTS: usize = 5;

/// What happens to a row at delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// It moves to the delivered partition, until it is pruned.
    Delivered,
    /// It is deleted.
    Nothing,
}

/// The result of settling.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// Delivered messages that another relay had settled, so both published them.
    pub published_twice: Vec<MessageKey>,
    /// Delivered messages that do not exist any more, or whose id belongs to another message: their transaction was
    /// lost.
    pub unmatched: Vec<MessageKey>,
    /// Records of delivered messages that were removed because their ids had been assigned again.
    pub replaced: u64,
}

/// The longest error text that is stored; SQS's messages are far shorter.
const ERROR_CHARS: usize = 1000;

/// One statement's rows, as columns.
#[derive(Debug, Default)]
struct Columns<'a> {
    lanes: Vec<i16>,
    ids: Vec<i64>,
    positions: Vec<i64>,
    times: Vec<SystemTime>,
    attempts: Vec<i16>,
    waits: Vec<Option<i64>>,
    texts: Vec<Cow<'a, str>>,
    numbers: Vec<Option<String>>,
}

impl Columns<'_> {
    /// With room for this many delivered messages, since nearly all are delivered.
    fn with_capacity(rows: usize) -> Self {
        Self {
            lanes: Vec::with_capacity(rows),
            ids: Vec::with_capacity(rows),
            positions: Vec::with_capacity(rows),
            times: Vec::with_capacity(rows),
            texts: Vec::with_capacity(rows),
            numbers: Vec::with_capacity(rows),
            ..Self::default()
        }
    }

    fn message(&mut self, key: MessageKey, origin: Origin) {
        self.lanes.push(key.lane.number());
        self.ids.push(key.id.0);
        self.positions.push(origin.event_position.0);
        self.times.push(origin.enqueued_at);
    }

    /// Removes the last row if it is about this message.
    fn forget(&mut self, key: MessageKey) {
        if self.lanes.last() == Some(&key.lane.number()) && self.ids.last() == Some(&key.id.0) {
            self.lanes.pop();
            self.ids.pop();
            self.positions.pop();
            self.times.pop();
            self.attempts.pop();
            self.waits.pop();
            self.texts.pop();
            self.numbers.pop();
        }
    }

    /// The parameters that identify the messages.
    fn which<'a>(&'a self, destination: &'a &'a str) -> [Parameter<'a>; 5] {
        [
            (destination, Type::TEXT),
            (&self.lanes, Type::INT2_ARRAY),
            (&self.ids, Type::INT8_ARRAY),
            (&self.positions, Type::INT8_ARRAY),
            (&self.times, Type::TIMESTAMPTZ_ARRAY),
        ]
    }
}

/// What one settling writes: the rows of each of its statements. Pure.
#[derive(Debug, Default)]
pub struct SettlePlan<'a> {
    delivered: Columns<'a>,
    superseded: Columns<'a>,
    deferred: Columns<'a>,
    dead: Columns<'a>,
}

impl<'a> SettlePlan<'a> {
    /// Sorts outcomes into rows. All relays use the same order, so two that settle the same rows wait for each other
    /// and never deadlock.
    pub fn of(settlements: &'a [Settlement]) -> Self {
        // Sort keys instead of the settlements, which are large to move.
        let mut sorted: Vec<(MessageKey, usize)> =
            settlements.iter().map(|settlement| settlement.key).zip(0..).collect();
        sorted.sort_unstable();
        let mut plan = Self { delivered: Columns::with_capacity(settlements.len()), ..Self::default() };
        for Settlement { key, origin, outcome, .. } in sorted.iter().filter_map(|(_, at)| settlements.get(*at)) {
            match outcome {
                Outcome::Delivered { sqs_message_id, sequence_number } => {
                    plan.delivered.message(*key, *origin);
                    plan.delivered.texts.push(Cow::Borrowed(sqs_message_id));
                    plan.delivered.numbers.push(sequence_number.map(|number| number.to_string()));
                }
                Outcome::Superseded { sequence_number } => {
                    // Of two copies of one message the later counts; the sort keeps the order of equal keys.
                    plan.superseded.forget(*key);
                    plan.superseded.message(*key, *origin);
                    plan.superseded.numbers.push(Some(sequence_number.to_string()));
                }
                Outcome::Deferred { attempts, wait, error } => {
                    // Of two failures as well.
                    plan.deferred.forget(*key);
                    plan.deferred.message(*key, *origin);
                    plan.deferred.attempts.push(*attempts);
                    plan.deferred.waits.push(wait.map(|wait| i64::try_from(wait.as_millis()).unwrap_or(i64::MAX)));
                    plan.deferred.texts.push(shorten(error));
                }
                Outcome::Dead { attempts, error, .. } => {
                    plan.dead.message(*key, *origin);
                    plan.dead.attempts.push(*attempts);
                    plan.dead.texts.push(shorten(error));
                }
            }
        }
        plan
    }

    /// How many rows it writes.
    pub fn rows(&self) -> usize {
        self.delivered.ids.len() + self.superseded.ids.len() + self.deferred.ids.len() + self.dead.ids.len()
    }
}

impl Outbox {
    /// Writes outcomes back. With a proof, deferrals and deaths are written only while its claim lives. Without a proof
    /// they are always written; that is for messages that no relay touches.
    ///
    /// # Errors
    ///
    /// When a statement fails; then all or nothing was written, and settling everything again is right.
    pub async fn settle(
        &self,
        destination: &str,
        keep: Keep,
        settlements: &[Settlement],
        proof: Option<&ClaimProof>,
    ) -> Result<Settled, OutboxError> {
        let plan = SettlePlan::of(settlements);
        let connection = self.connection().await?;
        let (mut conflicts, mut replaces) = (0, false);
        let result = loop {
            match self.settle_on(&connection, destination, keep, &plan, proof, replaces).await {
                Err(error) if error.is_conflict() && conflicts < CONFLICTS => conflicts += 1,
                Err(error) if error.is_duplicate() && !replaces => replaces = true,
                result => break result,
            }
        };
        self.keep_if_ok(connection, result).await
    }

    async fn settle_on(
        &self,
        connection: &Object,
        destination: &str,
        keep: Keep,
        plan: &SettlePlan<'_>,
        proof: Option<&ClaimProof>,
        replaces: bool,
    ) -> Result<Settled, OutboxError> {
        let all = async {
            let (replaced, delivered, superseded, deferred, dead) = tokio::join!(
                biased;
                self.replace(connection, destination, &plan.delivered, replaces),
                self.deliver(connection, destination, keep, &plan.delivered),
                // After delivering: of a message that is delivered in the same transaction nothing is pending then.
                self.supersede(connection, destination, &plan.superseded),
                self.defer(connection, destination, &plan.deferred, proof),
                self.dead_letter(connection, destination, &plan.dead, proof),
            );
            let counts = (replaced?, delivered?);
            superseded?;
            deferred?;
            dead?;
            Ok(counts)
        };
        let (replaced, matched) = self.transaction("settle", connection, SETTLING, all).await?;
        if matched == plan.delivered.ids.len() as u64 {
            return Ok(Settled { replaced, ..Settled::default() });
        }
        let settled = self.unmatched(connection, destination, &plan.delivered).await?;
        Ok(Settled { replaced, ..settled })
    }

    async fn replace(
        &self,
        connection: &Object,
        destination: &str,
        rows: &Columns<'_>,
        replaces: bool,
    ) -> Result<u64, OutboxError> {
        match replaces {
            true => self.write(connection, "replace", &self.sql.replace, rows, &rows.which(&destination)).await,
            false => Ok(0),
        }
    }

    /// Runs a statement, unless it has nothing to write.
    async fn write(
        &self,
        connection: &Object,
        statement: &'static str,
        sql: &str,
        rows: &Columns<'_>,
        parameters: &[Parameter<'_>],
    ) -> Result<u64, OutboxError> {
        if rows.ids.is_empty() {
            return Ok(0);
        }
        self.bounded(statement, connection.execute_typed(sql, parameters)).await
    }

    async fn deliver(
        &self,
        connection: &Object,
        destination: &str,
        keep: Keep,
        rows: &Columns<'_>,
    ) -> Result<u64, OutboxError> {
        let mut parameters = rows.which(&destination).to_vec();
        match keep {
            Keep::Delivered => {
                parameters.push((&rows.texts, Type::TEXT_ARRAY));
                parameters.push((&rows.numbers, Type::TEXT_ARRAY));
                self.write(connection, "deliver", &self.sql.deliver, rows, &parameters).await
            }
            Keep::Nothing => {
                self.write(connection, "delete delivered", &self.sql.delete_delivered, rows, &parameters).await
            }
        }
    }

    async fn supersede(&self, connection: &Object, destination: &str, rows: &Columns<'_>) -> Result<u64, OutboxError> {
        let mut parameters = rows.which(&destination).to_vec();
        parameters.push((&rows.numbers, Type::TEXT_ARRAY));
        self.write(connection, "supersede", &self.sql.supersede, rows, &parameters).await
    }

    async fn defer(
        &self,
        connection: &Object,
        destination: &str,
        rows: &Columns<'_>,
        proof: Option<&ClaimProof>,
    ) -> Result<u64, OutboxError> {
        let transaction_id = proof.map(|proof| proof.transaction_id.0.to_string());
        let server = proof.map(|proof| proof.server.as_str());
        let mut parameters = rows.which(&destination).to_vec();
        parameters.push((&rows.attempts, Type::INT2_ARRAY));
        parameters.push((&rows.waits, Type::INT8_ARRAY));
        parameters.push((&rows.texts, Type::TEXT_ARRAY));
        parameters.push((&transaction_id, Type::TEXT));
        parameters.push((&server, Type::TEXT));
        self.write(connection, "defer", &self.sql.defer, rows, &parameters).await
    }

    async fn dead_letter(
        &self,
        connection: &Object,
        destination: &str,
        rows: &Columns<'_>,
        proof: Option<&ClaimProof>,
    ) -> Result<u64, OutboxError> {
        let transaction_id = proof.map(|proof| proof.transaction_id.0.to_string());
        let server = proof.map(|proof| proof.server.as_str());
        let mut parameters = rows.which(&destination).to_vec();
        parameters.push((&rows.attempts, Type::INT2_ARRAY));
        parameters.push((&rows.texts, Type::TEXT_ARRAY));
        parameters.push((&transaction_id, Type::TEXT));
        parameters.push((&server, Type::TEXT));
        self.write(connection, "dead-letter", &self.sql.dead_letter, rows, &parameters).await
    }

    /// Finds out why some delivered messages matched no pending row.
    async fn unmatched(
        &self,
        connection: &Object,
        destination: &str,
        rows: &Columns<'_>,
    ) -> Result<Settled, OutboxError> {
        const NAME: &str = "look at unmatched messages";
        let mut parameters = rows.which(&destination).to_vec();
        parameters.push((&rows.texts, Type::TEXT_ARRAY));
        let found = self.bounded(NAME, connection.query_typed(&self.sql.unmatched, &parameters));
        let found = self.transaction(NAME, connection, READING, found).await?;
        let mut settled = Settled::default();
        for row in &found {
            let key = MessageKey { lane: lane(NAME, row, 0)?, id: MessageId(column(NAME, row, 1)?) };
            match column::<&str>(NAME, row, 2)? {
                "own" => {}
                "recorded" => settled.published_twice.push(key),
                _ => settled.unmatched.push(key),
            }
        }
        Ok(settled)
    }
}

/// PostgreSQL's text cannot hold U+0000.
pub(super) fn shorten(text: &str) -> Cow<'_, str> {
    text.chars().filter(|c| *c != '\0').take(ERROR_CHARS).collect()
}
