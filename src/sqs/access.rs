//! The way to AWS: a client, made anew when SQS does not take its credentials any more.
//!
//! The SDK keeps credentials for as long as they say that they are valid, and reads profile files and the environment once.
//! Keys can be taken back before (`InvalidClientTokenId`), and a mounted file can have new ones. Then all providers are asked
//! again, from the configuration up. Connections are kept.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::retry::RetryConfig;
use aws_sdk_sqs::config::timeout::TimeoutConfig;
use aws_sdk_sqs::config::{SharedHttpClient, SharedInterceptor, StalledStreamProtectionConfig};

use super::writing;

/// Longest time to connect, TLS included; never longer than the request timeout.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Providers are not asked anew more often than this.
const RENEW_EVERY: Duration = Duration::from_secs(5);

/// How long that may take; the configuration may have to be fetched.
const RENEW_TIMEOUT: Duration = Duration::from_secs(10);

/// What a client is made of, besides what AWS's configuration says.
#[derive(Clone, Debug)]
pub(super) struct Parts {
    pub(super) http_client: SharedHttpClient,
    pub(super) region: String,
    pub(super) endpoint: Option<String>,
    pub(super) request_timeout: Duration,
}

impl Parts {
    /// Retries are off: the SDK repeats whole calls, also after a timeout, and never looks at single entries; the relay knows
    /// better. Only on this client, so that fetching credentials keeps its own.
    fn client(&self, shared: &SdkConfig) -> Client {
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT.min(self.request_timeout))
            .read_timeout(self.request_timeout)
            .operation_attempt_timeout(self.request_timeout)
            .operation_timeout(self.request_timeout)
            .build();
        let mut builder = aws_sdk_sqs::config::Builder::from(shared)
            .region(Region::new(self.region.clone()))
            .retry_config(RetryConfig::disabled())
            .timeout_config(timeouts)
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .http_client(self.http_client.clone());
        // Permanent: whether another one is disabled is looked up in the configuration at each of its hooks.
        builder.push_interceptor(SharedInterceptor::permanent(writing::Watching));
        if let Some(endpoint) = &self.endpoint {
            builder = builder.endpoint_url(endpoint);
        }
        Client::from_conf(builder.build())
    }
}

/// What AWS's configuration says now: the environment, profiles, and what the machine offers.
pub(super) async fn configuration() -> SdkConfig {
    aws_config::defaults(BehaviorVersion::v2026_01_12()).load().await
}

/// A client, and whether SQS has taken its credentials.
#[derive(Clone, Debug)]
pub(super) struct Current {
    pub(super) client: Client,
    has_worked: Arc<AtomicBool>,
}

impl Current {
    fn new(client: Client) -> Self {
        Self { client, has_worked: Arc::default() }
    }

    /// SQS has taken its credentials.
    pub(super) fn worked(&self) {
        self.has_worked.store(true, Ordering::Relaxed);
    }

    fn is(&self, other: &Current) -> bool {
        Arc::ptr_eq(&self.has_worked, &other.has_worked)
    }
}

/// The client of a region and endpoint.
#[derive(Debug)]
pub(super) struct Access {
    parts: Parts,
    current: Mutex<Current>,
    /// When one was made anew; held by whoever makes another.
    renewed_at: tokio::sync::Mutex<Option<Instant>>,
}

impl Access {
    /// A client by this configuration.
    pub(super) fn new(parts: Parts, shared: &SdkConfig) -> Self {
        let current = Mutex::new(Current::new(parts.client(shared)));
        Self { parts, current, renewed_at: tokio::sync::Mutex::default() }
    }

    /// The client to use now.
    pub(super) fn current(&self) -> Current {
        self.lock().clone()
    }

    /// SQS did not take the credentials of this client: the next one asks all providers anew. Says whether there is another
    /// one now.
    pub(super) async fn renew(&self, refused: &Current, code: &str) -> bool {
        let Ok(mut renewed_at) = self.renewed_at.try_lock() else { return false };
        if !self.lock().is(refused) {
            return true;
        }
        if renewed_at.is_some_and(|at| at.elapsed() < RENEW_EVERY) {
            return false;
        }
        *renewed_at = Some(Instant::now());
        let Ok(shared) = tokio::time::timeout(RENEW_TIMEOUT, configuration()).await else {
            tracing::warn!(timeout = ?RENEW_TIMEOUT, "AWS's configuration cannot be read anew; trying again");
            return false;
        };
        // Once: what never worked is told of by the halt of the destination.
        if refused.has_worked.load(Ordering::Relaxed) {
            tracing::info!(code, "SQS does not take the credentials any more; all providers are asked for new ones");
        }
        *self.lock() = Current::new(self.parts.client(&shared));
        true
    }

    /// Cloning and replacing leave it whole, whoever panics.
    fn lock(&self) -> MutexGuard<'_, Current> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
