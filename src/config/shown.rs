//! What is in force, for people: every setting, its value and where that comes from. No secret is shown.

use super::check::ConfigError;
use super::{Adjustable, Flags, Tuning};

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// An environment variable.
    Environment,
    /// A flag of this command.
    Flag,
    /// `outbox-relay set`.
    Database {
        /// Who did it.
        actor: String,
    },
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Environment => f.write_str("environment"),
            Self::Flag => f.write_str("flag"),
            Self::Database { actor } => write!(f, "database, set by {actor}"),
        }
    }
}

/// One value in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    /// The flag's name without dashes in front.
    pub name: String,
    /// For which destination; `None` for all.
    pub destination: Option<String>,
    /// As one would write it, a secret left out.
    pub value: String,
    /// Where it comes from.
    pub origin: Origin,
}

impl Flags {
    /// The settings that can be adjusted, as the environment has them; a mistake there counts as the default here.
    pub fn baseline(&self) -> Tuning {
        self.tuning(&mut super::Problems::default())
    }

    /// Every setting of `run`; the filter of log lines is the logging module's.
    ///
    /// # Errors
    ///
    /// As [`Flags::relay`].
    pub fn shown(&self, default_filter: &str) -> Result<Vec<Shown>, ConfigError> {
        let config = self.relay()?;
        let tuning = config.tuning;
        let duration = |duration| humantime::format_duration(duration).to_string();
        let database = if present(&self.database_url_file).is_some() {
            ("database-url-file", "DATABASE_URL_FILE", &self.database_url_file)
        } else {
            ("database-url", "DATABASE_URL", &self.database_url)
        };
        let destinations: Vec<String> =
            config.destinations.iter().map(|one| format!("{}={}", one.name, one.queue_url)).collect();
        let format = match self.logging()?.0 {
            super::LogFormat::Text => "text",
            super::LogFormat::Json => "json",
        };
        let filter = present(&self.log_filter).unwrap_or(default_filter).to_owned();
        let mut all = vec![
            shown(database, config.database.place().to_string()),
            shown(("destinations", "OUTBOX_RELAY_DESTINATIONS", &self.destinations), destinations.join(",")),
        ];
        for adjustable in Adjustable::ALL {
            let setting = (adjustable.name(), adjustable.variable(), self.text(adjustable));
            all.push(shown(setting, tuning.shown(adjustable)));
        }
        all.extend([
            shown(("poll-interval", "OUTBOX_RELAY_POLL_INTERVAL", &self.poll_interval), duration(tuning.poll_interval)),
            shown(
                ("request-timeout", "OUTBOX_RELAY_REQUEST_TIMEOUT", &self.request_timeout),
                duration(tuning.request_timeout),
            ),
            shown(
                ("delivered-retention", "OUTBOX_RELAY_DELIVERED_RETENTION", &self.delivered_retention),
                duration(config.delivered_retention),
            ),
            shown(("drain-timeout", "OUTBOX_RELAY_DRAIN_TIMEOUT", &self.drain_timeout), duration(config.drain_timeout)),
            shown(("memory", "OUTBOX_RELAY_MEMORY", &self.memory), super::memory::shown(config.memory)),
            shown(("http-listen", "OUTBOX_RELAY_HTTP_LISTEN", &self.http_listen), config.http_listen.to_string()),
            shown(("log-format", "OUTBOX_RELAY_LOG_FORMAT", &self.log_format), format.to_owned()),
            shown(("log-filter", "RUST_LOG", &self.log_filter), filter),
        ]);
        Ok(all)
    }
}

fn present(text: &Option<String>) -> Option<&str> {
    text.as_deref().map(str::trim).filter(|text| !text.is_empty())
}

fn shown((name, variable, text): (&'static str, &str, &Option<String>), value: String) -> Shown {
    let origin = match present(text) {
        // libpq's own variables stand in for the URL.
        None if variable == "DATABASE_URL" => Origin::Environment,
        None => Origin::Default,
        // A flag that repeats the environment changes nothing.
        Some(text) if std::env::var(variable).is_ok_and(|set| set.trim() == text) => Origin::Environment,
        Some(_) => Origin::Flag,
    };
    Shown { name: name.to_owned(), destination: None, value, origin }
}
