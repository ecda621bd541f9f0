//! Rows: turns the answers of the reading statements, whose columns `sql/queries/read.sql` describes, into messages of
//! a batch.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio_postgres::Row;

use super::{OutboxError, column, lane};
use crate::clock::Time;
use crate::message::{
    BodyForm, Content, Event, EventPosition, Hold, Message, MessageId, MessageKey, Origin, SequenceNumber,
    TransactionId,
};
use crate::reading::Batch;

/// The column numbers of all reading statements, as in `sql/queries/read.sql`.
mod at {
    pub(super) const SAID: usize = 0;
    pub(super) const LANE: usize = 1;
    pub(super) const ID: usize = 2;
    pub(super) const EVENT_POSITION: usize = 3;
    pub(super) const ENQUEUED_AT: usize = 4;
    pub(super) const ATTEMPTS: usize = 5;
    pub(super) const GROUP: usize = 6;
    pub(super) const HOLDS: usize = 7;
    pub(super) const HAS_MORE: usize = 8;
    pub(super) const EVENT_ID: usize = 9;
    pub(super) const EVENT_TYPE: usize = 10;
    pub(super) const STREAM_ID: usize = 11;
    pub(super) const STREAM_VERSION: usize = 12;
    pub(super) const BODY: usize = 13;
    pub(super) const METADATA: usize = 14;
    pub(super) const BYTES: usize = 15;
    pub(super) const FORM: usize = 16;
    pub(super) const PART: usize = 17;
    pub(super) const SUPERSEDED: usize = 18;
}

/// The data about the whole statement; it comes with the first row and with some later ones.
#[derive(Clone, Copy)]
pub(super) struct Said {
    next_xid: TransactionId,
    now: SystemTime,
    hides_events: bool,
    last_id: MessageId,
    read_at: Time,
}

impl Said {
    /// The data of this row, or else of an earlier row.
    ///
    /// # Errors
    ///
    /// When the claim is gone.
    pub(super) fn of(statement: &'static str, row: &Row, said: &mut Option<Said>) -> Result<Said, OutboxError> {
        if let Some(said) = said {
            return Ok(*said);
        }
        let [next_xid, now, is_claimed, hides_events, last_id] =
            elements(statement, column::<Vec<i64>>(statement, row, at::SAID)?)?;
        if is_claimed == 0 {
            return Err(OutboxError::ClaimLost);
        }
        let new = Said {
            next_xid: TransactionId(next_xid),
            now: SystemTime::UNIX_EPOCH + Duration::from_micros(u64::try_from(now).unwrap_or(0)),
            hides_events: hides_events != 0,
            last_id: MessageId(last_id),
            read_at: Time::now(),
        };
        Ok(*said.insert(new))
    }
}

/// The elements of an array column of this length.
fn elements<T, const N: usize>(statement: &'static str, array: Vec<T>) -> Result<[T; N], OutboxError> {
    let problem = |array: Vec<T>| format!("an array of {} instead of {N}", array.len());
    array.try_into().map_err(|array| OutboxError::Answer { statement, problem: problem(array) })
}

/// The part of the request that a row belongs to, counted from 1, or 0 if there is only one. It is negative if the row
/// stands for messages that were left in the table, because what comes before them was enough.
///
/// # Errors
///
/// When the column has another type.
pub(super) fn part(statement: &'static str, row: &Row) -> Result<i32, OutboxError> {
    column(statement, row, at::PART)
}

/// A read that returns more messages than this probably returns many; the batch then reserves room at once instead of
/// moving messages each time it doubles.
const FEW: usize = 64;
const MANY: usize = 1024;

/// Adds a row to its batch, unless there is no room; returns the bytes that it added.
///
/// # Errors
///
/// When a column has another type, or an event is hidden.
pub(super) fn take_row(
    statement: &'static str,
    (row, said): (&Row, Said),
    batch: &mut Batch,
    bytes: usize,
    max_bytes: usize,
) -> Result<usize, OutboxError> {
    let message = message(statement, row, said)?;
    let own = match &message.content {
        Content::Event(event) => event.body.len() + event.metadata.len(),
        _ => 0,
    };
    let of_lane = message.key.lane;
    batch.next_xid = Some(said.next_xid);
    batch.last_id = said.last_id;
    // The last row of each lane counts.
    if !column::<bool>(statement, row, at::HAS_MORE)? {
        batch.lanes_with_more.retain(|other| *other != of_lane);
    } else if !batch.lanes_with_more.contains(&of_lane) {
        batch.lanes_with_more.push(of_lane);
    }
    // The first message always fits; otherwise it would never be read. A message after one that did not fit is read
    // together with that one.
    if batch.is_cut || (bytes + own > max_bytes && bytes > 0) {
        batch.is_cut = true;
        return Ok(0);
    }
    if batch.messages.len() == FEW {
        batch.messages.reserve(MANY);
    }
    batch.messages.push(message);
    Ok(own)
}

/// Notes that the lane of this row has messages for which there was no room.
///
/// # Errors
///
/// When a column has another type.
pub(super) fn leave_row(statement: &'static str, row: &Row, batch: &mut Batch) -> Result<(), OutboxError> {
    let of_lane = lane(statement, row, at::LANE)?;
    if !batch.lanes_with_more.contains(&of_lane) {
        batch.lanes_with_more.push(of_lane);
    }
    Ok(())
}

fn millis(millis: i64) -> Duration {
    // An endless wait counts as a century, so that adding it to a time does not overflow.
    const CENTURY: i64 = 100 * 366 * 86_400 * 1000;
    Duration::from_millis(u64::try_from(millis.min(CENTURY)).unwrap_or(0))
}

/// How long a deferred message waits, according to the statement; `None` when that is not known.
pub(super) fn wait(milliseconds: Option<i64>) -> Option<Duration> {
    match milliseconds {
        None => Some(Duration::ZERO),
        Some(i64::MAX) => None,
        Some(wait) => Some(millis(wait)),
    }
}

/// What holds a message up, and how long it waits itself.
fn holds(statement: &'static str, row: &Row) -> Result<(Option<Hold>, Option<Duration>), OutboxError> {
    let Some(holds) = column::<Option<Vec<Option<i64>>>>(statement, row, at::HOLDS)? else { return Ok((None, None)) };
    let [held_by, behind, behind_wait, behind_last, own_wait] = elements(statement, holds)?;
    let hold = match (held_by, behind) {
        (Some(by), _) => Some(Hold::Group { by: MessageId(by) }),
        (None, Some(head)) => {
            let last = MessageId(behind_last.unwrap_or(head));
            Some(Hold::Behind { head: MessageId(head), last, wait: wait(behind_wait) })
        }
        (None, None) => None,
    };
    Ok((hold, own_wait.map(millis)))
}

fn content(statement: &'static str, row: &Row, hold: Option<Hold>, said: Said) -> Result<Content, OutboxError> {
    if matches!(hold, Some(Hold::Group { .. })) {
        return Ok(Content::Held);
    }
    let body: Option<String> = column(statement, row, at::BODY)?;
    let metadata: Option<String> = column(statement, row, at::METADATA)?;
    let Some((body, metadata)) = body.zip(metadata) else { return without_text(statement, row, said) };
    let form = match column::<Option<&str>>(statement, row, at::FORM)? {
        None => BodyForm::Json,
        Some("text") => BodyForm::Text,
        Some("base64") => BodyForm::Base64,
        Some("unreadable") => return Ok(Content::Unreadable { reason: body }),
        Some(other) => {
            return Err(OutboxError::Answer { statement, problem: format!("a body of the form {other:?}") });
        }
    };
    let stream_id: Option<String> = column(statement, row, at::STREAM_ID)?;
    let stream_version: Option<i64> = column(statement, row, at::STREAM_VERSION)?;
    Ok(Content::Event(Event {
        event_id: column(statement, row, at::EVENT_ID)?,
        event_type: column(statement, row, at::EVENT_TYPE)?,
        stream: stream_id.zip(stream_version),
        body,
        form,
        metadata,
    }))
}

/// Why a message that nothing holds up came without its text.
fn without_text(statement: &'static str, row: &Row, said: Said) -> Result<Content, OutboxError> {
    if column::<Option<&str>>(statement, row, at::EVENT_ID)?.is_some() {
        let bytes: Option<i64> = column(statement, row, at::BYTES)?;
        return Ok(Content::TooLarge { bytes: bytes.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(0) });
    }
    match said.hides_events {
        false => Ok(Content::Missing),
        true => Err(OutboxError::Answer {
            statement,
            problem: "an event is missing while row level security is in force on the table of events".to_owned(),
        }),
    }
}

/// Reads a message from the columns of `sql/queries/read.sql`, which all reading statements share.
pub(super) fn message(statement: &'static str, row: &Row, said: Said) -> Result<Message, OutboxError> {
    let enqueued_at: SystemTime = column(statement, row, at::ENQUEUED_AT)?;
    let (hold, wait) = holds(statement, row)?;
    Ok(Message {
        key: MessageKey { lane: lane(statement, row, at::LANE)?, id: MessageId(column(statement, row, at::ID)?) },
        origin: Origin { event_position: EventPosition(column(statement, row, at::EVENT_POSITION)?), enqueued_at },
        group: column::<Option<&str>>(statement, row, at::GROUP)?.map(Arc::from),
        attempts: column(statement, row, at::ATTEMPTS)?,
        superseded: column::<Option<&str>>(statement, row, at::SUPERSEDED)?.and_then(SequenceNumber::parse),
        // After a clock was set back, a message can appear to be from the future.
        age_when_read: said.now.duration_since(enqueued_at).unwrap_or(Duration::ZERO),
        read_at: said.read_at,
        wait,
        hold,
        content: content(statement, row, hold, said)?,
    })
}
