//! An answer of SQS or SNS, as far as entries are concerned: which were accepted, and which were not.

use crate::message::{Fault, FaultKind, SequenceNumber};

/// What SQS or SNS says of an entry that it accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// Its MessageId.
    pub sqs_message_id: String,
    /// Its SequenceNumber, from a FIFO queue or topic. For an entry with a known deduplication id it is that of the first one.
    pub sequence_number: Option<SequenceNumber>,
}

/// What an answer says of one entry.
pub(super) struct Said<'a> {
    /// The id of the entry, if it has one.
    pub(super) id: &'a str,
    /// Whether it was accepted.
    pub(super) result: Result<Accepted, Fault>,
}

/// Puts what the answer says back into the order of the entries. An entry that it does not mention is unconfirmed: it may
/// have been accepted, so it is sent again and counted. An entry that was accepted and failed is unconfirmed too.
pub(super) fn reconcile<'a>(entries: usize, said: impl Iterator<Item = Said<'a>>) -> Vec<Result<Accepted, Fault>> {
    let mut results: Vec<Option<Result<Accepted, Fault>>> = vec![None; entries];
    for Said { id, result } in said {
        let Some(slot) = index_of(id).and_then(|index| results.get_mut(index)) else { continue };
        *slot = match (&slot, result) {
            (Some(Ok(_)), Err(_)) => Some(Err(unconfirmed("listed as accepted and as failed"))),
            (_, result) => Some(result),
        };
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
mod tests {
    use aws_sdk_sqs::operation::send_message_batch::SendMessageBatchOutput;
    use aws_sdk_sqs::types::{BatchResultErrorEntry, SendMessageBatchResultEntry};

    use super::super::sqs;
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
        let results =
            reconcile(3, sqs::said(&answer(vec![accepted("2"), accepted("0")], vec![failed("1", "InternalError")])));
        assert_eq!(results[0], as_read("m0"));
        assert_eq!(results[1].as_ref().unwrap_err().kind, FaultKind::MessageTransient);
        assert_eq!(results[2], as_read("m2"));
    }

    #[test]
    fn an_entry_in_neither_list_is_never_taken_as_accepted() {
        for output in [answer(vec![], vec![]), answer(vec![accepted("7"), accepted("x")], vec![failed("", "E")])] {
            let results = reconcile(2, sqs::said(&output));
            assert!(results.iter().all(|result| result.as_ref().unwrap_err().code == "Unconfirmed"), "{results:?}");
        }
    }

    #[test]
    fn an_entry_in_both_lists_is_unconfirmed() {
        let results = reconcile(1, sqs::said(&answer(vec![accepted("0")], vec![failed("0", "InternalError")])));
        assert_eq!(results[0].as_ref().unwrap_err().code, "Unconfirmed");
    }
}
