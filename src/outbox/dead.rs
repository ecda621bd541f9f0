//! Dead messages: the operations for operators. The SQL functions behind them are in
//! `sql/migrations/0003_dead_letters.sql`.

use std::time::{Duration, SystemTime};

use tokio_postgres::types::Type;

use super::row::{Said, message};
use super::{Outbox, OutboxError, Parameter, column};
use crate::message::Message;

/// The earliest time of death.
#[derive(Clone, Copy, Debug)]
pub enum Since {
    /// A point in time.
    Time(SystemTime),
    /// This long ago, by the database's clock.
    Ago(Duration),
}

/// Selects dead messages; a message must match everything that is given.
#[derive(Clone, Debug, Default)]
pub struct DeadFilter {
    /// Message ids; empty for any.
    pub ids: Vec<i64>,
    /// The destination.
    pub destination: Option<String>,
    /// The type of the event.
    pub event_type: Option<String>,
    /// The group.
    pub group: Option<String>,
    /// A part of the reason, ignoring case.
    pub reason: Option<String>,
    /// Died at this time or later.
    pub since: Option<Since>,
}

/// How many dead messages a filter matches now.
#[derive(Clone, Debug)]
pub struct DeadCount {
    /// How many.
    pub messages: i64,
    /// How many of them died within the last five minutes, which is how long SQS remembers a deduplication id.
    pub recent: i64,
    /// When they were counted, by the database's clock. Messages that die later are not included.
    pub upto: SystemTime,
    /// The filter's `since`, by the database's clock.
    since: Option<SystemTime>,
}

/// A dead message in a list.
#[derive(Clone, Debug)]
pub struct DeadLine {
    /// All of it as a JSON object.
    pub json: String,
    /// Its id.
    pub id: i64,
    /// Its destination.
    pub destination: String,
    /// The type of its event; empty when the event is missing.
    pub event_type: String,
    /// Its group; empty for none.
    pub group: String,
    /// Failed attempts.
    pub attempts: i16,
    /// When it died, in RFC 3339.
    pub died: String,
    /// Why.
    pub reason: String,
}

/// A dead message with everything about it.
#[derive(Clone, Debug)]
pub struct DeadMessage {
    /// All of it as a JSON object.
    pub json: String,
    /// As the relay reads it.
    pub message: Message,
    /// Its destination.
    pub destination: String,
    /// Why it died.
    pub reason: String,
    /// When it died, in RFC 3339.
    pub died: String,
    /// When it was enqueued, in RFC 3339.
    pub enqueued: String,
}

/// What to do with dead messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeadAction {
    /// Make them pending again, with no attempts charged.
    Redrive,
    /// Delete them.
    Discard,
}

impl Outbox {
    /// Counts the dead messages that a filter matches.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn dead_count(&self, filter: &DeadFilter) -> Result<DeadCount, OutboxError> {
        const NAME: &str = "count dead messages";
        let (time, seconds) = match filter.since {
            None => (None, None),
            Some(Since::Time(time)) => (Some(time), None),
            Some(Since::Ago(ago)) => (None, Some(ago.as_secs_f64())),
        };
        let ids = filter.ids();
        let mut parameters = filter.parameters(&ids).to_vec();
        parameters.push((&time, Type::TIMESTAMPTZ));
        parameters.push((&seconds, Type::FLOAT8));
        let row = self.query_one(NAME, &self.sql.dead_count, &parameters).await?;
        Ok(DeadCount {
            messages: column(NAME, &row, 0)?,
            recent: column(NAME, &row, 1)?,
            upto: column(NAME, &row, 2)?,
            since: column(NAME, &row, 3)?,
        })
    }

    /// The latest of the counted dead messages.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn dead_list(
        &self,
        filter: &DeadFilter,
        counted: &DeadCount,
        limit: i64,
    ) -> Result<Vec<DeadLine>, OutboxError> {
        const NAME: &str = "list dead messages";
        let ids = filter.ids();
        let mut parameters = filter.parameters(&ids).to_vec();
        parameters.push((&counted.since, Type::TIMESTAMPTZ));
        parameters.push((&counted.upto, Type::TIMESTAMPTZ));
        parameters.push((&limit, Type::INT8));
        let rows = self.query(NAME, &self.sql.dead_list, &parameters).await?;
        let line = |row: &tokio_postgres::Row| {
            Ok(DeadLine {
                json: column(NAME, row, 0)?,
                id: column(NAME, row, 1)?,
                destination: column(NAME, row, 2)?,
                event_type: column(NAME, row, 3)?,
                group: column(NAME, row, 4)?,
                attempts: column(NAME, row, 5)?,
                died: column(NAME, row, 6)?,
                reason: column(NAME, row, 7)?,
            })
        };
        rows.iter().map(line).collect()
    }

    /// One dead message; `None` when there is no such message, or it is not dead.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn dead_show(&self, id: i64) -> Result<Option<DeadMessage>, OutboxError> {
        const NAME: &str = "show a dead message";
        let rows = self.query(NAME, &self.sql.dead_show, &[(&id, Type::INT8)]).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        Ok(Some(DeadMessage {
            message: message(NAME, row, Said::of(NAME, row, &mut None)?)?,
            json: column(NAME, row, 18)?,
            destination: column(NAME, row, 19)?,
            reason: column(NAME, row, 20)?,
            died: column(NAME, row, 21)?,
            enqueued: column(NAME, row, 22)?,
        }))
    }

    /// Redrives or discards up to `limit` of the counted dead messages, lowest ids first; returns how many.
    /// `outbox.audit_log` records it.
    ///
    /// # Errors
    ///
    /// When the statement fails; then nothing was changed.
    pub async fn dead_act(
        &self,
        action: DeadAction,
        filter: &DeadFilter,
        counted: &DeadCount,
        limit: i64,
        actor: &str,
    ) -> Result<i64, OutboxError> {
        let (name, sql) = match action {
            DeadAction::Redrive => ("redrive dead messages", &self.sql.dead_redrive),
            DeadAction::Discard => ("discard dead messages", &self.sql.dead_discard),
        };
        let ids = filter.ids();
        let mut parameters = filter.parameters(&ids).to_vec();
        parameters.push((&counted.since, Type::TIMESTAMPTZ));
        parameters.push((&counted.upto, Type::TIMESTAMPTZ));
        parameters.push((&limit, Type::INT8));
        parameters.push((&actor, Type::TEXT));
        let row = self.query_one(name, sql, &parameters).await?;
        column(name, &row, 0)
    }
}

impl DeadFilter {
    fn ids(&self) -> Option<&[i64]> {
        (!self.ids.is_empty()).then_some(self.ids.as_slice())
    }

    /// The parameters that all these statements begin with.
    fn parameters<'a>(&'a self, ids: &'a Option<&'a [i64]>) -> [Parameter<'a>; 5] {
        [
            (ids, Type::INT8_ARRAY),
            (&self.destination, Type::TEXT),
            (&self.event_type, Type::TEXT),
            (&self.group, Type::TEXT),
            (&self.reason, Type::TEXT),
        ]
    }
}
