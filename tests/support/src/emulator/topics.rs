//! The topics of an emulator, with their subscriptions.

use std::collections::HashMap;

use anyhow::{Context, Result};
use aws_sdk_sns::Client;
use aws_sdk_sns::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_sqs::types::QueueAttributeName;

use super::Queues;
use super::queues::unique;

/// How a queue gets what is published to a topic.
#[derive(Debug, Clone, Copy, Default)]
pub struct Subscription<'a> {
    /// Raw message delivery: the message itself, and its attributes as those of the message in the queue.
    pub is_raw: bool,
    /// A filter policy over attributes, as JSON; empty for none.
    pub filter_policy: &'a str,
}

/// Creates topics on an endpoint.
#[derive(Debug, Clone)]
pub struct Topics {
    client: Client,
}

impl Topics {
    /// Topics behind an endpoint.
    pub fn new(endpoint: &str) -> Topics {
        let configuration = aws_sdk_sns::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .endpoint_url(endpoint)
            .region(Region::new("us-east-1"))
            .credentials_provider(Credentials::new("test", "test", None, None, "tests"))
            .build();
        Topics { client: Client::from_conf(configuration) }
    }

    /// A name that no other test uses; that of a FIFO topic ends with `.fifo`.
    pub fn name(base: &str, is_fifo: bool) -> String {
        let suffix = if is_fifo { ".fifo" } else { "" };
        format!("{}{suffix}", unique(base))
    }

    /// Creates a topic of exactly this name; returns its ARN.
    pub async fn create(&self, name: &str) -> Result<String> {
        let fifo = name.ends_with(".fifo").then(|| HashMap::from([("FifoTopic".to_owned(), "true".to_owned())]));
        let created = self.client.create_topic().name(name).set_attributes(fifo).send().await?;
        created.topic_arn.context("the new topic has no ARN")
    }

    /// Subscribes a queue to a topic.
    pub async fn subscribe(
        &self,
        topic: &str,
        queues: &Queues,
        queue_url: &str,
        subscription: Subscription<'_>,
    ) -> Result<()> {
        let asked = queues.client().get_queue_attributes().queue_url(queue_url);
        let answer = asked.attribute_names(QueueAttributeName::QueueArn).send().await?;
        let attributes = answer.attributes.unwrap_or_default();
        let arn = attributes.get(&QueueAttributeName::QueueArn).context("the queue has no ARN")?;
        let mut request = self.client.subscribe().topic_arn(topic).protocol("sqs").endpoint(arn);
        if subscription.is_raw {
            request = request.attributes("RawMessageDelivery", "true");
        }
        if !subscription.filter_policy.is_empty() {
            request = request.attributes("FilterPolicy", subscription.filter_policy);
        }
        request.send().await?;
        Ok(())
    }
}
