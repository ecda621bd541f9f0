//! Where PostgreSQL is and how to trust it: `DATABASE_URL`, `DATABASE_URL_FILE`, or libpq's `PG*`.
//!
//! tokio-postgres parses the connection string but knows neither `sslmode=verify-full` nor `sslrootcert`, so these two are
//! taken out first, with libpq's meaning (PostgreSQL documentation, 34.19 SSL Support).

use std::path::PathBuf;
use std::time::Duration;

use tokio_postgres::config::{Host, SslMode};

use super::check::Problems;

/// How much TLS protects the connection, as libpq's sslmode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsMode {
    /// No TLS.
    Disable,
    /// TLS if the server offers it; the server is not verified.
    Prefer,
    /// TLS; the server is not verified unless a root certificate is given, then as `VerifyCa`.
    Require,
    /// TLS with a certificate chain that leads to a trusted root; any host name.
    VerifyCa,
    /// TLS with a trusted chain and the right host name.
    VerifyFull,
}

/// A checked way to a database. Its `Debug` shows no password.
#[derive(Clone, Debug)]
pub struct DatabaseConfig {
    /// Parsed by tokio-postgres, with our time limits filled in.
    pub connection: tokio_postgres::Config,
    /// Protection of the connection.
    pub tls: TlsMode,
    /// Roots to trust instead of the system's, a PEM file.
    pub root_certificate: Option<PathBuf>,
    /// `DATABASE_URL_FILE`, if that was given.
    file: Option<String>,
}

/// What sessions call themselves, unless `DATABASE_URL` says otherwise.
const APPLICATION: &str = "outbox-relay";

impl DatabaseConfig {
    /// Has the sessions of a relay tell which relay it is, as `outbox-relay HOST/PID`, so that `outbox-relay status` can count
    /// relays. PostgreSQL cuts names to 63 bytes (NAMEDATALEN).
    pub(super) fn name_relay(&mut self) {
        if self.connection.get_application_name() == Some(APPLICATION) {
            let host = gethostname::gethostname();
            let host: String = host.to_string_lossy().chars().take(40).collect();
            self.connection.application_name(format!("{APPLICATION} {host}/{}", std::process::id()));
        }
    }

    /// What to connect with now: the file may have another password by now. A file that cannot be used is left alone, for the
    /// server says what is wrong with the old one.
    pub fn connection_now(&self) -> tokio_postgres::Config {
        let read = |path| read(None, Some(path), &mut Problems::default());
        let Some(mut new) = self.file.as_deref().and_then(read) else { return self.connection.clone() };
        if let Some(name) = self.connection.get_application_name() {
            new.connection.application_name(name);
        }
        // TLS is set up once; whether it is used is a matter of that.
        new.connection.ssl_mode(self.connection.get_ssl_mode());
        new.connection
    }

    /// Hosts, ports and database for log lines; never user or password.
    pub fn place(&self) -> String {
        let mut hosts: Vec<String> = self.connection.get_hosts().iter().map(host).collect();
        if hosts.is_empty() {
            hosts = self.connection.get_hostaddrs().iter().map(|address| bracketed(&address.to_string())).collect();
        }
        let ports = self.connection.get_ports();
        // One port for all hosts, or one for each.
        let port = |at: usize| ports.get(at).or_else(|| ports.first()).copied().unwrap_or(5432);
        let places: Vec<String> = (0..).zip(hosts).map(|(at, host)| format!("{host}:{}", port(at))).collect();
        format!("{}/{}", places.join(","), self.connection.get_dbname().unwrap_or(""))
    }
}

fn host(host: &Host) -> String {
    match host {
        Host::Tcp(name) => bracketed(name),
        Host::Unix(path) => path.display().to_string(),
    }
}

/// An IPv6 address would run into its port.
fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}

/// `None` when there is a problem, which is then noted.
pub(super) fn read(url: Option<&str>, file: Option<&str>, problems: &mut Problems) -> Option<DatabaseConfig> {
    let present = |text: &&str| !text.trim().is_empty();
    let url = match (url.filter(present), file.filter(present)) {
        (Some(_), Some(_)) => {
            problems.add("DATABASE_URL and DATABASE_URL_FILE are both set; keep one of them".to_owned());
            return None;
        }
        (Some(url), None) => Some(url.trim().to_owned()),
        (None, Some(path)) => Some(from_file(path).map_err(|problem| problems.add(problem)).ok()?),
        (None, None) => None,
    };
    let parsed = match url {
        Some(url) => from_url(&url),
        None => from_libpq_variables(),
    };
    let parts = parsed.and_then(refuse_odd_host).map_err(|problem| problems.add(problem)).ok()?;
    let tls = parts.sslmode.or_else(|| variable("PGSSLMODE"));
    let root_certificate = parts.sslrootcert.or_else(|| variable("PGSSLROOTCERT"));
    let tls = tls_mode(tls.as_deref(), root_certificate.is_some()).map_err(|problem| problems.add(problem)).ok()?;
    let mut connection = parts.connection;
    fill_in(&mut connection, tls);
    // libpq 16 spells "the system's roots" as sslrootcert=system.
    let root_certificate = root_certificate.filter(|path| path != "system").map(PathBuf::from);
    let file = file.filter(present).map(str::to_owned);
    Some(DatabaseConfig { connection, tls, root_certificate, file })
}

fn from_file(path: &str) -> Result<String, String> {
    if path.contains("://") {
        return Err(
            "DATABASE_URL_FILE holds a URL (not shown); name a file, or give the URL as DATABASE_URL".to_owned()
        );
    }
    let text = std::fs::read_to_string(path).map_err(|error| {
        format!("DATABASE_URL_FILE={path:?} cannot be read: {error}; check the path and its rights")
    })?;
    match text.trim() {
        "" => Err(format!("DATABASE_URL_FILE={path:?} is empty; {USE}")),
        url => Ok(url.to_owned()),
    }
}

struct Parts {
    connection: tokio_postgres::Config,
    sslmode: Option<String>,
    sslrootcert: Option<String>,
}

/// Whatever way a piece of a password got into the host: it is not shown.
fn refuse_odd_host(parts: Parts) -> Result<Parts, String> {
    let is_odd = |host: &Host| matches!(host, Host::Tcp(name) if name.contains(['@', '/', '?', '#']));
    if parts.connection.get_hosts().iter().any(is_odd) {
        return Err(format!("DATABASE_URL (or PGHOST) holds a host with an @, /, ? or # in it (not shown); {USE}"));
    }
    Ok(parts)
}

const USE: &str = "use postgres://USER:PASSWORD@HOST:PORT/DATABASE";

const UNQUOTABLE: &str =
    "an option is not known or wrong, or a quote is missing (not shown: it may be part of the password)";

/// The parser ends the password at the first @, and everything behind it would be shown as host, database or option. Nor
/// can a ? stand in front of it: then the @ belongs to an option, such as a password given there.
fn refuse_split_password(after_scheme: &str) -> Result<(), String> {
    let (credentials, place) = after_scheme.split_once('@').unwrap_or(("", after_scheme));
    let sign = if place.contains('@') {
        ("an @", "%40")
    } else if credentials.contains('?') {
        ("a ?", "%3F (and an @ behind the host as %40)")
    } else {
        return Ok(());
    };
    Err(format!("DATABASE_URL cannot be used: the user or password holds {}; write it as {}", sign.0, sign.1))
}

fn from_url(url: &str) -> Result<Parts, String> {
    let (rest, taken) = match url.split_once("://") {
        Some(("postgres" | "postgresql", after_scheme)) => {
            refuse_split_password(after_scheme)?;
            take_from_query(url)
        }
        Some((scheme, _)) if !scheme.contains('=') => {
            return Err(format!("DATABASE_URL cannot be used: it is not a URL of PostgreSQL; {USE}"));
        }
        _ => take_from_words(url),
    };
    let mut connection: tokio_postgres::Config = rest.parse().map_err(|error| {
        // With the password among the options, an unknown option may be the second half of it.
        let is_secret = url.contains("password") || !url.contains("://");
        let problem = if is_secret { UNQUOTABLE.to_owned() } else { chain(&error) };
        format!("DATABASE_URL cannot be used: {problem}; {USE}")
    })?;
    // Only reached with blanks around the =, and then what was asked for must not silently become less.
    if connection.get_ssl_mode() != SslMode::Prefer {
        return Err("DATABASE_URL holds an sslmode that cannot be read; write sslmode=VALUE without blanks".to_owned());
    }
    if connection.get_hosts().is_empty() && connection.get_hostaddrs().is_empty() {
        return Err(format!("DATABASE_URL names no host; {USE}"));
    }
    if connection.get_password().is_none()
        && let Some(password) = variable("PGPASSWORD")
    {
        connection.password(password);
    }
    // As in libpq, the last one counts.
    let find = |name: &str| taken.iter().rfind(|(key, _)| key == name).map(|(_, value)| value.clone());
    Ok(Parts { connection, sslmode: find("sslmode"), sslrootcert: find("sslrootcert") })
}

fn from_libpq_variables() -> Result<Parts, String> {
    let Some(host) = variable("PGHOST") else {
        return Err("DATABASE_URL is not set (nor DATABASE_URL_FILE, nor PGHOST); set it to postgres://USER:PASSWORD@HOST:PORT/DATABASE".to_owned());
    };
    let mut connection = tokio_postgres::Config::new();
    connection.host(&host);
    if let Some(port) = variable("PGPORT") {
        let parsed =
            port.parse().map_err(|_| format!("PGPORT={port:?} is not a port; use a number from 1 to 65535"))?;
        connection.port(parsed);
    }
    if let Some(user) = variable("PGUSER") {
        connection.user(user);
    }
    if let Some(password) = variable("PGPASSWORD") {
        connection.password(password);
    }
    if let Some(database) = variable("PGDATABASE") {
        connection.dbname(database);
    }
    Ok(Parts { connection, sslmode: None, sslrootcert: None })
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

const TAKEN: [&str; 2] = ["sslmode", "sslrootcert"];

type Taken = Vec<(String, String)>;

fn take_from_query(url: &str) -> (String, Taken) {
    let Some((place, query)) = url.split_once('?') else {
        return (url.to_owned(), Vec::new());
    };
    let (ours, theirs): (Vec<&str>, Vec<&str>) =
        query.split('&').partition(|pair| TAKEN.contains(&pair.split('=').next().unwrap_or("")));
    let decode = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
    let taken = ours.iter().filter_map(|pair| pair.split_once('=')).map(|(k, v)| (k.to_owned(), decode(v))).collect();
    let rest = if theirs.is_empty() { place.to_owned() } else { format!("{place}?{}", theirs.join("&")) };
    (rest, taken)
}

fn take_from_words(text: &str) -> (String, Taken) {
    let is_ours = |word: &&str| word.split_once('=').is_some_and(|(key, _)| TAKEN.contains(&key));
    let (ours, theirs): (Vec<&str>, Vec<&str>) = words(text).into_iter().partition(is_ours);
    let bare = |value: &str| value.trim_matches('\'').to_owned();
    let taken = ours.iter().filter_map(|word| word.split_once('=')).map(|(k, v)| (k.to_owned(), bare(v))).collect();
    (theirs.join(" "), taken)
}

/// Splits at blanks, but not within quotes: a password may have two blanks in a row.
fn words(text: &str) -> Vec<&str> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    let words = text.split(|c: char| {
        let was_escaped = std::mem::take(&mut is_escaped);
        if !was_escaped {
            is_quoted ^= c == '\'';
            is_escaped = c == '\\';
        }
        c.is_whitespace() && !is_quoted && !was_escaped
    });
    words.filter(|word| !word.is_empty()).collect()
}

fn tls_mode(text: Option<&str>, has_root: bool) -> Result<TlsMode, String> {
    match text {
        None | Some("prefer" | "allow") => Ok(TlsMode::Prefer),
        Some("disable") => Ok(TlsMode::Disable),
        // libpq: with a root certificate, require means verify-ca.
        Some("require") if has_root => Ok(TlsMode::VerifyCa),
        Some("require") => Ok(TlsMode::Require),
        Some("verify-ca") => Ok(TlsMode::VerifyCa),
        Some("verify-full") => Ok(TlsMode::VerifyFull),
        Some(other) => Err(format!(
            "sslmode={other:?} (in DATABASE_URL or PGSSLMODE) is not allowed; use disable, prefer, require, verify-ca or verify-full"
        )),
    }
}

/// Bounds what would otherwise wait for ever: tokio-postgres has no connect timeout by default, keepalives after two
/// hours, and no limit for bytes that are never acknowledged.
fn fill_in(connection: &mut tokio_postgres::Config, tls: TlsMode) {
    use tokio_postgres::config::TargetSessionAttrs;
    connection.ssl_mode(match tls {
        TlsMode::Disable => SslMode::Disable,
        TlsMode::Prefer => SslMode::Prefer,
        TlsMode::Require | TlsMode::VerifyCa | TlsMode::VerifyFull => SslMode::Require,
    });
    if connection.get_connect_timeout().is_none() {
        connection.connect_timeout(Duration::from_secs(5));
    }
    if connection.get_tcp_user_timeout().is_none() {
        connection.tcp_user_timeout(Duration::from_secs(15));
    }
    connection.keepalives(true).keepalives_idle(Duration::from_secs(10));
    connection.keepalives_interval(Duration::from_secs(5)).keepalives_retries(3);
    if connection.get_application_name().is_none() {
        connection.application_name(APPLICATION);
    }
    // After a failover the old address may lead to a server that only reads.
    connection.target_session_attrs(TargetSessionAttrs::ReadWrite);
}

/// An error with its causes, because tokio-postgres keeps the interesting half in `source`.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
