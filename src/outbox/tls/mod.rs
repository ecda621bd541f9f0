//! TLS to PostgreSQL with libpq's meaning of `sslmode`, on rustls.
//!
//! `prefer` and `require` encrypt without verifying, as libpq does: they protect against eavesdropping, not against a
//! man in the middle. `verify-ca` requires a chain to a trusted root, and `verify-full` also checks the host name. The
//! verification is in `verify.rs`.

mod verify;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{AlertDescription, CertificateError, ClientConfig, Error, RootCertStore, SupportedProtocolVersion};

use crate::config::{ClientCertificate, Roots, TlsConfig, TlsMode, TlsVersion};
use crate::way::Shown;
use verify::{Check, Verifier};

/// What PostgreSQL 17 expects in ALPN (PostgreSQL documentation, 54.2.11).
const PROTOCOL: &[u8] = b"postgresql";

/// What rustls needs for a connection, from the files as they are now.
///
/// # Errors
///
/// A sentence that names the file that cannot be used.
pub(super) fn client_config(tls: &TlsConfig) -> Result<ClientConfig, String> {
    client_config_with(tls, |verifier| verifier)
}

/// The same, with something around the verifier.
///
/// # Errors
///
/// As [`client_config`].
pub(super) fn client_config_with(
    tls: &TlsConfig,
    around: impl FnOnce(Arc<dyn ServerCertVerifier>) -> Arc<dyn ServerCertVerifier>,
) -> Result<ClientConfig, String> {
    // The provider is named explicitly: the process default panics when two providers are compiled in.
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&versions(tls))
        .map_err(|error| format!("TLS cannot be set up: {error}"))?
        .dangerous()
        .with_custom_certificate_verifier(around(Arc::new(verifier(tls, Arc::clone(&provider))?)));
    let mut config = match &tls.client {
        Some(client) => builder.with_client_cert_resolver(Arc::new(of_client(client, &provider)?)),
        None => builder.with_no_client_auth(),
    };
    config.enable_sni = tls.sends_server_name;
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    // The validated module demands the extended master secret for TLS 1.2 (RFC 7627).
    config.require_ems = cfg!(feature = "fips");
    if cfg!(feature = "fips") && !config.fips() {
        return Err(
            "TLS to PostgreSQL would not be by the validated module; use a build without the feature fips".to_owned()
        );
    }
    Ok(config)
}

fn versions(tls: &TlsConfig) -> Vec<&'static SupportedProtocolVersion> {
    let all = [(TlsVersion::Tls12, &rustls::version::TLS12), (TlsVersion::Tls13, &rustls::version::TLS13)];
    let allowed = |version: &TlsVersion| (tls.min_version..=tls.max_version).contains(version);
    all.into_iter().filter(|(version, _)| allowed(version)).map(|(_, version)| version).collect()
}

fn verifier(tls: &TlsConfig, provider: Arc<CryptoProvider>) -> Result<Verifier, String> {
    let check = match tls.mode {
        TlsMode::VerifyCa => Check::Chain,
        TlsMode::VerifyFull => Check::ChainAndName,
        // As in libpq, a root certificate that was named is used in every mode.
        TlsMode::Allow | TlsMode::Prefer | TlsMode::Require if matches!(tls.roots, Roots::File(_)) => Check::Chain,
        TlsMode::Disable | TlsMode::Allow | TlsMode::Prefer | TlsMode::Require => {
            return Ok(Verifier::lenient(provider));
        }
    };
    let (roots, named) = roots(&tls.roots)?;
    let revoked = revoked(tls)?;
    let has_lists = !revoked.is_empty();
    Verifier::strict(provider, check, roots, named, revoked).map_err(|error| match has_lists {
        true => format!("sslcrl cannot be used: {error}; make the list anew, with crlnumber (version 2)"),
        false => format!("the root certificates cannot be used: {error}"),
    })
}

/// The roots, and once more those that were named one by one in a file.
fn roots(from: &Roots) -> Result<(RootCertStore, Vec<CertificateDer<'static>>), String> {
    let mut roots = RootCertStore::empty();
    let path = match from {
        Roots::File(path) => path,
        Roots::System => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err("this system has no root certificates to verify the database with; install ca-certificates or set sslrootcert".to_owned());
            }
            return Ok((roots, Vec::new()));
        }
    };
    let problem = |error: String| format!("sslrootcert={} cannot be used: {error}; give a PEM file", path.display());
    let certificates = all_of::<CertificateDer<'static>>(path).map_err(problem)?;
    // A server's own certificate may stand there as well, but it signs no others.
    let now = UnixTime::now();
    for certificate in certificates.iter().filter(|one| verify::is_authority(one, now)) {
        roots.add(certificate.clone()).map_err(|error| problem(error.to_string()))?;
    }
    if certificates.is_empty() {
        return Err(problem("it holds no certificate".to_owned()));
    }
    Ok((roots, certificates))
}

/// The lists of revoked certificates.
fn revoked(tls: &TlsConfig) -> Result<Vec<CertificateRevocationListDer<'static>>, String> {
    let mut files: Vec<PathBuf> = tls.revoked.clone();
    if let Some(folder) = &tls.revoked_folder {
        let problem = |error: std::io::Error| format!("sslcrldir={} cannot be read: {error}", folder.display());
        for entry in std::fs::read_dir(folder).map_err(problem)? {
            let path = entry.map_err(problem)?.path();
            if path.is_file() {
                files.push(path);
            }
        }
    }
    if tls.revoked_folder.is_some() && files.is_empty() {
        return Err("sslcrldir holds no list of revoked certificates; put them there, or leave it out".to_owned());
    }
    let mut lists = Vec::new();
    for path in files {
        let problem = |error: String| format!("sslcrl={} cannot be used: {error}; give a PEM file", path.display());
        let found = all_of::<CertificateRevocationListDer<'static>>(&path).map_err(problem)?;
        if found.is_empty() {
            return Err(problem("it holds no list of revoked certificates".to_owned()));
        }
        lists.extend(found);
    }
    // webpki takes the first list of an authority; the newest counts.
    lists.sort_by_key(|list| std::cmp::Reverse(verify::made_at(list)));
    Ok(lists)
}

/// rustls itself would take no certificate of version 1.
fn of_client(client: &ClientCertificate, provider: &CryptoProvider) -> Result<SingleCertAndKey, String> {
    let problem = |keyword: &str, path: &Path, error: String| {
        format!("{keyword}={} cannot be used: {error}; give a PEM file", path.display())
    };
    let certificates = all_of::<CertificateDer<'static>>(&client.certificate)
        .map_err(|error| problem("sslcert", &client.certificate, error))?;
    if certificates.is_empty() {
        return Err(problem("sslcert", &client.certificate, "it holds no certificate".to_owned()));
    }
    let text =
        std::fs::read_to_string(&client.key).map_err(|error| problem("sslkey", &client.key, error.to_string()))?;
    if text.contains("ENCRYPTED") {
        return Err(format!(
            "sslkey={} is encrypted; decrypt it: openssl pkey -in KEY -out DECRYPTED",
            client.key.display()
        ));
    }
    let key = PrivateKeyDer::from_pem_slice(text.as_bytes());
    let key = key.map_err(|error| problem("sslkey", &client.key, error.to_string()))?;
    let key = provider.key_provider.load_private_key(key);
    let key = key.map_err(|error| problem("sslkey", &client.key, error.to_string()))?;
    let is_of_key = match (key.public_key(), verify::key_of(&certificates[0])) {
        (Some(of_key), Some(of_certificate)) => of_key == of_certificate,
        _ => true,
    };
    if !is_of_key {
        return Err(format!(
            "sslkey={} is not the key of sslcert={}; give the key that it was made with",
            client.key.display(),
            client.certificate.display()
        ));
    }
    Ok(SingleCertAndKey::from(CertifiedKey::new(certificates, key)))
}

/// All items of a kind in a PEM file.
fn all_of<T: rustls::pki_types::pem::PemObject>(path: &Path) -> Result<Vec<T>, String> {
    let items = T::pem_file_iter(path).map_err(|error| error.to_string())?;
    items.collect::<Result<_, _>>().map_err(|error| error.to_string())
}

/// The certificate that is shown to the server, for people to read.
pub(super) fn own_certificate(tls: &TlsConfig) -> Option<String> {
    let path = &tls.client.as_ref()?.certificate;
    let certificates = all_of::<CertificateDer<'static>>(path).ok()?;
    Shown::of(certificates.first()?).map(|shown| shown.to_string())
}

/// What is wrong, in a few words.
pub(super) fn problem(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => "not for this host".to_owned(),
        Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            "expired".to_owned()
        }
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => "unknown issuer".to_owned(),
        error => error.to_string(),
    }
}

/// What to do about an error of TLS.
pub(super) fn remedy(error: &Error) -> &'static str {
    use CertificateError as Odd;
    match error {
        Error::InvalidCertificate(Odd::UnknownIssuer) => "set sslrootcert to the authority that signed it",
        Error::InvalidCertificate(Odd::NotValidForName | Odd::NotValidForNameContext { .. }) => {
            "use its name as the host, or sslmode=verify-ca"
        }
        Error::InvalidCertificate(Odd::Expired | Odd::ExpiredContext { .. }) => "renew the server's certificate",
        Error::InvalidCertificate(Odd::Revoked) => "it is in the list of sslcrl; renew the server's certificate",
        Error::InvalidCertificate(Odd::UnknownRevocationStatus) => "sslcrl has no list of its authority; add it",
        Error::InvalidCertificate(Odd::ExpiredRevocationList | Odd::ExpiredRevocationListContext { .. }) => {
            "get a new list for sslcrl"
        }
        Error::InvalidCertificate(_) => "make it anew, with subjectAltName (docs/connections.md)",
        Error::AlertReceived(AlertDescription::HandshakeFailure) => {
            "no common ground: the server needs an RSA or ECDSA key (RSA-PSS keys are not supported) and TLS 1.2 or 1.3"
        }
        Error::AlertReceived(_) => "the server refused; its log says why (a client certificate: sslcert and sslkey)",
        _ => "check that the server speaks TLS 1.2 or 1.3 (ssl_min_protocol_version, ssl_ciphers)",
    }
}
