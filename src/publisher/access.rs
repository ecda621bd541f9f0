//! Access to AWS: a client of a service, which is replaced when the service no longer accepts its credentials.
//!
//! The SDK keeps credentials for as long as they claim to be valid, and reads profile files and the environment only
//! once. But keys can be revoked earlier (`InvalidClientTokenId`), and a mounted file can contain new ones. Then all
//! providers are asked again, starting from the configuration. Connections are kept.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_sqs::config::retry::RetryConfig;
use aws_sdk_sqs::config::timeout::TimeoutConfig;
use aws_sdk_sqs::config::{SharedHttpClient, SharedInterceptor, StalledStreamProtectionConfig};

use super::endpoint::{Route, Settings};
use super::{role, settings, writing};
use crate::config::RoleConfig;
use crate::message::Service;

/// Longest time to connect, including TLS; never longer than the request timeout.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Providers are asked again at most this often.
const RENEW_EVERY: Duration = Duration::from_secs(5);

/// How long that may take; the configuration may have to be fetched.
const RENEW_TIMEOUT: Duration = Duration::from_secs(10);

/// The client of a service that takes messages.
#[derive(Clone, Debug)]
pub(super) enum Client {
    Sqs(aws_sdk_sqs::Client),
    Sns(aws_sdk_sns::Client),
}

/// Makes a client of a configuration and an endpoint, if that is not the region's own.
pub(super) type MakeClient<C> = fn(&SdkConfig, Option<String>) -> C;

/// How the client of a service is made. In each the endpoint is set in any case, because a variable that is set and empty would
/// count as one.
pub(super) fn maker(service: Service) -> MakeClient<Client> {
    match service {
        Service::Sqs => |shared, endpoint| {
            let mut builder = aws_sdk_sqs::config::Builder::from(shared);
            builder.push_interceptor(watching()).set_endpoint_url(endpoint);
            Client::Sqs(aws_sdk_sqs::Client::from_conf(builder.build()))
        },
        Service::Sns => |shared, endpoint| {
            let mut builder = aws_sdk_sns::config::Builder::from(shared);
            builder.push_interceptor(watching()).set_endpoint_url(endpoint);
            Client::Sns(aws_sdk_sns::Client::from_conf(builder.build()))
        },
    }
}

/// A client of S3. Other servers than AWS do not know a host for each bucket. Its requests are not watched: an object may be
/// stored at any time, and S3's own interceptors need the body as it is.
pub(super) fn make_s3(shared: &SdkConfig, endpoint: Option<String>) -> aws_sdk_s3::Client {
    let mut builder = aws_sdk_s3::config::Builder::from(shared).force_path_style(endpoint.is_some());
    builder.set_endpoint_url(endpoint);
    aws_sdk_s3::Client::from_conf(builder.build())
}

/// Permanent: for any other interceptor, each of its hooks looks up in the configuration whether it is disabled.
fn watching() -> SharedInterceptor {
    SharedInterceptor::permanent(writing::Watching)
}

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

    /// A client. Retries are off: the SDK repeats whole calls, even after a timeout, and never looks at single entries; the
    /// relay decides better. They are off only for this client, so that fetching credentials is still retried.
    pub(super) fn client<C>(&self, make: MakeClient<C>, shared: &SdkConfig) -> C {
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT.min(self.request_timeout))
            .read_timeout(self.request_timeout)
            .operation_attempt_timeout(self.request_timeout)
            .operation_timeout(self.request_timeout)
            .build();
        let mut shared = shared
            .to_builder()
            .region(Region::new(self.route.region.clone()))
            .retry_config(RetryConfig::disabled())
            .timeout_config(timeouts)
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .http_client(self.source.http_client.clone());
        if self.route.endpoint.is_some() {
            // The SDK refuses a custom endpoint together with these, although the endpoint is what they ask for.
            shared = shared.use_fips(false).use_dual_stack(false);
        }
        if self.route.is_fips {
            shared = shared.use_fips(true);
        }
        if self.route.is_dual_stack {
            shared = shared.use_dual_stack(true);
        }
        make(&shared.build(), self.route.endpoint.clone())
    }
}

/// Where the AWS configuration comes from: the environment, profiles, and what the machine offers.
#[derive(Clone, Debug)]
pub(super) struct Source {
    /// For the services, and for whatever provides credentials.
    pub(super) http_client: SharedHttpClient,
    /// A region for those who provide credentials, such as STS, if nothing else names one.
    pub(super) region: Option<String>,
}

impl Source {
    /// The current configuration, and what it says about the ways to the services. The region of a queue helps those who
    /// provide credentials; it is not what the settings say.
    pub(super) async fn load(&self) -> (SdkConfig, Settings) {
        let loader = || aws_config::defaults(BehaviorVersion::v2026_01_12()).http_client(self.http_client.clone());
        let own = loader().load().await;
        let settings = settings::of(&own);
        match &self.region {
            Some(region) if settings.region.is_none() => {
                (loader().region(Region::new(region.clone())).load().await, settings)
            }
            _ => (own, settings),
        }
    }
}

/// A client, its configuration, and whether the service has accepted its credentials.
#[derive(Clone, Debug)]
pub(super) struct Current<C> {
    pub(super) client: C,
    behind: Arc<Behind>,
}

/// What clones of a client share; requests need none of it.
#[derive(Debug)]
struct Behind {
    shared: SdkConfig,
    has_worked: AtomicBool,
}

impl<C> Current<C> {
    fn new(client: C, shared: SdkConfig) -> Self {
        Self { client, behind: Arc::new(Behind { shared, has_worked: AtomicBool::new(false) }) }
    }

    /// The configuration that the client was made from.
    pub(super) fn shared(&self) -> &SdkConfig {
        &self.behind.shared
    }

    /// The service has accepted its credentials.
    pub(super) fn worked(&self) {
        self.behind.has_worked.store(true, Ordering::Relaxed);
    }

    /// Whether it is the same, and not one that has replaced it.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.behind, &other.behind)
    }
}

/// The client for a region, an endpoint and a role.
#[derive(Debug)]
pub(super) struct Access<C> {
    parts: Parts,
    make: MakeClient<C>,
    current: Mutex<Current<C>>,
    /// When a client was last replaced; locked while another one is made.
    renewed_at: tokio::sync::Mutex<Option<Instant>>,
}

impl<C: Clone> Access<C> {
    /// A client with this configuration.
    pub(super) fn new(parts: Parts, make: MakeClient<C>, shared: SdkConfig) -> Self {
        let current = Mutex::new(Current::new(parts.client(make, &shared), shared));
        Self { parts, make, current, renewed_at: tokio::sync::Mutex::default() }
    }

    /// Where requests go.
    pub(super) fn route(&self) -> &Route {
        &self.parts.route
    }

    /// How long a request may take.
    pub(super) fn request_timeout(&self) -> Duration {
        self.parts.request_timeout
    }

    /// The role under which the queues are used, and the region in which STS is asked.
    pub(super) fn role(&self) -> (Option<&RoleConfig>, &str) {
        (self.parts.role.as_ref(), &self.parts.sts_region)
    }

    /// The client to use now.
    pub(super) fn current(&self) -> Current<C> {
        self.lock().clone()
    }

    /// The service did not accept the credentials of this client: the next client asks all providers again. Returns whether
    /// there is a new one now.
    pub(super) async fn renew(&self, refused: &Current<C>, code: &str) -> bool {
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
            tracing::info!(code, "AWS no longer accepts the credentials; asking all providers for new ones");
        }
        *self.lock() = Current::new(self.parts.client(self.make, &shared), shared);
        true
    }

    /// Cloning and replacing leave the value intact, even if a thread panics.
    fn lock(&self) -> MutexGuard<'_, Current<C>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
