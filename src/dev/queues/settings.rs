//! The name and the attributes of a queue. Pure.

use serde_json::{Map, Value as Json, json};

use super::refusal::{self, Refusal};

/// The longest name.
const MAX_NAME: usize = 80;

/// The attributes of a queue that this server knows; times in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) is_fifo: bool,
    pub(super) visibility: u64,
    pub(super) delay: u64,
    pub(super) wait: u64,
    pub(super) max_bytes: usize,
    pub(super) has_content_deduplication: bool,
    /// Whether the same deduplication id in two groups is two messages.
    pub(super) deduplicates_per_group: bool,
}

impl Settings {
    /// What SQS gives a queue by itself.
    pub(super) fn new(is_fifo: bool) -> Self {
        Self {
            is_fifo,
            visibility: 30_000,
            delay: 0,
            wait: 0,
            max_bytes: crate::message::MAX_MESSAGE_BYTES,
            has_content_deduplication: false,
            deduplicates_per_group: false,
        }
    }

    /// Reads the attributes of CreateQueue for a queue of this name.
    pub(super) fn read(name: &str, attributes: &Json) -> Result<Self, Refusal> {
        let is_fifo = name.ends_with(".fifo");
        let plain = name.strip_suffix(".fifo").unwrap_or(name);
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
        if plain.is_empty() || name.len() > MAX_NAME || !plain.chars().all(is_plain) {
            let rule =
                "a queue's name has 1 to 80 letters, digits, '-' or '_', and ends with .fifo if it is a FIFO queue";
            return Err(Refusal::value("QueueName", format!("{name:?}"), rule));
        }
        let mut settings = Self::new(is_fifo);
        let nothing = Map::new();
        let attributes = attributes.as_object().unwrap_or(&nothing);
        if is_fifo && attributes.get("FifoQueue").and_then(Json::as_str) != Some("true") {
            return Err(Refusal::value(
                "QueueName",
                format!("{name:?}"),
                "a name with .fifo needs the attribute FifoQueue=true",
            ));
        }
        for (name, value) in attributes {
            settings.set(name, value.as_str().unwrap_or_default())?;
        }
        Ok(settings)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), Refusal> {
        let refused = |rule: &str| Refusal::value(name, format!("{value:?}"), rule);
        let number = |range: std::ops::RangeInclusive<u64>| {
            let rule = format!("must be from {} to {}", range.start(), range.end());
            value.parse::<u64>().ok().filter(|value| range.contains(value)).ok_or_else(|| refused(&rule))
        };
        let boolean = || value.parse::<bool>().map_err(|_| refused("must be true or false"));
        match name {
            "VisibilityTimeout" => self.visibility = number(0..=43_200)? * 1000,
            "DelaySeconds" => self.delay = number(0..=900)? * 1000,
            "ReceiveMessageWaitTimeSeconds" => self.wait = number(0..=20)? * 1000,
            "MaximumMessageSize" => self.max_bytes = number(1024..=1_048_576)? as usize,
            // Messages are kept until they are deleted, or until the server ends.
            "MessageRetentionPeriod" => drop(number(60..=1_209_600)?),
            "FifoQueue" if boolean()? != self.is_fifo => {
                return Err(refused("a FIFO queue has a name that ends with .fifo, and a standard queue has not"));
            }
            "FifoQueue" => {}
            "ContentBasedDeduplication" if self.is_fifo => self.has_content_deduplication = boolean()?,
            "DeduplicationScope" if self.is_fifo => {
                self.deduplicates_per_group = match value {
                    "messageGroup" => true,
                    "queue" => false,
                    _ => return Err(refused("must be messageGroup or queue")),
                };
            }
            "FifoThroughputLimit" if self.is_fifo => {}
            _ => {
                let sentence =
                    format!("Unknown Attribute {name}; outbox-relay dev has neither dead-letter queues nor policies.");
                return Err(Refusal::new(refusal::BAD_ATTRIBUTE, sentence));
            }
        }
        Ok(())
    }

    /// As GetQueueAttributes shows them.
    pub(super) fn as_json(&self) -> Map<String, Json> {
        let seconds = |millis: u64| (millis / 1000).to_string();
        let mut shown = vec![
            ("VisibilityTimeout", seconds(self.visibility)),
            ("DelaySeconds", seconds(self.delay)),
            ("ReceiveMessageWaitTimeSeconds", seconds(self.wait)),
            ("MaximumMessageSize", self.max_bytes.to_string()),
        ];
        if self.is_fifo {
            let scope = if self.deduplicates_per_group { "messageGroup" } else { "queue" };
            let limit = if self.deduplicates_per_group { "perMessageGroupId" } else { "perQueue" };
            shown.extend([
                ("FifoQueue", "true".to_owned()),
                ("ContentBasedDeduplication", self.has_content_deduplication.to_string()),
                ("DeduplicationScope", scope.to_owned()),
                ("FifoThroughputLimit", limit.to_owned()),
            ]);
        }
        shown.into_iter().map(|(name, value)| (name.to_owned(), json!(value))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_has_what_it_was_created_with_and_the_defaults_of_sqs() {
        let attributes = json!({"FifoQueue": "true", "VisibilityTimeout": "7", "DeduplicationScope": "messageGroup"});
        let settings = Settings::read("tickets.fifo", &attributes).unwrap();
        let expected = Settings { visibility: 7000, deduplicates_per_group: true, ..Settings::new(true) };
        assert_eq!(settings, expected);
        assert_eq!(settings.as_json()["VisibilityTimeout"], "7");
        assert_eq!(Settings::read("audit", &Json::Null), Ok(Settings::new(false)));
    }

    #[test]
    fn names_and_attributes_that_sqs_does_not_take_are_refused() {
        for name in ["", ".fifo", "a b", "a.b", "a/b", &"x".repeat(81)] {
            assert!(
                Settings::read(name, &json!({"FifoQueue": name.ends_with(".fifo").to_string()})).is_err(),
                "{name}"
            );
        }
        for (name, attributes) in [
            ("tickets.fifo", json!({})),
            ("tickets", json!({"FifoQueue": "true"})),
            ("audit", json!({"VisibilityTimeout": "43201"})),
            ("audit", json!({"ContentBasedDeduplication": "true"})),
            ("audit", json!({"RedrivePolicy": "{}"})),
            ("audit", json!({"MaximumMessageSize": "many"})),
        ] {
            assert!(Settings::read(name, &attributes).is_err(), "{name} {attributes}");
        }
    }
}
