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
use crate::message::ClaimCheck;

/// The class that readers look for.
const POINTER: &str = "software.amazon.payloadoffloading.PayloadS3Pointer";

/// The attribute with the length of the original body.
const SIZE: &str = "ExtendedPayloadSize";

/// Readers take a message with one of these attributes for a pointer; the second is the older name.
pub(super) const OF_POINTERS: [&str; 2] = [SIZE, "SQSLargePayloadSize"];

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

/// The key of the object of a message that is called so in the bucket. It is the same whenever this relay
/// sends the message, so that a retry replaces its own object.
pub(super) fn key(claim_check: &ClaimCheck, name: &str) -> String {
    format!("{}{name}-{}", claim_check.prefix, claim_check.relay)
}

/// The body of a message that points to the object with this key.
pub(super) fn pointer(claim_check: &ClaimCheck, key: &str) -> String {
    json!([POINTER, {"s3BucketName": claim_check.bucket, "s3Key": key}]).to_string()
}

/// Puts a body into the bucket's terms, under this name.
pub(super) fn offload(claim_check: &ClaimCheck, name: &str, body: String, attributes: &mut Vec<Attribute>) -> Pointer {
    let key = key(claim_check, name);
    let dropped_attributes = attributes.len().saturating_sub(MAX_OTHERS);
    attributes.truncate(MAX_OTHERS);
    attributes.push(Attribute { name: Cow::Borrowed(SIZE), kind: "Number", value: body.len().to_string() });
    let offloaded = Offloaded { body: Bytes::from(body), key };
    Pointer { body: pointer(claim_check, &offloaded.key), offloaded, dropped_attributes }
}
