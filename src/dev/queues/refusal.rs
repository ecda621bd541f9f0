//! Why a request is refused, in the words of SQS: the name in the body, and the older one that SDKs read from the header.

/// An error of SQS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Code {
    /// `__type` in the body.
    pub(super) shape: &'static str,
    /// In the header `x-amzn-query-error`, and the code of a failed entry.
    pub(super) legacy: &'static str,
}

macro_rules! codes {
    ($($constant:ident = $shape:literal, $legacy:literal;)*) => {
        $(pub(super) const $constant: Code = Code { shape: $shape, legacy: $legacy };)*
    };
}

// botocore, data/sqs/2012-11-05/service-2.json: the names of shapes and their `awsQueryError`.
codes! {
    BAD_ADDRESS = "com.amazonaws.sqs#InvalidAddress", "InvalidAddress";
    BAD_ATTRIBUTE = "com.amazonaws.sqs#InvalidAttributeName", "InvalidAttributeName";
    BAD_BATCH_ID = "com.amazonaws.sqs#InvalidBatchEntryId", "AWS.SimpleQueueService.InvalidBatchEntryId";
    BAD_CONTENTS = "com.amazonaws.sqs#InvalidMessageContents", "InvalidMessageContents";
    BAD_HANDLE = "com.amazonaws.sqs#ReceiptHandleIsInvalid", "ReceiptHandleIsInvalid";
    BAD_VALUE = "com.amazon.coral.service#InvalidParameterValueException", "InvalidParameterValue";
    BATCH_EMPTY = "com.amazonaws.sqs#EmptyBatchRequest", "AWS.SimpleQueueService.EmptyBatchRequest";
    BATCH_IDS_TWICE = "com.amazonaws.sqs#BatchEntryIdsNotDistinct", "AWS.SimpleQueueService.BatchEntryIdsNotDistinct";
    BATCH_TOO_LONG = "com.amazonaws.sqs#BatchRequestTooLong", "AWS.SimpleQueueService.BatchRequestTooLong";
    BATCH_TOO_MANY = "com.amazonaws.sqs#TooManyEntriesInBatchRequest", "AWS.SimpleQueueService.TooManyEntriesInBatchRequest";
    EXISTS = "com.amazonaws.sqs#QueueNameExists", "QueueAlreadyExists";
    MISSING = "com.amazon.coral.service#MissingRequiredParameterException", "MissingParameter";
    NOT_IN_FLIGHT = "com.amazonaws.sqs#MessageNotInflight", "AWS.SimpleQueueService.MessageNotInflight";
    NO_QUEUE = "com.amazonaws.sqs#QueueDoesNotExist", "AWS.SimpleQueueService.NonExistentQueue";
    OVER_LIMIT = "com.amazonaws.sqs#OverLimit", "OverLimit";
    UNSUPPORTED = "com.amazonaws.sqs#UnsupportedOperation", "AWS.SimpleQueueService.UnsupportedOperation";
}

/// A request, or one entry of it, that is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: Code,
    pub(super) message: String,
}

impl Refusal {
    pub(super) fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// A parameter with a value that is not allowed.
    pub(super) fn value(name: &str, shown: impl std::fmt::Display, remedy: &str) -> Self {
        Self::new(BAD_VALUE, format!("Value {shown} for parameter {name} is invalid. Reason: {remedy}."))
    }

    /// A parameter that is not there.
    pub(super) fn missing(name: &str) -> Self {
        Self::new(MISSING, format!("The request must contain the parameter {name}."))
    }
}
