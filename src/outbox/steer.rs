//! Steering: pauses and settings that operators keep in the database and all relays follow.

use std::time::Duration;

use tokio_postgres::types::Type;

use super::{Outbox, OutboxError, Parameter, column};
use crate::reading::{Pause, Setting, Steering};

/// A destination that the database knows of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// Its name.
    pub name: String,
    /// Whether a relay has served it, at least since the server's last crash.
    pub is_served: bool,
}

impl Outbox {
    /// What operators have decided.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn steering(&self) -> Result<Steering, OutboxError> {
        const NAME: &str = "read the steering";
        let mut steering = Steering::default();
        for row in &self.query(NAME, &self.sql.steering, &[]).await? {
            let (destination, value, actor) = (column(NAME, row, 0)?, column(NAME, row, 2)?, column(NAME, row, 3)?);
            match column::<Option<String>>(NAME, row, 1)? {
                Some(name) => steering.settings.push(Setting { destination, name, value, actor }),
                None => {
                    let age = seconds(column(NAME, row, 4)?);
                    let left = column::<Option<f64>>(NAME, row, 5)?.map(seconds);
                    steering.pauses.push(Pause { destination, reason: value, actor, age, left });
                }
            }
        }
        Ok(steering)
    }

    /// Destinations that a relay has served, or that have messages pending or dead.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn destinations(&self) -> Result<Vec<Destination>, OutboxError> {
        const NAME: &str = "list destinations";
        let destination = |row: &tokio_postgres::Row| {
            Ok(Destination { name: column(NAME, row, 0)?, is_served: column(NAME, row, 1)? })
        };
        self.query(NAME, &self.sql.destinations, &[]).await?.iter().map(destination).collect()
    }

    /// The relays of this outbox that are connected to the database, as HOST/PID.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn relays(&self) -> Result<Vec<String>, OutboxError> {
        const NAME: &str = "list relays";
        let prefix: &str = &self.relays_are_called;
        self.query(NAME, &self.sql.relays, &[(&prefix, Type::TEXT)])
            .await?
            .iter()
            .map(|row| column(NAME, row, 0))
            .collect()
    }

    /// Pauses a destination, or all, for a time or until resumed.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn pause(
        &self,
        destination: &str,
        lasting: Option<Duration>,
        reason: &str,
        actor: &str,
    ) -> Result<(), OutboxError> {
        let lasting = lasting.map(|lasting| lasting.as_secs_f64());
        let parameters: [Parameter<'_>; 4] =
            [(&destination, Type::TEXT), (&lasting, Type::FLOAT8), (&reason, Type::TEXT), (&actor, Type::TEXT)];
        self.execute("pause", &self.sql.pause, &parameters).await.map(drop)
    }

    /// Ends the pause of a destination, or all pauses; returns how many were in force.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn resume(&self, destination: &str, actor: &str) -> Result<i64, OutboxError> {
        let parameters: [Parameter<'_>; 2] = [(&destination, Type::TEXT), (&actor, Type::TEXT)];
        column("resume", &self.query_one("resume", &self.sql.resume, &parameters).await?, 0)
    }

    /// Sets a setting that overrides the environment; `None` removes it. The value is not checked here.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn set_setting(
        &self,
        destination: &str,
        name: &str,
        value: Option<&str>,
        actor: &str,
    ) -> Result<(), OutboxError> {
        let parameters: [Parameter<'_>; 4] =
            [(&name, Type::TEXT), (&value, Type::TEXT), (&destination, Type::TEXT), (&actor, Type::TEXT)];
        self.execute("set", &self.sql.set, &parameters).await.map(drop)
    }
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX)
}
