//! Makes one connection: which server, which of its addresses, with or without TLS, and with which password. Everything is
//! looked up and read anew each time, so that a moved name, a new password or a new certificate needs no restart.
//!
//! The pool is in `connect.rs`, TLS in `tls.rs`, passwords in `password.rs`.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_postgres::config::{SslMode, SslNegotiation, TargetSessionAttrs};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::password::NoPassword;
use super::{error, password, tls};
use crate::causes;
use crate::config::{ChannelBinding, DatabaseConfig, Host, HostOrder, Negotiation, PasswordSource, Server, TlsMode};

/// Why no connection could be made.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{problem}")]
pub(super) struct DialError {
    /// One sentence.
    pub(super) problem: String,
    /// The same for readers who need no login.
    pub(super) shown: String,
    /// Whether waiting cannot help: a wrong password, or a database that does not exist.
    pub(super) is_final: bool,
    /// Whether the server has no room for one more connection.
    pub(super) is_full: bool,
    /// Whether an attempt with another protection may succeed.
    may_be_about_tls: bool,
}

impl DialError {
    fn new(problem: String) -> Self {
        Self { shown: problem.clone(), problem, is_final: false, is_full: false, may_be_about_tls: false }
    }
}

/// A session with a server.
pub(super) struct Session {
    pub(super) client: Client,
    /// Moves the bytes of the connection; ends with it.
    pub(super) task: JoinHandle<()>,
    /// How it is encrypted.
    pub(super) tls: Option<MakeRustlsConnect>,
    /// The server.
    pub(super) server: Server,
    /// Why there is no TLS although it was preferred.
    pub(super) fallback: Option<String>,
}

/// How one attempt is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protection {
    Plain,
    /// TLS if the server offers it.
    Offered,
    Required,
}

/// The attempts on one address, as libpq makes them: `prefer` falls back to plain, `allow` to TLS.
fn protections(config: &DatabaseConfig, host: &Host) -> &'static [Protection] {
    match (host, config.tls.mode) {
        // PostgreSQL speaks no TLS on a socket, and libpq ignores sslmode there.
        (Host::Socket(_), _) | (_, TlsMode::Disable) => &[Protection::Plain],
        // Without TLS there is nothing to bind to.
        (_, TlsMode::Allow | TlsMode::Prefer) if config.channel_binding == ChannelBinding::Require => {
            &[Protection::Required]
        }
        (_, TlsMode::Allow) => &[Protection::Plain, Protection::Required],
        (_, TlsMode::Prefer) => &[Protection::Offered, Protection::Plain],
        (_, TlsMode::Require | TlsMode::VerifyCa | TlsMode::VerifyFull) => &[Protection::Required],
    }
}

/// How long all attempts together may take. The watchdogs of the loops that wait for a connection are slower.
const DIAL_TIMEOUT: Duration = Duration::from_secs(40);

/// Connects to the first server that takes writes, beginning with the one that was used last. It takes at most
/// [`DIAL_TIMEOUT`], of which each server has its share.
pub(super) async fn dial(config: &DatabaseConfig, last: Option<&Server>) -> Result<Session, DialError> {
    let mut servers: Vec<&Server> = config.servers.iter().collect();
    if config.order == HostOrder::Random {
        fastrand::shuffle(&mut servers);
    } else {
        // A stable sort: the others keep their order.
        servers.sort_by_key(|server| Some(*server) != last);
    }
    let mut failures: Vec<(&Server, DialError)> = Vec::new();
    let share = DIAL_TIMEOUT / u32::try_from(servers.len()).unwrap_or(u32::MAX).max(1);
    for server in servers {
        match tokio::time::timeout(share, dial_server(config, server)).await {
            Ok(Ok(session)) => return Ok(session),
            Ok(Err(error)) => failures.push((server, error)),
            Err(_) => failures.push((server, DialError::new(format!("no session within {}s", share.as_secs())))),
        }
    }
    let is_final = failures.iter().all(|(_, error)| error.is_final);
    let is_full = failures.iter().any(|(_, error)| error.is_full);
    let all = |text: fn(&DialError) -> &str| match failures.as_slice() {
        [(_, error)] => text(error).to_owned(),
        all => all.iter().map(|(server, error)| format!("{server}: {}", text(error))).collect::<Vec<_>>().join("; "),
    };
    let (problem, shown) = (all(|error| &error.problem), all(|error| &error.shown));
    Err(DialError { problem, shown, is_final, is_full, may_be_about_tls: false })
}

async fn dial_server(config: &DatabaseConfig, server: &Server) -> Result<Session, DialError> {
    let addresses = addresses(config, server).await?;
    if password::is_costly(config) {
        reach(config, server, &addresses).await?;
    }
    let password = password::password(config, server)
        .await
        .map_err(|NoPassword { problem, shown }| DialError { shown, ..DialError::new(problem) })?;
    let mut last = None;
    for address in addresses {
        match dial_address(config, server, address, password.as_deref()).await {
            Ok(session) => return Ok(session),
            // The server has answered; its other addresses would say the same.
            Err(error) if error.is_final => return Err(error),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| DialError::new("the name has no address".to_owned())))
}

/// The addresses of a server's name, as they are now; `None` stands for a socket.
async fn addresses(config: &DatabaseConfig, server: &Server) -> Result<Vec<Option<IpAddr>>, DialError> {
    let name = match (&server.host, server.address) {
        (Host::Socket(_), _) => return Ok(vec![None]),
        (_, Some(address)) => return Ok(vec![Some(address)]),
        (Host::Name(name), None) => name,
    };
    let resolved = resolve(name, config.timeouts.connect).await.map_err(|error| {
        DialError::new(format!("the name {name:?} {}; check the host in DATABASE_URL", error.problem))
    });
    let mut addresses: Vec<Option<IpAddr>> = resolved?.into_iter().map(Some).collect();
    if config.order == HostOrder::Random {
        fastrand::shuffle(&mut addresses);
    }
    Ok(addresses)
}

/// Looks a name up.
pub(super) async fn resolve(name: &str, timeout: Duration) -> Result<Vec<IpAddr>, DialError> {
    let looked_up = tokio::time::timeout(timeout, tokio::net::lookup_host((name, 0))).await;
    let looked_up = looked_up.map_err(|_| DialError::new("cannot be resolved in time".to_owned()))?;
    let found = looked_up.map_err(|error| {
        let text = error.to_string();
        // What the C library says stands behind what Rust's says.
        DialError::new(format!("cannot be resolved: {}", text.rsplit(": ").next().unwrap_or(&text)))
    })?;
    let mut addresses: Vec<IpAddr> = Vec::new();
    for address in found.map(|socket| socket.ip()) {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    Ok(addresses)
}

/// Whether any address accepts a connection. A program or IAM is asked for a password only then.
async fn reach(config: &DatabaseConfig, server: &Server, addresses: &[Option<IpAddr>]) -> Result<(), DialError> {
    let mut last = String::new();
    for address in addresses.iter().flatten() {
        let connected = TcpStream::connect(SocketAddr::new(*address, server.port));
        match tokio::time::timeout(config.timeouts.connect, connected).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) => last = format!("error connecting to server: {error}"),
            Err(_) => last = "no answer in time".to_owned(),
        }
    }
    if last.is_empty() { Ok(()) } else { Err(DialError::new(last)) }
}

async fn dial_address(
    config: &DatabaseConfig,
    server: &Server,
    address: Option<IpAddr>,
    password: Option<&str>,
) -> Result<Session, DialError> {
    let mut failures: Vec<DialError> = Vec::new();
    for protection in protections(config, &server.host) {
        let settings = settings(config, server, address, password, *protection);
        let attempt =
            tokio::time::timeout(config.timeouts.establish, attempt(config, server, &settings, *protection)).await;
        match attempt {
            Ok(Ok(session)) => {
                let is_weaker = *protection == Protection::Plain && config.tls.mode == TlsMode::Prefer;
                let fallback = failures.pop().filter(|_| is_weaker).map(|error| error.problem);
                return Ok(Session { fallback, ..session });
            }
            Ok(Err(error)) => {
                let is_over = !error.may_be_about_tls;
                failures.push(error);
                if is_over {
                    break;
                }
            }
            Err(_) => {
                let seconds = config.timeouts.establish.as_secs();
                failures.push(DialError::new(format!("no session within {seconds}s; connect_timeout allows longer")));
                break;
            }
        }
    }
    // A refused connection is refused twice; what the second attempt says differently is worth reading.
    let first = failures.remove(0);
    match failures.pop() {
        Some(second) if second.problem != first.problem => {
            let names = if config.tls.mode == TlsMode::Allow { ["without", "with"] } else { ["with", "without"] };
            let problem = format!("{} TLS: {}; {} TLS: {}", names[0], first.problem, names[1], second.problem);
            let (is_final, is_full) = (first.is_final && second.is_final, first.is_full || second.is_full);
            Err(DialError { is_final, is_full, ..DialError::new(problem) })
        }
        _ => Err(first),
    }
}

fn settings(
    config: &DatabaseConfig,
    server: &Server,
    address: Option<IpAddr>,
    password: Option<&str>,
    protection: Protection,
) -> tokio_postgres::Config {
    let mut settings = tokio_postgres::Config::new();
    match &server.host {
        // rustls knows fewer names than libpq; where none is verified, any other will do.
        Host::Name(name) if config.tls.mode != TlsMode::VerifyFull && ServerName::try_from(name.as_str()).is_err() => {
            settings.host("postgresql.invalid")
        }
        Host::Name(name) => settings.host(name),
        Host::Socket(folder) => settings.host_path(folder),
    };
    address.map(|address| settings.hostaddr(address));
    settings.port(server.port).user(&config.user).dbname(&config.database).application_name(&config.application_name);
    config.options.as_ref().map(|options| settings.options(options));
    password.map(|password| settings.password(password));
    settings.connect_timeout(config.timeouts.connect).tcp_user_timeout(config.timeouts.tcp_user);
    settings.keepalives(config.timeouts.keepalive.is_some());
    if let Some(keepalive) = config.timeouts.keepalive {
        settings.keepalives_idle(keepalive.idle).keepalives_interval(keepalive.interval);
        settings.keepalives_retries(keepalive.count);
    }
    settings.ssl_mode(match protection {
        Protection::Plain => SslMode::Disable,
        Protection::Offered => SslMode::Prefer,
        Protection::Required => SslMode::Require,
    });
    settings.ssl_negotiation(match config.tls.negotiation {
        Negotiation::Postgres => SslNegotiation::Postgres,
        Negotiation::Direct => SslNegotiation::Direct,
    });
    settings.channel_binding(match config.channel_binding {
        ChannelBinding::Disable => tokio_postgres::config::ChannelBinding::Disable,
        ChannelBinding::Prefer => tokio_postgres::config::ChannelBinding::Prefer,
        ChannelBinding::Require => tokio_postgres::config::ChannelBinding::Require,
    });
    // After a failover the old address may lead to a read-only server.
    settings.target_session_attrs(TargetSessionAttrs::ReadWrite);
    settings
}

async fn attempt(
    config: &DatabaseConfig,
    server: &Server,
    settings: &tokio_postgres::Config,
    protection: Protection,
) -> Result<Session, DialError> {
    let tls = match protection {
        Protection::Plain => None,
        Protection::Offered | Protection::Required => {
            let tls = config.tls.clone();
            // Reading files may block, and other work waits for this thread.
            let made = tokio::task::spawn_blocking(move || tls::client_config(&tls)).await;
            let made = made.map_err(|error| DialError::new(error.to_string()))?;
            Some(MakeRustlsConnect::new(made.map_err(DialError::new)?))
        }
    };
    let explained = |error: tokio_postgres::Error| explained(config, server, &error);
    let (client, task) = match tls.clone() {
        Some(tls) => {
            let (client, connection) = settings.connect(tls).await.map_err(explained)?;
            (client, tokio::spawn(async move { drop(connection.await) }))
        }
        None => {
            let (client, connection) = settings.connect(NoTls).await.map_err(explained)?;
            (client, tokio::spawn(async move { drop(connection.await) }))
        }
    };
    Ok(Session { client, task, tls, server: server.clone(), fallback: None })
}

fn explained(config: &DatabaseConfig, server: &Server, error: &tokio_postgres::Error) -> DialError {
    let mut problem = error::explain(error);
    let io = causes::causes(error).find_map(|cause| cause.downcast_ref::<std::io::Error>());
    if let Some(remedy) = io.and_then(std::io::Error::get_ref).and_then(|inner| inner.downcast_ref()).map(tls::remedy) {
        problem = format!("{problem}; {remedy}");
    }
    if matches!(server.host, Host::Socket(_)) && io.is_some_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
        problem.push_str("; no server has a socket in this folder: name a host in DATABASE_URL");
    }
    if let Some(remedy) = remedy(config, server, error, &problem) {
        problem = format!("{problem}; {remedy}");
    }
    DialError {
        is_final: is_final(error),
        is_full: error.code() == Some(&SqlState::TOO_MANY_CONNECTIONS),
        // A server that cannot be reached, or takes no writes, is no other without TLS.
        may_be_about_tls: !error.to_string().starts_with("error connecting to server"),
        ..DialError::new(problem)
    }
}

/// What helps if the server refuses a role.
fn remedy(config: &DatabaseConfig, server: &Server, error: &tokio_postgres::Error, problem: &str) -> Option<String> {
    let origin = config.password_origin();
    let is_code = |code: &SqlState| error.code() == Some(code);
    if is_code(&SqlState::INVALID_PASSWORD) || is_code(&SqlState::INVALID_AUTHORIZATION_SPECIFICATION) {
        let remedy = match config.password {
            PasswordSource::RdsIam { .. } => {
                format!(
                    "for the token: allow rds-db:connect, GRANT rds_iam TO {}, and use the name of RDS as host",
                    config.user
                )
            }
            _ if problem.contains("certificate") => {
                "set sslcert and sslkey for a certificate with CN = the user".to_owned()
            }
            _ if problem.contains("no encryption") => {
                "add sslmode=require, or let the role in (pg_hba.conf)".to_owned()
            }
            _ if is_code(&SqlState::INVALID_PASSWORD) => format!("check the user, and the password from {origin}"),
            _ => "let the role in (LOGIN, pg_hba.conf), or correct the user".to_owned(),
        };
        return Some(remedy);
    }
    if is_code(&SqlState::INVALID_CATALOG_NAME) {
        return Some("create it, or correct DATABASE_URL".to_owned());
    }
    if is_code(&SqlState::TOO_MANY_CONNECTIONS) {
        return Some("raise max_connections, or use a pooler".to_owned());
    }
    problem.contains("password missing").then(|| password::missing(config, server))
}

fn is_final(error: &tokio_postgres::Error) -> bool {
    let final_states =
        [SqlState::INVALID_PASSWORD, SqlState::INVALID_AUTHORIZATION_SPECIFICATION, SqlState::INVALID_CATALOG_NAME];
    error.code().is_some_and(|code| final_states.contains(code))
}
