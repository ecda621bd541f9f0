//! The configuration: what may be set, what it means, and what is wrong with it.
//!
//! [`Flags`] is what was typed (flag or environment variable, always text), [`RelayConfig`] and its neighbours are what it
//! means. Every mistake is found before anything starts, and all of them are reported at once. This is the only reader of
//! the environment besides the AWS SDK, which reads `AWS_*` by itself.

mod check;
mod database;
mod memory;
mod shown;
mod tuning;

use std::net::SocketAddr;
use std::time::Duration;

pub use check::ConfigError;
pub use database::{DatabaseConfig, TlsMode};
pub use shown::{Origin, Shown};
pub use tuning::{Adjustable, Tuning};

use check::Problems;

use crate::message::QueueKind;

/// Every setting as text. Empty counts as not set, so that `VARIABLE=` in a compose file means the default.
#[derive(clap::Args, Clone, Default)]
#[command(next_help_heading = "Settings")]
pub struct Flags {
    /// Where PostgreSQL is: postgres://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=…, or libpq's PGHOST, PGPORT, PGUSER,
    /// PGPASSWORD, PGDATABASE, PGSSLMODE and PGSSLROOTCERT instead
    #[arg(long, env = "DATABASE_URL", hide_env_values = true, value_name = "URL", global = true)]
    pub database_url: Option<String>,

    /// A file that holds the DATABASE_URL, for secrets that are mounted
    #[arg(long, env = "DATABASE_URL_FILE", hide_env_values = true, value_name = "PATH", global = true)]
    pub database_url_file: Option<String>,

    /// What to publish where: NAME=QUEUE_URL, separated by commas; required
    #[arg(long, env = "OUTBOX_RELAY_DESTINATIONS", value_name = "NAME=URL,…", global = true)]
    pub destinations: Option<String>,

    /// Messages read at once, 1 to 10000 [default: 2000]
    #[arg(long, env = "OUTBOX_RELAY_BATCH_SIZE", value_name = "N", global = true)]
    pub batch_size: Option<String>,

    /// Entries in one SendMessageBatch request, 1 to 10 [default: 10]
    #[arg(long, env = "OUTBOX_RELAY_REQUEST_SIZE", value_name = "N", global = true)]
    pub request_size: Option<String>,

    /// Requests in flight for each destination, 1 to 1024 [default: 256]
    #[arg(long, env = "OUTBOX_RELAY_MAX_IN_FLIGHT", value_name = "N", global = true)]
    pub max_in_flight: Option<String>,

    /// How often an idle relay looks for work, 1ms to 1m [default: 20ms]
    #[arg(long, env = "OUTBOX_RELAY_POLL_INTERVAL", value_name = "DURATION", global = true)]
    pub poll_interval: Option<String>,

    /// strict: one entry of a group at a time, order kept whatever fails; batched: up to ten in one request, faster for a
    /// hot group, order lost if SQS refuses one of them [default: strict]
    #[arg(long, env = "OUTBOX_RELAY_FIFO_MODE", value_name = "MODE", global = true)]
    pub fifo_mode: Option<String>,

    /// Failed attempts before a message is dead, 1 to 1000; outages cost none [default: 10]
    #[arg(long, env = "OUTBOX_RELAY_MAX_ATTEMPTS", value_name = "N", global = true)]
    pub max_attempts: Option<String>,

    /// What follows a dead message of a group on a FIFO queue: skip goes on with the next message, block holds the group
    /// until the dead one was redriven or discarded [default: skip]
    #[arg(long, env = "OUTBOX_RELAY_ON_DEAD", value_name = "MODE", global = true)]
    pub on_dead: Option<String>,

    /// Ceiling of the first delay before a retry, 1ms to 1h; it doubles with each one [default: 200ms]
    #[arg(long, env = "OUTBOX_RELAY_RETRY_INITIAL", value_name = "DURATION", global = true)]
    pub retry_initial: Option<String>,

    /// Ceiling of all delays before a retry, 1ms to 1day [default: 1m]
    #[arg(long, env = "OUTBOX_RELAY_RETRY_MAX", value_name = "DURATION", global = true)]
    pub retry_max: Option<String>,

    /// How long one SQS request may take, 100ms to 1m [default: 5s]
    #[arg(long, env = "OUTBOX_RELAY_REQUEST_TIMEOUT", value_name = "DURATION", global = true)]
    pub request_timeout: Option<String>,

    /// How long delivered messages are kept in the database; 0s deletes them at delivery [default: 24h]
    #[arg(long, env = "OUTBOX_RELAY_DELIVERED_RETENTION", value_name = "DURATION", global = true)]
    pub delivered_retention: Option<String>,

    /// From SIGTERM to exit, 0s to 1h; keep it below the grace period of what stops the container [default: 20s]
    #[arg(long, env = "OUTBOX_RELAY_DRAIN_TIMEOUT", value_name = "DURATION", global = true)]
    pub drain_timeout: Option<String>,

    /// Memory that the process may use, such as 160MiB, from 64MiB [default: what its control group allows, else 256MiB]
    #[arg(long, env = "OUTBOX_RELAY_MEMORY", value_name = "BYTES", global = true)]
    pub memory: Option<String>,

    /// Where /metrics, /livez and /readyz are served [default: 0.0.0.0:9595]
    #[arg(long, env = "OUTBOX_RELAY_HTTP_LISTEN", value_name = "ADDRESS", global = true)]
    pub http_listen: Option<String>,

    /// text or json; the level is set by RUST_LOG [default: text]
    #[arg(long, env = "OUTBOX_RELAY_LOG_FORMAT", value_name = "FORMAT", global = true)]
    pub log_format: Option<String>,

    /// Which log lines to print, as tracing's EnvFilter reads it [default: info]
    #[arg(long, env = "RUST_LOG", value_name = "FILTER", global = true)]
    pub log_filter: Option<String>,
}

/// One logical queue and the SQS queue behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DestinationConfig {
    /// `outbox.messages.destination`.
    pub name: String,
    /// SQS's queue URL.
    pub queue_url: String,
    /// Standard or FIFO, by the URL.
    pub kind: QueueKind,
}

/// How messages of one group go to a FIFO queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FifoMode {
    /// One entry of a group in flight.
    Strict,
    /// Up to ten entries of a group in one request, one request of a group in flight.
    Batched,
}

/// What follows a dead message in its group on a FIFO queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnDead {
    /// The next message of the group.
    Skip,
    /// Nothing, until the dead message was redriven or discarded.
    Block,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For machines.
    Json,
}

/// Everything `run` needs, checked.
#[derive(Clone, Debug)]
pub struct RelayConfig {
    /// The database.
    pub database: DatabaseConfig,
    /// At least one destination, names distinct.
    pub destinations: Vec<DestinationConfig>,
    /// What is the same for all destinations.
    pub tuning: Tuning,
    /// How long delivered rows stay; zero deletes them at delivery.
    pub delivered_retention: Duration,
    /// From the first signal to exit.
    pub drain_timeout: Duration,
    /// Bytes that the process may use.
    pub memory: u64,
    /// Where the probes listen.
    pub http_listen: SocketAddr,
}

impl RelayConfig {
    /// Bytes of messages that all destinations may hold together.
    pub fn memory_for_messages(&self) -> usize {
        memory::for_messages(self.memory)
    }
}

/// Whether the environment names an endpoint for SQS, as the SDK reads it; that wins over a queue URL's own host.
pub fn has_sqs_endpoint() -> bool {
    ENDPOINTS.iter().any(|name| std::env::var(name).is_ok_and(|url| !url.is_empty()))
}

const ENDPOINTS: [&str; 2] = ["AWS_ENDPOINT_URL_SQS", "AWS_ENDPOINT_URL"];

impl Flags {
    /// How to log, for commands that may fail before the rest is read.
    ///
    /// # Errors
    ///
    /// When the format is unknown.
    pub fn logging(&self) -> Result<(LogFormat, Option<String>), ConfigError> {
        let mut problems = Problems::default();
        let format = self.log_format(&mut problems);
        let filter = self.log_filter.clone().filter(|filter| !filter.is_empty());
        problems.finish((format, filter))
    }

    /// What commands that only need PostgreSQL use.
    ///
    /// # Errors
    ///
    /// Every mistake, each with the variable, its value and the remedy.
    pub fn database(&self) -> Result<DatabaseConfig, ConfigError> {
        let mut problems = Problems::default();
        problems.unknown_variables();
        match database::read(self.database_url.as_deref(), self.database_url_file.as_deref(), &mut problems) {
            Some(database) => problems.finish(database),
            None => Err(problems.into_error()),
        }
    }

    /// Where the probes listen, for `healthcheck`.
    ///
    /// # Errors
    ///
    /// When the address cannot be parsed.
    pub fn listen(&self) -> Result<SocketAddr, ConfigError> {
        let mut problems = Problems::default();
        let listen = self.http_listen(&mut problems);
        problems.finish(listen)
    }

    /// What `run` uses.
    ///
    /// # Errors
    ///
    /// Every mistake, each with the variable, its value and the remedy.
    pub fn relay(&self) -> Result<RelayConfig, ConfigError> {
        let mut problems = Problems::default();
        problems.unknown_variables();
        let database = database::read(self.database_url.as_deref(), self.database_url_file.as_deref(), &mut problems);
        let destinations = problems.destinations(self.destinations.as_deref());
        for name in ENDPOINTS {
            problems.endpoint((name, std::env::var(name).ok().as_deref()));
        }
        let tuning = self.tuning(&mut problems);
        let keep = (Duration::ZERO, Duration::from_secs(3650 * 86_400));
        let delivered_retention = problems.duration(
            ("OUTBOX_RELAY_DELIVERED_RETENTION", self.delivered_retention.as_deref()),
            keep,
            Duration::from_secs(86_400),
        );
        let drain_timeout = problems.duration(
            ("OUTBOX_RELAY_DRAIN_TIMEOUT", self.drain_timeout.as_deref()),
            (Duration::ZERO, Duration::from_secs(3600)),
            Duration::from_secs(20),
        );
        let memory = ("OUTBOX_RELAY_MEMORY", self.memory.as_deref());
        let memory = problems.bytes(memory, memory::BOUNDS).unwrap_or_else(memory::default);
        let http_listen = self.http_listen(&mut problems);
        self.log_format(&mut problems);
        let Some(mut database) = database else {
            return Err(problems.into_error());
        };
        database.name_relay();
        problems.finish(RelayConfig {
            database,
            destinations,
            tuning,
            delivered_retention,
            drain_timeout,
            memory,
            http_listen,
        })
    }

    /// What was typed for a setting.
    fn text(&self, adjustable: Adjustable) -> &Option<String> {
        match adjustable {
            Adjustable::BatchSize => &self.batch_size,
            Adjustable::RequestSize => &self.request_size,
            Adjustable::MaxInFlight => &self.max_in_flight,
            Adjustable::FifoMode => &self.fifo_mode,
            Adjustable::MaxAttempts => &self.max_attempts,
            Adjustable::OnDead => &self.on_dead,
            Adjustable::RetryInitial => &self.retry_initial,
            Adjustable::RetryMax => &self.retry_max,
        }
    }

    fn tuning(&self, problems: &mut Problems) -> Tuning {
        let mut tuning = Tuning::default();
        for adjustable in Adjustable::ALL {
            tuning.read((adjustable, adjustable.variable(), self.text(adjustable).as_deref()), problems);
        }
        tuning.poll_interval = problems.duration(
            ("OUTBOX_RELAY_POLL_INTERVAL", self.poll_interval.as_deref()),
            (Duration::from_millis(1), Duration::from_secs(60)),
            tuning.poll_interval,
        );
        tuning.request_timeout = problems.duration(
            ("OUTBOX_RELAY_REQUEST_TIMEOUT", self.request_timeout.as_deref()),
            (Duration::from_millis(100), Duration::from_secs(60)),
            tuning.request_timeout,
        );
        tuning.check(problems);
        tuning
    }

    fn http_listen(&self, problems: &mut Problems) -> SocketAddr {
        problems
            .address(("OUTBOX_RELAY_HTTP_LISTEN", self.http_listen.as_deref()), SocketAddr::from(([0, 0, 0, 0], 9595)))
    }

    fn log_format(&self, problems: &mut Problems) -> LogFormat {
        problems.one_of(
            ("OUTBOX_RELAY_LOG_FORMAT", self.log_format.as_deref()),
            &[("text", LogFormat::Text), ("json", LogFormat::Json)],
            LogFormat::Text,
        )
    }
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
