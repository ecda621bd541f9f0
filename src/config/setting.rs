//! The table of settings: the name, the allowed values and the default of each. Flags, environment variables, `--help`,
//! `config`, `set` and every message about a setting come from it.
//!
//! A new setting needs one row here and the field that it fills (in [`super::Tuning`] or [`super::RelayConfig`]). If
//! operators may change it while the relay runs, it also needs a line in [`super::Adjustable::ALL`].

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use bytesize::ByteSize;
use clap::ValueEnum;

use super::problems::Problems;
use super::{DatabaseAuth, FifoMode, LogFormat, OnDead, memory};
use crate::schema::Schema;

/// The names and the description of a setting.
#[derive(Clone, Copy, Debug)]
pub(super) struct Info {
    /// The flag without leading dashes; also its name in `outbox-relay set` and `outbox.settings`.
    pub(super) name: &'static str,
    /// The environment variable.
    pub(super) variable: &'static str,
    /// The placeholder for its value in `--help`.
    pub(super) value_name: &'static str,
    /// One sentence without its full stop.
    pub(super) help: &'static str,
    /// Whether its value is never printed.
    pub(super) is_secret: bool,
}

/// One row of the table.
pub(super) struct Setting<T: 'static> {
    pub(super) info: Info,
    pub(super) default: T,
    range: Option<(T, T)>,
    parse: fn(&str) -> Option<T>,
    show: fn(&T) -> String,
    /// The rest of a message that begins with `NAME="value" is not `, remedy included.
    refusal: fn(&Setting<T>, &str) -> String,
}

/// A row, whatever the type of its value.
pub(super) trait Row: Sync {
    fn info(&self) -> &Info;
    /// The allowed range and the default, which `--help` shows after the sentence.
    fn allowed(&self) -> String;
    /// The default as it would be typed; empty if there is none.
    fn default_text(&self) -> String;
}

impl<T: PartialOrd + Clone + Sync> Row for Setting<T> {
    fn info(&self) -> &Info {
        &self.info
    }

    fn allowed(&self) -> String {
        let range = self.range.as_ref().map(|(min, max)| format!(" [{} to {}]", (self.show)(min), (self.show)(max)));
        let default = self.default_text();
        let default = if default.is_empty() { default } else { format!(" [default: {default}]") };
        range.unwrap_or_default() + &default
    }

    fn default_text(&self) -> String {
        (self.show)(&self.default)
    }
}

impl<T: PartialOrd + Clone> Setting<T> {
    /// The value of this text, or `otherwise` if there is no text or it is wrong. A mistake is added to the problems;
    /// `called` is the name under which the setting was given.
    pub(super) fn read(&self, called: &str, text: Option<&str>, otherwise: T, problems: &mut Problems) -> T {
        let Some(text) = present(text) else { return otherwise };
        let is_allowed = |value: &T| self.range.as_ref().is_none_or(|(min, max)| (min..=max).contains(&value));
        (self.parse)(text).filter(is_allowed).unwrap_or_else(|| {
            problems.add(format!("{called}={text:?} is not {}", (self.refusal)(self, text)));
            otherwise
        })
    }

    /// The value as it would be typed.
    pub(super) fn shown(&self, value: &T) -> String {
        (self.show)(value)
    }
}

/// Empty counts as not set, so that `VARIABLE=` in a compose file means the default.
pub(super) fn present(text: Option<&str>) -> Option<&str> {
    text.map(str::trim).filter(|text| !text.is_empty())
}

const fn info(name: &'static str, variable: &'static str, value_name: &'static str, help: &'static str) -> Info {
    Info { name, variable, value_name, help, is_secret: false }
}

/// A setting whose text another module reads.
const fn text(info: Info, default: &'static str) -> Setting<&'static str> {
    Setting {
        info,
        default,
        range: None,
        parse: |_| None,
        show: |text| (*text).to_owned(),
        refusal: |_, _| "allowed".to_owned(),
    }
}

const fn number(info: Info, range: (usize, usize), default: usize) -> Setting<usize> {
    Setting {
        info,
        default,
        range: Some(range),
        parse: |text| text.parse().ok(),
        show: usize::to_string,
        refusal: |setting, _| {
            let (min, max) = setting.range.unwrap_or_default();
            format!("allowed; use a whole number from {min} to {max}")
        },
    }
}

fn shown_duration(duration: &Duration) -> String {
    humantime::format_duration(*duration).to_string()
}

const fn duration(info: Info, range: (Duration, Duration), default: Duration) -> Setting<Duration> {
    Setting {
        info,
        default,
        range: Some(range),
        parse: |text| humantime::parse_duration(text).ok(),
        show: shown_duration,
        refusal: |setting, text| {
            let (min, max) = setting.range.unwrap_or_default();
            let lacks_unit = humantime::parse_duration(text).is_err() && text.parse::<f64>().is_ok();
            format!(
                "allowed{}; use a duration with a unit, such as {}, from {} to {}",
                if lacks_unit { " (the unit is missing)" } else { "" },
                shown_duration(&setting.default),
                shown_duration(&min),
                shown_duration(&max)
            )
        },
    }
}

fn word<T: ValueEnum>(choice: &T) -> String {
    choice.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}

const fn choice<T: ValueEnum + PartialOrd>(info: Info, default: T) -> Setting<T> {
    Setting {
        info,
        default,
        range: None,
        parse: |text| T::from_str(text, false).ok(),
        show: word,
        refusal: |_, _| {
            let words: Vec<String> = T::value_variants().iter().map(word).collect();
            format!("allowed; use {}", words.join(" or "))
        },
    }
}

/// A constant for each setting, and `ALL` with all of them in the order of `--help`.
macro_rules! settings {
    ($($constant:ident: $type:ty = $setting:expr;)*) => {
        $(pub(super) static $constant: Setting<$type> = $setting;)*

        /// All rows.
        pub(super) static ALL: &[&dyn Row] = &[$(&$constant),*];
    };
}

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

settings! {
    DATABASE_URL: &'static str = text(Info { is_secret: true, ..info(
        "database-url", "DATABASE_URL", "URL",
        "Where PostgreSQL is, as libpq takes it: postgres://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=…; or PGHOST, PGUSER \
         and libpq's other variables",
    ) }, "");
    DATABASE_URL_FILE: &'static str = text(Info { is_secret: true, ..info(
        "database-url-file", "DATABASE_URL_FILE", "PATH", "A file that holds the DATABASE_URL, for mounted secrets",
    ) }, "");
    DATABASE_URLS_FILE: &'static str = text(Info { is_secret: true, ..info(
        "database-urls-file", "DATABASE_URLS_FILE", "PATH",
        "A file with a line NAME URL for each database, if one process serves several; NAME becomes the label `database`",
    ) }, "");
    DATABASE: &'static str = text(info(
        "database", "OUTBOX_RELAY_DATABASE", "NAME",
        "The database of DATABASE_URLS_FILE that a command is for; without it, `run`, `check` and `migrate` take all of them",
    ), "");
    DATABASE_PASSWORD_COMMAND: &'static str = text(Info { is_secret: true, ..info(
        "database-password-command", "OUTBOX_RELAY_DATABASE_PASSWORD_COMMAND", "COMMAND",
        "A program and its arguments that print the password; it runs for each new connection, without a shell",
    ) }, "");
    DATABASE_AUTH: DatabaseAuth = choice(info(
        "database-auth", "OUTBOX_RELAY_DATABASE_AUTH", "MODE",
        "password: what the server asks for; rds-iam: a token of AWS IAM for each new connection (RDS, Aurora)",
    ), DatabaseAuth::Password);
    DATABASE_CONNECTION_MAX_AGE: Duration = duration(info(
        "database-connection-max-age", "OUTBOX_RELAY_DATABASE_CONNECTION_MAX_AGE", "DURATION",
        "Connections to PostgreSQL that are older are replaced, so that they spread again after a failover",
    ), (s(1), s(86_400)), s(1800));
    SCHEMA: Schema = Setting {
        info: info("schema", "OUTBOX_RELAY_SCHEMA", "NAME", "The schema of the outbox in the database"),
        default: Schema::OUTBOX,
        range: None,
        parse: |text| Schema::parse(text).ok(),
        show: Schema::to_string,
        refusal: |_, text| Schema::parse(text).err().unwrap_or_default(),
    };
    DESTINATIONS: &'static str = text(info(
        "destinations", "OUTBOX_RELAY_DESTINATIONS", "NAME=URL,…",
        "The destinations and their queues or topics: NAME=QUEUE_URL or NAME=TOPIC_ARN, separated by commas; with \
         ;role=ARN;external-id=ID for one that is used under a role of its own; without it, those in outbox.destinations",
    ), "");
    BATCH_SIZE: usize =
        number(info("batch-size", "OUTBOX_RELAY_BATCH_SIZE", "N", "Messages read at once"), (1, 10_000), 2000);
    REQUEST_SIZE: usize = number(
        info("request-size", "OUTBOX_RELAY_REQUEST_SIZE", "N", "Entries in one SendMessageBatch or PublishBatch request"), (1, 10), 10,
    );
    MAX_IN_FLIGHT: usize = number(
        info("max-in-flight", "OUTBOX_RELAY_MAX_IN_FLIGHT", "N", "Requests in flight for each destination"), (1, 1024), 256,
    );
    POLL_INTERVAL: Duration = duration(
        info("poll-interval", "OUTBOX_RELAY_POLL_INTERVAL", "DURATION", "How often an idle relay looks for work"),
        (ms(1), s(60)), ms(20),
    );
    FIFO_MODE: FifoMode = choice(info(
        "fifo-mode", "OUTBOX_RELAY_FIFO_MODE", "MODE",
        "strict: one entry of a group at a time, order kept in every failure; batched: up to ten in one request, faster for \
         a hot group; if SQS refuses one of them, the later ones are sent again behind it, and consumers get them twice",
    ), FifoMode::Strict);
    MAX_ATTEMPTS: usize = number(
        info("max-attempts", "OUTBOX_RELAY_MAX_ATTEMPTS", "N", "Failed attempts before a message is dead; outages cost none"),
        (1, 1000), 10,
    );
    ON_DEAD: OnDead = choice(info(
        "on-dead", "OUTBOX_RELAY_ON_DEAD", "MODE",
        "What follows a dead message of a group on a FIFO queue: skip goes on with the next message, block holds the group \
         until the dead one has been redriven or discarded",
    ), OnDead::Skip);
    RETRY_INITIAL: Duration = duration(info(
        "retry-initial", "OUTBOX_RELAY_RETRY_INITIAL", "DURATION",
        "Ceiling of the first delay before a retry, which doubles with each one",
    ), (ms(1), s(3600)), ms(200));
    RETRY_MAX: Duration = duration(
        info("retry-max", "OUTBOX_RELAY_RETRY_MAX", "DURATION", "Ceiling of all delays before a retry"),
        (ms(1), s(86_400)), s(60),
    );
    REQUEST_TIMEOUT: Duration = duration(
        info("request-timeout", "OUTBOX_RELAY_REQUEST_TIMEOUT", "DURATION", "How long one SQS request may take"),
        (ms(100), s(60)), s(5),
    );
    DELIVERED_RETENTION: Duration = duration(info(
        "delivered-retention", "OUTBOX_RELAY_DELIVERED_RETENTION", "DURATION",
        "How long delivered messages are kept in the database; 0s deletes them at delivery",
    ), (ms(0), s(315_576_000)), s(86_400));
    DRAIN_TIMEOUT: Duration = duration(info(
        "drain-timeout", "OUTBOX_RELAY_DRAIN_TIMEOUT", "DURATION",
        "The time from SIGTERM to exit; keep it below the grace period of whatever stops the container",
    ), (ms(0), s(3600)), s(20));
    MEMORY: u64 = Setting {
        info: info(
            "memory", "OUTBOX_RELAY_MEMORY", "BYTES",
            "Memory that the process may use, such as 160MiB; by default the limit of its control group, else 256MiB",
        ),
        default: 0,
        range: Some(memory::BOUNDS),
        parse: |text| text.parse::<ByteSize>().ok().map(|size| size.as_u64()),
        show: |bytes| if *bytes == 0 { String::new() } else { memory::shown(*bytes) },
        refusal: |_, _| {
            let (min, max) = memory::BOUNDS;
            let (min, max) = (memory::shown(min), memory::shown(max));
            format!("allowed; use a number of bytes with a unit, such as 160MiB, from {min} to {max}")
        },
    };
    HTTP_LISTEN: SocketAddr = Setting {
        info: info("http-listen", "OUTBOX_RELAY_HTTP_LISTEN", "ADDRESS", "Where the status page, /metrics, /livez and /readyz are served"),
        default: SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 9595)),
        range: None,
        parse: |text| text.parse().ok(),
        show: SocketAddr::to_string,
        refusal: |_, _| "an address; use IP:PORT such as 0.0.0.0:9595 or [::]:9595".to_owned(),
    };
    LOG_FORMAT: LogFormat = choice(info(
        "log-format", "OUTBOX_RELAY_LOG_FORMAT", "FORMAT", "text or json; the level is set by RUST_LOG",
    ), LogFormat::Text);
    LOG_FILTER: &'static str = text(info(
        "log-filter", "RUST_LOG", "FILTER", "Which log lines to print, as tracing's EnvFilter reads it",
    ), "info");
}
