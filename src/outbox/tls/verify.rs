//! Whether the server's certificate is trusted.
//!
//! webpki decides. What it refuses although libpq (OpenSSL) takes it is looked at once more here, because PostgreSQL's own
//! manual makes such certificates (18.9.5 Creating Certificates): version 1, a self-signed certificate as its own root, and
//! a common name without subjectAltName. Only certificates that the operator named in `sslrootcert` can vouch for them.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{
    CryptoProvider, verify_tls12_signature, verify_tls13_signature, verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::VerifierBuilderError;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use webpki::RawPublicKeyEntity;
use x509_cert::crl::CertificateList;
use x509_cert::der::{Decode as _, Encode as _};
use x509_cert::ext::pkix::name::GeneralName;
use x509_cert::ext::pkix::{BasicConstraints, KeyUsage, NameConstraints, SubjectAltName};
use x509_cert::spki::ObjectIdentifier;
use x509_cert::{Certificate, Version};

/// The attribute of a subject that names a host if nothing else does (X.520).
const COMMON_NAME: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.4.3");

/// What is checked besides the handshake's signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Check {
    Nothing,
    Chain,
    ChainAndName,
}

/// Verifies the server.
#[derive(Debug)]
pub(super) struct Verifier {
    provider: Arc<CryptoProvider>,
    check: Check,
    webpki: Option<Arc<WebPkiServerVerifier>>,
    /// What the operator named as roots; empty for those of the system.
    named: Vec<CertificateDer<'static>>,
    /// Whether lists of revoked certificates are kept. Only webpki reads these.
    has_lists: bool,
}

impl Verifier {
    /// Checks nothing but the handshake's signature.
    pub(super) fn lenient(provider: Arc<CryptoProvider>) -> Self {
        Self { provider, check: Check::Nothing, webpki: None, named: Vec::new(), has_lists: false }
    }

    /// Checks the chain to the roots, `named` being those of the operator's own file.
    pub(super) fn strict(
        provider: Arc<CryptoProvider>,
        check: Check,
        roots: RootCertStore,
        named: Vec<CertificateDer<'static>>,
        revoked: Vec<CertificateRevocationListDer<'static>>,
    ) -> Result<Self, VerifierBuilderError> {
        let has_lists = !revoked.is_empty();
        let webpki = match roots.is_empty() {
            // Then only a certificate that was named itself is trusted.
            true => None,
            false => {
                let webpki = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
                Some(webpki.with_crls(revoked).enforce_revocation_expiration().build()?)
            }
        };
        Ok(Self { provider, check, webpki, named, has_lists })
    }

    /// Whether a named root vouches for a certificate that webpki does not take: it is that root, or of version 1 and
    /// signed by it. A certificate of version 1 has no constraints, and a root with constraints vouches for none.
    fn is_vouched_for(&self, der: &CertificateDer<'_>, now: UnixTime) -> bool {
        let Ok(certificate) = Certificate::from_der(der) else { return false };
        let validity = &certificate.tbs_certificate.validity;
        let (from, until) = (validity.not_before.to_unix_duration(), validity.not_after.to_unix_duration());
        let is_valid_now = (from..=until).contains(&Duration::from_secs(now.as_secs()));
        let is_of_version_1 = certificate.tbs_certificate.version == Version::V1;
        let is_vouched_for = |root: &CertificateDer<'_>| {
            root == der
                || is_of_version_1
                    && is_authority(root, now)
                    && !has_name_constraints(root)
                    && Certificate::from_der(root).is_ok_and(|root| self.is_signed(&certificate, &root).is_some())
        };
        is_valid_now && !self.has_lists && self.named.iter().any(is_vouched_for)
    }

    /// `Some` if the issuer has signed the certificate, with an algorithm that rustls takes.
    fn is_signed(&self, certificate: &Certificate, issuer: &Certificate) -> Option<()> {
        let (signed, issuer) = (&certificate.tbs_certificate, &issuer.tbs_certificate);
        if signed.issuer != issuer.subject {
            return None;
        }
        let key = SubjectPublicKeyInfoDer::from(issuer.subject_public_key_info.to_der().ok()?);
        let key = RawPublicKeyEntity::try_from(&key).ok()?;
        let algorithm = certificate.signature_algorithm.to_der().ok()?;
        // rustls has the contents of the sequence, whose header takes two bytes.
        let algorithm = algorithm.get(2..)?;
        let (message, signature) = (signed.to_der().ok()?, certificate.signature.as_bytes()?);
        let usable = self.provider.signature_verification_algorithms.all.iter();
        let mut usable = usable.filter(|one| one.signature_alg_id().as_ref() == algorithm);
        usable.find_map(|one| key.verify_signature(*one, &message, signature).ok())
    }
}

/// When a list of revoked certificates was made; `None` if it cannot be read.
pub(super) fn made_at(list: &CertificateRevocationListDer<'_>) -> Option<Duration> {
    Some(CertificateList::from_der(list).ok()?.tbs_cert_list.this_update.to_unix_duration())
}

/// Whether a certificate may sign others, as for OpenSSL: it is valid now and says so, or is self-signed and of version 1,
/// which cannot say it.
pub(super) fn is_authority(der: &CertificateDer<'_>, now: UnixTime) -> bool {
    let Ok(Certificate { tbs_certificate: certificate, .. }) = Certificate::from_der(der) else { return false };
    let (from, until) = (&certificate.validity.not_before, &certificate.validity.not_after);
    let is_valid = (from.to_unix_duration()..=until.to_unix_duration()).contains(&Duration::from_secs(now.as_secs()));
    let is_old_root = certificate.version == Version::V1 && certificate.issuer == certificate.subject;
    let is_authority = matches!(certificate.get::<BasicConstraints>(), Ok(Some((_, constraints))) if constraints.ca);
    let may_sign = match certificate.get::<KeyUsage>() {
        Ok(usage) => usage.is_none_or(|(_, usage)| usage.key_cert_sign()),
        Err(_) => false,
    };
    is_valid && (is_old_root || is_authority && may_sign)
}

/// webpki applies name constraints to alternative names only, so no common name counts below such an authority.
fn has_name_constraints(der: &CertificateDer<'_>) -> bool {
    let constraints =
        Certificate::from_der(der).map(|read| read.tbs_certificate.get::<NameConstraints>().map(|one| one.is_some()));
    !matches!(constraints, Ok(Ok(false)))
}

/// libpq's rule (PostgreSQL documentation, 34.19.1): the common name counts only without an alternative name of the host's
/// kind, and an alternative DNS name is compared with an address as text.
fn is_named(der: &CertificateDer<'_>, name: &ServerName<'_>, takes_common_name: bool) -> bool {
    let Ok(Certificate { tbs_certificate, .. }) = Certificate::from_der(der) else { return false };
    let alternatives = match tbs_certificate.get::<SubjectAltName>() {
        Ok(found) => found.map(|(_, names)| names.0).unwrap_or_default(),
        Err(_) => return false,
    };
    let is_of_kind = |one: &GeneralName| {
        matches!(
            (one, name),
            (GeneralName::DnsName(_), ServerName::DnsName(_)) | (GeneralName::IpAddress(_), ServerName::IpAddress(_))
        )
    };
    let wanted = name.to_str();
    let is_alternative = alternatives.iter().any(|one| match (one, name) {
        (GeneralName::DnsName(pattern), _) => matches_pattern(pattern.as_str(), &wanted),
        (GeneralName::IpAddress(bytes), ServerName::IpAddress(address)) => match IpAddr::from(*address) {
            IpAddr::V4(address) => bytes.as_bytes() == address.octets(),
            IpAddr::V6(address) => bytes.as_bytes() == address.octets(),
        },
        _ => false,
    });
    if is_alternative || alternatives.iter().any(is_of_kind) || !takes_common_name {
        return is_alternative;
    }
    let mut parts = tbs_certificate.subject.0.iter().flat_map(|part| part.0.iter());
    let common = parts.rfind(|part| part.oid == COMMON_NAME);
    let common = common.and_then(|part| std::str::from_utf8(part.value.value()).ok());
    common.is_some_and(|common| matches_pattern(common, &wanted))
}

/// A * stands for one label at the beginning.
fn matches_pattern(pattern: &str, name: &str) -> bool {
    let Some(suffix) = pattern.strip_prefix('*') else { return pattern.eq_ignore_ascii_case(name) };
    let first_dot = name.find('.').unwrap_or(0);
    first_dot > 0 && suffix.len() > 1 && suffix.starts_with('.') && suffix.eq_ignore_ascii_case(&name[first_dot..])
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.check == Check::Nothing {
            return Ok(ServerCertVerified::assertion());
        }
        let verified = match &self.webpki {
            Some(webpki) => webpki.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now),
            None => Err(CertificateError::UnknownIssuer.into()),
        };
        let refused = match verified {
            Ok(verified) => return Ok(verified),
            Err(refused) => refused,
        };
        let is_about_the_name = matches!(
            refused,
            Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }
            )
        );
        // webpki checks the name last, so if only the name is wrong the chain is good.
        if !is_about_the_name && !self.is_vouched_for(end_entity, now) {
            // That a certificate has version 1 is no reason by itself.
            let is_odd = !matches!(
                refused,
                Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. })
            );
            let is_of_version_1 = Certificate::from_der(end_entity)
                .is_ok_and(|certificate| certificate.tbs_certificate.version == Version::V1);
            let may_vouch = !self.named.is_empty() && !self.has_lists;
            return Err(if is_odd && is_of_version_1 && may_vouch {
                CertificateError::UnknownIssuer.into()
            } else {
                refused
            });
        }
        // Public authorities put names into alternative names, so only the operator's own may rely on the common name.
        let takes_common_name = !self.named.is_empty()
            && !intermediates.iter().chain(&self.named).filter(|one| *one != end_entity).any(has_name_constraints);
        match self.check {
            Check::Nothing | Check::Chain => Ok(ServerCertVerified::assertion()),
            Check::ChainAndName if is_named(end_entity, server_name, takes_common_name) => {
                Ok(ServerCertVerified::assertion())
            }
            Check::ChainAndName if is_about_the_name => Err(refused),
            Check::ChainAndName => Err(CertificateError::NotValidForName.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms).or_else(|refused| {
            let key = key_of(certificate).ok_or_else(|| refused.clone())?;
            let key = RawPublicKeyEntity::try_from(&key).map_err(|_| refused.clone())?;
            let usable = algorithms.mapping.iter().find(|(scheme, _)| *scheme == signature.scheme);
            let is_valid = usable.is_some_and(|(_, algorithms)| {
                algorithms.iter().any(|one| key.verify_signature(*one, message, signature.signature()).is_ok())
            });
            if is_valid { Ok(HandshakeSignatureValid::assertion()) } else { Err(refused) }
        })
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms).or_else(|refused| {
            let key = key_of(certificate).ok_or_else(|| refused.clone())?;
            verify_tls13_signature_with_raw_key(message, &key, signature, algorithms).map_err(|_| refused)
        })
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The public key of a certificate that webpki cannot read, such as one of version 1. The handshake's signature is checked
/// with it all the same: channel binding rests on it.
pub(super) fn key_of(certificate: &CertificateDer<'_>) -> Option<SubjectPublicKeyInfoDer<'static>> {
    let certificate = Certificate::from_der(certificate).ok()?;
    Some(SubjectPublicKeyInfoDer::from(certificate.tbs_certificate.subject_public_key_info.to_der().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_exactly_one_label() {
        for (pattern, name) in [("db.example", "DB.example"), ("*.example", "db.example"), ("*.a.b", "x.a.b")] {
            assert!(matches_pattern(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [
            ("*.example", "example"),
            ("*.example", ".example"),
            ("*.example", "a.b.example"),
            ("*", "example"),
            ("*.", "example."),
            ("d*.example", "db.example"),
            ("db.example", "db.example.org"),
        ] {
            assert!(!matches_pattern(pattern, name), "{pattern} {name}");
        }
    }
}
