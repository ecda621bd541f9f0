//! The settings in force, for people to read: each with its value and the origin of the value. No secret is shown.

use super::problems::{ConfigError, Problems};
use super::setting::{self, Info, Setting};
use super::{Adjustable, DatabaseConfig, DestinationConfig, Flags, Tuning};

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// An environment variable.
    Environment,
    /// A flag of this command.
    Flag,
    /// Something with a name of its own, such as `PGSSLMODE` or a service.
    Named(String),
    /// `outbox-relay set`.
    Database {
        /// Who set it.
        actor: String,
    },
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Environment => f.write_str("environment"),
            Self::Flag => f.write_str("flag"),
            Self::Named(name) => f.write_str(name),
            Self::Database { actor } => write!(f, "database, set by {actor}"),
        }
    }
}

/// One value in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The flag without leading dashes.
    pub name: String,
    /// The destination that it applies to; `None` means all.
    pub destination: Option<String>,
    /// The value as it would be typed, without secrets.
    pub value: String,
    /// Where it comes from.
    pub origin: Origin,
}

impl Flags {
    /// The settings of delivery that were given by flag or environment variable; a wrong value counts as the default.
    pub fn baseline(&self) -> Tuning {
        Tuning::typed(self, &mut Problems::default())
    }

    /// Every setting of `run`. `default_filter` is the log filter if none was given.
    ///
    /// # Errors
    ///
    /// As [`Flags::relay`].
    pub fn shown(&self, default_filter: &str) -> Result<Vec<Shown>, ConfigError> {
        let config = self.relay()?;
        let tuning = config.tuning;
        let files = [&setting::DATABASE_URLS_FILE, &setting::DATABASE_URL_FILE];
        let file = files.into_iter().find(|setting| self.text(&setting.info).is_some());
        let database = file.unwrap_or(&setting::DATABASE_URL);
        let filter = self.text(&setting::LOG_FILTER.info).unwrap_or(default_filter).to_owned();
        let mut all = vec![
            self.line(&database.info, config.database.place()),
            self.name_of(&config.database),
            self.line(&setting::DATABASE_PASSWORD_COMMAND.info, self.command()),
            self.row(&setting::DATABASE_AUTH, &Problems::default().read(self, &setting::DATABASE_AUTH)),
            self.row(&setting::DATABASE_CONNECTION_MAX_AGE, &config.database.connection_max_age),
            self.row(&setting::SCHEMA, &config.database.schema),
            self.line(&setting::DESTINATIONS.info, typed(&config.destinations)),
        ];
        all.extend(Adjustable::ALL.iter().map(|one| self.line(one.info, tuning.shown(*one))));
        all.extend([
            self.row(&setting::POLL_INTERVAL, &tuning.poll_interval),
            self.row(&setting::REQUEST_TIMEOUT, &tuning.request_timeout),
            self.row(&setting::DELIVERED_RETENTION, &config.delivered_retention),
            self.row(&setting::DRAIN_TIMEOUT, &config.drain_timeout),
            self.row(&setting::MEMORY, &config.memory),
            self.row(&setting::HTTP_LISTEN, &config.http_listen),
            self.row(&setting::LOG_FORMAT, &self.logging()?.0),
            self.line(&setting::LOG_FILTER.info, filter),
        ]);
        Ok(all)
    }

    /// The same for readers who need no login: without the external ids of roles.
    ///
    /// # Errors
    ///
    /// As [`Flags::relay`].
    pub fn shown_to_everybody(&self, default_filter: &str) -> Result<Vec<Shown>, ConfigError> {
        let mut destinations = self.relay()?.destinations;
        let roles = destinations.iter_mut().filter_map(|destination| destination.role.as_mut());
        for external_id in roles.filter_map(|role| role.external_id.as_mut()) {
            "(not shown)".clone_into(external_id);
        }
        let mut all = self.shown(default_filter)?;
        for line in all.iter_mut().filter(|line| line.name == setting::DESTINATIONS.info.name) {
            line.value = typed(&destinations);
        }
        Ok(all)
    }

    /// What was given for the connection to PostgreSQL, by libpq's keywords.
    ///
    /// # Errors
    ///
    /// As [`Flags::database`].
    pub fn connection(&self) -> Result<Vec<Shown>, ConfigError> {
        let database = self.database()?;
        let shown = database.shown().iter().map(|one| Shown {
            name: one.keyword.to_owned(),
            destination: None,
            value: one.value.clone(),
            origin: Origin::Named(one.origin.clone()),
        });
        Ok(shown.collect())
    }

    fn row<T: PartialOrd + Clone>(&self, setting: &Setting<T>, value: &T) -> Shown {
        self.line(&setting.info, setting.shown(value))
    }

    /// The name of the database, which the file gives it; a flag or a variable only chooses it.
    fn name_of(&self, database: &DatabaseConfig) -> Shown {
        let name = database.name.as_deref().unwrap_or_default().to_owned();
        let origin = database.name.as_ref().map_or(Origin::Default, |_| Origin::Named("DATABASE_URLS_FILE".to_owned()));
        Shown { origin, ..self.line(&setting::DATABASE.info, name) }
    }

    /// The program that prints the password; its arguments may be secret.
    fn command(&self) -> String {
        let text = self.text(&setting::DATABASE_PASSWORD_COMMAND.info).unwrap_or_default();
        text.split_whitespace().next().unwrap_or_default().to_owned()
    }

    fn line(&self, info: &Info, value: String) -> Shown {
        let origin = match self.text(info) {
            // Then libpq's own variables were used instead of the URL.
            None if info.variable == "DATABASE_URL" => Origin::Environment,
            None => Origin::Default,
            // A flag that repeats the environment changes nothing.
            Some(text) if std::env::var(info.variable).is_ok_and(|set| set.trim() == text) => Origin::Environment,
            Some(_) => Origin::Flag,
        };
        Shown { name: info.name.to_owned(), destination: None, value, origin }
    }
}

/// Destinations as they would be typed.
fn typed(destinations: &[DestinationConfig]) -> String {
    if destinations.is_empty() {
        return "(those in outbox.destinations)".to_owned();
    }
    let destinations: Vec<String> = destinations.iter().map(ToString::to_string).collect();
    destinations.join(",")
}
