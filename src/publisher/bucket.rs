//! A bucket of S3 that takes large bodies before the messages that point to them are sent.
//!
//! Whatever fails here, nothing was sent to the queue or topic, so no fault counts as possibly accepted.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_sdk_s3::config::endpoint::{DefaultResolver, Params, ResolveEndpoint as _};
use aws_sdk_s3::operation::put_object::builders::PutObjectFluentBuilder;
use aws_sdk_s3::primitives::{ByteStream, SdkBody};
use aws_sdk_s3::types::ServerSideEncryption;
use futures_util::future::try_join_all;

use super::access::{Access, Current};
use super::claim_check::Offloaded;
use super::place::Place;
use super::{Entry, classify};
use crate::clock::Time;
use crate::config::ClaimCheckConfig;
use crate::message::{Fault, FaultKind};
use crate::way::Trouble;

/// How long it is remembered that an object was stored whose message was not sent in time.
const REMEMBER_FOR: Duration = Duration::from_secs(60);

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
        }
    }

    /// Its name.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Stores the bodies of these entries that go to the bucket; none after `until`, when the message could not be sent.
    ///
    /// # Errors
    ///
    /// The fault of the first object that could not be stored.
    pub(super) async fn store(&self, entries: &[&Entry], until: Time) -> Result<(), Fault> {
        let now = Time::now();
        self.lock().retain(|_, since| now.since(*since) < REMEMBER_FOR);
        let is_missing = |offloaded: &&Offloaded| !self.lock().contains_key(&offloaded.key);
        let missing: Vec<&Offloaded> =
            entries.iter().filter_map(|entry| entry.offloaded()).filter(is_missing).collect();
        if now >= until {
            let detail = "the claim had ended before the bodies could be stored";
            return Err(Fault::new(FaultKind::NotSent, "ClaimOver", detail));
        }
        try_join_all(missing.into_iter().map(|offloaded| self.put(offloaded, until))).await?;
        Ok(())
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
        let mut stored = self.put_with(&current, offloaded).await;
        if let Err(fault) = &stored
            && classify::is_about_credentials(fault)
        {
            let renewal = self.access.renew(&current, &fault.code);
            if let Ok(true) = tokio::time::timeout(until.since(Time::now()), renewal).await {
                stored = self.put_with(&self.access.current(), offloaded).await;
            }
        }
        stored.map_err(|fault| classify::of_bucket(fault, &self.name))?;
        self.lock().insert(offloaded.key.clone(), Time::now());
        Ok(())
    }

    async fn put_with(&self, current: &Current<aws_sdk_s3::Client>, offloaded: &Offloaded) -> Result<(), Fault> {
        let body = ByteStream::new(SdkBody::from(offloaded.body.clone()));
        match self.request(&current.client, &offloaded.key).body(body).send().await {
            Ok(_) => {
                current.worked();
                Ok(())
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

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Time>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
