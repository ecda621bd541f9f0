//! What SNS says about a topic.

use std::collections::HashMap;

use aws_sdk_sns::Client;
use aws_sdk_sns::config::endpoint::{DefaultResolver, Params, ResolveEndpoint as _};
use aws_sdk_sns::types::PublishBatchRequestEntry;

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
pub(super) async fn attributes(client: &Client, arn: &str) -> Result<TargetAttributes, Refused> {
    let output = client.get_topic_attributes().topic_arn(arn).send().await.map_err(|error| Refused::of(&error))?;
    Ok(read(&output.attributes.unwrap_or_default()))
}

fn read(attributes: &HashMap<String, String>) -> TargetAttributes {
    let get = |name: &str| attributes.get(name).map(String::as_str).filter(|value| !value.is_empty());
    let key = get("KmsMasterKeyId");
    TargetAttributes {
        is_fifo: get("FifoTopic") == Some("true"),
        most_bytes: None,
        subscriptions: get("SubscriptionsConfirmed").and_then(|count| count.parse().ok()),
        needs_key: key.is_some(),
        encryption: key.map_or("none".to_owned(), |key| format!("KMS key {key}")),
    }
}

/// Asks whether the caller may publish.
pub(super) async fn may_send(client: &Client, arn: &str) -> Result<(), Fault> {
    let entry = || {
        let entry = PublishBatchRequestEntry::builder().id("check").message("outbox-relay check");
        entry.set_message_group_id(fifo_id(arn)).set_message_deduplication_id(fifo_id(arn)).build()
    };
    let entries = [entry(), entry()].into_iter().collect::<Result<Vec<_>, _>>();
    let entries = entries.map_err(|error| Fault::new(FaultKind::Internal, "RequestNotBuilt", error.to_string()))?;
    match client.publish_batch().topic_arn(arn).set_publish_batch_request_entries(Some(entries)).send().await {
        Ok(output) => judge::<aws_sdk_sns::Error>(!output.successful().is_empty(), None),
        Err(error) => judge(false, Some(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_sns_writes_them() {
        let pairs = [("FifoTopic", "true"), ("SubscriptionsConfirmed", "2"), ("KmsMasterKeyId", "alias/aws/sns")];
        let attributes = read(&pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
        assert!(attributes.is_fifo && attributes.needs_key);
        assert_eq!((attributes.subscriptions, attributes.encryption.as_str()), (Some(2), "KMS key alias/aws/sns"));
        let plain = read(&HashMap::new());
        assert!(!plain.is_fifo && !plain.needs_key);
        assert_eq!((plain.subscriptions, plain.encryption.as_str()), (None, "none"));
    }
}
