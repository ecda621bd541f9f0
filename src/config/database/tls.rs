//! How TLS protects the connection: libpq's `sslmode` and its neighbours (PostgreSQL documentation, 34.19 SSL Support).

use std::path::{Path, PathBuf};

use super::sources::Gathered;
use super::{Host, Server, choose};

/// libpq's sslmode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsMode {
    /// No TLS.
    Disable,
    /// TLS only if the server refuses a connection without it; the server is not verified.
    Allow,
    /// TLS if the server offers it and it works; the server is not verified.
    Prefer,
    /// TLS; the server is not verified. With a root certificate, `require` becomes `VerifyCa`.
    Require,
    /// TLS with a certificate chain to a trusted root; any host name.
    VerifyCa,
    /// TLS with a trusted chain and the right host name.
    VerifyFull,
}

/// The roots to trust.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Roots {
    /// Those of this system.
    System,
    /// A PEM file.
    File(PathBuf),
}

/// The certificate to show to the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// A PEM file: the certificate, and those between it and the root.
    pub certificate: PathBuf,
    /// A PEM file, not encrypted.
    pub key: PathBuf,
}

/// How the encryption begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Negotiation {
    /// The server is asked first, as all versions understand.
    Postgres,
    /// At once (PostgreSQL 17).
    Direct,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// 1.2
    Tls12,
    /// 1.3
    Tls13,
}

/// How TLS protects the connection. The files are read anew for each connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsConfig {
    /// Whether, and what is verified.
    pub mode: TlsMode,
    /// What is trusted by `VerifyCa` and `VerifyFull`.
    pub roots: Roots,
    /// PEM files of revoked certificates.
    pub revoked: Vec<PathBuf>,
    /// A folder of such files.
    pub revoked_folder: Option<PathBuf>,
    /// What the server may ask for.
    pub client: Option<ClientCertificate>,
    /// The lowest version.
    pub min_version: TlsVersion,
    /// The highest version.
    pub max_version: TlsVersion,
    /// Whether the name of the server is sent in clear.
    pub sends_server_name: bool,
    /// How the encryption begins.
    pub negotiation: Negotiation,
}

pub(super) fn read(gathered: &Gathered, servers: &[Server]) -> Result<TlsConfig, String> {
    let roots = gathered.get("sslrootcert");
    let is_system = roots == Some("system");
    let file = roots.filter(|_| !is_system).map(PathBuf::from).or_else(|| gathered.file_at_home(is_system, "root.crt"));
    let mode = mode(gathered, is_system, file.is_some())?;
    let has_name = |server: &Server| gathered.get("host").is_some() || matches!(server.host, Host::Socket(_));
    if mode == TlsMode::VerifyFull && !servers.iter().all(has_name) {
        return Err("sslmode=verify-full needs a host name, and only hostaddr is given; add host".to_owned());
    }
    if mode == TlsMode::VerifyCa && file.is_none() {
        return Err(
            "sslmode=verify-ca without sslrootcert would trust every public certificate; name one, or use verify-full"
                .to_owned(),
        );
    }
    if mode != TlsMode::Disable
        && let Some(path) = &file
    {
        readable("sslrootcert", path)?;
    }
    let revoked = gathered.get("sslcrl").map(PathBuf::from);
    if let Some(path) = &revoked {
        readable("sslcrl", path)?;
    }
    let versions = [("TLSv1.2", TlsVersion::Tls12), ("TLSv1.3", TlsVersion::Tls13)];
    let old = [("TLSv1", TlsVersion::Tls12), ("TLSv1.1", TlsVersion::Tls12), versions[0], versions[1]];
    let min_version = choose(gathered, "ssl_min_protocol_version", &old, TlsVersion::Tls12)?;
    let max_version = choose(gathered, "ssl_max_protocol_version", &versions, TlsVersion::Tls13)?;
    if min_version > max_version {
        return Err("ssl_min_protocol_version is above ssl_max_protocol_version; use TLSv1.2 and TLSv1.3".to_owned());
    }
    let negotiation = [("postgres", Negotiation::Postgres), ("direct", Negotiation::Direct)];
    let negotiation = choose(gathered, "sslnegotiation", &negotiation, Negotiation::Postgres)?;
    if negotiation == Negotiation::Direct && matches!(mode, TlsMode::Disable | TlsMode::Allow | TlsMode::Prefer) {
        return Err("sslnegotiation=direct needs TLS; use sslmode=require or stricter".to_owned());
    }
    Ok(TlsConfig {
        mode,
        roots: file.map_or(Roots::System, Roots::File),
        revoked: revoked.or_else(|| gathered.file_at_home(false, "root.crl")).into_iter().collect(),
        revoked_folder: gathered.get("sslcrldir").map(PathBuf::from),
        client: if mode == TlsMode::Disable { None } else { client(gathered)? },
        min_version,
        max_version,
        sends_server_name: choose(gathered, "sslsni", &[("0", false), ("1", true)], true)?,
        negotiation,
    })
}

fn mode(gathered: &Gathered, is_system: bool, has_roots: bool) -> Result<TlsMode, String> {
    let modes = [
        ("disable", TlsMode::Disable),
        ("allow", TlsMode::Allow),
        ("prefer", TlsMode::Prefer),
        ("require", TlsMode::Require),
        ("verify-ca", TlsMode::VerifyCa),
        ("verify-full", TlsMode::VerifyFull),
    ];
    let default = if is_system { TlsMode::VerifyFull } else { TlsMode::Prefer };
    let mode = choose(gathered, "sslmode", &modes, default)?;
    match mode {
        // Everybody can have a certificate of a public authority, so the name must be checked.
        mode if is_system && mode != TlsMode::VerifyFull => {
            Err("sslrootcert=system is not allowed with a weak sslmode; use sslmode=verify-full".to_owned())
        }
        TlsMode::Require if has_roots => Ok(TlsMode::VerifyCa),
        mode => Ok(mode),
    }
}

/// The certificate to show: both files must be readable if one was named; at home, both must be there.
fn client(gathered: &Gathered) -> Result<Option<ClientCertificate>, String> {
    if gathered.get("sslcertmode") == Some("disable") {
        return Ok(None);
    }
    let named = (gathered.get("sslcert").map(PathBuf::from), gathered.get("sslkey").map(PathBuf::from));
    let is_named = named.0.is_some() || named.1.is_some();
    let certificate = named.0.or_else(|| gathered.file_at_home(false, "postgresql.crt"));
    let key = named.1.or_else(|| gathered.file_at_home(false, "postgresql.key"));
    let (certificate, key) = match (certificate, key) {
        (Some(certificate), Some(key)) => (certificate, key),
        (Some(_), None) if is_named => return Err("sslcert is given without its key; add sslkey".to_owned()),
        (None, Some(_)) if is_named => return Err("sslkey is given without its certificate; add sslcert".to_owned()),
        (None, _) | (_, None) => return Ok(None),
    };
    if is_named {
        readable("sslcert", &certificate)?;
        readable("sslkey", &key)?;
    }
    Ok(Some(ClientCertificate { certificate, key }))
}

fn readable(keyword: &str, path: &Path) -> Result<(), String> {
    let opened = std::fs::File::open(path);
    opened.map(drop).map_err(|error| {
        let shown = shown(path);
        format!("{keyword}={shown} cannot be read: {error}; give a PEM file, and check its permissions")
    })
}

/// A path, unless it is the text of a key or a URL.
fn shown(path: &Path) -> String {
    let text = path.display().to_string();
    if text.contains(['\n', '\r']) || text.contains("-----") || text.contains("://") || text.len() > 100 {
        return "(not shown, it is no path)".to_owned();
    }
    text
}
