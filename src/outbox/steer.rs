//! Steering: pauses and settings that operators keep in the database, so that all relays follow.

use std::time::Duration;

use tokio_postgres::types::Type;

use super::{Outbox, OutboxError, Parameter, column};

const STEERING: &str = include_str!("../../sql/queries/steering.sql");
const PAUSE: &str = include_str!("../../sql/queries/pause.sql");
const RESUME: &str = include_str!("../../sql/queries/resume.sql");
const DESTINATIONS: &str = include_str!("../../sql/queries/destinations.sql");
const RELAYS: &str = include_str!("../../sql/queries/relays.sql");
const SET: &str = include_str!("../../sql/queries/set.sql");

/// Stands for all destinations; no destination can have this name.
pub const ALL_DESTINATIONS: &str = "*";

/// A pause that is in force.
#[derive(Clone, Debug, PartialEq)]
pub struct Pause {
    /// Which destination, or [`ALL_DESTINATIONS`].
    pub destination: String,
    /// Why.
    pub reason: String,
    /// Who.
    pub actor: String,
    /// For how long it has been, by the database's clock.
    pub age: Duration,
    /// How long it still lasts; `None` until somebody resumes.
    pub left: Option<Duration>,
}

/// A destination that the database knows of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// Its name.
    pub name: String,
    /// A relay has served it, since the server's last crash at least.
    pub is_served: bool,
}

/// A setting that wins over the environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// For which destination, or [`ALL_DESTINATIONS`].
    pub destination: String,
    /// The flag's name without dashes in front.
    pub name: String,
    /// What it was set to.
    pub value: String,
    /// Who did it.
    pub actor: String,
}

/// Everything that operators have decided.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Steering {
    /// Pauses in force.
    pub pauses: Vec<Pause>,
    /// Settings, in the order of destinations and names.
    pub settings: Vec<Setting>,
}

impl Steering {
    /// The pause that concerns a destination: its own, or that of all. Of both it is the one that ends later, for as long as
    /// the destination has been paused at all.
    pub fn pause_of(&self, destination: &str) -> Option<Pause> {
        let of = |name: &str| self.pauses.iter().find(|pause| pause.destination == name).cloned();
        match (of(destination), of(ALL_DESTINATIONS)) {
            (Some(own), Some(all)) => {
                let age = own.age.max(all.age);
                let ends = |pause: &Pause| pause.left.unwrap_or(Duration::MAX);
                let longer = if ends(&all) > ends(&own) { all } else { own };
                Some(Pause { age, ..longer })
            }
            (own, all) => own.or(all),
        }
    }

    /// The settings that concern a destination; its own come last, and so win.
    pub fn settings_of<'a>(&'a self, destination: &'a str) -> impl Iterator<Item = &'a Setting> {
        let of = |name: &'a str| self.settings.iter().filter(move |setting| setting.destination == name);
        of(ALL_DESTINATIONS).chain(of(destination))
    }
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
        for row in &self.query(NAME, STEERING, &[]).await? {
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
        self.query(NAME, DESTINATIONS, &[]).await?.iter().map(destination).collect()
    }

    /// The relays that are connected to the database, as HOST/PID.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn relays(&self) -> Result<Vec<String>, OutboxError> {
        const NAME: &str = "list relays";
        self.query(NAME, RELAYS, &[]).await?.iter().map(|row| column(NAME, row, 0)).collect()
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
        self.execute("pause", PAUSE, &parameters).await.map(drop)
    }

    /// Ends the pause of a destination, or all pauses; returns how many were in force.
    ///
    /// # Errors
    ///
    /// When the statement fails.
    pub async fn resume(&self, destination: &str, actor: &str) -> Result<i64, OutboxError> {
        let parameters: [Parameter<'_>; 2] = [(&destination, Type::TEXT), (&actor, Type::TEXT)];
        column("resume", &self.query_one("resume", RESUME, &parameters).await?, 0)
    }

    /// Lets a setting win over the environment, or with `None` no longer. The value is not looked at here.
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
        self.execute("set", SET, &parameters).await.map(drop)
    }
}

fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pause(destination: &str, age: u64, left: Option<u64>) -> Pause {
        let (reason, actor) = (destination.to_owned(), "somebody".to_owned());
        let left = left.map(Duration::from_secs);
        Pause { destination: destination.to_owned(), reason, actor, age: Duration::from_secs(age), left }
    }

    #[test]
    fn of_two_pauses_the_one_that_ends_later_counts_from_when_the_first_began() {
        for (own, all, reason, left) in [
            (Some(300), None, ALL_DESTINATIONS, None),
            (None, Some(300), "tickets", None),
            (Some(9), Some(5), "tickets", Some(9)),
        ] {
            let steering = Steering {
                pauses: vec![pause("tickets", 10, own), pause(ALL_DESTINATIONS, 60, all)],
                settings: vec![],
            };
            let found = steering.pause_of("tickets").unwrap();
            assert_eq!(
                (found.reason.as_str(), found.age.as_secs(), found.left.map(|left| left.as_secs())),
                (reason, 60, left)
            );
            assert_eq!(steering.pause_of("audit").unwrap().reason, ALL_DESTINATIONS);
        }
    }
}
