//! Inspecting: a queue's attributes, and whether this relay may send to it. Nothing is sent that a queue would keep.

use std::collections::HashMap;

use aws_sdk_sqs::config::endpoint::{DefaultResolver, Params, ResolveEndpoint as _};
use aws_sdk_sqs::error::ProvideErrorMetadata as _;
use aws_sdk_sqs::types::{QueueAttributeName, SendMessageBatchRequestEntry};

use super::endpoint::address_of;
use super::{MAX_BYTES, Publisher, classify, http};
use crate::causes::sentence;
use crate::message::{Fault, FaultKind};
use crate::way::{Address, Trouble};

/// The attributes of a queue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QueueAttributes {
    /// Whether it is a FIFO queue.
    pub is_fifo: bool,
    /// The largest message that it accepts, in bytes.
    pub most_bytes: Option<usize>,
    /// Whether it encrypts with a key that the sender must be allowed to use.
    pub needs_key: bool,
    /// How it encrypts, as text.
    pub encryption: String,
}

impl QueueAttributes {
    /// Whether it accepts less than the relay would send.
    pub fn is_small(&self) -> bool {
        self.most_bytes.is_some_and(|most| most < MAX_BYTES)
    }

    fn of(attributes: &HashMap<QueueAttributeName, String>) -> Self {
        let get =
            |name: QueueAttributeName| attributes.get(&name).map(String::as_str).filter(|value| !value.is_empty());
        let encryption = match get(QueueAttributeName::KmsMasterKeyId) {
            Some(key) => format!("KMS key {key}"),
            None if get(QueueAttributeName::SqsManagedSseEnabled) == Some("true") => "SQS's own key".to_owned(),
            None => "none".to_owned(),
        };
        Self {
            is_fifo: get(QueueAttributeName::FifoQueue) == Some("true"),
            most_bytes: get(QueueAttributeName::MaximumMessageSize).and_then(|size| size.parse().ok()),
            needs_key: get(QueueAttributeName::KmsMasterKeyId).is_some(),
            encryption,
        }
    }
}

/// Why SQS refused to answer a question: a code and a description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// SQS's code, or `NoAnswer`.
    pub code: String,
    /// The description.
    pub detail: String,
}

impl Publisher {
    /// Host and port of the HTTP proxy through which the queue is reached, if any; never a user or a password.
    pub fn proxy(&self) -> Option<String> {
        http::proxy_of(self.access.endpoint().unwrap_or(&self.url)).map(|proxy| proxy.address.to_string())
    }

    /// The URL that requests for the queue go to.
    ///
    /// # Errors
    ///
    /// When the SDK knows no such endpoint for the region.
    pub async fn endpoint(&self) -> Result<String, Trouble> {
        if let Some(endpoint) = self.access.endpoint() {
            return Ok(endpoint.to_owned());
        }
        let shared = self.access.current().shared().clone();
        let parameters = Params::builder()
            .region(self.access.region())
            .use_fips(shared.use_fips().unwrap_or(false))
            .use_dual_stack(shared.use_dual_stack().unwrap_or(false))
            .build();
        let remedy = "check the region, AWS_USE_FIPS_ENDPOINT and AWS_USE_DUALSTACK_ENDPOINT";
        let failed = |error: &(dyn std::error::Error + 'static)| {
            Trouble::new(
                format!("the region {} has no such endpoint: {}", self.access.region(), sentence(error)),
                remedy,
            )
        };
        let parameters = parameters.map_err(|error| failed(&error))?;
        let endpoint = DefaultResolver::new().resolve_endpoint(&parameters).await;
        endpoint.map(|endpoint| endpoint.url().to_owned()).map_err(|error| failed(error.as_ref()))
    }

    /// Host and port that requests for the queue go to.
    pub async fn server(&self) -> Address {
        address_of(self.endpoint().await.as_deref().unwrap_or(&self.url))
    }

    /// Asks the queue for its attributes (`sqs:GetQueueAttributes`).
    ///
    /// # Errors
    ///
    /// When SQS refuses, or does not answer.
    pub async fn attributes(&self) -> Result<QueueAttributes, Refused> {
        let asked = self.access.current().client.get_queue_attributes().queue_url(&self.url);
        let answer = asked.attribute_names(QueueAttributeName::All).send().await;
        let output = answer.map_err(|error| Refused {
            code: error.code().unwrap_or("NoAnswer").to_owned(),
            detail: error.message().map_or_else(|| classify::causes_of(&error), str::to_owned),
        })?;
        Ok(QueueAttributes::of(&output.attributes.unwrap_or_default()))
    }

    /// Asks whether this relay may send. The request contains two entries with one id, which SQS refuses as a whole
    /// once it has authorized the sender (SendMessageBatch, BatchEntryIdsNotDistinct). Nothing reaches the queue. That
    /// SQS authorizes the sender before it checks the entries is how AWS services behave, but it is not documented for
    /// this one.
    ///
    /// # Errors
    ///
    /// The fault that a request of the relay would meet.
    pub async fn may_send(&self) -> Result<(), Fault> {
        let entry = || {
            let entry = SendMessageBatchRequestEntry::builder().id("check").message_body("outbox-relay check");
            let fifo = self.url.ends_with(".fifo").then(|| "outbox-relay-check".to_owned());
            entry.set_message_group_id(fifo.clone()).set_message_deduplication_id(fifo).build()
        };
        let entries = [entry(), entry()].into_iter().collect::<Result<Vec<_>, _>>();
        let entries = entries.map_err(|error| Fault::new(FaultKind::Internal, "RequestNotBuilt", error.to_string()))?;
        let answer = self
            .access
            .current()
            .client
            .send_message_batch()
            .queue_url(&self.url)
            .set_entries(Some(entries))
            .send()
            .await;
        match answer {
            // A server that accepts this has put it into the queue.
            Ok(output) if !output.successful().is_empty() => {
                let detail = "two entries with one id were accepted, and are in the queue now";
                Err(Fault::new(FaultKind::Internal, "TestMessageAccepted", detail))
            }
            Ok(_) => Ok(()),
            Err(error) if error.code().is_some_and(|code| code.ends_with("BatchEntryIdsNotDistinct")) => Ok(()),
            Err(error) => Err(classify::request(&error, true)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_sqs_writes_them() {
        let pairs = [
            (QueueAttributeName::FifoQueue, "true"),
            (QueueAttributeName::MaximumMessageSize, "262144"),
            (QueueAttributeName::SqsManagedSseEnabled, "true"),
        ];
        let attributes = QueueAttributes::of(&pairs.map(|(name, value)| (name, value.to_owned())).into());
        assert!(attributes.is_fifo && attributes.is_small());
        assert_eq!(attributes.encryption, "SQS's own key");
        let plain = QueueAttributes::of(&HashMap::new());
        assert!(!plain.is_fifo && !plain.is_small());
        assert_eq!(plain.encryption, "none");
    }
}
