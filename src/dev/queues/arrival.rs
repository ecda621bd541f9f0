//! What is shown of a message that came into a queue: enough for a line on a terminal, never all of a large message.

use super::message::{Draft, Value};

/// The most characters that are kept of a body.
const MAX_BODY: usize = 300;

/// The most characters that are kept of an attribute's value.
const MAX_VALUE: usize = 100;

/// A message that came into a queue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Arrival {
    /// The queue's name.
    pub(crate) queue: String,
    /// Its MessageGroupId.
    pub(crate) group: Option<String>,
    /// The beginning of its body.
    pub(crate) body: String,
    /// Its attributes, in the order of their names, and the beginning of each value.
    pub(crate) attributes: Vec<(String, String)>,
    /// It has the deduplication id of an earlier message, and the queue dropped it.
    pub(crate) is_copy: bool,
}

impl Arrival {
    pub(super) fn of(queue: &str, draft: &Draft) -> Self {
        let value = |value: &Value| match value {
            Value::Text(text) => beginning(text, MAX_VALUE),
            Value::Bytes(bytes) => format!("({} bytes)", bytes.len()),
        };
        Self {
            queue: queue.to_owned(),
            group: draft.group.clone(),
            body: beginning(&draft.body, MAX_BODY),
            attributes: draft.attributes.iter().map(|(name, one)| (name.clone(), value(&one.value))).collect(),
            is_copy: false,
        }
    }

    /// The value of an attribute.
    pub(crate) fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

/// The beginning of a text, with a mark if there is more.
fn beginning(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}
