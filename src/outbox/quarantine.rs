//! Quarantine: messages that are set aside one by one, so that they stop no others.

use std::borrow::Cow;
use std::time::SystemTime;

use tokio_postgres::types::Type;

use super::settle::shorten;
use super::{Keep, Outbox, OutboxError, Parameter, column, lane};
use crate::message::{
    EventPosition, FaultKind, MessageId, MessageKey, Origin, Outcome, Quarantined, SequenceNumber, Settlement,
};

/// A message in quarantine, for display.
#[derive(Clone, Debug)]
pub struct QuarantinedLine {
    /// The message, with what could not be recorded and why.
    pub message: Quarantined,
    /// When it was set aside, in RFC 3339.
    pub since: String,
}

/// The outcome that could not be recorded, column by column.
#[derive(Default)]
struct Unrecorded<'a> {
    outcome: Option<&'static str>,
    sqs_message_id: Option<&'a str>,
    sequence_number: Option<String>,
    attempts: Option<i16>,
    last_error: Option<Cow<'a, str>>,
}

impl<'a> Unrecorded<'a> {
    fn of(message: &'a Quarantined) -> Self {
        let new = Self::default();
        match &message.outcome {
            Some(Outcome::Delivered { sqs_message_id, sequence_number }) => Self {
                outcome: Some("delivered"),
                sqs_message_id: Some(sqs_message_id),
                sequence_number: sequence_number.map(|number| number.to_string()),
                ..new
            },
            Some(Outcome::Dead { attempts, error, .. }) => {
                Self { outcome: Some("dead"), attempts: Some(*attempts), last_error: Some(shorten(error)), ..new }
            }
            Some(Outcome::Deferred { .. } | Outcome::Superseded { .. }) | None => new,
        }
    }
}

/// A message in quarantine, from the columns that all lists of them begin with.
fn message(name: &'static str, row: &tokio_postgres::Row) -> Result<Quarantined, OutboxError> {
    let outcome = match column::<Option<&str>>(name, row, 6)? {
        Some("delivered") => {
            let sequence_number = column::<Option<&str>>(name, row, 11)?.and_then(SequenceNumber::parse);
            Some(Outcome::Delivered { sqs_message_id: column(name, row, 7)?, sequence_number })
        }
        Some("dead") => {
            // The kind of the fault is not needed any more.
            let kind = FaultKind::MessagePermanent;
            Some(Outcome::Dead { attempts: column(name, row, 8)?, kind, error: column(name, row, 9)? })
        }
        _ => None,
    };
    Ok(Quarantined {
        key: MessageKey { lane: lane(name, row, 1)?, id: MessageId(column(name, row, 2)?) },
        origin: Origin { event_position: EventPosition(column(name, row, 3)?), enqueued_at: column(name, row, 4)? },
        group: column::<Option<&str>>(name, row, 5)?.map(Into::into),
        outcome,
        reason: column(name, row, 10)?,
    })
}

impl Outbox {
    /// Sets messages aside.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn quarantine(&self, destination: &str, messages: &[Quarantined]) -> Result<(), OutboxError> {
        let lanes: Vec<i16> = messages.iter().map(|message| message.key.lane.number()).collect();
        let ids: Vec<i64> = messages.iter().map(|message| message.key.id.0).collect();
        let positions: Vec<i64> = messages.iter().map(|message| message.origin.event_position.0).collect();
        let times: Vec<SystemTime> = messages.iter().map(|message| message.origin.enqueued_at).collect();
        let groups: Vec<Option<&str>> = messages.iter().map(|message| message.group.as_deref()).collect();
        let unrecorded: Vec<Unrecorded<'_>> = messages.iter().map(Unrecorded::of).collect();
        let outcomes: Vec<Option<&str>> = unrecorded.iter().map(|unrecorded| unrecorded.outcome).collect();
        let sqs_ids: Vec<Option<&str>> = unrecorded.iter().map(|unrecorded| unrecorded.sqs_message_id).collect();
        let numbers: Vec<_> = unrecorded.iter().map(|unrecorded| unrecorded.sequence_number.as_deref()).collect();
        let attempts: Vec<Option<i16>> = unrecorded.iter().map(|unrecorded| unrecorded.attempts).collect();
        let errors: Vec<Option<&str>> = unrecorded.iter().map(|unrecorded| unrecorded.last_error.as_deref()).collect();
        let reasons: Vec<_> = messages.iter().map(|message| shorten(&message.reason)).collect();
        let parameters: [Parameter<'_>; 12] = [
            (&destination, Type::TEXT),
            (&lanes, Type::INT2_ARRAY),
            (&ids, Type::INT8_ARRAY),
            (&positions, Type::INT8_ARRAY),
            (&times, Type::TIMESTAMPTZ_ARRAY),
            (&groups, Type::TEXT_ARRAY),
            (&outcomes, Type::TEXT_ARRAY),
            (&sqs_ids, Type::TEXT_ARRAY),
            (&attempts, Type::INT2_ARRAY),
            (&errors, Type::TEXT_ARRAY),
            (&reasons, Type::TEXT_ARRAY),
            (&numbers, Type::TEXT_ARRAY),
        ];
        self.execute("quarantine", &self.sql.quarantine, &parameters).await.map(drop)
    }

    /// Messages in quarantine, oldest first, of one destination or of all.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn quarantined(
        &self,
        destination: Option<&str>,
        limit: i64,
    ) -> Result<Vec<(String, QuarantinedLine)>, OutboxError> {
        const NAME: &str = "list the quarantine";
        let parameters: [Parameter<'_>; 2] = [(&destination, Type::TEXT), (&limit, Type::INT8)];
        let line = |row: &tokio_postgres::Row| {
            let line = QuarantinedLine { message: message(NAME, row)?, since: column(NAME, row, 12)? };
            Ok((column(NAME, row, 0)?, line))
        };
        self.query(NAME, &self.sql.quarantined, &parameters).await?.iter().map(line).collect()
    }

    /// Messages in quarantine whose outcome could not be recorded, in the order of lanes and ids; only those after the
    /// given message, if one is given.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn unrecorded(
        &self,
        destination: &str,
        after: Option<MessageKey>,
        limit: i64,
    ) -> Result<Vec<Quarantined>, OutboxError> {
        const NAME: &str = "list unrecorded messages";
        let (lane, id) = after.map_or((i16::MIN, i64::MIN), |key| (key.lane.number(), key.id.0));
        let parameters: [Parameter<'_>; 4] =
            [(&destination, Type::TEXT), (&lane, Type::INT2), (&id, Type::INT8), (&limit, Type::INT8)];
        self.query(NAME, &self.sql.unrecorded, &parameters).await?.iter().map(|row| message(NAME, row)).collect()
    }

    /// Tries again to record the outcome of a message in quarantine; returns whether it is recorded and has left the
    /// quarantine.
    ///
    /// # Errors
    ///
    /// When the database fails; a row that it still refuses is no error.
    pub async fn record_quarantined(
        &self,
        destination: &str,
        keep: Keep,
        message: &Quarantined,
    ) -> Result<bool, OutboxError> {
        let Quarantined { key, origin, group, outcome: Some(outcome), .. } = message.clone() else { return Ok(false) };
        let settlement = [Settlement { key, origin, group, outcome }];
        match self.settle(destination, keep, &settlement, None).await {
            Ok(_) => {}
            Err(error) if error.is_about_a_row() => return Ok(false),
            Err(error) => return Err(error),
        }
        let (lane, id) = (key.lane.number(), key.id.0);
        let parameters: [Parameter<'_>; 4] = [
            (&destination, Type::TEXT),
            (&lane, Type::INT2),
            (&id, Type::INT8),
            (&origin.event_position.0, Type::INT8),
        ];
        self.execute("end the quarantine", &self.sql.unquarantine, &parameters).await.map(|rows| rows > 0)
    }

    /// Ends the quarantine of messages that were delivered after all; returns how many they were.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn unquarantine_gone(&self, destination: &str) -> Result<u64, OutboxError> {
        self.execute("end the quarantine of what is gone", &self.sql.unquarantine_gone, &[(&destination, Type::TEXT)])
            .await
    }

    /// Returns a message in quarantine to the relays, which send it.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn release(&self, destination: &str, id: i64) -> Result<i64, OutboxError> {
        let parameters: [Parameter<'_>; 2] = [(&destination, Type::TEXT), (&id, Type::INT8)];
        column("release", &self.query_one("release", &self.sql.release, &parameters).await?, 0)
    }
}
