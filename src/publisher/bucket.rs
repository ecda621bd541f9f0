//! A bucket of S3 that takes large bodies before the messages that point to them are sent.
//!
//! Whatever fails here, nothing was sent to the queue or topic, so no fault counts as possibly accepted.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_sdk_s3::primitives::{ByteStream, SdkBody};
use aws_sdk_s3::types::ServerSideEncryption;
use futures_util::future::try_join_all;

use super::access::{Access, Current};
use super::claim_check::Offloaded;
use super::{Entry, classify};
use crate::clock::Time;
use crate::config::ClaimCheckConfig;
use crate::message::{Fault, FaultKind};

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
    /// claim to store would otherwise be stored again under each claim.
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
        if stored.is_ok() {
            self.lock().insert(offloaded.key.clone(), Time::now());
        }
        stored
    }

    async fn put_with(&self, current: &Current<aws_sdk_s3::Client>, offloaded: &Offloaded) -> Result<(), Fault> {
        let mut request = current
            .client
            .put_object()
            .bucket(&*self.name)
            .key(&offloaded.key)
            .content_type("text/plain; charset=utf-8")
            .body(ByteStream::new(SdkBody::from(offloaded.body.clone())));
        if let Some(key) = &self.key {
            request = request.server_side_encryption(ServerSideEncryption::AwsKms).ssekms_key_id(&**key);
        }
        match request.send().await {
            Ok(_) => {
                current.worked();
                Ok(())
            }
            Err(error) => Err(self.fault(classify::request(&error, true))),
        }
    }

    /// Asks whether the relay may store objects: with a digest that cannot be right, which S3 refuses once it has authorized
    /// the sender (PutObject, BadDigest). Nothing is stored.
    ///
    /// # Errors
    ///
    /// The fault that storing would meet.
    pub(super) async fn may_store(&self) -> Result<(), Fault> {
        let current = self.access.current();
        let request = current
            .client
            .put_object()
            .bucket(&*self.name)
            .key(format!("{}{TEST_KEY}", self.prefix))
            .content_md5("AAAAAAAAAAAAAAAAAAAAAA==")
            .body(ByteStream::from_static(b"outbox-relay check"));
        match request.send().await {
            // An emulator that does not look at digests has stored it.
            Ok(_) => Ok(()),
            Err(error) => {
                let fault = classify::request(&error, true);
                if matches!(fault.code.as_str(), "BadDigest" | "InvalidDigest") {
                    Ok(())
                } else {
                    Err(self.fault(fault))
                }
            }
        }
    }

    /// A fault of storing is one of the destination, which halts: the message is not at fault, and nothing was sent.
    fn fault(&self, fault: Fault) -> Fault {
        let Fault { kind, code, detail } = fault;
        let kind = match kind {
            FaultKind::Ambiguous | FaultKind::ServerError => FaultKind::Outage,
            FaultKind::MessagePermanent | FaultKind::MessageTransient => FaultKind::Destination,
            other => other,
        };
        Fault::new(kind, format!("S3.{code}"), format!("bucket {}: {detail}", self.name))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Time>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
