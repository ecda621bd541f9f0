//! Every code and every kind of failure that the SDK knows. `publish/answers.rs` tests what real bytes lead to.

use std::io;
use std::time::Duration;

use aws_sdk_sqs::config::http::HttpResponse;
use aws_sdk_sqs::error::{BoxError, ConnectorError, ErrorMetadata};
use aws_sdk_sqs::operation::send_message_batch::SendMessageBatchError;

use super::*;
use crate::retry::{Policy, policy};

fn of_entry(code: &str) -> FaultKind {
    entry(code, Some("Because.")).kind
}

/// The meaning of each code of a single entry.
const OF_ENTRIES: [(FaultKind, &[&str]); 6] = [
    (
        FaultKind::MessagePermanent,
        &[
            "InvalidMessageContents",
            "InvalidParameterValue",
            "MissingParameter",
            "AWS.SimpleQueueService.BatchRequestTooLong",
            "InvalidAttributeValue",
            "InvalidAttributeName",
            "InvalidParameter",
        ],
    ),
    (FaultKind::MessageTransient, &["InternalError", "InternalFailure", "SomethingNew", ""]),
    (
        FaultKind::Throttle,
        &[
            "RequestThrottled",
            "ThrottlingException",
            "Throttling",
            "ThrottledException",
            "RequestThrottledException",
            "TooManyRequestsException",
            "RequestLimitExceeded",
            "BandwidthLimitExceeded",
            "LimitExceededException",
            "KmsThrottled",
            "KMS.ThrottlingException",
            "OverLimit",
            "KMSThrottling",
            "Throttled",
            "SlowDown",
            "PriorRequestNotComplete",
        ],
    ),
    // The entry was not accepted, while a whole request that failed with the same code may have been.
    (FaultKind::Outage, &["ServiceUnavailable", "ServiceUnavailableException"]),
    (
        FaultKind::Destination,
        &[
            "KMS.AccessDeniedException",
            "KMS.DisabledException",
            "AccessDenied",
            "ExpiredToken",
            "InvalidSecurity",
            "AuthorizationError",
            "NotFound",
            "KMSAccessDenied",
        ],
    ),
    (FaultKind::Internal, &["InvalidBatchEntryId", "AWS.SimpleQueueService.BatchEntryIdsNotDistinct"]),
];

#[test]
fn the_code_of_an_entry_decides() {
    for (expected, codes) in OF_ENTRIES {
        for code in codes {
            assert_eq!(of_entry(code), expected, "{code:?}");
        }
    }
}

#[test]
fn codes_mean_the_same_with_and_without_their_namespace() {
    assert_eq!(kind_of_code("AWS.SimpleQueueService.NonExistentQueue"), Some(FaultKind::Destination));
    assert_eq!(kind_of_code("com.amazonaws.sqs#QueueDoesNotExist"), Some(FaultKind::Destination));
    assert_eq!(kind_of_code("NonExistentQueue"), Some(FaultKind::Destination));
    assert_eq!(kind_of_code("com.amazonaws.sqs#KmsThrottled"), Some(FaultKind::Throttle));
    assert_eq!(kind_of_code("SomethingNew"), None);
}

#[test]
fn an_entry_with_an_unknown_code_is_dead_after_the_last_attempt_and_never_at_once() {
    let kind = of_entry("SomethingNew");
    assert!((0..9).all(|attempts| policy(kind, attempts, 10) == Policy::RetryCharged));
    assert_eq!(policy(kind, 9, 10), Policy::DeadLetter);
}

#[test]
fn a_request_with_an_unknown_code_halts_the_destination_and_charges_nobody() {
    for status in [400, 403, 404, 413, 429, 500, 503] {
        let fault = request(&refused(status, Some("SomethingNew")), true);
        assert_eq!(policy(fault.kind, 9, 10), Policy::Halt, "HTTP {status}: {fault}");
        assert_eq!(fault.kind.may_have_been_accepted(), status >= 500, "HTTP {status}: {fault}");
    }
}

type Failure = SdkError<SendMessageBatchError, HttpResponse>;

fn response(status: u16) -> HttpResponse {
    HttpResponse::new(status.try_into().unwrap(), "".into())
}

fn refused(status: u16, code: Option<&str>) -> Failure {
    let mut metadata = ErrorMetadata::builder();
    if let Some(code) = code {
        metadata = metadata.code(code);
    }
    SdkError::service_error(SendMessageBatchError::generic(metadata.build()), response(status))
}

fn lost(error: ConnectorError) -> Failure {
    SdkError::dispatch_failure(error)
}

fn broken() -> BoxError {
    Box::new(io::Error::from(io::ErrorKind::BrokenPipe))
}

fn without_credentials(cause: CredentialsError) -> Failure {
    lost(ConnectorError::other(cause.into(), None))
}

#[test]
fn every_failure_of_the_sdk_is_of_one_kind() {
    let timed_out = || BoxError::from("identity resolver timed out after 5s");
    for (failure, kind, code) in [
        (SdkError::construction_failure("no such parameter"), FaultKind::Internal, "RequestNotBuilt"),
        (SdkError::timeout_error("5s"), FaultKind::Ambiguous, "Timeout"),
        (SdkError::response_error("cut", response(200)), FaultKind::Ambiguous, "UnreadableAnswer"),
        (refused(200, None), FaultKind::Ambiguous, "UnreadableAnswer"),
        (refused(307, None), FaultKind::Destination, "Unknown"),
        (refused(400, None), FaultKind::Destination, "Unknown"),
        (refused(500, None), FaultKind::ServerError, "Unknown"),
        (refused(400, Some("InternalError")), FaultKind::Destination, "InternalError"),
        (refused(500, Some("InternalError")), FaultKind::ServerError, "InternalError"),
        (refused(503, Some("RequestThrottled")), FaultKind::Throttle, "RequestThrottled"),
        (lost(ConnectorError::io(broken())), FaultKind::Ambiguous, "ConnectionLost"),
        (lost(ConnectorError::timeout(broken())), FaultKind::Ambiguous, "ConnectionLost"),
        (lost(ConnectorError::user(broken())), FaultKind::Ambiguous, "ConnectionLost"),
        (lost(ConnectorError::other(broken(), None)), FaultKind::Ambiguous, "ConnectionLost"),
        (lost(ConnectorError::other(timed_out(), None)), FaultKind::Destination, "CredentialsNotAvailable"),
        (without_credentials(CredentialsError::not_loaded("none")), FaultKind::Destination, "CredentialsNotAvailable"),
        (
            without_credentials(CredentialsError::provider_timed_out(Duration::from_secs(1))),
            FaultKind::Destination,
            "CredentialsNotAvailable",
        ),
    ] {
        let fault = request(&failure, true);
        assert_eq!((fault.kind, fault.code.as_str()), (kind, code), "{failure:?}");
    }
}

#[test]
fn a_request_that_failed_before_its_first_byte_was_not_accepted() {
    for (failure, kind, code) in [
        (SdkError::timeout_error("5s"), FaultKind::Outage, "NotConnected"),
        (lost(ConnectorError::io(broken())), FaultKind::Outage, "NotSent"),
        (lost(ConnectorError::other(broken(), None)), FaultKind::Outage, "NotSent"),
        (lost(ConnectorError::other(TooLate.into(), None)), FaultKind::NotSent, "ClaimOver"),
        (SdkError::construction_failure(TooLate), FaultKind::NotSent, "ClaimOver"),
    ] {
        let fault = request(&failure, false);
        assert_eq!((fault.kind, fault.code.as_str()), (kind, code), "{failure:?}");
        assert!(!fault.kind.may_have_been_accepted());
    }
}

#[test]
fn the_reason_is_one_line_and_not_too_long() {
    let fault = request(&Failure::construction_failure(format!("first\nsecond\t {}", "x".repeat(1000))), true);
    assert!(!fault.detail.contains(['\n', '\t']) && fault.detail.contains("first second"), "{fault}");
    assert_eq!(fault.detail.chars().count(), DETAIL_CHARS);
}

#[test]
fn other_credentials_may_help_where_the_service_refuses_these_and_those_for_a_bucket_are_its_own() {
    let helps = |code: &str| is_about_credentials(&Fault::new(FaultKind::Destination, code, ""));
    for code in ["ExpiredToken", "com.amazonaws.sqs#ExpiredTokenException", "InvalidToken", "TokenRefreshRequired"] {
        assert!(helps(code), "{code}");
    }
    for code in ["AccessDenied", "S3.ExpiredToken", "S3.InvalidToken", "S3.CredentialsNotAvailable"] {
        assert!(!helps(code), "{code}");
    }
}
