//! Reading: what is pending in claimed lanes; it changes nothing. [`super::look`] asks whether there is any.

use super::connect::Object;
use futures_util::{StreamExt as _, pin_mut};
use tokio_postgres::types::Type;

use super::look::numbers;
use super::row::{Said, leave_row, part, take_row};
use super::{Outbox, OutboxError, Parameter, STATEMENT_TIMEOUT};
use crate::message::{Content, MAX_MESSAGE_BYTES, Message};
use crate::reading::{Batch, ClaimProof, DueRequest, Lookup, ReadAnswer, ReadRequest};

/// Planner settings while reading, for `BEGIN`.
///
/// PostgreSQL does not know how many messages a read may return and assumes a tenth of each lane. So with half a
/// million pending, it would compile the statement again for each read of a thousand, which takes twice as long as the
/// read. And if the outbox was empty when it was analyzed, it would prefer to scan everything deferred, dead or in
/// quarantine once per message.
pub const READING: &str = "SET LOCAL jit = off; SET LOCAL enable_seqscan = off; SET LOCAL seq_page_cost = 1000000";

/// The parameters that all reading statements share.
struct Common<'a> {
    destination: &'a str,
    max_bytes: i64,
    transaction_id: String,
    server: &'a str,
    is_one_by_one: bool,
}

impl<'a> Common<'a> {
    fn new(destination: &'a str, proof: &'a ClaimProof, lookup: Lookup, max_bytes: usize) -> Self {
        Self {
            destination,
            max_bytes: count(max_bytes),
            transaction_id: proof.transaction_id.0.to_string(),
            server: &proof.server,
            is_one_by_one: lookup == Lookup::OneByOne,
        }
    }
}

impl ReadRequest {
    /// The bytes of all lanes together, and of all groups, if one message may be larger than many others. Otherwise each has
    /// its share, and counting them together would cost the server a tenth of the read.
    fn together(&self) -> Option<i64> {
        (self.max_body_bytes > MAX_MESSAGE_BYTES).then(|| count(self.stored_bytes).max(1))
    }
}

/// A connection keeps room for the largest row that ever came over it, so it is closed after a larger body than this.
const LARGE: usize = 4 * 1024 * 1024;

/// Whether these messages have a body for which a connection is closed.
fn has_large<'a>(batches: impl IntoIterator<Item = &'a Batch>) -> bool {
    let is_large = |message: &Message| matches!(&message.content, Content::Event(event) if event.body.len() > LARGE);
    batches.into_iter().any(|batch| batch.messages.iter().any(is_large))
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

impl Outbox {
    /// Reads more of some groups, then the next messages of claimed lanes, then rescans the gap. So a message that this
    /// read shows and one that was committed before it are never both missed.
    ///
    /// # Errors
    ///
    /// When a statement fails, or when a server other than the claim's answers.
    pub async fn read(
        &self,
        destination: &str,
        request: &ReadRequest,
        proof: &ClaimProof,
    ) -> Result<ReadAnswer, OutboxError> {
        let connection = self.connection().await?;
        let common = Common::new(destination, proof, request.lookup, request.max_body_bytes);
        let before = async {
            match request.groups.is_empty() {
                true => Ok(None),
                false => self.snapshot_on(&connection).await.map(Some),
            }
        };
        let groups = async {
            match request.groups.is_empty() {
                true => Ok(Vec::new()),
                false => self.read_groups(&connection, request, &common).await,
            }
        };
        let lanes = async {
            match request.lanes.is_empty() {
                true => Ok(Batch::default()),
                false => self.read_lanes(&connection, request, &common).await,
            }
        };
        let gap = async {
            match &request.gap {
                Some(gap) => self.rescan_on(&connection, destination, gap, Some(proof)).await.map(Some),
                None => Ok(None),
            }
        };
        let all = async {
            let (before, groups, lanes, gap) = tokio::join!(biased; before, groups, lanes, gap);
            Ok(ReadAnswer { before: before?, groups: groups?, lanes: lanes?, gap: gap? })
        };
        let result = self.transaction("read", &connection, READING, all).await;
        if result.as_ref().is_ok_and(|answer| has_large(answer.groups.iter().chain([&answer.lanes]))) {
            drop(Object::take(connection));
            return result;
        }
        self.keep_if_ok(connection, result).await
    }

    async fn read_lanes(
        &self,
        connection: &Object,
        request: &ReadRequest,
        common: &Common<'_>,
    ) -> Result<Batch, OutboxError> {
        let lanes = numbers(request.lanes.iter().map(|position| position.lane));
        let above: Vec<i64> = request.lanes.iter().map(|position| position.above.0).collect();
        let limit: Vec<i64> = request.lanes.iter().map(|position| count(position.limit)).collect();
        let total: usize = request.lanes.iter().map(|position| position.limit).sum();
        let share = |part: usize| count(request.stored_bytes * part / total.max(1)).max(1);
        let bytes: Vec<i64> = request.lanes.iter().map(|position| share(position.limit)).collect();
        let together = request.together();
        let (is_ordered, is_blocked) = (request.order.is_kept(), request.order.is_blocked_by_dead());
        let parameters: [Parameter<'_>; 12] = [
            (&common.destination, Type::TEXT),
            (&lanes, Type::INT2_ARRAY),
            (&above, Type::INT8_ARRAY),
            (&limit, Type::INT8_ARRAY),
            (&bytes, Type::INT8_ARRAY),
            (&common.max_bytes, Type::INT8),
            (&is_ordered, Type::BOOL),
            (&is_blocked, Type::BOOL),
            (&common.transaction_id, Type::TEXT),
            (&common.server, Type::TEXT),
            (&common.is_one_by_one, Type::BOOL),
            (&together, Type::INT8),
        ];
        let mut batches = self.batches(connection, "read", &self.sql.read, &parameters, 1, request.bytes).await?;
        Ok(batches.pop().unwrap_or_default())
    }

    async fn read_groups(
        &self,
        connection: &Object,
        request: &ReadRequest,
        common: &Common<'_>,
    ) -> Result<Vec<Batch>, OutboxError> {
        let lanes = numbers(request.groups.iter().map(|position| position.after.lane));
        let names: Vec<&str> = request.groups.iter().map(|position| position.group.as_ref()).collect();
        let after: Vec<i64> = request.groups.iter().map(|position| position.after.id.0).collect();
        let upto: Vec<i64> = request.groups.iter().map(|position| position.upto.0).collect();
        let limit: Vec<i64> = request.groups.iter().map(|position| count(position.limit)).collect();
        let share = count(request.stored_bytes / request.groups.len().max(1)).max(1);
        let bytes = vec![share; request.groups.len()];
        let (together, is_blocked) = (request.together(), request.order.is_blocked_by_dead());
        let parameters: [Parameter<'_>; 13] = [
            (&common.destination, Type::TEXT),
            (&lanes, Type::INT2_ARRAY),
            (&names, Type::TEXT_ARRAY),
            (&after, Type::INT8_ARRAY),
            (&limit, Type::INT8_ARRAY),
            (&bytes, Type::INT8_ARRAY),
            (&common.max_bytes, Type::INT8),
            (&is_blocked, Type::BOOL),
            (&common.transaction_id, Type::TEXT),
            (&common.server, Type::TEXT),
            (&common.is_one_by_one, Type::BOOL),
            (&upto, Type::INT8_ARRAY),
            (&together, Type::INT8),
        ];
        let parts = request.groups.len();
        self.batches(connection, "read groups", &self.sql.read_groups, &parameters, parts, request.bytes).await
    }

    /// The deferred messages of claimed lanes that are due.
    ///
    /// # Errors
    ///
    /// When the statement fails, or when a server other than the claim's answers.
    pub async fn read_due(
        &self,
        destination: &str,
        request: &DueRequest,
        proof: &ClaimProof,
    ) -> Result<Batch, OutboxError> {
        let common = Common::new(destination, proof, request.lookup, request.max_body_bytes);
        let lanes = numbers(request.lanes.iter().copied());
        let (limit, stored) = (count(request.limit), count(request.stored_bytes));
        let groups: Vec<&str> = request.groups_to_skip.iter().map(AsRef::as_ref).collect();
        let seconds = request.longest_delay.as_secs_f64();
        let (is_ordered, is_blocked) = (request.order.is_kept(), request.order.is_blocked_by_dead());
        let parameters: [Parameter<'_>; 12] = [
            (&common.destination, Type::TEXT),
            (&lanes, Type::INT2_ARRAY),
            (&limit, Type::INT8),
            (&stored, Type::INT8),
            (&groups, Type::TEXT_ARRAY),
            (&common.max_bytes, Type::INT8),
            (&seconds, Type::FLOAT8),
            (&is_blocked, Type::BOOL),
            (&common.transaction_id, Type::TEXT),
            (&common.server, Type::TEXT),
            (&common.is_one_by_one, Type::BOOL),
            (&is_ordered, Type::BOOL),
        ];
        let connection = self.connection().await?;
        let batches = self.batches(&connection, "read due", &self.sql.read_due, &parameters, 1, request.bytes);
        let result = self.transaction("read due", &connection, READING, batches).await;
        let mut batches = if result.as_ref().is_ok_and(has_large) {
            drop(Object::take(connection));
            result?
        } else {
            self.keep_if_ok(connection, result).await?
        };
        Ok(batches.pop().unwrap_or_default())
    }

    /// Runs a reading statement and distributes its rows to this many batches; rows of part 0 or 1 go to the first. A
    /// negative part says that there was no room for more of it.
    async fn batches(
        &self,
        connection: &Object,
        statement: &'static str,
        sql: &str,
        parameters: &[Parameter<'_>],
        parts: usize,
        max_bytes: usize,
    ) -> Result<Vec<Batch>, OutboxError> {
        let work = async {
            let parameters = parameters.iter().map(|(value, kind)| (*value, kind.clone()));
            let rows = self.bounded(statement, connection.query_typed_raw(sql, parameters)).await?;
            pin_mut!(rows);
            let mut batches: Vec<Batch> = (0..parts).map(|_| Batch::default()).collect();
            let (mut bytes, mut said) = (0, None);
            while let Some(row) = rows.next().await {
                let row = row.map_err(|error| OutboxError::of_statement(statement, &self.place, &error))?;
                let part = part(statement, &row)?;
                let Some(batch) = batches.get_mut(part.unsigned_abs().saturating_sub(1) as usize) else { continue };
                let said = Said::of(statement, &row, &mut said)?;
                if part < 0 {
                    leave_row(statement, &row, batch)?;
                } else {
                    bytes += take_row(statement, (&row, said), batch, bytes, max_bytes)?;
                }
            }
            // Lanes come one after the other; the oldest message of all should go first.
            batches.iter_mut().for_each(|batch| batch.messages.sort_by_cached_key(|message| message.key.id));
            Ok(batches)
        };
        match tokio::time::timeout(STATEMENT_TIMEOUT, work).await {
            Ok(result) => result,
            Err(_) => Err(OutboxError::Timeout { statement, place: self.place.to_string() }),
        }
    }
}
