//! Reading and sweeping: what waits in claimed lanes, without taking anything. [`super::look`] asks whether there is any.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use deadpool_postgres::Object;
use futures_util::{StreamExt as _, pin_mut};
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::{Outbox, OutboxError, Parameter, STATEMENT_TIMEOUT, Snapshot, column};
use crate::message::{Event, Lane, Message, MessageKey};

const READ: &str = include_str!("../../sql/queries/read.sql");
const READ_GROUP: &str = include_str!("../../sql/queries/read_group.sql");
const READ_DUE: &str = include_str!("../../sql/queries/read_due.sql");
const DEFERRED_HEADS: &str = include_str!("../../sql/queries/deferred_heads.sql");
const SWEEP: &str = include_str!("../../sql/queries/sweep.sql");

/// PostgreSQL takes the number of messages that a read may bring as unknown, a tenth of each lane, so with half a million
/// waiting it compiles the statement anew for each read of a thousand, which takes twice as long as the read.
const NO_JIT: &str = "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY; SET LOCAL jit = off";

/// How many bytes of bodies one read may bring; what comes after is left for the next read. A batch of the largest
/// messages would otherwise need a gigabyte.
pub const READ_BYTES: usize = 16 * 1024 * 1024;

/// How many bytes the server is asked for. It counts them as they are stored, which compression makes fewer than what
/// arrives, so the number starts low and follows what reads bring.
#[derive(Clone, Copy, Debug)]
pub struct ReadBudget(usize);

impl Default for ReadBudget {
    fn default() -> Self {
        Self(READ_BYTES / 16)
    }
}

impl ReadBudget {
    /// What to ask for next, after a read that had to be cut, or had not.
    pub fn follow(&mut self, is_cut: bool) {
        self.0 = if is_cut { (self.0 / 2).max(READ_BYTES / 256) } else { (self.0 * 2).min(READ_BYTES) };
    }

    fn bytes(self) -> i64 {
        i64::try_from(self.0).unwrap_or(i64::MAX)
    }

    /// The part of a lane that gets `part` of `total` messages.
    fn share(self, part: usize, total: usize) -> i64 {
        i64::try_from(self.0 * part / total.max(1)).unwrap_or(i64::MAX).max(1)
    }
}

/// From where, and how much, to read of one lane.
#[derive(Clone, Copy, Debug)]
pub struct Position {
    /// The lane.
    pub lane: Lane,
    /// Read above this id.
    pub cursor: i64,
    /// Not more messages than this.
    pub most: usize,
}

/// What a read brought, in the order of ids.
#[derive(Debug, Default)]
pub struct Batch {
    /// The messages.
    pub messages: Vec<Message>,
    /// Every transaction that had begun to write was below this one; 0 when there is no message.
    pub next_xid: i64,
    /// Whether the read stopped at [`READ_BYTES`].
    pub is_cut: bool,
    /// Lanes of which the server had more than it was asked for in bytes.
    pub lanes_with_more: Vec<Lane>,
}

/// A group whose first message waits in the table for a retry.
#[derive(Clone, Debug)]
pub struct DeferredHead {
    /// The group.
    pub group: Arc<str>,
    /// The message.
    pub key: MessageKey,
    /// When it may be tried again, by this process's clock.
    pub due: Instant,
    /// Whether an operator redrove it, so that it may stand anywhere in its group.
    pub is_redriven: bool,
}

/// Groups whose messages come otherwise than by being due.
#[derive(Clone, Debug, Default)]
pub struct DueElsewhere {
    /// All messages of these.
    pub all: Vec<Arc<str>>,
    /// What was redriven of these; their heads have failed attempts.
    pub redriven: Vec<Arc<str>>,
}

/// Where to sweep in a lane.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    /// The lane.
    pub lane: Lane,
    /// Above this id.
    pub above: i64,
    /// Up to and including this one.
    pub upto: i64,
}

/// What to sweep.
#[derive(Clone, Debug)]
pub struct Sweep {
    /// Where.
    pub ranges: Vec<Range>,
    /// How many messages of each lane at most.
    pub most: usize,
    /// Groups whose messages are known to wait in the table, with their lanes.
    pub groups_to_skip: Vec<(Lane, Arc<str>)>,
}

/// What a sweep found.
#[derive(Clone, Debug)]
pub struct Swept {
    /// What had ended when it looked.
    pub snapshot: Snapshot,
    /// Pending messages in the range, those already known included.
    pub keys: Vec<MessageKey>,
}

impl Outbox {
    /// The next messages of claimed lanes; and if asked for, what a sweep sees right after that, under a later snapshot. So
    /// a message that this read shows, and one that was committed before it, are never both missed.
    ///
    /// # Errors
    ///
    /// When a statement fails.
    pub async fn read(
        &self,
        destination: &str,
        positions: &[Position],
        budget: ReadBudget,
        sweep: Option<&Sweep>,
    ) -> Result<(Batch, Option<Swept>), OutboxError> {
        let lanes: Vec<Lane> = positions.iter().map(|position| position.lane).collect();
        let cursors: Vec<i64> = positions.iter().map(|position| position.cursor).collect();
        let most: Vec<i64> = positions.iter().map(|p| i64::try_from(p.most).unwrap_or(i64::MAX)).collect();
        let total = positions.iter().map(|position| position.most).sum();
        let bytes: Vec<i64> = positions.iter().map(|position| budget.share(position.most, total)).collect();
        let parameters: [Parameter<'_>; 5] = [
            (&destination, Type::TEXT),
            (&lanes, Type::INT2_ARRAY),
            (&cursors, Type::INT8_ARRAY),
            (&most, Type::INT8_ARRAY),
            (&bytes, Type::INT8_ARRAY),
        ];
        let connection = self.connection().await?;
        let read = self.batch_on(&connection, "read", READ, &parameters);
        let sweep = async {
            match sweep {
                Some(sweep) => self.sweep_on(&connection, destination, sweep).await.map(Some),
                None => Ok(None),
            }
        };
        let both = async {
            let (read, swept) = tokio::join!(read, sweep);
            Ok((read?, swept?))
        };
        let result = self.without_jit("read", &connection, both).await;
        self.keep_if_ok(connection, result).await
    }

    /// The next messages of one group.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn read_group(
        &self,
        destination: &str,
        group: &str,
        after: MessageKey,
        most: usize,
        budget: ReadBudget,
    ) -> Result<Batch, OutboxError> {
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let bytes = budget.bytes();
        let parameters: [Parameter<'_>; 6] = [
            (&destination, Type::TEXT),
            (&after.lane, Type::INT2),
            (&group, Type::TEXT),
            (&after.id, Type::INT8),
            (&most, Type::INT8),
            (&bytes, Type::INT8),
        ];
        self.batch("read group", READ_GROUP, &parameters).await
    }

    /// The groups of these lanes whose head waits for a retry.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn deferred_heads(&self, destination: &str, lanes: &[Lane]) -> Result<Vec<DeferredHead>, OutboxError> {
        const NAME: &str = "read deferred heads";
        let parameters: [Parameter<'_>; 2] = [(&destination, Type::TEXT), (&lanes, Type::INT2_ARRAY)];
        let rows = self.query(NAME, DEFERRED_HEADS, &parameters).await?;
        let now = Instant::now();
        let head = |row: &Row| {
            Ok(DeferredHead {
                group: Arc::from(column::<&str>(NAME, row, 1)?),
                key: MessageKey { lane: column(NAME, row, 0)?, id: column(NAME, row, 2)? },
                due: now + column::<Option<i64>>(NAME, row, 3)?.map_or(Duration::ZERO, millis),
                is_redriven: column(NAME, row, 4)?,
            })
        };
        rows.iter().map(head).collect()
    }

    /// The messages of these lanes that wait for a retry which is due, but for those of some groups, and for what was
    /// redriven of others.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn read_due(
        &self,
        destination: &str,
        lanes: &[Lane],
        most: usize,
        budget: ReadBudget,
        groups_to_skip: &DueElsewhere,
    ) -> Result<Batch, OutboxError> {
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let bytes = budget.bytes();
        let names = |groups: &'_ [Arc<str>]| groups.iter().map(ToString::to_string).collect::<Vec<String>>();
        let (groups, heads) = (names(&groups_to_skip.all), names(&groups_to_skip.redriven));
        let parameters: [Parameter<'_>; 6] = [
            (&destination, Type::TEXT),
            (&lanes, Type::INT2_ARRAY),
            (&most, Type::INT8),
            (&bytes, Type::INT8),
            (&groups, Type::TEXT_ARRAY),
            (&heads, Type::TEXT_ARRAY),
        ];
        self.batch("read due", READ_DUE, &parameters).await
    }

    /// Looks for pending messages between two ids of each lane.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn sweep(&self, destination: &str, sweep: &Sweep) -> Result<Swept, OutboxError> {
        let connection = self.connection().await?;
        let swept = self.sweep_on(&connection, destination, sweep).await;
        self.keep_if_ok(connection, swept).await
    }

    async fn sweep_on(&self, connection: &Object, destination: &str, sweep: &Sweep) -> Result<Swept, OutboxError> {
        let lanes: Vec<Lane> = sweep.ranges.iter().map(|range| range.lane).collect();
        let above: Vec<i64> = sweep.ranges.iter().map(|range| range.above).collect();
        let upto: Vec<i64> = sweep.ranges.iter().map(|range| range.upto).collect();
        let most = i64::try_from(sweep.most).unwrap_or(i64::MAX);
        let groups: Vec<&str> = sweep.groups_to_skip.iter().map(|(_, group)| group.as_ref()).collect();
        let parameters: [Parameter<'_>; 6] = [
            (&destination, Type::TEXT),
            (&lanes, Type::INT2_ARRAY),
            (&above, Type::INT8_ARRAY),
            (&upto, Type::INT8_ARRAY),
            (&most, Type::INT8),
            (&groups, Type::TEXT_ARRAY),
        ];
        let rows = self.bounded("sweep", connection.query_typed(SWEEP, &parameters)).await?;
        let mut seen = None;
        let mut keys = Vec::with_capacity(rows.len());
        for row in &rows {
            match column::<Option<String>>("sweep", row, 0)? {
                Some(text) => seen = Some(snapshot("sweep", &text)?),
                None => keys.push(MessageKey { lane: column("sweep", row, 1)?, id: column("sweep", row, 2)? }),
            }
        }
        let snapshot = seen.ok_or(OutboxError::Answer { statement: "sweep", problem: "no snapshot".to_owned() })?;
        Ok(Swept { snapshot, keys })
    }

    async fn batch(
        &self,
        statement: &'static str,
        sql: &str,
        parameters: &[Parameter<'_>],
    ) -> Result<Batch, OutboxError> {
        let connection = self.connection().await?;
        let read = self.batch_on(&connection, statement, sql, parameters);
        let result = self.without_jit(statement, &connection, read).await;
        self.keep_if_ok(connection, result).await
    }

    /// Runs reads in a transaction in which nothing is compiled. All is sent at once; PostgreSQL runs the statements of a
    /// connection one after the other, in the order in which they are polled first, and gives each its own snapshot.
    async fn without_jit<T>(
        &self,
        statement: &'static str,
        connection: &Object,
        reads: impl Future<Output = Result<T, OutboxError>>,
    ) -> Result<T, OutboxError> {
        let begin = self.bounded(statement, connection.batch_execute(NO_JIT));
        let commit = self.bounded(statement, connection.batch_execute("COMMIT"));
        let (begun, result, committed) = tokio::join!(begin, reads, commit);
        begun?;
        let value = result?;
        committed?;
        Ok(value)
    }

    async fn batch_on(
        &self,
        connection: &Object,
        statement: &'static str,
        sql: &str,
        parameters: &[Parameter<'_>],
    ) -> Result<Batch, OutboxError> {
        let work = async {
            let parameters = parameters.iter().map(|(value, kind)| (*value, kind.clone()));
            let rows = self.bounded(statement, connection.query_typed_raw(sql, parameters)).await?;
            pin_mut!(rows);
            let mut batch = Batch::default();
            let mut bytes = 0;
            while let Some(row) = rows.next().await {
                let row = row.map_err(|error| OutboxError::of_statement(statement, &self.place, &error))?;
                let message = message(statement, &row, &mut batch.next_xid)?;
                bytes += message.event.as_ref().map_or(0, |event| event.payload.len() + event.metadata.len());
                let lane = message.key.lane;
                batch.lanes_with_more.retain(|other| *other != lane);
                if column(statement, &row, 14)? {
                    batch.lanes_with_more.push(lane);
                }
                // The first message always fits, or it would never be read.
                if bytes > READ_BYTES && !batch.messages.is_empty() {
                    batch.is_cut = true;
                    break;
                }
                batch.messages.push(message);
            }
            // Lanes come one after the other; the oldest message of all is to go first.
            batch.messages.sort_by_key(|message| message.key.id);
            Ok(batch)
        };
        match tokio::time::timeout(STATEMENT_TIMEOUT, work).await {
            Ok(result) => result,
            Err(_) => Err(OutboxError::Timeout { statement, place: self.place.to_string() }),
        }
    }
}

pub(super) fn snapshot(statement: &'static str, text: &str) -> Result<Snapshot, OutboxError> {
    Snapshot::parse(text).ok_or_else(|| OutboxError::Answer { statement, problem: format!("{text:?} is no snapshot") })
}

fn millis(millis: i64) -> Duration {
    Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}

/// The columns are those of `sql/queries/read.sql`, which all reading statements share.
pub(super) fn message(statement: &'static str, row: &Row, next_xid: &mut i64) -> Result<Message, OutboxError> {
    *next_xid = column(statement, row, 0)?;
    let now: SystemTime = column(statement, row, 1)?;
    let enqueued_at: SystemTime = column(statement, row, 5)?;
    let event = match column::<Option<String>>(statement, row, 7)? {
        None => None,
        Some(event_id) => {
            let stream_id: Option<String> = column(statement, row, 9)?;
            let stream_version: Option<i64> = column(statement, row, 10)?;
            Some(Event {
                event_id,
                event_type: column(statement, row, 8)?,
                stream: stream_id.zip(stream_version),
                payload: column(statement, row, 11)?,
                metadata: column(statement, row, 12)?,
            })
        }
    };
    let wait: Option<i64> = column(statement, row, 13)?;
    Ok(Message {
        key: MessageKey { lane: column(statement, row, 2)?, id: column(statement, row, 3)? },
        attempts: column(statement, row, 4)?,
        group: column::<Option<&str>>(statement, row, 6)?.map(Arc::from),
        // A clock that was set back makes a message look as if it came from the future.
        age_when_read: now.duration_since(enqueued_at).unwrap_or(Duration::ZERO),
        read_at: Instant::now(),
        wait: wait.map(millis),
        event,
    })
}
