//! Inspecting: the attributes of a queue or topic, and whether this relay may send to it. Nothing is sent that it would keep.

mod queue;
mod topic;

use aws_sdk_sqs::error::{ProvideErrorMetadata, SdkError};

use super::access::Client;
use super::bucket::Bucket;
use super::endpoint::address_of;
use super::place::Place;
use super::{Publisher, classify, http};
use crate::message::{Fault, FaultKind};
use crate::way::{Address, Trouble};

/// The attributes of a queue or topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TargetAttributes {
    /// Whether it is FIFO.
    pub is_fifo: bool,
    /// The largest message that a queue accepts, in bytes; topics do not say it.
    pub most_bytes: Option<usize>,
    /// How many confirmed subscriptions a topic has.
    pub subscriptions: Option<u64>,
    /// Whether it encrypts with a key that the sender must be allowed to use.
    pub needs_key: bool,
    /// How it encrypts, as text.
    pub encryption: String,
}

/// Why AWS refused to answer a question: a code and a description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// The code, or `NoAnswer`.
    pub code: String,
    /// The description.
    pub detail: String,
}

impl Refused {
    fn of<E, R>(error: &SdkError<E, R>) -> Self
    where
        E: std::error::Error + ProvideErrorMetadata + 'static,
        R: std::fmt::Debug + 'static,
        SdkError<E, R>: ProvideErrorMetadata,
    {
        Self {
            code: error.code().unwrap_or("NoAnswer").to_owned(),
            detail: error.message().map_or_else(|| classify::causes_of(error), str::to_owned),
        }
    }
}

impl Publisher {
    /// Host and port of the HTTP proxy through which this endpoint is reached, if any; never a user or a password.
    pub fn proxy(endpoint: &str) -> Option<String> {
        http::proxy_of(endpoint).map(|proxy| proxy.address.to_string())
    }

    /// The URL that requests go to.
    ///
    /// # Errors
    ///
    /// When the SDK knows no such endpoint for the region.
    pub async fn endpoint(&self) -> Result<String, Trouble> {
        let current = self.access.current();
        let route = self.access.route();
        match (&route.endpoint, &current.client) {
            (Some(endpoint), _) => Ok(endpoint.clone()),
            (None, Client::Sqs(_)) => queue::endpoint(Place::of(route, current.shared())).await,
            (None, Client::Sns(_)) => topic::endpoint(Place::of(route, current.shared())).await,
        }
    }

    /// Host and port that requests go to.
    pub async fn server(&self) -> Address {
        address_of(self.endpoint().await.as_deref().unwrap_or(self.target.as_str()))
    }

    /// Asks the queue or topic for its attributes (`sqs:GetQueueAttributes`, `sns:GetTopicAttributes`).
    ///
    /// # Errors
    ///
    /// When AWS refuses, or does not answer.
    pub async fn attributes(&self) -> Result<TargetAttributes, Refused> {
        match &self.access.current().client {
            Client::Sqs(client) => queue::attributes(client, self.target.as_str()).await,
            Client::Sns(client) => topic::attributes(client, self.target.as_str()).await,
        }
    }

    /// Asks whether this relay may send. The request contains two entries with one id, which SQS and SNS refuse as a whole
    /// once they have authorized the sender (SendMessageBatch and PublishBatch, BatchEntryIdsNotDistinct). Nothing is
    /// published. That the sender is authorized before the entries are checked is how AWS services behave, but it is not
    /// documented for these two.
    ///
    /// # Errors
    ///
    /// The fault that a request of the relay would meet.
    pub async fn may_send(&self) -> Result<(), Fault> {
        match &self.access.current().client {
            Client::Sqs(client) => queue::may_send(client, self.target.as_str()).await,
            Client::Sns(client) => topic::may_send(client, self.target.as_str()).await,
        }
    }
}

impl Publisher {
    /// The bucket that takes large bodies, if there is one.
    pub fn bucket(&self) -> Option<&str> {
        self.bucket.as_ref().map(Bucket::name)
    }

    /// The URL that requests for the bucket go to; `None` without a bucket.
    ///
    /// # Errors
    ///
    /// When the SDK knows no such endpoint for the region.
    pub async fn endpoint_of_bucket(&self) -> Result<Option<String>, Trouble> {
        match &self.bucket {
            Some(bucket) => bucket.endpoint().await.map(Some),
            None => Ok(None),
        }
    }

    /// Whether the objects in the bucket are encrypted with a key that the relay names.
    pub fn names_key_of_bucket(&self) -> bool {
        self.bucket.as_ref().is_some_and(Bucket::has_key)
    }

    /// Asks whether this relay may store bodies in the bucket; nothing is stored. Without a bucket it may.
    ///
    /// # Errors
    ///
    /// The fault that storing a body would meet.
    pub async fn may_store(&self) -> Result<(), Fault> {
        match &self.bucket {
            Some(bucket) => bucket.may_store().await,
            None => Ok(()),
        }
    }
}

/// The group and deduplication id of the test entries, which FIFO queues and topics require.
fn fifo_id(name: &str) -> Option<String> {
    name.ends_with(".fifo").then(|| "outbox-relay-check".to_owned())
}

/// Judges the answer to the request with two entries of one id.
fn judge<E>(is_taken: bool, refused: Option<SdkError<E, aws_sdk_sqs::config::http::HttpResponse>>) -> Result<(), Fault>
where
    E: std::error::Error + ProvideErrorMetadata + 'static,
{
    match refused {
        // A server that accepts this has published it.
        None if is_taken => {
            let detail = "two entries with one id were accepted, and are published now";
            Err(Fault::new(FaultKind::Internal, "TestMessageAccepted", detail))
        }
        None => Ok(()),
        Some(error) if error.code().is_some_and(|code| code.ends_with("BatchEntryIdsNotDistinct")) => Ok(()),
        Some(error) => Err(classify::request(&error, true)),
    }
}
