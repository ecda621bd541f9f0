//! Looking, reading and sweeping: what waits, without taking anything.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures_util::{StreamExt as _, pin_mut};
use tokio_postgres::Row;
use tokio_postgres::types::Type;

use super::{Outbox, OutboxError, Parameter, STATEMENT_TIMEOUT, column, keep_if_ok};
use crate::message::{Event, Lane, Message, MessageKey};

const WATCH: &str = include_str!("../../sql/queries/watch.sql");
const LOOK: &str = include_str!("../../sql/queries/look.sql");
const READ: &str = include_str!("../../sql/queries/read.sql");
const READ_FOUND: &str = include_str!("../../sql/queries/read_found.sql");
const READ_GROUP: &str = include_str!("../../sql/queries/read_group.sql");
const READ_DEFERRED: &str = include_str!("../../sql/queries/read_deferred.sql");
const SWEEP: &str = include_str!("../../sql/queries/sweep.sql");
const PENDING: &str = include_str!("../../sql/queries/pending.sql");

/// How many bytes of bodies one read may bring; what comes after is left for the next read. A batch of the largest
/// messages would otherwise need a gigabyte.
pub const READ_BYTES: usize = 16 * 1024 * 1024;

/// What can be seen of quiet destinations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watch {
    /// The highest message id handed out so far, committed or not, to any destination.
    pub last_id: i64,
    /// Whether a retry is due.
    pub is_due: bool,
}

/// What a look saw.
#[derive(Clone, Debug)]
pub struct Look {
    /// Oldest transaction that was still running.
    pub xmin: i64,
    /// First transaction that had not begun.
    pub xmax: i64,
    /// The highest message id handed out so far, committed or not.
    pub last_id: i64,
    /// Lanes with messages above their bound.
    pub ready: Vec<Lane>,
    /// Lanes with a retry that is due.
    pub due: Vec<Lane>,
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
    /// The xmax of the snapshot; 0 when there is no message.
    pub xmax: i64,
    /// Whether the read stopped at [`READ_BYTES`].
    pub is_cut: bool,
}

/// What a sweep found.
#[derive(Clone, Debug)]
pub struct Swept {
    /// The xmin of the snapshot.
    pub xmin: i64,
    /// Pending messages in the range, those already known included.
    pub keys: Vec<MessageKey>,
}

impl Outbox {
    /// Whether anything may have come for these destinations since the last look.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn watch(&self, destinations: &[&str]) -> Result<Watch, OutboxError> {
        let row = self.query_one("watch", WATCH, &[(&destinations, Type::TEXT_ARRAY)]).await?;
        Ok(Watch { last_id: column("watch", &row, 0)?, is_due: column("watch", &row, 1)? })
    }

    /// Which lanes have work above their low bounds.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn look(&self, destination: &str, lows: &[(Lane, i64)]) -> Result<Look, OutboxError> {
        let (lanes, lows): (Vec<Lane>, Vec<i64>) = lows.iter().copied().unzip();
        let parameters: [Parameter<'_>; 3] =
            [(&destination, Type::TEXT), (&lanes, Type::INT2_ARRAY), (&lows, Type::INT8_ARRAY)];
        let row = self.query_one("look", LOOK, &parameters).await?;
        Ok(Look {
            xmin: column("look", &row, 0)?,
            xmax: column("look", &row, 1)?,
            last_id: column("look", &row, 2)?,
            ready: column("look", &row, 3)?,
            due: column("look", &row, 4)?,
        })
    }

    /// Whether anything of the destination is pending, deferred messages included.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn is_pending(&self, destination: &str) -> Result<bool, OutboxError> {
        let row = self.query_one("look for pending", PENDING, &[(&destination, Type::TEXT)]).await?;
        column("look for pending", &row, 0)
    }

    /// The next messages of claimed lanes.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn read(&self, destination: &str, positions: &[Position]) -> Result<Batch, OutboxError> {
        let lanes: Vec<Lane> = positions.iter().map(|position| position.lane).collect();
        let cursors: Vec<i64> = positions.iter().map(|position| position.cursor).collect();
        let most: Vec<i64> = positions.iter().map(|p| i64::try_from(p.most).unwrap_or(i64::MAX)).collect();
        let parameters: [Parameter<'_>; 4] = [
            (&destination, Type::TEXT),
            (&lanes, Type::INT2_ARRAY),
            (&cursors, Type::INT8_ARRAY),
            (&most, Type::INT8_ARRAY),
        ];
        self.batch("read", READ, &parameters).await
    }

    /// Messages that a sweep found.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn read_found(&self, destination: &str, keys: &[MessageKey]) -> Result<Batch, OutboxError> {
        let lanes: Vec<Lane> = keys.iter().map(|key| key.lane).collect();
        let ids: Vec<i64> = keys.iter().map(|key| key.id).collect();
        let parameters: [Parameter<'_>; 3] =
            [(&destination, Type::TEXT), (&lanes, Type::INT2_ARRAY), (&ids, Type::INT8_ARRAY)];
        self.batch("read found", READ_FOUND, &parameters).await
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
    ) -> Result<Batch, OutboxError> {
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let parameters: [Parameter<'_>; 5] = [
            (&destination, Type::TEXT),
            (&after.lane, Type::INT2),
            (&group, Type::TEXT),
            (&after.id, Type::INT8),
            (&most, Type::INT8),
        ];
        self.batch("read group", READ_GROUP, &parameters).await
    }

    /// The messages of these lanes that wait for a retry which is due within some time; those not due say how long.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn read_deferred(
        &self,
        destination: &str,
        lanes: &[Lane],
        most: usize,
        within: Duration,
    ) -> Result<Batch, OutboxError> {
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let within = i64::try_from(within.as_millis()).unwrap_or(i64::MAX);
        let parameters: [Parameter<'_>; 4] =
            [(&destination, Type::TEXT), (&lanes, Type::INT2_ARRAY), (&most, Type::INT8), (&within, Type::INT8)];
        self.batch("read deferred", READ_DEFERRED, &parameters).await
    }

    /// Looks for pending messages between two ids of each lane: `(lane, above, up to)`.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn sweep(
        &self,
        destination: &str,
        ranges: &[(Lane, i64, i64)],
        most: usize,
        groups_to_skip: &[Arc<str>],
    ) -> Result<Swept, OutboxError> {
        let lanes: Vec<Lane> = ranges.iter().map(|range| range.0).collect();
        let above: Vec<i64> = ranges.iter().map(|range| range.1).collect();
        let upto: Vec<i64> = ranges.iter().map(|range| range.2).collect();
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let groups: Vec<&str> = groups_to_skip.iter().map(AsRef::as_ref).collect();
        let parameters: [Parameter<'_>; 6] = [
            (&destination, Type::TEXT),
            (&lanes, Type::INT2_ARRAY),
            (&above, Type::INT8_ARRAY),
            (&upto, Type::INT8_ARRAY),
            (&most, Type::INT8),
            (&groups, Type::TEXT_ARRAY),
        ];
        let rows = self.query("sweep", SWEEP, &parameters).await?;
        let mut swept = Swept { xmin: 0, keys: Vec::with_capacity(rows.len()) };
        for row in &rows {
            swept.xmin = column("sweep", row, 0)?;
            if let Some(lane) = column::<Option<Lane>>("sweep", row, 1)? {
                swept.keys.push(MessageKey { lane, id: column("sweep", row, 2)? });
            }
        }
        Ok(swept)
    }

    async fn batch(
        &self,
        statement: &'static str,
        sql: &str,
        parameters: &[Parameter<'_>],
    ) -> Result<Batch, OutboxError> {
        let connection = self.connection().await?;
        let work = async {
            let parameters = parameters.iter().map(|(value, kind)| (*value, kind.clone()));
            let rows = self.bounded(statement, connection.query_typed_raw(sql, parameters)).await?;
            pin_mut!(rows);
            let mut batch = Batch::default();
            let mut bytes = 0;
            while let Some(row) = rows.next().await {
                let row = row.map_err(|error| OutboxError::of_statement(statement, &self.place, &error))?;
                let message = message(statement, &row, &mut batch.xmax)?;
                bytes += message.event.as_ref().map_or(0, |event| event.payload.len() + event.metadata.len());
                // The first message always fits, or it would never be read.
                if bytes > READ_BYTES && !batch.messages.is_empty() {
                    batch.is_cut = true;
                    break;
                }
                batch.messages.push(message);
            }
            Ok(batch)
        };
        let result = match tokio::time::timeout(STATEMENT_TIMEOUT, work).await {
            Ok(result) => result,
            Err(_) => Err(OutboxError::Timeout { statement, place: self.place.to_string() }),
        };
        let mut batch = keep_if_ok(connection, result)?;
        // Lanes come one after the other; the oldest message of all is to go first.
        batch.messages.sort_by_key(|message| message.key.id);
        Ok(batch)
    }
}

/// The columns are those of `sql/queries/read.sql`, which all reading statements share; `wait` follows in one of them.
fn message(statement: &'static str, row: &Row, xmax: &mut i64) -> Result<Message, OutboxError> {
    *xmax = column(statement, row, 0)?;
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
    let wait = if row.len() > 13 { column::<Option<i64>>(statement, row, 13)? } else { None };
    Ok(Message {
        key: MessageKey { lane: column(statement, row, 2)?, id: column(statement, row, 3)? },
        attempts: column(statement, row, 4)?,
        group: column::<Option<&str>>(statement, row, 6)?.map(Arc::from),
        // A clock that was set back makes a message look as if it came from the future.
        age_when_read: now.duration_since(enqueued_at).unwrap_or(Duration::ZERO),
        read_at: Instant::now(),
        wait: wait.map(|millis| Duration::from_millis(u64::try_from(millis).unwrap_or(0))),
        event,
    })
}
