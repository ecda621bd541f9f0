//! TLS towards PostgreSQL with libpq's meaning of `sslmode`, on rustls.
//!
//! `prefer` and `require` encrypt without verifying, as libpq does: they keep out who listens, not who stands in between.
//! `verify-ca` wants a chain to a trusted root, `verify-full` the host name as well.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::OutboxError;
use crate::config::{DatabaseConfig, TlsMode};

/// The connector for every mode but `disable`.
///
/// # Errors
///
/// When the root certificate cannot be read, or no root can be found.
pub(super) fn connector(config: &DatabaseConfig) -> Result<MakeRustlsConnect, OutboxError> {
    // The provider is named, not left to the process default, which panics when two are compiled in.
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| OutboxError::Setup(format!("TLS cannot be set up: {error}")))?;
    let builder = match config.tls {
        TlsMode::VerifyFull => builder.with_root_certificates(roots(config)?),
        TlsMode::VerifyCa => {
            let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots(config)?), Arc::clone(&provider))
                .build()
                .map_err(|error| OutboxError::Setup(format!("the root certificates cannot be used: {error}")))?;
            let chain_only = Lenient { provider, chain: Some(verifier) };
            builder.dangerous().with_custom_certificate_verifier(Arc::new(chain_only))
        }
        TlsMode::Disable | TlsMode::Prefer | TlsMode::Require => {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Lenient { provider, chain: None }))
        }
    };
    Ok(MakeRustlsConnect::new(builder.with_no_client_auth()))
}

fn roots(config: &DatabaseConfig) -> Result<RootCertStore, OutboxError> {
    let mut roots = RootCertStore::empty();
    if let Some(path) = &config.root_certificate {
        let problem = |error: String| {
            OutboxError::Setup(format!("sslrootcert={} cannot be used: {error}; give a PEM file", path.display()))
        };
        let certificates = CertificateDer::pem_file_iter(path).map_err(|error| problem(error.to_string()))?;
        for certificate in certificates {
            let certificate = certificate.map_err(|error| problem(error.to_string()))?;
            roots.add(certificate).map_err(|error| problem(error.to_string()))?;
        }
        if roots.is_empty() {
            return Err(problem("it holds no certificate".to_owned()));
        }
        return Ok(roots);
    }
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if roots.is_empty() {
        return Err(OutboxError::Setup(
            "this system has no root certificates to verify the database with; install ca-certificates or set sslrootcert"
                .to_owned(),
        ));
    }
    Ok(roots)
}

/// Checks the handshake's signatures and, if asked, the chain, but not the host name.
#[derive(Debug)]
struct Lenient {
    provider: Arc<CryptoProvider>,
    chain: Option<Arc<WebPkiServerVerifier>>,
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(chain) = &self.chain else {
            return Ok(ServerCertVerified::assertion());
        };
        match chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // webpki checks the name last, so the chain is good when only the name is not.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            result => result,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
