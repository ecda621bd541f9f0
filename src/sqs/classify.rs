//! Reading failures: what kind of fault an error of SQS or of its SDK is.
//!
//! Codes come first. `SenderFault` is only a tie-break, because SQS reports throttling as the sender's fault too. A code
//! that nobody knows costs attempts but never kills at once when it is about one entry, and halts the destination when it
//! is about the whole request, so that a new kind of outage cannot burn through messages.

use std::error::Error;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_sqs::config::http::HttpResponse;
use aws_sdk_sqs::error::{ProvideErrorMetadata as _, SdkError};
use aws_sdk_sqs::operation::send_message_batch::SendMessageBatchError;
use aws_sdk_sqs::types::BatchResultErrorEntry;
use rustix::io::Errno;

use super::writing::TooLate;
use crate::message::{Fault, FaultKind};

/// The longest sentence that is kept of an SDK error.
const DETAIL_CHARS: usize = 300;

/// The fault of one entry in an answer that succeeded as a whole.
pub(super) fn entry(failed: &BatchResultErrorEntry) -> Fault {
    let kind = match kind_of_code(failed.code()) {
        // SQS says of this very entry that it failed, so it was not accepted.
        Some(FaultKind::ServerError) => FaultKind::Outage,
        Some(kind) => kind,
        None => FaultKind::MessageTransient,
    };
    Fault::new(kind, failed.code(), shorten(failed.message().unwrap_or("")))
}

/// The fault of a whole request, of which some bytes were written or none.
pub(super) fn request(error: &SdkError<SendMessageBatchError, HttpResponse>, was_written: bool) -> Fault {
    let detail = || shorten(&chain(error));
    if !was_written && causes(error).any(|cause| cause.is::<TooLate>()) {
        return Fault::new(FaultKind::NotSent, "ClaimOver", "the claim was over before the request could be written");
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
        // The SDK also says so of a good answer that it cannot read.
        SdkError::ServiceError(context) if context.raw().status().is_success() => {
            Fault::new(FaultKind::Ambiguous, "UnreadableAnswer", detail())
        }
        SdkError::ServiceError(context) => {
            let status = context.raw().status().as_u16();
            let code = context.err().code().unwrap_or("Unknown");
            let message = context.err().message().unwrap_or("");
            let kind = match kind_of_code(code) {
                // SQS tells of an entry's own parameters in the entry's result. Of a whole call it means the call's own,
                // such as the queue's URL, and must not give up one message after the other.
                Some(FaultKind::MessagePermanent) if is_about_parameters(code) => FaultKind::Destination,
                Some(kind) => kind,
                None if status >= 500 => FaultKind::ServerError,
                None => FaultKind::Destination,
            };
            Fault::new(kind, code, shorten(&format!("{message} (HTTP {status})")))
        }
        // The SDK may grow variants; whether such a request was sent is not known.
        _ => Fault::new(FaultKind::Ambiguous, "UnknownFailure", detail()),
    }
}

/// An error and all that caused it, from the outside in.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |error| (*error).source())
}

/// The request did not get through: no credentials, no connection, or cut on the way.
fn dispatch(error: &SdkError<SendMessageBatchError, HttpResponse>, was_written: bool) -> Fault {
    if causes(error).any(has_no_file_left) {
        // Fewer requests at a time need fewer, as where SQS throttles.
        let detail = "no file is left for a connection; raise the limit of open files (ulimit -n, LimitNOFILE)";
        return Fault::new(FaultKind::Throttle, "TooManyOpenFiles", detail);
    }
    let mut deepest = String::new();
    for cause in causes(error).skip(1) {
        deepest = cause.to_string();
        if cause.is::<CredentialsError>() {
            return Fault::new(FaultKind::Destination, "CredentialsNotAvailable", shorten(&chain(cause)));
        }
        if cause.downcast_ref::<hyper_util::client::legacy::Error>().is_some_and(|error| error.is_connect()) {
            return Fault::new(FaultKind::Outage, "NotConnected", shorten(&chain(cause)));
        }
    }
    // The SDK resolves credentials with a time limit of its own, before it sends anything.
    if chain(error).contains("identity resolver timed out") {
        return Fault::new(FaultKind::Destination, "CredentialsNotAvailable", "fetching credentials timed out");
    }
    if !was_written {
        // Whatever it was, it was before the first byte: an endpoint that cannot be resolved, a pool without a connection.
        return Fault::new(FaultKind::Outage, "NotSent", shorten(&chain(error)));
    }
    Fault::new(FaultKind::Ambiguous, "ConnectionLost", shorten(&deepest))
}

/// EMFILE or ENFILE.
fn has_no_file_left(error: &(dyn Error + 'static)) -> bool {
    let codes = [Errno::MFILE, Errno::NFILE].map(Errno::raw_os_error);
    let code = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error);
    code.is_some_and(|code| codes.contains(&code))
}

fn is_about_parameters(code: &str) -> bool {
    matches!(bare(code), "InvalidParameterValue" | "MissingParameter")
}

/// Whether other credentials may help: SQS does not know or believe these, or there are none.
pub(super) fn is_about_credentials(fault: &Fault) -> bool {
    matches!(
        bare(&fault.code),
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
            | "CredentialsNotAvailable"
    )
}

/// A code without its namespace.
fn bare(code: &str) -> &str {
    code.rsplit(['.', '#']).next().unwrap_or(code)
}

/// What SQS's codes mean, for entries and requests alike. The names are those of the query protocol, which the SDK reports,
/// and of the JSON protocol's types, without namespace.
fn kind_of_code(code: &str) -> Option<FaultKind> {
    let kind = match bare(code) {
        "InvalidMessageContents"
        | "InvalidParameterValue"
        | "MissingParameter"
        | "BatchRequestTooLong"
        | "InvalidAttributeValue"
        | "InvalidAttributeName" => FaultKind::MessagePermanent,
        "InternalError" | "InternalFailure" => return None,
        "RequestThrottled"
        | "ThrottlingException"
        | "Throttling"
        | "ThrottledException"
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
        | "UnsupportedOperation"
        | "InvalidSecurity"
        | "AccessDenied"
        | "AccessDeniedException"
        | "AuthFailure"
        | "InvalidClientTokenId"
        | "UnrecognizedClientException"
        | "InvalidAccessKeyId"
        | "SignatureDoesNotMatch"
        | "InvalidSignatureException"
        | "IncompleteSignature"
        | "IncompleteSignatureException"
        | "MissingAuthenticationToken"
        | "MissingAuthenticationTokenException"
        | "ExpiredToken"
        | "ExpiredTokenException"
        | "RequestExpired"
        | "RequestTimeTooSkewed"
        | "OptInRequired"
        | "KmsAccessDenied"
        | "KmsDisabled"
        | "KmsInvalidKeyUsage"
        | "KmsInvalidState"
        | "KmsNotFound"
        | "KmsOptInRequired"
        | "DisabledException"
        | "InvalidStateException"
        | "NotFoundException"
        | "InvalidKeyUsageException" => FaultKind::Destination,
        _ => return None,
    };
    Some(kind)
}

/// An error and its causes in one sentence; the SDK's own display adds their innards.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    for next in causes(error).skip(1).map(ToString::to_string) {
        // Some layers only repeat what is below them.
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
    }
    text
}

/// An error with its causes, as one line.
pub(super) fn causes_of(error: &(dyn Error + 'static)) -> String {
    shorten(&chain(error))
}

/// One line, not too long.
fn shorten(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").chars().take(DETAIL_CHARS).collect()
}

#[cfg(test)]
mod tests;
