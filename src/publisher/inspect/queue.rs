//! What SQS says about a queue.

use std::collections::HashMap;

use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::endpoint::{DefaultResolver, Params, ResolveEndpoint as _};
use aws_sdk_sqs::types::{QueueAttributeName, SendMessageBatchRequestEntry};

use super::super::place::Place;
use super::{Refused, TargetAttributes, fifo_id, judge};
use crate::message::{Fault, FaultKind};
use crate::way::Trouble;

/// The endpoint that the SDK knows.
pub(super) async fn endpoint(place: Place<'_>) -> Result<String, Trouble> {
    let parameters =
        Params::builder().region(place.region).use_fips(place.uses_fips).use_dual_stack(place.uses_dual_stack).build();
    let parameters = parameters.map_err(|error| place.unknown(&error))?;
    let endpoint = DefaultResolver::new().resolve_endpoint(&parameters).await;
    endpoint.map(|endpoint| endpoint.url().to_owned()).map_err(|error| place.unknown(error.as_ref()))
}

/// Asks for the attributes.
pub(super) async fn attributes(client: &Client, url: &str) -> Result<TargetAttributes, Refused> {
    let asked = client.get_queue_attributes().queue_url(url).attribute_names(QueueAttributeName::All);
    let output = asked.send().await.map_err(|error| Refused::of(&error))?;
    Ok(read(&output.attributes.unwrap_or_default()))
}

fn read(attributes: &HashMap<QueueAttributeName, String>) -> TargetAttributes {
    let get = |name: QueueAttributeName| attributes.get(&name).map(String::as_str).filter(|value| !value.is_empty());
    let encryption = match get(QueueAttributeName::KmsMasterKeyId) {
        Some(key) => format!("KMS key {key}"),
        None if get(QueueAttributeName::SqsManagedSseEnabled) == Some("true") => "SQS's own key".to_owned(),
        None => "none".to_owned(),
    };
    TargetAttributes {
        is_fifo: get(QueueAttributeName::FifoQueue) == Some("true"),
        most_bytes: get(QueueAttributeName::MaximumMessageSize).and_then(|size| size.parse().ok()),
        subscriptions: None,
        needs_key: get(QueueAttributeName::KmsMasterKeyId).is_some(),
        encryption,
    }
}

/// Asks whether the caller may send.
pub(super) async fn may_send(client: &Client, url: &str) -> Result<(), Fault> {
    let entry = || {
        let entry = SendMessageBatchRequestEntry::builder().id("check").message_body("outbox-relay check");
        entry.set_message_group_id(fifo_id(url)).set_message_deduplication_id(fifo_id(url)).build()
    };
    let entries = [entry(), entry()].into_iter().collect::<Result<Vec<_>, _>>();
    let entries = entries.map_err(|error| Fault::new(FaultKind::Internal, "RequestNotBuilt", error.to_string()))?;
    match client.send_message_batch().queue_url(url).set_entries(Some(entries)).send().await {
        Ok(output) => judge::<aws_sdk_sqs::Error>(!output.successful().is_empty(), None),
        Err(error) => judge(false, Some(error)),
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
        let attributes = read(&pairs.map(|(name, value)| (name, value.to_owned())).into());
        assert!(attributes.is_fifo && attributes.most_bytes == Some(262_144));
        assert_eq!(attributes.encryption, "SQS's own key");
        let plain = read(&HashMap::new());
        assert!(!plain.is_fifo && plain.most_bytes.is_none());
        assert_eq!(plain.encryption, "none");
    }
}
