//! PublishBatch in the terms of SendMessageBatch: SNS speaks the query protocol, with forms and XML.

use serde_json::{Map, Value, json};

use super::faults::{ErrorAnswer, Failure};
use super::journal::Entry;

/// A request of the query protocol.
#[derive(Debug)]
pub(super) struct Form(Vec<(String, String)>);

impl Form {
    pub(super) fn of(body: &[u8]) -> Form {
        Form(form_urlencoded::parse(body).into_owned().collect())
    }

    /// The value of a field.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The same request as SendMessageBatch would have it.
    pub(super) fn as_batch(&self) -> Value {
        let mut entries = Vec::new();
        while let Some(id) = self.get(&member(entries.len(), "Id")) {
            let text = |name: &str| self.get(&member(entries.len(), name));
            entries.push(json!({
                "Id": id,
                "MessageBody": text("Message"),
                "MessageGroupId": text("MessageGroupId"),
                "MessageDeduplicationId": text("MessageDeduplicationId"),
                "MessageAttributes": self.attributes(entries.len()),
            }));
        }
        json!({"QueueUrl": self.get("TopicArn"), "Entries": entries})
    }

    fn attributes(&self, position: usize) -> Value {
        let mut attributes = Map::new();
        let part = |number: usize, name: &str| {
            self.get(&member(position, &format!("MessageAttributes.entry.{number}.{name}"))).map(str::to_owned)
        };
        while let Some(name) = part(attributes.len() + 1, "Name") {
            let number = attributes.len() + 1;
            let value =
                json!({"DataType": part(number, "Value.DataType"), "StringValue": part(number, "Value.StringValue")});
            attributes.insert(name, value);
        }
        Value::Object(attributes)
    }

    /// The form without the entries that fail.
    pub(super) fn without(&self, failures: &[Failure]) -> String {
        let is_of = |key: &str| failures.iter().any(|failure| key.starts_with(&member(failure.position, "")));
        let mut text = form_urlencoded::Serializer::new(String::new());
        text.extend_pairs(self.0.iter().filter(|(key, _)| !is_of(key)));
        text.finish()
    }
}

fn member(position: usize, field: &str) -> String {
    format!("PublishBatchRequestEntries.member.{}.{field}", position + 1)
}

/// An answer in which nothing is said of any entry.
pub(super) const NOTHING_SAID: &str = "<PublishBatchResponse><PublishBatchResult><Successful></Successful><Failed></Failed></PublishBatchResult></PublishBatchResponse>";

/// The answer with these failures in it.
pub(super) fn with_failures(answer: &str, failures: &[Failure], entries: &[Entry]) -> String {
    let failed: String = failures
        .iter()
        .filter_map(|failure| {
            let Failure { code, sender_fault, .. } = failure;
            let id = &entries.get(failure.position)?.id;
            Some(format!("<member><Id>{id}</Id><Code>{code}</Code><SenderFault>{sender_fault}</SenderFault></member>"))
        })
        .collect();
    answer.replace("</Failed>", &format!("{failed}</Failed>"))
}

/// An error of the query protocol; its code is that of the SQS error, without namespace.
pub(super) fn error(error: ErrorAnswer) -> String {
    let code = error.kind.rsplit('#').next().unwrap_or_default();
    format!(
        "<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>{}</Message></Error></ErrorResponse>",
        error.message
    )
}
