//! Whose certificate a server shows. It can be described even if it is not accepted.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConnection, DigitallySignedStruct, Error, ProtocolVersion, SignatureScheme};

use x509_cert::Certificate;
use x509_cert::der::Decode as _;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

use super::moment;

/// How many names of a certificate are shown.
const NAMES: usize = 3;

/// The most characters that are shown of a name.
const MAX_NAME: usize = 100;

/// The version of TLS that both sides agreed on.
pub fn agreed(connection: &ClientConnection) -> &'static str {
    match connection.protocol_version() {
        Some(ProtocolVersion::TLSv1_3) => "TLS 1.3",
        Some(ProtocolVersion::TLSv1_2) => "TLS 1.2",
        _ => "an unknown version of TLS",
    }
}

/// Verifies as usual, and notes the server's certificate before.
#[derive(Debug)]
pub struct Noting {
    inner: Arc<dyn ServerCertVerifier>,
    seen: Mutex<Option<CertificateDer<'static>>>,
}

impl Noting {
    /// Verifies with this one.
    pub fn new(inner: Arc<dyn ServerCertVerifier>) -> Self {
        Self { inner, seen: Mutex::default() }
    }

    /// The server's certificate, if it has shown one.
    pub fn shown(&self) -> Option<Shown> {
        self.lock().as_ref().map(|certificate| Shown::of(certificate).unwrap_or_default())
    }

    fn lock(&self) -> MutexGuard<'_, Option<CertificateDer<'static>>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ServerCertVerifier for Noting {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        *self.lock() = Some(end_entity.clone().into_owned());
        self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// What a person wants to know of a certificate; nothing if it cannot be read.
#[derive(Debug, Default)]
pub struct Shown {
    names: Vec<String>,
    until: String,
    issuer: String,
}

impl Shown {
    /// What a certificate says; `None` if it cannot be read.
    pub fn of(der: &[u8]) -> Option<Self> {
        let certificate = Certificate::from_der(der).ok()?.tbs_certificate;
        let names = certificate.get::<SubjectAltName>().ok().flatten().map(|(_, names)| names.0).unwrap_or_default();
        let name = |name: &GeneralName| match name {
            GeneralName::DnsName(name) => Some(name.to_string()),
            GeneralName::IpAddress(bytes) => address(bytes.as_bytes()),
            _ => None,
        };
        let mut names: Vec<String> = names.iter().filter_map(name).map(|name| harmless(&name)).collect();
        if names.is_empty() {
            names.push(harmless(&certificate.subject.to_string()));
        }
        Some(Self {
            names,
            until: moment(certificate.validity.not_after.to_system_time()),
            issuer: harmless(&certificate.issuer.to_string()),
        })
    }
}

/// A server may write anything into its certificate.
fn harmless(text: &str) -> String {
    text.replace(char::is_control, "?").chars().take(MAX_NAME).collect()
}

fn address(bytes: &[u8]) -> Option<String> {
    let four = <[u8; 4]>::try_from(bytes).map(|bytes| std::net::IpAddr::from(bytes).to_string());
    four.or_else(|_| <[u8; 16]>::try_from(bytes).map(|bytes| std::net::IpAddr::from(bytes).to_string())).ok()
}

impl std::fmt::Display for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { names, until, issuer } = self;
        if until.is_empty() {
            return f.write_str("certificate, which cannot be read");
        }
        let more = names.len().saturating_sub(NAMES);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let first: Vec<&str> = names.iter().take(NAMES).map(String::as_str).collect();
        let first = if first.is_empty() { "no host".to_owned() } else { first.join(", ") };
        write!(f, "certificate for {first}{more}, valid until {until}, issued by {issuer}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(names: &[&str]) -> String {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params =
            rcgen::CertificateParams::new(names.iter().map(|&name| name.to_owned()).collect::<Vec<_>>()).unwrap();
        params.not_after = rcgen::date_time_ymd(2031, 2, 3);
        params.distinguished_name.push(rcgen::DnType::CommonName, "Test");
        Shown::of(params.self_signed(&key).unwrap().der()).unwrap().to_string()
    }

    #[test]
    fn a_certificate_is_described_by_names_expiry_and_issuer() {
        let until = ", valid until 2031-02-03T00:00:00Z, issued by CN=Test";
        assert!(shown(&["a.test", "10.1.2.3", "::1"]).starts_with("certificate for a.test, 10.1.2.3, ::1, valid"));
        assert_eq!(shown(&["a.test", "b.test"]), format!("certificate for a.test, b.test{until}"));
        assert_eq!(shown(&["a", "b", "c", "d", "e"]), format!("certificate for a, b, c and 2 more{until}"));
        assert_eq!(shown(&[]), format!("certificate for CN=Test{until}"));
        assert!(shown(&["a\x1b[31m\n"]).starts_with("certificate for a?[31m?, valid"), "{}", shown(&["a\x1b[31m\n"]));
        assert!(Shown::of(b"no certificate").is_none());
    }
}
