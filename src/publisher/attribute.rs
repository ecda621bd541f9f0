//! A message attribute in SQS's and SNS's terms.

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
