//! Classifying failures: which kind of fault an error of SQS, of SNS or of their SDKs is.
//!
//! Codes decide. `SenderFault` does not, because SQS reports throttling as the sender's fault too. An
//! unknown code about one entry costs attempts but never kills at once. An unknown code about the whole request halts
//! the destination, so that a new kind of outage cannot burn through messages.

use std::error::Error;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_sqs::config::http::HttpResponse;
use aws_sdk_sqs::error::{ProvideErrorMetadata, SdkError};
use rustix::io::Errno;

use super::role::NotAssumed;
use super::writing::TooLate;
use crate::aws::missing;
use crate::causes::{causes, sentence};
use crate::message::{Fault, FaultKind};

/// What codes of a bucket's faults begin with.
const OF_BUCKETS: &str = "S3.";

/// The most characters kept of an SDK error.
const DETAIL_CHARS: usize = 300;

/// The fault of one entry in an answer that succeeded as a whole.
pub(super) fn entry(code: &str, message: Option<&str>) -> Fault {
    let kind = match kind_of_code(code) {
        // SQS says that this very entry failed, so it was not accepted.
        Some(FaultKind::ServerError) => FaultKind::Outage,
        Some(kind) => kind,
        None => FaultKind::MessageTransient,
    };
    Fault::new(kind, code, shorten(message.unwrap_or("")))
}

/// The fault of a whole request; `was_written` says whether any bytes of it were written.
pub(super) fn request<E>(error: &SdkError<E, HttpResponse>, was_written: bool) -> Fault
where
    E: Error + ProvideErrorMetadata + 'static,
{
    let detail = || shorten(&sentence(error));
    if !was_written && causes(error).any(|cause| cause.is::<TooLate>()) {
        return Fault::new(FaultKind::NotSent, "ClaimOver", "the claim had ended before the request could be written");
    }
    match error {
        SdkError::ConstructionFailure(_) => Fault::new(FaultKind::Internal, "RequestNotBuilt", detail()),
        SdkError::TimeoutError(_) if !was_written => {
            Fault::new(FaultKind::Outage, "NotConnected", "no connection within the request timeout")
        }
        SdkError::TimeoutError(_) => {
            Fault::new(FaultKind::Ambiguous, "Timeout", "no answer within the request timeout")
        }
        SdkError::ResponseError(_) => Fault::new(FaultKind::Ambiguous, "UnreadableAnswer", detail()),
        SdkError::DispatchFailure(_) => dispatch(error, was_written),
        // The SDK also reports this for a successful answer that it cannot read.
        SdkError::ServiceError(context) if context.raw().status().is_success() => {
            Fault::new(FaultKind::Ambiguous, "UnreadableAnswer", detail())
        }
        SdkError::ServiceError(context) => {
            let status = context.raw().status().as_u16();
            let code = context.err().code().unwrap_or("Unknown");
            let message = context.err().message().unwrap_or("");
            let kind = match kind_of_code(code) {
                // SQS reports an entry's own parameters in the entry's result. For a whole call the code is about the
                // call's parameters, such as the queue's URL, and must not kill one message after the other.
                Some(FaultKind::MessagePermanent) if is_about_parameters(code) => FaultKind::Destination,
                Some(kind) => kind,
                None if status >= 500 => FaultKind::ServerError,
                None => FaultKind::Destination,
            };
            Fault::new(kind, code, shorten(&format!("{message} (HTTP {status})")))
        }
        // The SDK may add variants; whether such a request was sent is not known.
        _ => Fault::new(FaultKind::Ambiguous, "UnknownFailure", detail()),
    }
}

/// The request did not get through: no credentials, no connection, or cut off on the way.
fn dispatch<E: Error + 'static>(error: &SdkError<E, HttpResponse>, was_written: bool) -> Fault {
    if causes(error).any(has_no_file_left) {
        // Fewer concurrent requests need fewer files, so this counts as throttling.
        let detail = "no file is left for a connection; raise the limit of open files (ulimit -n, LimitNOFILE)";
        return Fault::new(FaultKind::Throttle, "TooManyOpenFiles", detail);
    }
    let mut deepest = String::new();
    for cause in causes(error).skip(1) {
        deepest = cause.to_string();
        if cause.is::<CredentialsError>() {
            let (code, detail) = without_credentials(cause);
            return Fault::new(FaultKind::Destination, code, detail);
        }
        if cause.downcast_ref::<hyper_util::client::legacy::Error>().is_some_and(|error| error.is_connect()) {
            return Fault::new(FaultKind::Outage, "NotConnected", shorten(&sentence(cause)));
        }
    }
    // The SDK resolves credentials with its own time limit, before it sends anything.
    if sentence(error).contains("identity resolver timed out") {
        return Fault::new(FaultKind::Destination, "CredentialsNotAvailable", "fetching credentials timed out");
    }
    if !was_written {
        // Whatever it was, it happened before the first byte: for example an endpoint that cannot be resolved, or a
        // pool without a connection.
        return Fault::new(FaultKind::Outage, "NotSent", shorten(&sentence(error)));
    }
    Fault::new(FaultKind::Ambiguous, "ConnectionLost", shorten(&deepest))
}

/// Why there are no credentials: a code and a description.
pub(super) fn without_credentials(error: &(dyn Error + 'static)) -> (&'static str, String) {
    if let Some(refused) = NotAssumed::among(error) {
        return ("RoleNotAssumed", shorten(&refused.to_string()));
    }
    let detail = missing::providers(error).unwrap_or_else(|| sentence(error));
    ("CredentialsNotAvailable", shorten(&detail))
}

/// Whether the cause is EMFILE or ENFILE.
fn has_no_file_left(error: &(dyn Error + 'static)) -> bool {
    let codes = [Errno::MFILE, Errno::NFILE].map(Errno::raw_os_error);
    let code = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
    code.is_some_and(|code| codes.contains(&code))
}

fn is_about_parameters(code: &str) -> bool {
    matches!(bare(code), "InvalidParameterValue" | "InvalidParameter" | "ParameterValueInvalid" | "MissingParameter")
}

/// The fault of a whole request to a topic. SNS reports the result of each message individually (PublishBatch), but lists the
/// codes for wrong parameters among those of the whole request too. One message may be the cause, and every request that has it
/// fails. So they count as faults of messages, which are then sent one by one; if single messages fail one after another, the
/// destination halts as for any fault of theirs.
pub(super) fn request_to_topic<E>(error: &SdkError<E, HttpResponse>, was_written: bool) -> Fault
where
    E: Error + ProvideErrorMetadata + 'static,
{
    let fault = request(error, was_written);
    let is_validation = matches!(bare(&fault.code), "ValidationException" | "ValidationError");
    let is_of_message = fault.kind == FaultKind::Destination && (is_validation || is_about_parameters(&fault.code));
    if is_of_message { Fault { kind: FaultKind::MessageTransient, ..fault } } else { fault }
}

/// Whether other credentials may help: the service does not know or accept these, or there are none. Those for a bucket are not
/// those for the queue or topic.
pub(super) fn is_about_credentials(fault: &Fault) -> bool {
    !fault.code.starts_with(OF_BUCKETS) && is_code_of_credentials(bare(&fault.code))
}

/// The same fault, of a bucket: one of the destination, which halts. The message is not at fault, and nothing was sent. One
/// that was judged by the bucket already stays.
pub(super) fn of_bucket(fault: Fault, bucket: &str) -> Fault {
    if fault.code.starts_with(OF_BUCKETS) {
        return fault;
    }
    let Fault { kind, code, detail } = fault;
    let kind = match kind {
        FaultKind::Ambiguous | FaultKind::ServerError => FaultKind::Outage,
        FaultKind::MessagePermanent | FaultKind::MessageTransient => FaultKind::Destination,
        other => other,
    };
    Fault::new(kind, format!("{OF_BUCKETS}{code}"), format!("bucket {bucket}: {detail}"))
}

/// Whether an entry may have been refused for its size. SQS says that a parameter is wrong, and not which (the description is
/// not documented). Everything else that it could refuse was checked when the entry was composed.
pub(super) fn may_be_about_size(fault: &Fault) -> bool {
    fault.kind == FaultKind::MessagePermanent && bare(&fault.code) != "InvalidMessageContents"
}

fn is_code_of_credentials(bare: &str) -> bool {
    matches!(
        bare,
        "InvalidClientTokenId"
            | "UnrecognizedClientException"
            | "InvalidAccessKeyId"
            | "AuthFailure"
            | "InvalidSecurity"
            | "SignatureDoesNotMatch"
            | "InvalidSignatureException"
            | "IncompleteSignature"
            | "IncompleteSignatureException"
            | "MissingAuthenticationToken"
            | "MissingAuthenticationTokenException"
            | "ExpiredToken"
            | "ExpiredTokenException"
            | "InvalidToken"
            | "TokenRefreshRequired"
            | "CredentialsNotAvailable"
            | "RoleNotAssumed"
    )
}

/// A code without its namespace.
fn bare(code: &str) -> &str {
    code.rsplit(['.', '#']).next().unwrap_or(code)
}

/// The meaning of the codes of SQS and SNS, for entries and requests alike (SQS API reference, SendMessageBatch; SNS API
/// reference, PublishBatch). The names are those of the query protocol, which the SDK reports, and those of the JSON protocol's
/// types, without namespace.
fn kind_of_code(code: &str) -> Option<FaultKind> {
    let kind = match bare(code) {
        code if is_code_of_credentials(code) => FaultKind::Destination,
        "InvalidMessageContents"
        | "InvalidParameterValue"
        | "InvalidParameter"
        | "ParameterValueInvalid"
        | "MissingParameter"
        | "BatchRequestTooLong"
        | "InvalidAttributeValue"
        | "InvalidAttributeName" => FaultKind::MessagePermanent,
        "InternalError" | "InternalFailure" => return None,
        "RequestThrottled"
        | "ThrottlingException"
        | "Throttling"
        | "ThrottledException"
        | "Throttled"
        | "KMSThrottling"
        | "RequestThrottledException"
        | "TooManyRequestsException"
        | "RequestLimitExceeded"
        | "BandwidthLimitExceeded"
        | "LimitExceededException"
        | "KmsThrottled"
        | "OverLimit"
        | "SlowDown"
        | "PriorRequestNotComplete" => FaultKind::Throttle,
        "ServiceUnavailable" | "ServiceUnavailableException" => FaultKind::ServerError,
        "TooManyEntriesInBatchRequest" | "EmptyBatchRequest" | "BatchEntryIdsNotDistinct" | "InvalidBatchEntryId" => {
            FaultKind::Internal
        }
        "NonExistentQueue"
        | "QueueDoesNotExist"
        | "QueueDeletedRecently"
        | "InvalidAddress"
        | "NotFound"
        | "EndpointDisabled"
        | "UnsupportedOperation"
        | "AccessDenied"
        | "AccessDeniedException"
        | "AuthorizationError"
        | "RequestExpired"
        | "RequestTimeTooSkewed"
        | "OptInRequired"
        | "KmsAccessDenied"
        | "KmsDisabled"
        | "KmsInvalidKeyUsage"
        | "KmsInvalidState"
        | "KmsNotFound"
        | "KmsOptInRequired"
        | "KMSAccessDenied"
        | "KMSDisabled"
        | "KMSInvalidState"
        | "KMSNotFound"
        | "KMSOptInRequired"
        | "DisabledException"
        | "InvalidStateException"
        | "NotFoundException"
        | "InvalidKeyUsageException" => FaultKind::Destination,
        _ => return None,
    };
    Some(kind)
}

/// An error with its causes, as one line.
pub(super) fn causes_of(error: &(dyn Error + 'static)) -> String {
    without_credentials(error).1
}

/// One line of limited length.
pub(super) fn shorten(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").chars().take(DETAIL_CHARS).collect()
}

#[cfg(test)]
mod tests;
