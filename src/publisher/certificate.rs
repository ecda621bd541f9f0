//! TLS with an endpoint, as `outbox-relay check` tries it: the version, and whose certificate the server shows. It is verified
//! as the SDK verifies it, and can be described even if it is not accepted.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{CertificateError, ClientConfig, Error, RootCertStore};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::way::{LIMIT, Noting, Shown, Trouble, agreed};

/// Protocols that the SDK offers.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Shakes hands for this host; returns what was agreed on.
///
/// # Errors
///
/// Why it failed, with the certificate if the server showed one.
pub(super) async fn handshake(stream: TcpStream, host: &str, ca_bundle: Option<&[u8]>) -> Result<String, Trouble> {
    let odd = |error: String| Trouble::new(format!("cannot be set up: {error}"), "report this, with the host's name");
    let verifier = Arc::new(verifier(ca_bundle)?);
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| odd(error.to_string()))?.dangerous();
    let mut config = builder.with_custom_certificate_verifier(Arc::clone(&verifier) as _).with_no_client_auth();
    config.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).into();
    let name = ServerName::try_from(host.to_owned()).map_err(|error| odd(error.to_string()))?;
    let shaken = timeout(LIMIT, TlsConnector::from(Arc::new(config)).connect(name, stream)).await;
    let shown = verifier.shown();
    match shaken {
        Ok(Ok(stream)) => {
            let version = agreed(stream.get_ref().1);
            Ok(format!("{version}, {}", shown.map_or_else(|| "no certificate".to_owned(), |shown| shown.to_string())))
        }
        Ok(Err(error)) => Err(match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(Error::InvalidCertificate(problem)) => not_accepted(problem, host, shown.unwrap_or_default()),
            _ => Trouble::new(
                format!("no handshake: {error}"),
                "check that the port speaks TLS (else use http://), and that no firewall cuts it",
            ),
        }),
        Err(_) => Err(Trouble::new(
            format!("no answer within {LIMIT:?}"),
            "check that the port speaks TLS, and that no firewall or proxy swallows it",
        )),
    }
}

fn not_accepted(problem: &CertificateError, host: &str, shown: Shown) -> Trouble {
    match problem {
        CertificateError::UnknownIssuer => Trouble::new(
            format!("nobody trusted has issued the {shown} (UnknownIssuer)"),
            "name a PEM file with the issuer's certificate in AWS_CA_BUNDLE; a proxy that inspects TLS has its own issuer",
        ),
        CertificateError::BadSignature => Trouble::new(
            format!("the {shown}, is not signed with the key that is trusted for this issuer (BadSignature)"),
            "name a PEM file with the issuer's present certificate in AWS_CA_BUNDLE",
        ),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => Trouble::new(
            format!("expired: {shown}"),
            "have the server's certificate renewed, or set the clock of this host",
        ),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => Trouble::new(
            format!("not valid yet: {shown}"),
            "set the clock of this host, or have the server's certificate replaced",
        ),
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => Trouble::new(
            format!("not for {host}: {shown}"),
            "use a name of the certificate as host of the queue URL or of AWS_ENDPOINT_URL_SQS",
        ),
        problem => {
            Trouble::new(format!("not accepted ({problem:?}): {shown}"), "have the server's certificate replaced")
        }
    }
}

fn verifier(ca_bundle: Option<&[u8]>) -> Result<Noting, Trouble> {
    let mut roots = RootCertStore::empty();
    match ca_bundle {
        Some(pem) => roots.add_parsable_certificates(CertificateDer::pem_slice_iter(pem).filter_map(Result::ok)),
        None => roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs),
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().map_err(|error| {
        Trouble::new(
            format!("this host trusts no certificates: {error}"),
            "install ca-certificates, or name a PEM file in AWS_CA_BUNDLE",
        )
    })?;
    Ok(Noting::new(inner))
}
