//! A bucket of S3 that takes large bodies before the messages that point to them are sent.
//!
//! Whatever fails here, nothing was sent to the queue or topic, so no fault counts as possibly accepted.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_sdk_s3::config::endpoint::{DefaultResolver, Params, ResolveEndpoint as _};
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::error::SdkError;
use aws_sdk_s3::operation::put_object::builders::PutObjectFluentBuilder;
use aws_sdk_s3::primitives::{ByteStream, SdkBody};
use aws_sdk_s3::types::ServerSideEncryption;
use futures_util::future::join_all;

use super::access::{Access, Current};
use super::claim_check::Offloaded;
use super::place::Place;
use super::slow_bodies::SlowBodies;
use super::{Entry, classify};
use crate::clock::Time;
use crate::config::ClaimCheckConfig;
use crate::message::{Fault, FaultKind};
use crate::way::Trouble;

/// How long it is remembered that an object was stored whose message was not sent in time.
const REMEMBER_FOR: Duration = Duration::from_secs(60);

/// A body may take the time of a request, and a second more for each of these, if the claim lasts that long.
const BYTES_PER_SECOND: usize = 1024 * 1024;

/// The object that `check` asks about.
const TEST_KEY: &str = "outbox-relay-check";

/// Where the large bodies of a destination go. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Bucket {
    access: Arc<Access<aws_sdk_s3::Client>>,
    name: Arc<str>,
    prefix: Arc<str>,
    key: Option<Arc<str>>,
    /// Objects that are stored while their messages were not written yet, and since when. A body that takes most of a
    /// claim to store would otherwise be stored again under each claim. In between another relay may have the lane, send
    /// the message, and a consumer delete the object; that is another one, by its key.
    waiting: Arc<Mutex<HashMap<String, Time>>>,
    slow: Arc<Mutex<SlowBodies>>,
}

/// Why bodies could not be stored.
#[derive(Debug)]
pub(super) struct NotStored {
    pub(super) fault: Fault,
    /// The key of the body that is at fault, if it is one.
    key: Option<String>,
}

impl NotStored {
    /// The fault of each entry: only one with the body at fault failed, and the others were not sent.
    pub(super) fn results<T>(&self, entries: &[&Entry]) -> Vec<Result<T, Fault>> {
        let Some(key) = &self.key else { return entries.iter().map(|_| Err(self.fault.clone())).collect() };
        let is_it = |entry: &Entry| entry.offloaded().is_some_and(|offloaded| offloaded.key == *key);
        let of = |entry: &&Entry| if is_it(entry) { self.fault.clone() } else { self.not_sent() };
        entries.iter().map(|entry| Err(of(entry))).collect()
    }

    /// The fault of the request.
    pub(super) fn of_request(&self) -> Fault {
        if self.key.is_some() { self.not_sent() } else { self.fault.clone() }
    }

    fn not_sent(&self) -> Fault {
        Fault::new(FaultKind::NotSent, self.fault.code.clone(), self.fault.detail.clone())
    }
}

impl Bucket {
    /// The bucket of a destination.
    pub(super) fn new(access: Arc<Access<aws_sdk_s3::Client>>, config: &ClaimCheckConfig) -> Self {
        Self {
            access,
            name: Arc::from(config.bucket.as_str()),
            prefix: Arc::from(config.prefix.as_str()),
            key: config.key.as_deref().map(Arc::from),
            waiting: Arc::default(),
            slow: Arc::default(),
        }
    }

    /// Its name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Stores the bodies of these entries that go to the bucket; none after `until`, when the message could not be sent. It
    /// ends before a request timeout after that.
    ///
    /// # Errors
    ///
    /// A fault of an object that could not be stored; one of the destination before one of a message.
    pub(super) async fn store(&self, entries: &[&Entry], until: Time) -> Result<(), NotStored> {
        let now = Time::now();
        self.lock().retain(|_, since| now.since(*since) < REMEMBER_FOR);
        let is_missing = |offloaded: &&Offloaded| !self.lock().contains_key(&offloaded.key);
        let missing: Vec<&Offloaded> =
            entries.iter().filter_map(|entry| entry.offloaded()).filter(is_missing).collect();
        if now >= until {
            let detail = "the claim had ended before the bodies could be stored";
            return Err(NotStored { fault: Fault::new(FaultKind::NotSent, "ClaimOver", detail), key: None });
        }
        let puts = missing.into_iter().map(|offloaded| async move {
            let stored = self.put(offloaded, until).await;
            stored.map_err(|fault| {
                let is_of_message = fault.kind == FaultKind::MessageTransient;
                NotStored { fault, key: is_of_message.then(|| offloaded.key.clone()) }
            })
        });
        let failed = join_all(puts).await.into_iter().filter_map(Result::err);
        failed.min_by_key(|failed| failed.key.is_some()).map_or(Ok(()), Err)
    }

    /// The messages of these entries were written: their consumers may delete the objects, and the next attempt stores them
    /// again.
    pub(super) fn written(&self, entries: &[&Entry]) {
        let mut waiting = self.lock();
        entries.iter().filter_map(|entry| entry.offloaded()).for_each(|offloaded| {
            waiting.remove(&offloaded.key);
        });
    }

    async fn put(&self, offloaded: &Offloaded, until: Time) -> Result<(), Fault> {
        let current = self.access.current();
        let mut stored = self.put_with(&current, offloaded, until).await;
        if let Err(fault) = &stored
            && classify::is_about_credentials(fault)
        {
            let renewal = self.access.renew(&current, &fault.code);
            if let Ok(true) = tokio::time::timeout(until.since(Time::now()), renewal).await {
                stored = self.put_with(&self.access.current(), offloaded, until).await;
            }
        }
        stored.map_err(|fault| classify::of_bucket(fault, &self.name))?;
        self.lock().insert(offloaded.key.clone(), Time::now());
        self.slow().was_stored(&offloaded.key);
        Ok(())
    }

    async fn put_with(
        &self,
        current: &Current<aws_sdk_s3::Client>,
        offloaded: &Offloaded,
        until: Time,
    ) -> Result<(), Fault> {
        let (before, bytes) = (self.slow().stored(), offloaded.body.len());
        let limit = self.time_for(bytes, until.since(Time::now()));
        let body = ByteStream::new(SdkBody::from(offloaded.body.clone()));
        let request = self.request(&current.client, &offloaded.key).body(body);
        let timeouts =
            TimeoutConfig::builder().read_timeout(limit).operation_attempt_timeout(limit).operation_timeout(limit);
        let limited = aws_sdk_s3::config::Builder::new().timeout_config(timeouts.build());
        match request.customize().config_override(limited).send().await {
            Ok(_) => {
                current.worked();
                Ok(())
            }
            Err(SdkError::TimeoutError(_)) => {
                let detail = format!("bucket {}: {bytes} bytes could not be stored within {limit:.1?}", self.name);
                Err(Fault::new(self.slow().took_too_long(&offloaded.key, before), "S3.Timeout", detail))
            }
            Err(error) => Err(classify::request(&error, true)),
        }
    }

    /// The request that stores an object, without its body.
    fn request(&self, client: &aws_sdk_s3::Client, key: &str) -> PutObjectFluentBuilder {
        let request = client.put_object().bucket(&*self.name).key(key).content_type("text/plain; charset=utf-8");
        match &self.key {
            Some(key) => request.server_side_encryption(ServerSideEncryption::AwsKms).ssekms_key_id(&**key),
            None => request,
        }
    }

    /// How long a body of this size may take to be stored, if the message can be sent for this time. After that, it goes
    /// under the next claim. The claim ends a request timeout later, and what was sent under it must be recorded before.
    fn time_for(&self, bytes: usize, left: Duration) -> Duration {
        let timeout = self.access.request_timeout();
        let wanted = timeout + Duration::from_secs_f64(bytes as f64 / BYTES_PER_SECOND as f64);
        wanted.min(left + timeout * 4 / 5)
    }

    /// Asks whether the relay may store objects: with a digest that cannot be right, which S3 refuses once it has authorized
    /// the sender (PutObject, BadDigest). Nothing is stored, so nothing is encrypted: whether the relay may use the key is not
    /// known then.
    ///
    /// # Errors
    ///
    /// The fault that storing would meet.
    pub(super) async fn may_store(&self) -> Result<(), Fault> {
        let current = self.access.current();
        let request = self.request(&current.client, &format!("{}{TEST_KEY}", self.prefix));
        let request = request.content_md5("AAAAAAAAAAAAAAAAAAAAAA==");
        match request.body(ByteStream::from_static(b"outbox-relay check")).send().await {
            // An emulator that does not look at digests has stored it.
            Ok(_) => Ok(()),
            Err(error) => {
                let fault = classify::request(&error, true);
                if matches!(fault.code.as_str(), "BadDigest" | "InvalidDigest") {
                    Ok(())
                } else {
                    Err(classify::of_bucket(fault, &self.name))
                }
            }
        }
    }

    /// The URL that requests go to.
    ///
    /// # Errors
    ///
    /// When the SDK knows no such endpoint for the region.
    pub(super) async fn endpoint(&self) -> Result<String, Trouble> {
        let route = self.access.route();
        if let Some(endpoint) = &route.endpoint {
            return Ok(endpoint.clone());
        }
        let current = self.access.current();
        let place = Place::of(route, current.shared());
        let parameters = Params::builder().region(place.region).bucket(&*self.name);
        let parameters = parameters.use_fips(place.uses_fips).use_dual_stack(place.uses_dual_stack).build();
        let parameters = parameters.map_err(|error| place.unknown(&error))?;
        let endpoint = DefaultResolver::new().resolve_endpoint(&parameters).await;
        endpoint.map(|endpoint| endpoint.url().to_owned()).map_err(|error| place.unknown(error.as_ref()))
    }

    /// Whether its objects are encrypted with a key of the destination's own.
    pub(super) fn has_key(&self) -> bool {
        self.key.is_some()
    }

    fn slow(&self) -> MutexGuard<'_, SlowBodies> {
        self.slow.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Time>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
