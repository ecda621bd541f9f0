//! The claim check, composed: a body that is too large for a message becomes an object in a bucket of S3, and the message
//! says where, in the format of Amazon's Extended Client Libraries, so that their consumers read it. Pure; [`super::bucket`]
//! stores the objects.
//!
//! The format (amazon-sqs-java-extended-client-lib, payload-offloading-java-common-lib-for-aws, and the same in Python; the
//! SNS Extended Client Library shares it): the body is a JSON array of a class name and an object with `s3BucketName` and
//! `s3Key`; the attribute `ExtendedPayloadSize`, a Number, is the length of the original body in bytes; the object is the
//! body. Readers take at most nine other attributes.

use std::borrow::Cow;

use bytes::Bytes;
use serde_json::json;

use super::attribute::Attribute;
use crate::message::{ClaimCheck, MessageId};

/// The class that readers look for.
const POINTER: &str = "software.amazon.payloadoffloading.PayloadS3Pointer";

/// The attribute with the length of the original body.
const SIZE: &str = "ExtendedPayloadSize";

/// The most attributes beside that one.
const MAX_OTHERS: usize = 9;

/// A body that goes to the bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Offloaded {
    /// The key of the object.
    pub(super) key: String,
    /// What it holds.
    pub(super) body: Bytes,
}

/// What remains of a message whose body goes to the bucket.
#[derive(Debug)]
pub(super) struct Pointer {
    /// The body of the message.
    pub(super) body: String,
    /// The object.
    pub(super) offloaded: Offloaded,
    /// Attributes that had to go.
    pub(super) dropped_attributes: usize,
}

/// Puts a body into the bucket's terms. The key is the same whenever this message is sent, so that a retry replaces its own
/// object, and another one for each message of an event, so that a consumer that deletes its object takes none from another.
pub(super) fn offload(
    claim_check: &ClaimCheck,
    event_id: &str,
    id: MessageId,
    body: String,
    attributes: &mut Vec<Attribute>,
) -> Pointer {
    let ClaimCheck { bucket, prefix, .. } = claim_check;
    let key = format!("{prefix}{event_id}-{}", id.0);
    let dropped_attributes = attributes.len().saturating_sub(MAX_OTHERS);
    attributes.truncate(MAX_OTHERS);
    attributes.push(Attribute { name: Cow::Borrowed(SIZE), kind: "Number", value: body.len().to_string() });
    let pointer = json!([POINTER, {"s3BucketName": bucket, "s3Key": key}]).to_string();
    Pointer { body: pointer, offloaded: Offloaded { key, body: Bytes::from(body) }, dropped_attributes }
}
