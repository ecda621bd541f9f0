//! A message attribute in SQS's and SNS's terms, and which text they take.

use std::borrow::Cow;

/// A message attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attribute {
    pub(super) name: Cow<'static, str>,
    pub(super) kind: &'static str,
    pub(super) value: String,
}

impl Attribute {
    /// The size that SQS and SNS count.
    pub(super) fn bytes(&self) -> usize {
        self.name.len() + self.kind.len() + self.value.len()
    }
}

/// SQS: #x9 #xA #xD #x20 to #xD7FF #xE000 to #xFFFD #x10000 to #x10FFFF.
pub(super) fn is_allowed(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
}

/// Whether SQS takes a text as a body or as the value of an attribute: allowed characters, at least one.
pub(super) fn is_text(value: &str) -> bool {
    // Covers nearly all values and is quick to check.
    let is_plain = || value.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    !value.is_empty() && (is_plain() || value.chars().all(is_allowed))
}
