//! SNS's part of publishing: the entries of a PublishBatch, and what its answer says of each.

use std::collections::HashMap;

use aws_sdk_sns::error::BuildError;
use aws_sdk_sns::operation::publish_batch::PublishBatchOutput;
use aws_sdk_sns::types::{MessageAttributeValue, PublishBatchRequestEntry};

use super::answer::{Accepted, Said};
use super::{Entry, classify};
use crate::message::SequenceNumber;

/// The entries of one request as SDK types.
///
/// # Errors
///
/// Only when the relay omitted a field that SNS requires.
pub(super) fn build_request(entries: &[&Entry]) -> Result<Vec<PublishBatchRequestEntry>, BuildError> {
    entries.iter().enumerate().map(|(index, entry)| item(index, entry)).collect()
}

/// The entry's id is its index, as with SQS. SNS has no system attribute for a trace header (PublishBatchRequestEntry).
fn item(index: usize, entry: &Entry) -> Result<PublishBatchRequestEntry, BuildError> {
    let mut attributes = HashMap::with_capacity(entry.attributes.len());
    for attribute in &entry.attributes {
        let value =
            MessageAttributeValue::builder().data_type(attribute.kind).string_value(&attribute.value).build()?;
        attributes.insert(attribute.name.clone().into_owned(), value);
    }
    let mut item = PublishBatchRequestEntry::builder()
        .id(index.to_string())
        .message(&entry.body)
        .set_message_attributes(Some(attributes));
    if let Some(fifo) = &entry.fifo {
        item = item.message_group_id(&fifo.group).message_deduplication_id(fifo.deduplication_id());
    }
    if let Some(group) = &entry.fair_group {
        item = item.message_group_id(group);
    }
    item.build()
}

/// What the answer says, entry by entry, in the order of its lists. An id that is absent matches no entry.
pub(super) fn said(output: &PublishBatchOutput) -> impl Iterator<Item = Said<'_>> {
    let accepted = output.successful().iter().map(|entry| {
        let sequence_number = entry.sequence_number().and_then(SequenceNumber::parse);
        let sqs_message_id = entry.message_id().unwrap_or_default().to_owned();
        Said { id: entry.id().unwrap_or_default(), result: Ok(Accepted { sqs_message_id, sequence_number }) }
    });
    let failed = output
        .failed()
        .iter()
        .map(|entry| Said { id: entry.id(), result: Err(classify::entry(entry.code(), entry.message())) });
    accepted.chain(failed)
}
