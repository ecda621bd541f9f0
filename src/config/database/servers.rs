//! The servers to try: `host`, `hostaddr` and `port`, each a list (PostgreSQL documentation, 34.1.1.3 Specifying Multiple
//! Hosts).

use std::net::IpAddr;
use std::path::PathBuf;

use super::conninfo;
use super::sources::Gathered;

/// The name of a server, or the folder of its socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// A DNS name or an address.
    Name(String),
    /// The folder of a Unix socket.
    Socket(PathBuf),
}

/// A server to try.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// What the certificate must name, and what is looked up unless there is an address.
    pub host: Host,
    /// The address to connect to instead of looking the name up.
    pub address: Option<IpAddr>,
    /// The port, also part of a socket's name.
    pub port: u16,
}

impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.host {
            // Otherwise the end of an IPv6 address could not be told from the port.
            Host::Name(name) if name.contains(':') => write!(f, "[{name}]:{}", self.port),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
            Host::Socket(folder) => write!(f, "{}:{}", folder.display(), self.port),
        }
    }
}

/// The servers: as many as hosts or addresses are given; one port for all, or one for each.
pub(super) fn servers(gathered: &Gathered) -> Result<Vec<Server>, String> {
    let list = |keyword| gathered.get(keyword).map(|text| text.split(',').map(str::trim).collect::<Vec<_>>());
    let (hosts, addresses) = (list("host"), list("hostaddr"));
    let ports = list("port").unwrap_or_else(|| vec![""]);
    let count = hosts.as_ref().or(addresses.as_ref()).map_or(1, Vec::len);
    if addresses.as_ref().is_some_and(|addresses| addresses.len() != count) {
        return Err(
            "DATABASE_URL (or PGHOST and PGHOSTADDR) has not as many hosts as addresses; name one for each".to_owned()
        );
    }
    if ports.len() != 1 && ports.len() != count {
        return Err(format!(
            "DATABASE_URL (or PGPORT) has {} ports for {count} hosts; give one for all, or one for each",
            ports.len()
        ));
    }
    (0..count)
        .map(|at| {
            let port = port(ports.get(at).or_else(|| ports.first()).copied().unwrap_or_default())?;
            let address = match addresses.as_ref().and_then(|all| all.get(at)).filter(|text| !text.is_empty()) {
                Some(text) => Some(text.parse::<IpAddr>().map_err(|_| {
                    "hostaddr (in DATABASE_URL or PGHOSTADDR) holds what is no IP address (not shown); use host for a name"
                        .to_owned()
                })?),
                None => None,
            };
            let host = hosts.as_ref().and_then(|all| all.get(at)).copied().unwrap_or_default();
            Ok(Server { host: host_of(host, address, port)?, address, port })
        })
        .collect()
}

fn host_of(text: &str, address: Option<IpAddr>, port: u16) -> Result<Host, String> {
    if text.starts_with('/') {
        return Ok(Host::Socket(PathBuf::from(text)));
    }
    // It may be a part of the password.
    if text.contains(['@', '/', '?', '#', ' ']) {
        return Err(format!(
            "DATABASE_URL (or PGHOST) holds a host with an @, /, ?, # or blank in it (not shown); {}",
            conninfo::USE
        ));
    }
    Ok(match (text, address) {
        ("", Some(address)) => Host::Name(address.to_string()),
        ("", None) => Host::Socket(socket_folder(port)),
        (name, _) => Host::Name(name.to_owned()),
    })
}

/// libpq's default is set when it is built: the first is Debian's and Red Hat's, the second PostgreSQL's own.
const SOCKET_FOLDERS: [&str; 2] = ["/var/run/postgresql", "/tmp"];

fn socket_folder(port: u16) -> PathBuf {
    let has_socket = |folder: &&&str| PathBuf::from(folder).join(format!(".s.PGSQL.{port}")).exists();
    PathBuf::from(SOCKET_FOLDERS.iter().find(has_socket).unwrap_or(&SOCKET_FOLDERS[0]))
}

fn port(text: &str) -> Result<u16, String> {
    match text {
        "" => Ok(5432),
        // In a URL without a host it may be the password.
        text => text.parse().ok().filter(|port| *port > 0).ok_or_else(|| {
            "DATABASE_URL (or PGPORT) holds a port that is not a number from 1 to 65535 (not shown: it may be part of the password); write HOST:5432"
                .to_owned()
        }),
    }
}
