//! The configuration: its settings, their values, and the mistakes in them.
//!
//! [`Flags`] holds the text that was given for each setting, by flag or environment variable. [`RelayConfig`] and its
//! neighbours hold the values. Every mistake is found before anything starts, and all of them are reported at once.
//! This is the only reader of the environment besides the AWS SDK and its HTTP client, which read `AWS_*` and the variables
//! for proxies by themselves; `network.rs` checks these, and `environment.rs` shows them. `traces/` reads OpenTelemetry's.

mod check;
mod claim_check;
mod database;
mod destination;
mod environment;
mod flags;
mod memory;
mod network;
mod problems;
mod setting;
mod shown;
mod table;
mod target;
mod traces;
mod tuning;

use std::net::SocketAddr;
use std::time::Duration;

pub use claim_check::ClaimCheckConfig;
pub use database::{
    ChannelBinding, ClientCertificate, DatabaseAuth, DatabaseConfig, Host, HostOrder, Keepalive, Negotiation,
    PasswordSource, Roots, Server, ShownParameter, Timeouts, TlsConfig, TlsMode, TlsVersion,
};
pub use destination::{DestinationConfig, RoleConfig};
pub use environment::surroundings;
pub use flags::Flags;
pub use network::profile;
pub use problems::ConfigError;
pub use shown::{Origin, Shown};
pub use table::{ConfiguredDestinations, DestinationRow, Difference, RefusedRow};
pub use target::Target;
pub(crate) use target::region_of_topic;
pub use traces::{Batching, Header, Sampling, TracesConfig};
pub use tuning::{Adjustable, Tuning};

use crate::schema::Schema;
use problems::Problems;

/// How messages of one group are sent to a FIFO queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, clap::ValueEnum)]
pub enum FifoMode {
    /// One entry of a group in flight.
    Strict,
    /// Up to ten entries of a group in one request, one request of a group in flight.
    Batched,
}

impl FifoMode {
    /// What lets more messages of a group through than this mode does.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::Strict => {
                "OUTBOX_RELAY_FIFO_MODE=batched sends up to ten of a group in a request; more groups help as well"
            }
            Self::Batched => "only more groups help: a group has one request under way",
        }
    }

    /// How the setting is written.
    pub fn word(self) -> &'static str {
        match self {
            Self::Strict => "strict",
            Self::Batched => "batched",
        }
    }
}

/// What follows a dead message in its group on a FIFO queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, clap::ValueEnum)]
pub enum OnDead {
    /// The next message of the group.
    Skip,
    /// Nothing, until the dead message has been redriven or discarded.
    Block,
}

/// The format of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, clap::ValueEnum)]
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
    /// The destinations that the environment names, names distinct; none if those in `outbox.destinations` are served.
    pub destinations: Vec<DestinationConfig>,
    /// Certificates to trust for AWS instead of the system's, in PEM.
    pub ca_bundle: Option<Vec<u8>>,
    /// The settings that all destinations share.
    pub tuning: Tuning,
    /// How long delivered rows are kept; zero deletes them at delivery.
    pub delivered_retention: Duration,
    /// The longest time from the first signal to exit.
    pub drain_timeout: Duration,
    /// Bytes that the process may use.
    pub memory: u64,
    /// Where the probes listen.
    pub http_listen: SocketAddr,
    /// Where spans go; `None` if none are wanted.
    pub traces: Option<TracesConfig>,
}

impl RelayConfig {
    /// Bytes of messages that all destinations together, of this number of databases, may have in memory.
    pub fn memory_for_messages(&self, databases: usize) -> usize {
        let spans = self.traces.as_ref().map_or(0, |traces| traces.batching.memory());
        let others = memory::OF_A_DATABASE * databases.saturating_sub(1) as u64;
        memory::for_messages(self.memory.saturating_sub(spans as u64 + others))
    }
}

/// Variables that name an endpoint.
const ENDPOINTS: [&str; 5] =
    ["AWS_ENDPOINT_URL_SQS", "AWS_ENDPOINT_URL_SNS", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL_STS", "AWS_ENDPOINT_URL"];

impl Flags {
    /// How to log, for commands that may fail before the rest is read.
    ///
    /// # Errors
    ///
    /// When the format is unknown.
    pub fn logging(&self) -> Result<(LogFormat, Option<String>), ConfigError> {
        let mut problems = Problems::default();
        let format = problems.read(self, &setting::LOG_FORMAT);
        problems.finish((format, self.text(&setting::LOG_FILTER.info).map(str::to_owned)))
    }

    /// The schema of the outbox, for commands that print SQL and need no database.
    ///
    /// # Errors
    ///
    /// When it cannot have this name, or a variable is misspelt.
    pub fn schema(&self) -> Result<Schema, ConfigError> {
        let mut problems = Problems::default();
        problems.unknown_variables();
        let schema = problems.read(self, &setting::SCHEMA);
        problems.finish(schema)
    }

    /// The configuration of commands that need only PostgreSQL.
    ///
    /// # Errors
    ///
    /// Every mistake, each with the variable, its value and the remedy.
    pub fn database(&self) -> Result<DatabaseConfig, ConfigError> {
        let mut problems = Problems::default();
        problems.unknown_variables();
        let auth = problems.read(self, &setting::DATABASE_AUTH);
        // The way to AWS matters only for a token.
        let ca_bundle = if auth == DatabaseAuth::RdsIam { network::read(&mut problems) } else { None };
        match self.read_database(auth, ca_bundle, &mut problems) {
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
        let listen = problems.read(self, &setting::HTTP_LISTEN);
        problems.finish(listen)
    }

    /// The configuration of `run`.
    ///
    /// # Errors
    ///
    /// Every mistake, each with the variable, its value and the remedy.
    pub fn relay(&self) -> Result<RelayConfig, ConfigError> {
        let mut problems = Problems::default();
        problems.unknown_variables();
        let ca_bundle = network::read(&mut problems);
        let auth = problems.read(self, &setting::DATABASE_AUTH);
        let database = self.read_database(auth, ca_bundle.clone(), &mut problems);
        let mut destinations = problems.destinations(self.text(&setting::DESTINATIONS.info));
        for name in ENDPOINTS {
            problems.endpoint(name, std::env::var(name).ok().as_deref());
        }
        let tuning = Tuning::typed(self, &mut problems);
        let delivered_retention = problems.read(self, &setting::DELIVERED_RETENTION);
        let drain_timeout = problems.read(self, &setting::DRAIN_TIMEOUT);
        let memory = problems.read(self, &setting::MEMORY);
        let memory = if memory > 0 { memory } else { memory::default() };
        memory::fit(&mut destinations, memory);
        let http_listen = problems.read(self, &setting::HTTP_LISTEN);
        problems.read(self, &setting::LOG_FORMAT);
        let traces = traces::read(&mut problems);
        let Some(mut database) = database else {
            return Err(problems.into_error());
        };
        database.name_relay();
        problems.finish(RelayConfig {
            database,
            destinations,
            ca_bundle,
            tuning,
            delivered_retention,
            drain_timeout,
            memory,
            http_listen,
            traces,
        })
    }

    fn read_database(
        &self,
        auth: DatabaseAuth,
        ca_bundle: Option<Vec<u8>>,
        problems: &mut Problems,
    ) -> Option<DatabaseConfig> {
        let text = |setting: &setting::Setting<&'static str>| self.text(&setting.info).map(str::to_owned);
        let given = database::Given {
            url: text(&setting::DATABASE_URL),
            file: text(&setting::DATABASE_URL_FILE),
            urls_file: text(&setting::DATABASE_URLS_FILE),
            chosen: text(&setting::DATABASE),
            password_command: text(&setting::DATABASE_PASSWORD_COMMAND),
            auth,
            ca_bundle,
            connection_max_age: problems.read(self, &setting::DATABASE_CONNECTION_MAX_AGE),
            schema: problems.read(self, &setting::SCHEMA),
        };
        database::read(&given, problems)
    }
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;
