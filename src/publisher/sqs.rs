//! SQS's part of publishing: the entries of a SendMessageBatch, and what its answer says of each.

use std::collections::HashMap;

use aws_sdk_sqs::error::BuildError;
use aws_sdk_sqs::operation::send_message_batch::SendMessageBatchOutput;
use aws_sdk_sqs::types::{
    MessageAttributeValue, MessageSystemAttributeNameForSends, MessageSystemAttributeValue,
    SendMessageBatchRequestEntry,
};

use super::answer::{Accepted, Said};
use super::{Entry, classify};
use crate::message::SequenceNumber;

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

/// What the answer says, entry by entry, in the order of its lists.
pub(super) fn said(output: &SendMessageBatchOutput) -> impl Iterator<Item = Said<'_>> {
    let accepted = output.successful().iter().map(|entry| {
        let sequence_number = entry.sequence_number().and_then(SequenceNumber::parse);
        let sqs_message_id = entry.message_id().to_owned();
        Said { id: entry.id(), result: Ok(Accepted { sqs_message_id, sequence_number }) }
    });
    let failed = output
        .failed()
        .iter()
        .map(|entry| Said { id: entry.id(), result: Err(classify::entry(entry.code(), entry.message())) });
    accepted.chain(failed)
}
