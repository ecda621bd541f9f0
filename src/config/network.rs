//! The way to AWS as the environment describes it: proxies, and the certificates to trust. The SDK and its HTTP client read
//! the proxies themselves; here they are checked, because a wrong one would otherwise be passed over in silence.

use std::net::Ipv6Addr;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::problems::Problems;

/// Variables that name a proxy; of a pair the first that is set counts.
const PROXIES: [&str; 6] = ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];

/// The variable that names the certificates to trust for AWS.
const BUNDLE: &str = "AWS_CA_BUNDLE";

/// Variables that replace the system's certificates.
const SYSTEM: [&str; 2] = ["SSL_CERT_FILE", "SSL_CERT_DIR"];

/// The name of the AWS profile in use, for people; the SDK reads it itself.
pub fn profile() -> String {
    std::env::var("AWS_PROFILE").unwrap_or_else(|_| "default".to_owned())
}

/// Reads the certificates to trust instead of the system's, in PEM; `None` for the system's. Checks the rest.
pub(super) fn read(problems: &mut Problems) -> Option<Vec<u8>> {
    for name in PROXIES {
        let value = std::env::var(name).unwrap_or_default();
        if !value.is_empty() && !is_proxy(&value) {
            // It may hold a password.
            problems.add(format!("{name} is not a proxy that can be used; use http://HOST:PORT or http://USER:PASSWORD@HOST:PORT, with percent signs for odd characters"));
        }
    }
    for name in ["NO_PROXY", "no_proxy"] {
        let value = std::env::var(name).unwrap_or_default();
        if let Some(entry) = value.split(',').map(str::trim).find(|entry| entry.starts_with("*.")) {
            problems.add(format!("{name} holds {entry:?}, which matches nothing; write {:?}", &entry[1..]));
        }
    }
    for name in SYSTEM {
        if std::env::var(name).is_ok_and(|value| value.is_empty()) {
            problems.add(format!("{name} is set and empty, so that no certificate would be trusted; unset it"));
        }
    }
    let path = std::env::var(BUNDLE).ok().filter(|path| !path.is_empty())?;
    certificates_in(BUNDLE, &path, problems)
}

/// The certificates in the file that a variable names, in PEM. If they cannot be used, that is a mistake.
pub(super) fn certificates_in(variable: &str, path: &str, problems: &mut Problems) -> Option<Vec<u8>> {
    let remedy = "name a file of certificates in PEM";
    let pem = match std::fs::read(path) {
        Ok(pem) => pem,
        Err(error) => {
            problems.add(format!("{variable}={path:?} cannot be read: {error}; {remedy}"));
            return None;
        }
    };
    match certificates(&pem) {
        Ok(0) => problems.add(format!("{variable}={path:?} holds no certificate; {remedy}")),
        Ok(_) => return Some(pem),
        Err(error) => {
            problems.add(format!("{variable}={path:?} holds a certificate that cannot be used: {error}; {remedy}"))
        }
    }
    None
}

/// How many certificates there are; each must be one that rustls can trust.
fn certificates(pem: &[u8]) -> Result<usize, String> {
    let mut roots = RootCertStore::empty();
    for (number, certificate) in (1..).zip(CertificateDer::pem_slice_iter(pem)) {
        let certificate = certificate.map_err(|error| format!("number {number}: {error}"))?;
        roots.add(certificate).map_err(|error| format!("number {number}: {error}"))?;
    }
    Ok(roots.len())
}

/// `[http://][USER[:PASSWORD]@]HOST[:PORT][/]`, as the HTTP client reads it; with a slash at the end it wants the scheme.
fn is_proxy(value: &str) -> bool {
    let rest = match value.split_once("://") {
        Some(("http", rest)) => rest.strip_suffix('/').unwrap_or(rest),
        Some(_) => return false,
        None => value,
    };
    let (user, host) = rest.rsplit_once('@').unwrap_or(("", rest));
    let is_name = |host: &str| {
        !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
    };
    let is_plain =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic() && !b"/?#[]@\"<>\\^`{|}".contains(&byte));
    let (is_host, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => (address.parse::<Ipv6Addr>().is_ok(), port),
        None => {
            let (name, port) = host.find(':').map_or((host, ""), |at| host.split_at(at));
            (is_name(name), port)
        }
    };
    let has_port =
        port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok_and(|port| port > 0));
    is_host && has_port && is_plain(user)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_that_would_be_passed_over_are_refused() {
        for good in [
            "http://proxy.corp:3128",
            "http://proxy.corp:3128/",
            "proxy.corp:3128",
            "http://10.0.0.1",
            "http://[::1]:3128",
            "http://user:p%40ss@proxy:3128",
            "http://user@proxy:3128",
        ] {
            assert!(is_proxy(good), "{good}");
        }
        for bad in [
            "proxy.corp:3128/",
            "http://user:pa#ss@proxy:3128",
            "socks5h://127.0.0.1:1080",
            "https://proxy:443",
            "http://",
            "http://proxy:0",
            "http://proxy:99999",
            "http://pro xy:3128",
            "://proxy",
            "http://proxy:3128/path",
            "http://[::x]:3128",
        ] {
            assert!(!is_proxy(bad), "{bad}");
        }
    }

    #[test]
    fn a_certificate_that_rustls_cannot_read_is_refused_not_trusted() {
        let odd = b"-----BEGIN CERTIFICATE-----\nbm90IGEgY2VydGlmaWNhdGU=\n-----END CERTIFICATE-----\n";
        assert!(certificates(odd).is_err());
        assert_eq!(certificates(b""), Ok(0));
        let key = rcgen::KeyPair::generate().unwrap();
        let good = rcgen::CertificateParams::new(Vec::new()).unwrap().self_signed(&key).unwrap().pem();
        assert_eq!(certificates(good.as_bytes()), Ok(1));
    }
}
