//! How to reach PostgreSQL and how to verify it, as libpq reads it: `DATABASE_URL`, `DATABASE_URL_FILE`, a service file,
//! libpq's `PG*` variables, and its defaults, in this order (docs/connections.md).
//!
//! `conninfo.rs` takes a connection string apart, `sources.rs` gathers what was given; `servers.rs`, `tls.rs` and this file
//! turn it into values. Connections are made in [`crate::outbox`].

mod conninfo;
mod keywords;
mod options;
mod secret_file;
mod servers;
mod several;
mod sources;
mod tls;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::problems::Problems;
use crate::schema::Schema;

pub use servers::{Host, Server};
pub(super) use several::{is_name, names};
pub use sources::ShownParameter;
pub use tls::{ClientCertificate, Negotiation, Roots, TlsConfig, TlsMode, TlsVersion};

pub(super) use sources::Given;
use sources::{Gathered, gather};

/// In which order the servers are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostOrder {
    /// As they were given.
    AsGiven,
    /// Shuffled for each connection, and the addresses of a name as well.
    Random,
}

/// Whether the password's proof is bound to the TLS connection (SCRAM-SHA-256-PLUS).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelBinding {
    /// Never.
    Disable,
    /// If the server offers it.
    Prefer,
    /// The connection fails without it.
    Require,
}

/// Where the password comes from. It is read anew for each connection.
#[derive(Clone, PartialEq, Eq)]
pub enum PasswordSource {
    /// It was given.
    Given(String),
    /// A password file of libpq; it need not exist.
    PassFile(PathBuf),
    /// A command prints it: the program and its arguments.
    Command(Vec<String>),
    /// A token of IAM, made for each connection.
    RdsIam {
        /// Certificates to trust for AWS instead of the system's, in PEM.
        ca_bundle: Option<Vec<u8>>,
    },
}

impl std::fmt::Debug for PasswordSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Given(_) => f.write_str("Given(not shown)"),
            Self::PassFile(path) => f.debug_tuple("PassFile").field(path).finish(),
            Self::Command(words) => f.debug_tuple("Command").field(&words.first()).finish(),
            Self::RdsIam { .. } => f.write_str("RdsIam"),
        }
    }
}

/// How a lost network is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// The time for one address, until it accepts the TCP connection.
    pub connect: Duration,
    /// The time for one address, until a session can be used.
    pub establish: Duration,
    /// How long sent bytes may stay without acknowledgement.
    pub tcp_user: Duration,
    /// `None` sends no keepalives.
    pub keepalive: Option<Keepalive>,
}

/// TCP keepalives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// The time without traffic before the first.
    pub idle: Duration,
    /// The time between them.
    pub interval: Duration,
    /// How many are lost before the connection counts as dead.
    pub count: u32,
}

/// How to authenticate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, clap::ValueEnum)]
pub enum DatabaseAuth {
    /// With a password, a certificate, or whatever the server asks for.
    #[default]
    Password,
    /// With a token of AWS IAM as the password (RDS and Aurora).
    RdsIam,
}

/// How to connect to the database, checked. Its `Debug` shows no password.
#[derive(Clone, Debug)]
pub struct DatabaseConfig {
    /// Its name, if it comes from `DATABASE_URLS_FILE`: the label `database` of its metrics.
    pub name: Option<Arc<str>>,
    /// At least one.
    pub servers: Vec<Server>,
    /// In which order they are tried.
    pub order: HostOrder,
    /// The role.
    pub user: String,
    /// The database.
    pub database: String,
    /// The password.
    pub password: PasswordSource,
    /// `options`, for the server.
    pub options: Option<String>,
    /// The application name of sessions.
    pub application_name: String,
    /// Whether authentication is bound to TLS.
    pub channel_binding: ChannelBinding,
    /// How connections are protected.
    pub tls: TlsConfig,
    /// How a lost network is noticed.
    pub timeouts: Timeouts,
    /// Connections older than this are replaced.
    pub connection_max_age: Duration,
    /// The schema of the outbox.
    pub schema: Schema,
    parameters: Vec<ShownParameter>,
    given: Given,
}

/// The application name of sessions, unless `DATABASE_URL` sets one.
const APPLICATION: &str = "outbox-relay";

/// The longest application name: PostgreSQL truncates names to 63 bytes (NAMEDATALEN).
const MOST_BYTES: usize = 63;

impl DatabaseConfig {
    /// Sets the application name of a relay's sessions, so that `outbox-relay status` can count the relays of this outbox.
    pub(super) fn name_relay(&mut self) {
        if self.application_name == APPLICATION {
            let host = gethostname::gethostname();
            self.application_name =
                session_name(&self.relays_are_called(), &host.to_string_lossy(), std::process::id());
        }
    }

    /// What the application names of this outbox's relays begin with; HOST/PID follows.
    pub fn relays_are_called(&self) -> String {
        match self.schema.is_renamed() {
            false => format!("{APPLICATION} "),
            true => format!("{APPLICATION}.{} ", self.schema),
        }
    }

    /// The configuration to connect with now: files are read again, since they may have changed. If one cannot be used,
    /// the old configuration is returned: the server then says what is wrong with it.
    pub fn now(&self) -> DatabaseConfig {
        let is_from_files = self.given.file.is_some()
            || self.given.urls_file.is_some()
            || self.parameters.iter().any(|one| one.keyword == "service");
        let new = is_from_files.then(|| read(&self.given, &mut Problems::default())).flatten();
        match new {
            // The rest of the process knows the outbox by its schema.
            Some(new) => {
                DatabaseConfig { application_name: self.application_name.clone(), schema: self.schema.clone(), ..new }
            }
            None => self.clone(),
        }
    }

    /// Hosts, ports and database for log lines; never user or password.
    pub fn place(&self) -> String {
        let servers: Vec<String> = self.servers.iter().map(Server::to_string).collect();
        format!("{}/{}", servers.join(","), self.database)
    }

    /// The same, with the schema if it is not the usual one: a database may have several outboxes.
    pub fn place_of_outbox(&self) -> String {
        match self.schema.is_renamed() {
            false => self.place(),
            true => format!("{} (schema {})", self.place(), self.schema),
        }
    }

    /// Where the password comes from, for people to read.
    pub fn password_origin(&self) -> String {
        match &self.password {
            PasswordSource::Given(_) => {
                let given = self.parameters.iter().find(|one| one.keyword == "password");
                given.map_or_else(|| "DATABASE_URL".to_owned(), |given| given.origin.clone())
            }
            PasswordSource::PassFile(path) => path.display().to_string(),
            PasswordSource::Command(words) => words.first().cloned().unwrap_or_default(),
            PasswordSource::RdsIam { .. } => "IAM".to_owned(),
        }
    }

    /// What was given for the connection, each value with its origin; no secret.
    pub fn shown(&self) -> &[ShownParameter] {
        &self.parameters
    }
}

/// `prefix`, host and process. Of a long host the end stays, which differs between the pods of a Deployment.
fn session_name(prefix: &str, host: &str, process: u32) -> String {
    let process = process.to_string();
    let room = MOST_BYTES.saturating_sub(prefix.len() + process.len() + 1);
    let is_cut = |(at, _): &(usize, char)| host.len() - at <= room;
    let host = host.char_indices().find(is_cut).map_or("", |(at, _)| &host[at..]);
    format!("{prefix}{host}/{process}")
}

/// `None` if there is a problem; it is added to `problems`.
pub(super) fn read(given: &Given, problems: &mut Problems) -> Option<DatabaseConfig> {
    match gather(given).map_err(|problem| vec![problem]).and_then(|gathered| typed(given, &gathered)) {
        Ok(config) => Some(config),
        Err(sentences) => {
            sentences.into_iter().for_each(|sentence| problems.add(sentence));
            None
        }
    }
}

fn typed(given: &Given, gathered: &Gathered) -> Result<DatabaseConfig, Vec<String>> {
    let unsupported = keywords::refuse_unsupported(&gathered.parameters);
    if !unsupported.is_empty() {
        return Err(unsupported);
    }
    values(given, gathered).map_err(|problem| vec![problem])
}

fn values(given: &Given, gathered: &Gathered) -> Result<DatabaseConfig, String> {
    let servers = servers::servers(gathered)?;
    let user = match gathered.get("user") {
        Some(user) => user.to_owned(),
        None => whoami::username().map_err(|_| {
            "DATABASE_URL names no user, and this system has no name for the user of this process; add USER@ before the host"
                .to_owned()
        })?,
    };
    let tls = tls::read(gathered, &servers)?;
    let database = gathered.get("dbname").unwrap_or(&user).to_owned();
    let application = gathered.get("application_name").or(gathered.get("fallback_application_name"));
    allow(gathered, "target_session_attrs", &[("any", ()), ("read-write", ()), ("primary", ())], (), || {
        "; a relay needs a primary: use read-write or leave it out".to_owned()
    })?;
    let order = [("disable", HostOrder::AsGiven), ("random", HostOrder::Random)];
    let binding = [
        ("disable", ChannelBinding::Disable),
        ("prefer", ChannelBinding::Prefer),
        ("require", ChannelBinding::Require),
    ];
    let channel_binding = choose(gathered, "channel_binding", &binding, ChannelBinding::Prefer)?;
    if channel_binding == ChannelBinding::Require && tls.mode == TlsMode::Disable {
        return Err(
            "channel_binding=require needs TLS, and sslmode is disable; use sslmode=require or stricter".to_owned()
        );
    }
    let (name, schema) = gathered.line.clone().unzip();
    Ok(DatabaseConfig {
        name: name.map(Arc::from),
        order: choose(gathered, "load_balance_hosts", &order, HostOrder::AsGiven)?,
        password: password(given, gathered, &servers, &tls)?,
        options: gathered.get("options").map(str::to_owned),
        application_name: application.unwrap_or(APPLICATION).to_owned(),
        channel_binding,
        timeouts: timeouts(gathered)?,
        connection_max_age: given.connection_max_age,
        schema: schema.flatten().unwrap_or_else(|| given.schema.clone()),
        parameters: gathered.shown(),
        given: given.clone(),
        servers,
        user,
        database,
        tls,
    })
}

fn password(given: &Given, gathered: &Gathered, servers: &[Server], tls: &TlsConfig) -> Result<PasswordSource, String> {
    let password = gathered.get("password");
    let command = given.password_command.as_deref();
    match given.auth {
        DatabaseAuth::RdsIam => {
            let name = "OUTBOX_RELAY_DATABASE_AUTH=rds-iam";
            if password.is_some() || command.is_some() {
                return Err(format!("{name} makes the password itself; take the password or its command away"));
            }
            // The token is a password in clear text for its 15 minutes.
            if tls.mode != TlsMode::VerifyFull || servers.iter().any(|server| matches!(server.host, Host::Socket(_))) {
                return Err(format!("{name} sends its token to the server; add sslmode=verify-full to DATABASE_URL, and a host name"));
            }
            Ok(PasswordSource::RdsIam { ca_bundle: given.ca_bundle.clone() })
        }
        DatabaseAuth::Password => match (password, command) {
            (Some(_), Some(_)) => {
                Err("OUTBOX_RELAY_DATABASE_PASSWORD_COMMAND is set, and DATABASE_URL (or PGPASSWORD) holds a password; keep one of them".to_owned())
            }
            (Some(password), None) => Ok(PasswordSource::Given(password.to_owned())),
            (None, Some(command)) => match shlex::split(command).filter(|words| !words.is_empty()) {
                Some(words) => Ok(PasswordSource::Command(words)),
                None => Err("OUTBOX_RELAY_DATABASE_PASSWORD_COMMAND has a quote without its end (not shown); write PROGRAM ARGUMENT …".to_owned()),
            },
            (None, None) => Ok(PasswordSource::PassFile(gathered.passfile())),
        },
    }
}

/// By default, tokio-postgres has no connect timeout, sends keepalives only after two hours, and waits without limit for
/// bytes to be acknowledged.
fn timeouts(gathered: &Gathered) -> Result<Timeouts, String> {
    let whole = |keyword| number(gathered, keyword);
    // libpq: zero or nothing means the default.
    let or = |value: Option<u64>, unit: fn(u64) -> Duration, default| value.filter(|n| *n > 0).map_or(default, unit);
    let connect = whole("connect_timeout")?;
    let has_keepalives = whole("keepalives")? != Some(0);
    let seconds = Duration::from_secs;
    let keepalive = Keepalive {
        idle: or(whole("keepalives_idle")?, seconds, seconds(10)),
        interval: or(whole("keepalives_interval")?, seconds, seconds(5)),
        count: whole("keepalives_count")?.filter(|n| *n > 0).map_or(3, |n| u32::try_from(n).unwrap_or(u32::MAX)),
    };
    Ok(Timeouts {
        connect: or(connect, seconds, seconds(5)),
        // TLS and authentication take up to seven round trips.
        establish: or(connect, seconds, seconds(15)),
        tcp_user: or(whole("tcp_user_timeout")?, Duration::from_millis, seconds(15)),
        keepalive: has_keepalives.then_some(keepalive),
    })
}

/// A whole number that libpq would take; a negative one counts as zero.
fn number(gathered: &Gathered, keyword: &'static str) -> Result<Option<u64>, String> {
    let Some(text) = gathered.get(keyword) else { return Ok(None) };
    let number = text.trim().parse::<i32>().map_err(|_| wrong(keyword, text, "; use a whole number"))?;
    Ok(Some(u64::try_from(number).unwrap_or(0)))
}

/// One of some words, or the default.
fn choose<T: Copy>(
    gathered: &Gathered,
    keyword: &'static str,
    words: &[(&'static str, T)],
    default: T,
) -> Result<T, String> {
    allow(gathered, keyword, words, default, || {
        let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        format!("; use {}", words.join(" or "))
    })
}

fn allow<T: Copy>(
    gathered: &Gathered,
    keyword: &'static str,
    words: &[(&'static str, T)],
    default: T,
    remedy: impl Fn() -> String,
) -> Result<T, String> {
    let Some(text) = gathered.get(keyword) else { return Ok(default) };
    let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
    found.ok_or_else(|| wrong(keyword, text, &remedy()))
}

fn wrong(keyword: &'static str, text: &str, remedy: &str) -> String {
    let is_plain = text.len() <= 40 && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    let text = if is_plain { text } else { "…" };
    match keywords::variable_of(keyword) {
        Some(variable) => format!("{keyword}={text:?} (in DATABASE_URL or as {variable}) is not allowed{remedy}"),
        None => format!("{keyword}={text:?} (in DATABASE_URL) is not allowed{remedy}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_named_after_the_end_of_a_long_host_and_its_process() {
        assert_eq!(session_name("outbox-relay ", "db-1", 17), "outbox-relay db-1/17");
        let pod = "lottery-backend-with-a-long-name-for-the-region-6f9c8dd5b4-x7k2p";
        for prefix in ["outbox-relay ", &format!("outbox-relay.{} ", "a".repeat(40))] {
            let name = session_name(prefix, pod, 1_234_567);
            assert_eq!(name.len(), 63, "{name}");
            assert!(name.starts_with(prefix) && name.ends_with("p/1234567"), "{name}");
        }
        assert_eq!(session_name("outbox-relay ", &"ä".repeat(40), 1).len(), 63);
    }
}
