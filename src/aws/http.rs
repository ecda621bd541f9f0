//! The HTTP client for SQS and for whatever provides credentials: proxies, and which certificates are trusted.
//!
//! The variables for proxies are read by the client itself; `config/network.rs` has checked them. Addresses of this host
//! and link-local ones are reached without a proxy: those are emulators, and the agents and metadata services that hand out
//! credentials.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use aws_smithy_async::rt::sleep::TokioSleep;
use aws_smithy_http_client::Connector;
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode};
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient, SharedHttpConnector, http_client_fn,
};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use hyper_util::client::proxy::matcher::Matcher;

use crate::way::Address;

/// SQS closes idle connections; this shorter time keeps requests off connections that are about to be closed.
const POOL_IDLE: Duration = Duration::from_secs(20);

/// The module that encrypts.
#[cfg(not(feature = "fips"))]
const CRYPTO: CryptoMode = CryptoMode::AwsLc;
#[cfg(feature = "fips")]
const CRYPTO: CryptoMode = CryptoMode::AwsLcFips;

/// The client. It trusts the certificates of this bundle, or the system's.
///
/// # Errors
///
/// When TLS cannot be set up.
pub fn client(ca_bundle: Option<&[u8]>) -> Result<SharedHttpClient, String> {
    let ways = Ways::new(ca_bundle)?;
    // The SDK asks for a connector for each request. SQS, STS and the metadata services have different timeouts, and for each
    // pair of them there is one connector with its connections.
    let connectors = Mutex::new(HashMap::<_, SharedHttpConnector>::new());
    Ok(http_client_fn(move |settings, _| {
        let key = (settings.connect_timeout(), settings.read_timeout());
        let mut connectors = connectors.lock().unwrap_or_else(PoisonError::into_inner);
        connectors.entry(key).or_insert_with(|| ways.connector(settings)).clone()
    }))
}

/// How connectors are made.
pub(super) struct Ways {
    context: TlsContext,
    /// Whether any request would go through a proxy. A connector that nobody needs would hold all trusted certificates once
    /// more.
    has_proxy: bool,
}

impl Ways {
    /// Trusts the certificates of this bundle, or the system's.
    pub(super) fn new(ca_bundle: Option<&[u8]>) -> Result<Self, String> {
        let trusted = ca_bundle.map_or_else(TrustStore::default, |pem| TrustStore::empty().with_pem_certificate(pem));
        let context = TlsContext::builder().with_trust_store(trusted).build().map_err(|error| error.to_string())?;
        Ok(Self { context, has_proxy: has_proxy() })
    }

    /// A connector that reaches each server directly or through the proxy, as the variables say.
    pub(super) fn connector(&self, settings: &HttpConnectorSettings) -> SharedHttpConnector {
        let direct = self.with_proxy(settings, ProxyConfig::disabled());
        if !self.has_proxy {
            return direct;
        }
        SharedHttpConnector::new(Routed { direct, proxied: self.with_proxy(settings, ProxyConfig::from_env()) })
    }

    fn with_proxy(&self, settings: &HttpConnectorSettings, proxy: ProxyConfig) -> SharedHttpConnector {
        let connector = Connector::builder()
            .connector_settings(settings.clone())
            .sleep_impl(TokioSleep::new())
            .pool_idle_timeout(POOL_IDLE)
            .proxy_config(proxy)
            .tls_provider(Provider::Rustls(CRYPTO))
            .tls_context(self.context.clone())
            .build();
        SharedHttpConnector::new(connector)
    }
}

/// An HTTP proxy. Not `Debug`, because it may hold a password.
pub struct Proxy {
    /// Where it listens.
    pub address: Address,
    /// The value of `Proxy-Authorization`, if there are a user and a password.
    pub authorization: Option<String>,
}

/// The proxy through which this URL is reached, if it needs one.
pub fn proxy_of(url: &str) -> Option<Proxy> {
    if is_near(url) {
        return None;
    }
    let intercepted = Matcher::from_env().intercept(&url.parse().ok()?)?;
    let proxy = intercepted.uri();
    let host = proxy.host()?.trim_start_matches('[').trim_end_matches(']').to_owned();
    let authorization = intercepted.basic_auth().and_then(|value| value.to_str().ok()).map(str::to_owned);
    Some(Proxy { address: Address { host, port: proxy.port_u16().unwrap_or(80) }, authorization })
}

/// Whether any request would go through a proxy.
fn has_proxy() -> bool {
    let matcher = Matcher::from_env();
    let urls = ["https://outbox-relay.invalid/", "http://outbox-relay.invalid/"];
    urls.iter().any(|url| url.parse().is_ok_and(|url| matcher.intercept(&url).is_some()))
}

/// Two connectors: what is near is reached without a proxy.
#[derive(Clone, Debug)]
struct Routed {
    direct: SharedHttpConnector,
    proxied: SharedHttpConnector,
}

impl HttpConnector for Routed {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let connector = if is_near(request.uri()) { &self.direct } else { &self.proxied };
        connector.call(request)
    }
}

/// This host, 169.254.0.0/16, and the IPv6 addresses of the metadata services of EC2 and EKS.
fn is_near(uri: &str) -> bool {
    let rest = uri.split_once("://").map_or(uri, |(_, rest)| rest);
    let authority = rest.split(['/', '?']).next().unwrap_or(rest);
    let host = authority.strip_prefix('[').and_then(|rest| rest.split(']').next());
    let host = host.unwrap_or_else(|| authority.split(':').next().unwrap_or(authority));
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V4(address)) => address.is_link_local() || address.is_loopback(),
        Ok(IpAddr::V6(address)) => {
            let is_metadata = address.segments()[..2] == [0xfd00, 0x0ec2];
            is_metadata || address.is_unicast_link_local() || address.is_loopback()
        }
        Err(_) => host.eq_ignore_ascii_case("localhost"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_and_metadata_services_are_reached_without_a_proxy() {
        let near = [
            "http://169.254.169.254/latest/",
            "http://169.254.170.23:80/v1",
            "http://[fd00:ec2::254]/latest",
            "http://127.0.0.1:9324/",
            "http://localhost:9324/",
            "https://LOCALHOST/",
            "http://[::1]:4566/",
        ];
        for uri in near {
            assert!(is_near(uri), "{uri}");
        }
        let far = [
            "https://sqs.eu-west-1.amazonaws.com/",
            "http://10.1.2.3:9324/",
            "https://[2001:db8::1]:443/",
            "http://localhost.example/",
        ];
        for uri in far {
            assert!(!is_near(uri), "{uri}");
        }
    }
}
