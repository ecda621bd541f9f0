//! What the bytes of SNS's answers mean for the entries of a request, through the real SDK; `answers.rs` has those of SQS and
//! everything that is the same for both.

use super::answers::{after_from, entry_for};
use super::*;
use crate::message::{SequenceNumber, Service};

/// Two entries, and an answer of the query protocol.
async fn after(status: u16, body: &str) -> Published {
    let head = format!("HTTP/1.1 {status} Status\r\ncontent-type: text/xml\r\ncontent-length: {}\r\n", body.len());
    after_from(Service::Sns, format!("{head}connection: close\r\n\r\n{body}")).await
}

fn accepted(id: &str, number: &str) -> String {
    format!("<member><Id>{id}</Id><MessageId>m{id}</MessageId>{number}</member>")
}

fn batch(accepted: &str, failed: &str) -> String {
    format!(
        "<PublishBatchResponse xmlns=\"http://sns.amazonaws.com/doc/2010-03-31/\"><PublishBatchResult>\
         <Successful>{accepted}</Successful><Failed>{failed}</Failed></PublishBatchResult>\
         <ResponseMetadata><RequestId>r</RequestId></ResponseMetadata></PublishBatchResponse>"
    )
}

#[tokio::test]
async fn each_entry_of_a_batch_gets_its_own_result_by_id() {
    let number = "<SequenceNumber>10000000000000003000</SequenceNumber>";
    let failed =
        "<member><Id>0</Id><Code>InternalError</Code><Message>no</Message><SenderFault>false</SenderFault></member>";
    let published = after(200, &batch(&accepted("1", number), failed)).await;
    assert_eq!(published.request_fault, None);
    let fault = published.results[0].as_ref().unwrap_err();
    assert_eq!((fault.kind, fault.code.as_str()), (FaultKind::MessageTransient, "InternalError"));
    let found = published.results[1].as_ref().unwrap();
    assert_eq!(found.sqs_message_id, "m1");
    assert_eq!(found.sequence_number, SequenceNumber::parse("10000000000000003000"));
}

#[tokio::test]
async fn an_entry_that_no_list_names_is_not_accepted() {
    for body in [batch("", ""), batch(&accepted("7", ""), ""), batch("<member><MessageId>m</MessageId></member>", "")] {
        let published = after(200, &body).await;
        for result in &published.results {
            assert_eq!(result.as_ref().unwrap_err().code, "Unconfirmed", "{body}");
        }
    }
    let twice = "<member><Id>0</Id><Code>InternalError</Code><SenderFault>false</SenderFault></member>";
    let published = after(200, &batch(&accepted("0", ""), twice)).await;
    assert_eq!(published.results[0].as_ref().unwrap_err().code, "Unconfirmed");
}

/// Codes of PublishBatch (SNS API reference, errors; the codes are those of the query protocol).
#[tokio::test]
async fn a_code_of_the_whole_request_is_a_fault_of_the_destination_of_the_service_or_of_one_of_its_messages() {
    for (code, status, expected) in [
        ("NotFound", 404, FaultKind::Destination),
        ("AuthorizationError", 403, FaultKind::Destination),
        ("EndpointDisabled", 400, FaultKind::Destination),
        ("InvalidParameter", 400, FaultKind::MessageTransient),
        ("InvalidParameterValue", 400, FaultKind::MessageTransient),
        ("ValidationException", 400, FaultKind::MessageTransient),
        ("ValidationError", 400, FaultKind::MessageTransient),
        ("InvalidSecurity", 403, FaultKind::Destination),
        ("KMSAccessDenied", 400, FaultKind::Destination),
        ("KMSDisabled", 400, FaultKind::Destination),
        ("KMSInvalidState", 400, FaultKind::Destination),
        ("KMSNotFound", 400, FaultKind::Destination),
        ("KMSOptInRequired", 403, FaultKind::Destination),
        ("InvalidClientTokenId", 403, FaultKind::Destination),
        ("ExpiredToken", 403, FaultKind::Destination),
        ("KMSThrottling", 400, FaultKind::Throttle),
        ("Throttling", 400, FaultKind::Throttle),
        ("Throttled", 429, FaultKind::Throttle),
        ("BatchRequestTooLong", 400, FaultKind::MessagePermanent),
        ("TooManyEntriesInBatchRequest", 400, FaultKind::Internal),
        ("BatchEntryIdsNotDistinct", 400, FaultKind::Internal),
        ("InternalError", 500, FaultKind::ServerError),
        ("SomethingNew", 400, FaultKind::Destination),
        ("SomethingNew", 503, FaultKind::ServerError),
    ] {
        let body = format!(
            "<ErrorResponse xmlns=\"http://sns.amazonaws.com/doc/2010-03-31/\"><Error><Type>Sender</Type>\
             <Code>{code}</Code><Message>Because.</Message></Error><RequestId>r</RequestId></ErrorResponse>"
        );
        let published = after(status, &body).await;
        let fault = published.request_fault.as_ref().expect("the request failed");
        assert_eq!((fault.kind, fault.code.as_str()), (expected, code), "{fault}");
        assert_eq!(fault.detail, format!("Because. (HTTP {status})"));
    }
}

#[tokio::test]
async fn an_answer_that_cannot_be_read_leaves_open_what_was_accepted() {
    for body in ["", "<PublishBatchResponse>", "<html>Welcome to this hotel</html>", "{}"] {
        let published = after(200, body).await;
        let fault = published.request_fault.as_ref().expect("the request failed");
        assert_eq!(fault.kind, FaultKind::Ambiguous, "{body:?}: {fault}");
    }
}

#[test]
fn an_entry_for_a_topic_has_no_trace_header_and_256_kib() {
    let composed = entry_for(Service::Sns, "{}", r#"{"AWSTraceHeader": "Root=1-5759e988-bd862e3fe1be46a994272793"}"#);
    let composed = composed.unwrap();
    assert_eq!((composed.entry.trace_header, composed.dropped_attributes), (None, 1));
    let large = "x".repeat(262_144);
    assert!(entry_for(Service::Sqs, &large, "{}").is_ok());
    assert!(entry_for(Service::Sns, &large, "{}").unwrap_err().detail.contains("SNS takes 262144"));
}
