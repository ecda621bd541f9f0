//! Publishing: one SendMessageBatch request, and the result of each of its entries.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use aws_sdk_sqs::error::BuildError;
use aws_sdk_sqs::operation::RequestId as _;
use aws_sdk_sqs::operation::send_message_batch::SendMessageBatchOutput;
use aws_sdk_sqs::types::{
    MessageAttributeValue, MessageSystemAttributeNameForSends, MessageSystemAttributeValue,
    SendMessageBatchRequestEntry,
};

use super::access::Current;
use super::writing::{Writing, watched};
use super::{Entry, Publisher, classify};
use crate::clock::Time;
use crate::message::{Fault, FaultKind, SequenceNumber};

/// What SQS says of an entry that it accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Its MessageId.
    pub sqs_message_id: String,
    /// Its SequenceNumber, from a FIFO queue. For an entry with a known deduplication id it is that of the first one.
    pub sequence_number: Option<SequenceNumber>,
}

/// The result of a request.
#[derive(Debug)]
pub struct Published {
    /// For each entry, in order, what SQS says of it, or why it was not accepted.
    pub results: Vec<Result<Accepted, Fault>>,
    /// Why the request failed as a whole, if it did; then each result holds this fault.
    pub request_fault: Option<Fault>,
    /// The time from sending to the answer.
    pub duration: Duration,
    /// AWS's id of the request, if there was an answer with one.
    pub request_id: Option<String>,
}

impl Published {
    fn failed(entries: usize, fault: Fault, duration: Duration) -> Self {
        Self { results: vec![Err(fault.clone()); entries], request_fault: Some(fault), duration, request_id: None }
    }
}

impl Publisher {
    /// Sends entries in one request. It never fails itself: every entry gets a result, and an entry that no answer
    /// confirms never counts as accepted. Nothing is written after `until`, and the request ends a request timeout
    /// after that. A request that SQS refused for its credentials is sent once more with new ones, if there are any by
    /// then.
    pub async fn publish(&self, entries: &[&Entry], until: Time) -> Published {
        let current = self.access.current();
        let published = self.publish_with(&current, entries, until).await;
        if published.request_fault.as_ref().is_none_or(|fault| !classify::is_about_credentials(fault)) {
            return published;
        }
        // Boxed: the future that asks all providers is large, and otherwise every request would reserve space for it.
        Box::pin(self.publish_anew(&current, published, entries, until)).await
    }

    /// Sends a request once more that was refused for its credentials, if there are new ones in time.
    async fn publish_anew(
        &self,
        refused: &Current,
        published: Published,
        entries: &[&Entry],
        until: Time,
    ) -> Published {
        let code = published.request_fault.as_ref().map_or("", |fault| &fault.code);
        let renewal = self.access.renew(refused, code);
        match tokio::time::timeout(until.since(Time::now()), renewal).await {
            // Later it could not be written, and waiting for credentials once more would outlast the claim.
            Ok(true) if Time::now() < until => self.publish_with(&self.access.current(), entries, until).await,
            Ok(_) | Err(_) => published,
        }
    }

    async fn publish_with(&self, current: &Current, entries: &[&Entry], until: Time) -> Published {
        let started = Instant::now();
        let items = match build_request(entries) {
            Ok(items) => items,
            Err(error) => {
                let fault = Fault::new(FaultKind::Internal, "RequestNotBuilt", error.to_string());
                return Published::failed(entries.len(), fault, started.elapsed());
            }
        };
        let writing = Writing::new(until);
        let request = current.client.send_message_batch().queue_url(&self.url).set_entries(Some(items));
        let answer = watched(writing.clone(), request.send()).await;
        let duration = started.elapsed();
        match answer {
            Ok(output) => {
                current.worked();
                let request_id = output.request_id().map(str::to_owned);
                Published { results: reconcile(entries.len(), &output), request_fault: None, duration, request_id }
            }
            Err(error) => Published {
                request_id: error.request_id().map(str::to_owned),
                ..Published::failed(entries.len(), classify::request(&error, writing.has_begun()), duration)
            },
        }
    }
}

/// The entries of one request as SDK types.
///
/// # Errors
///
/// Only when the relay omitted a field that SQS requires.
pub fn build_request(entries: &[&Entry]) -> Result<Vec<SendMessageBatchRequestEntry>, BuildError> {
    entries.iter().enumerate().map(|(index, entry)| item(index, entry)).collect()
}

/// The entry's id is its index: unique within the request, and the way to match the answer.
fn item(index: usize, entry: &Entry) -> Result<SendMessageBatchRequestEntry, BuildError> {
    let mut attributes = HashMap::with_capacity(entry.attributes.len());
    for attribute in &entry.attributes {
        let value =
            MessageAttributeValue::builder().data_type(attribute.kind).string_value(&attribute.value).build()?;
        attributes.insert(attribute.name.clone().into_owned(), value);
    }
    let mut item = SendMessageBatchRequestEntry::builder()
        .id(index.to_string())
        .message_body(&entry.body)
        .set_message_attributes(Some(attributes));
    if let Some(header) = &entry.trace_header {
        let value = MessageSystemAttributeValue::builder().data_type("String").string_value(header).build()?;
        item = item.message_system_attributes(MessageSystemAttributeNameForSends::AwsTraceHeader, value);
    }
    if let Some(fifo) = &entry.fifo {
        item = item.message_group_id(&fifo.group).message_deduplication_id(fifo.deduplication_id());
    }
    if let Some(group) = &entry.fair_group {
        item = item.message_group_id(group);
    }
    item.build()
}

/// Puts the answer's two lists back into the order of the entries. An entry in neither list is unconfirmed: it may have
/// been accepted, so it is sent again and counted. An entry in both lists is unconfirmed too.
fn reconcile(entries: usize, output: &SendMessageBatchOutput) -> Vec<Result<Accepted, Fault>> {
    let mut results: Vec<Option<Result<Accepted, Fault>>> = vec![None; entries];
    for accepted in output.successful() {
        if let Some(slot) = index_of(accepted.id()).and_then(|index| results.get_mut(index)) {
            *slot = Some(Ok(Accepted {
                sqs_message_id: accepted.message_id().to_owned(),
                sequence_number: accepted.sequence_number().and_then(SequenceNumber::parse),
            }));
        }
    }
    for failed in output.failed() {
        if let Some(slot) = index_of(failed.id()).and_then(|index| results.get_mut(index)) {
            *slot = match slot {
                Some(Ok(_)) => Some(Err(unconfirmed("listed as accepted and as failed"))),
                _ => Some(Err(classify::entry(failed))),
            };
        }
    }
    results.into_iter().map(|slot| slot.unwrap_or_else(|| Err(unconfirmed("not in the answer")))).collect()
}

/// Only an id that this relay has sent is valid; "+1" and "01" are not.
fn index_of(id: &str) -> Option<usize> {
    id.parse().ok().filter(|index: &usize| index.to_string() == id)
}

fn unconfirmed(detail: &str) -> Fault {
    Fault::new(FaultKind::Ambiguous, "Unconfirmed", detail)
}

#[cfg(test)]
mod answers;

#[cfg(test)]
mod tests {
    use aws_sdk_sqs::types::{BatchResultErrorEntry, SendMessageBatchResultEntry};

    use super::*;

    /// As long as the numbers of SQS are, and more than 64 bits.
    const NUMBER: &str = "18849496460467696128";

    fn as_read(id: &str) -> Result<Accepted, Fault> {
        let sequence_number = SequenceNumber::parse(NUMBER);
        assert_eq!(sequence_number.map(|number| number.to_string()).as_deref(), Some(NUMBER));
        Ok(Accepted { sqs_message_id: id.to_owned(), sequence_number })
    }

    fn accepted(id: &str) -> SendMessageBatchResultEntry {
        SendMessageBatchResultEntry::builder()
            .id(id)
            .message_id(format!("m{id}"))
            .sequence_number(NUMBER)
            .md5_of_message_body("")
            .build()
            .unwrap()
    }

    fn failed(id: &str, code: &str) -> BatchResultErrorEntry {
        BatchResultErrorEntry::builder().id(id).code(code).sender_fault(false).build().unwrap()
    }

    fn answer(ok: Vec<SendMessageBatchResultEntry>, bad: Vec<BatchResultErrorEntry>) -> SendMessageBatchOutput {
        SendMessageBatchOutput::builder().set_successful(Some(ok)).set_failed(Some(bad)).build().unwrap()
    }

    #[test]
    fn each_entry_gets_its_own_result_by_id_and_not_by_position() {
        let results = reconcile(3, &answer(vec![accepted("2"), accepted("0")], vec![failed("1", "InternalError")]));
        assert_eq!(results[0], as_read("m0"));
        assert_eq!(results[1].as_ref().unwrap_err().kind, FaultKind::MessageTransient);
        assert_eq!(results[2], as_read("m2"));
    }

    #[test]
    fn an_entry_in_neither_list_is_never_taken_as_accepted() {
        for output in [answer(vec![], vec![]), answer(vec![accepted("7"), accepted("x")], vec![failed("", "E")])] {
            let results = reconcile(2, &output);
            assert!(results.iter().all(|result| result.as_ref().unwrap_err().code == "Unconfirmed"), "{results:?}");
        }
    }

    #[test]
    fn an_entry_in_both_lists_is_unconfirmed() {
        let results = reconcile(1, &answer(vec![accepted("0")], vec![failed("0", "InternalError")]));
        assert_eq!(results[0].as_ref().unwrap_err().code, "Unconfirmed");
    }
}
