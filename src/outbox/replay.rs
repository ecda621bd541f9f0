//! Replays: past events are published again, as new messages.
//!
//! Functions of the database (`sql/migrations/0005_replay.sql`) do the work, one step per transaction, so that a replay
//! can stop at any moment and continue later. The command decides how fast it runs and whether to ask first.

use std::time::{Duration, SystemTime};

use tokio_postgres::types::Type;

use super::{Outbox, OutboxError, Parameter, column};
use crate::reading::Replay;

/// Which events are published again, and to which destination.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplayOf {
    /// The destination they went to.
    pub source: String,
    /// The destination they go to now.
    pub destination: String,
    /// Whether to include events that are not known to have gone to the source.
    pub all_events: bool,
    /// Only events of these types; `None` means all.
    pub event_types: Option<Vec<String>>,
    /// Only events of this stream.
    pub stream: Option<String>,
    /// Only events recorded then or later.
    pub since: Option<SystemTime>,
    /// Only events recorded before then.
    pub until: Option<SystemTime>,
    /// Only events from this position on.
    pub first: Option<i64>,
    /// Only events up to this position.
    pub stop: Option<i64>,
}

/// The events of one type that a replay includes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplayCount {
    /// Their type.
    pub event_type: String,
    /// How many would be published.
    pub matching: i64,
    /// How many more there would be if events were included that are not known to have gone to the source.
    pub others: i64,
}

/// The result of one step of a replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplayStep {
    /// The messages written by the step.
    pub messages: i64,
    /// The messages written by the replay so far.
    pub all_messages: i64,
    /// Where the replay began.
    pub start_position: i64,
    /// All events up to this position are done.
    pub position: i64,
    /// The last position of the replay.
    pub last_position: i64,
    /// Whether there is nothing more to do.
    pub has_ended: bool,
    /// Nothing was done, because a transaction is running that may have written events before the replay began.
    pub must_wait: bool,
}

impl Outbox {
    /// How many events a replay would publish, by type, among the next `limit` events, and whether there may be more.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn replay_count(&self, of: &ReplayOf, limit: i64) -> Result<(Vec<ReplayCount>, bool), OutboxError> {
        const NAME: &str = "count events";
        let mut parameters = of.parameters().to_vec();
        parameters.push((&limit, Type::INT8));
        let rows = self.query(NAME, &self.sql.replay_count, &parameters).await?;
        let may_be_more = rows.first().map_or(Ok(false), |row| column(NAME, row, 3))?;
        let mut counts = Vec::new();
        for row in &rows {
            if let Some(event_type) = column(NAME, row, 0)? {
                counts.push(ReplayCount { event_type, matching: column(NAME, row, 1)?, others: column(NAME, row, 2)? });
            }
        }
        Ok((counts, may_be_more))
    }

    /// The id of the unfinished replay with these arguments.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn replay_unfinished(&self, of: &ReplayOf) -> Result<Option<i64>, OutboxError> {
        const NAME: &str = "look for a replay";
        column(NAME, &self.query_one(NAME, &self.sql.replay_unfinished, &of.parameters()).await?, 0)
    }

    /// Starts a replay, or finds the unfinished one with the same arguments; returns its id.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn replay_begin(&self, of: &ReplayOf, actor: &str) -> Result<i64, OutboxError> {
        const NAME: &str = "begin a replay";
        let mut parameters = of.parameters().to_vec();
        parameters.push((&actor, Type::TEXT));
        column(NAME, &self.query_one(NAME, &self.sql.replay_begin, &parameters).await?, 0)
    }

    /// Runs a step of a replay: writes at most `limit` messages for the next matching events. With `skip_running` it
    /// does not wait for transactions that may have written events before the replay began.
    ///
    /// # Errors
    ///
    /// When the statement fails; then either nothing or all of the step was written.
    pub async fn replay_step(&self, id: i64, limit: i64, skip_running: bool) -> Result<ReplayStep, OutboxError> {
        const NAME: &str = "continue a replay";
        let parameters: [Parameter<'_>; 3] = [(&id, Type::INT8), (&limit, Type::INT8), (&skip_running, Type::BOOL)];
        let connection = self.connection().await?;
        let rows = self.bounded(NAME, connection.query_typed(&self.sql.replay_step, &parameters));
        let result = self.transaction(NAME, &connection, "", rows).await;
        let rows = self.keep_if_ok(connection, result).await?;
        let row = rows.first().ok_or(OutboxError::Answer { statement: NAME, problem: "no row".to_owned() })?;
        Ok(ReplayStep {
            messages: column(NAME, row, 0)?,
            all_messages: column(NAME, row, 1)?,
            start_position: column(NAME, row, 2)?,
            position: column(NAME, row, 3)?,
            last_position: column(NAME, row, 4)?,
            has_ended: column(NAME, row, 5)?,
            must_wait: column(NAME, row, 6)?,
        })
    }

    /// Abandons a replay; returns whether it was unfinished.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn replay_end(&self, id: i64, actor: &str) -> Result<bool, OutboxError> {
        const NAME: &str = "end a replay";
        let parameters: [Parameter<'_>; 2] = [(&id, Type::INT8), (&actor, Type::TEXT)];
        column(NAME, &self.query_one(NAME, &self.sql.replay_end, &parameters).await?, 0)
    }

    /// Whether this role may list replays. A list that is refused leaves a line in the server's log each time.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn may_list_replays(&self) -> Result<bool, OutboxError> {
        const NAME: &str = "ask for the privilege to list replays";
        column(NAME, &self.query_one(NAME, &self.sql.replays_visible, &[]).await?, 0)
    }

    /// The unfinished replays.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn replays(&self) -> Result<Vec<Replay>, OutboxError> {
        const NAME: &str = "list replays";
        let replay = |row: &tokio_postgres::Row| {
            Ok(Replay {
                id: column(NAME, row, 0)?,
                source: column(NAME, row, 1)?,
                destination: column(NAME, row, 2)?,
                actor: column(NAME, row, 3)?,
                start_position: column(NAME, row, 4)?,
                position: column(NAME, row, 5)?,
                last_position: column(NAME, row, 6)?,
                messages: column(NAME, row, 7)?,
                idle: Duration::try_from_secs_f64(column(NAME, row, 8)?).unwrap_or(Duration::MAX),
            })
        };
        self.query(NAME, &self.sql.replays, &[]).await?.iter().map(replay).collect()
    }
}

impl ReplayOf {
    /// The parameters shared by starting a replay and looking for one.
    fn parameters(&self) -> [Parameter<'_>; 9] {
        [
            (&self.source, Type::TEXT),
            (&self.destination, Type::TEXT),
            (&self.all_events, Type::BOOL),
            (&self.event_types, Type::TEXT_ARRAY),
            (&self.stream, Type::TEXT),
            (&self.since, Type::TIMESTAMPTZ),
            (&self.until, Type::TIMESTAMPTZ),
            (&self.first, Type::INT8),
            (&self.stop, Type::INT8),
        ]
    }
}
