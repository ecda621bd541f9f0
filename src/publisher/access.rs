//! Access to AWS: a client, which is replaced when SQS no longer accepts its credentials.
//!
//! The SDK keeps credentials for as long as they claim to be valid, and reads profile files and the environment only
//! once. But keys can be revoked earlier (`InvalidClientTokenId`), and a mounted file can contain new ones. Then all
//! providers are asked again, starting from the configuration. Connections are kept.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::retry::RetryConfig;
use aws_sdk_sqs::config::timeout::TimeoutConfig;
use aws_sdk_sqs::config::{SharedHttpClient, SharedInterceptor, StalledStreamProtectionConfig};

use super::endpoint::{Route, Settings};
use super::{role, settings, writing};
use crate::config::RoleConfig;

/// Longest time to connect, including TLS; never longer than the request timeout.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Providers are asked again at most this often.
const RENEW_EVERY: Duration = Duration::from_secs(5);

/// How long that may take; the configuration may have to be fetched.
const RENEW_TIMEOUT: Duration = Duration::from_secs(10);

/// What a client consists of besides the AWS configuration.
#[derive(Clone, Debug)]
pub(super) struct Parts {
    pub(super) source: Source,
    pub(super) route: Route,
    /// The role whose credentials are used, instead of those of the configuration.
    pub(super) role: Option<RoleConfig>,
    /// The region in which STS is asked.
    pub(super) sts_region: String,
    pub(super) request_timeout: Duration,
}

impl Parts {
    /// The configuration with the credentials of the role, if there is one.
    pub(super) async fn with_role(&self, shared: SdkConfig) -> SdkConfig {
        match &self.role {
            // A request's own timeout would end before STS could say what is wrong.
            Some(role) => role::assume(&shared, role, &self.sts_region, self.request_timeout * 9 / 10).await,
            None => shared,
        }
    }

    /// Retries are off: the SDK repeats whole calls, even after a timeout, and never looks at single entries; the relay
    /// decides better. They are off only for this client, so that fetching credentials is still retried.
    pub(super) fn client(&self, shared: &SdkConfig) -> Client {
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT.min(self.request_timeout))
            .read_timeout(self.request_timeout)
            .operation_attempt_timeout(self.request_timeout)
            .operation_timeout(self.request_timeout)
            .build();
        let mut builder = aws_sdk_sqs::config::Builder::from(shared)
            .region(Region::new(self.route.region.clone()))
            .retry_config(RetryConfig::disabled())
            .timeout_config(timeouts)
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .http_client(self.source.http_client.clone());
        // Permanent: for any other interceptor, each of its hooks looks up in the configuration whether it is disabled.
        builder.push_interceptor(SharedInterceptor::permanent(writing::Watching));
        // In any case, because a variable that is set and empty would count as an endpoint.
        builder.set_endpoint_url(self.route.endpoint.clone());
        if self.route.endpoint.is_some() {
            // The SDK refuses a custom endpoint together with these, although the endpoint is what they ask for.
            builder = builder.use_fips(false).use_dual_stack(false);
        }
        Client::from_conf(builder.build())
    }
}

/// Where the AWS configuration comes from: the environment, profiles, and what the machine offers.
#[derive(Clone, Debug)]
pub(super) struct Source {
    /// For SQS, and for whatever provides credentials.
    pub(super) http_client: SharedHttpClient,
    /// A region for those who provide credentials, such as STS, if nothing else names one.
    pub(super) region: Option<String>,
}

impl Source {
    /// The current configuration, and what it says about the way to SQS. The region of a queue helps those who provide
    /// credentials; it is not what the settings say.
    pub(super) async fn load(&self) -> (SdkConfig, Settings) {
        let loader = || aws_config::defaults(BehaviorVersion::v2026_01_12()).http_client(self.http_client.clone());
        let own = loader().load().await;
        let settings = settings::of_sqs(&own);
        match &self.region {
            Some(region) if settings.region.is_none() => {
                (loader().region(Region::new(region.clone())).load().await, settings)
            }
            _ => (own, settings),
        }
    }
}

/// A client, its configuration, and whether SQS has accepted its credentials.
#[derive(Clone, Debug)]
pub(super) struct Current {
    pub(super) client: Client,
    behind: Arc<Behind>,
}

/// What clones of a client share; requests need none of it.
#[derive(Debug)]
struct Behind {
    shared: SdkConfig,
    has_worked: AtomicBool,
}

impl Current {
    fn new(client: Client, shared: SdkConfig) -> Self {
        Self { client, behind: Arc::new(Behind { shared, has_worked: AtomicBool::new(false) }) }
    }

    /// The configuration that the client was made from.
    pub(super) fn shared(&self) -> &SdkConfig {
        &self.behind.shared
    }

    /// SQS has accepted its credentials.
    pub(super) fn worked(&self) {
        self.behind.has_worked.store(true, Ordering::Relaxed);
    }

    fn is(&self, other: &Current) -> bool {
        Arc::ptr_eq(&self.behind, &other.behind)
    }
}

/// The client for a region, an endpoint and a role.
#[derive(Debug)]
pub(super) struct Access {
    parts: Parts,
    current: Mutex<Current>,
    /// When a client was last replaced; locked while another one is made.
    renewed_at: tokio::sync::Mutex<Option<Instant>>,
}

impl Access {
    /// A client with this configuration.
    pub(super) fn new(parts: Parts, shared: SdkConfig) -> Self {
        let current = Mutex::new(Current::new(parts.client(&shared), shared));
        Self { parts, current, renewed_at: tokio::sync::Mutex::default() }
    }

    /// The endpoint, if it is not the region's own.
    pub(super) fn endpoint(&self) -> Option<&str> {
        self.parts.route.endpoint.as_deref()
    }

    /// The region for which requests are signed.
    pub(super) fn region(&self) -> &str {
        &self.parts.route.region
    }

    /// The role under which the queues are used, and the region in which STS is asked.
    pub(super) fn role(&self) -> (Option<&RoleConfig>, &str) {
        (self.parts.role.as_ref(), &self.parts.sts_region)
    }

    /// The client to use now.
    pub(super) fn current(&self) -> Current {
        self.lock().clone()
    }

    /// SQS did not accept the credentials of this client: the next client asks all providers again. Returns whether
    /// there is a new one now.
    pub(super) async fn renew(&self, refused: &Current, code: &str) -> bool {
        let Ok(mut renewed_at) = self.renewed_at.try_lock() else { return false };
        if !self.lock().is(refused) {
            return true;
        }
        if renewed_at.is_some_and(|at| at.elapsed() < RENEW_EVERY) {
            return false;
        }
        *renewed_at = Some(Instant::now());
        let load = async { self.parts.with_role(self.parts.source.load().await.0).await };
        let Ok(shared) = tokio::time::timeout(RENEW_TIMEOUT, load).await else {
            tracing::warn!(timeout = ?RENEW_TIMEOUT, "the AWS configuration cannot be reloaded; trying again");
            return false;
        };
        // Logged once. Credentials that never worked are reported by the halt of the destination.
        if refused.behind.has_worked.load(Ordering::Relaxed) {
            tracing::info!(code, "SQS no longer accepts the credentials; asking all providers for new ones");
        }
        *self.lock() = Current::new(self.parts.client(&shared), shared);
        true
    }

    /// Cloning and replacing leave the value intact, even if a thread panics.
    fn lock(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
