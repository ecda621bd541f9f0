//! A message as a client sends it, and every rule of SQS about a single one. Pure.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value as Json;

use super::refusal::{self, Refusal};

/// The most attributes of a message.
const MAX_ATTRIBUTES: usize = 10;

/// The longest name or type of an attribute.
const MAX_NAME: usize = 256;

/// The longest group and deduplication id.
const MAX_ID: usize = 128;

/// The longest delay, in seconds.
const MAX_DELAY: u64 = 900;

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// Of the types String and Number.
    Text(String),
    /// Of the type Binary.
    Bytes(Vec<u8>),
}

/// An attribute without its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Attribute {
    pub(super) kind: String,
    pub(super) value: Value,
}

/// Attributes by their names.
pub(super) type Attributes = BTreeMap<String, Attribute>;

/// A message that is to be sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Draft {
    pub(super) body: String,
    pub(super) attributes: Attributes,
    /// `AWSTraceHeader`, the only one that can be sent; it does not count towards the size.
    pub(super) system: Attributes,
    pub(super) group: Option<String>,
    pub(super) deduplication: Option<String>,
    /// In seconds; `None` means the queue's own.
    pub(super) delay: Option<u64>,
}

impl Draft {
    /// Reads SendMessage, or one entry of SendMessageBatch.
    pub(super) fn read(request: &Json) -> Result<Self, Refusal> {
        let body = text(request, "MessageBody").ok_or_else(|| Refusal::missing("MessageBody"))?;
        if let Some(odd) = body.chars().find(|c| !is_allowed(*c)) {
            let what = format!("Invalid character U+{:04X} in the message body.", u32::from(odd));
            return Err(Refusal::new(refusal::BAD_CONTENTS, what));
        }
        let attributes = attributes(&request["MessageAttributes"])?;
        if attributes.len() > MAX_ATTRIBUTES {
            return Err(Refusal::value("MessageAttributes", attributes.len(), "a message has at most 10"));
        }
        let system = self::attributes(&request["MessageSystemAttributes"])?;
        if let Some(other) = system.keys().find(|name| *name != "AWSTraceHeader") {
            return Err(Refusal::value("MessageSystemAttributes", other, "only AWSTraceHeader can be sent"));
        }
        let delay = match &request["DelaySeconds"] {
            Json::Null => None,
            value => Some(
                value
                    .as_u64()
                    .filter(|delay| *delay <= MAX_DELAY)
                    .ok_or_else(|| Refusal::value("DelaySeconds", value, "must be from 0 to 900"))?,
            ),
        };
        Ok(Self {
            body: body.to_owned(),
            attributes,
            system,
            group: id(request, "MessageGroupId")?,
            deduplication: id(request, "MessageDeduplicationId")?,
            delay,
        })
    }

    /// The size that SQS counts: the body and each attribute's name, type and value.
    pub(super) fn bytes(&self) -> usize {
        let attribute = |(name, attribute): (&String, &Attribute)| {
            let value = match &attribute.value {
                Value::Text(text) => text.len(),
                Value::Bytes(bytes) => bytes.len(),
            };
            name.len() + attribute.kind.len() + value
        };
        self.body.len() + self.attributes.iter().map(attribute).sum::<usize>()
    }
}

/// A member that is a text and not empty.
pub(super) fn text<'a>(request: &'a Json, name: &str) -> Option<&'a str> {
    request[name].as_str().filter(|text| !text.is_empty())
}

/// As JSON for a client that receives them.
pub(super) fn as_json<'a>(attributes: impl IntoIterator<Item = (&'a String, &'a Attribute)>) -> Json {
    let one = |(name, attribute): (&'a String, &'a Attribute)| {
        let (member, value) = match &attribute.value {
            Value::Text(text) => ("StringValue", text.clone()),
            Value::Bytes(bytes) => ("BinaryValue", STANDARD.encode(bytes)),
        };
        let pairs = [("DataType", attribute.kind.clone()), (member, value)];
        let object = pairs.map(|(name, value)| (name.to_owned(), Json::String(value)));
        (name.clone(), Json::Object(object.into_iter().collect()))
    };
    Json::Object(attributes.into_iter().map(one).collect())
}

/// Code points that SQS takes (SendMessage, MessageBody).
fn is_allowed(c: char) -> bool {
    matches!(c, '\u{9}' | '\u{A}' | '\u{D}' | '\u{20}'..='\u{D7FF}' | '\u{E000}'..='\u{FFFD}' | '\u{10000}'..)
}

/// A group or a deduplication id: ASCII without spaces.
fn id(request: &Json, name: &str) -> Result<Option<String>, Refusal> {
    let Some(value) = request[name].as_str() else { return Ok(None) };
    if value.is_empty() || value.len() > MAX_ID || !value.bytes().all(|byte| byte.is_ascii_graphic()) {
        let rule = "it can only include alphanumeric and punctuation characters, 1 to 128 in length";
        return Err(Refusal::value(name, format!("{value:?}"), rule));
    }
    Ok(Some(value.to_owned()))
}

fn attributes(request: &Json) -> Result<Attributes, Refusal> {
    let Some(members) = request.as_object() else { return Ok(Attributes::new()) };
    members.iter().map(|(name, value)| Ok((attribute_name(name)?.to_owned(), attribute(name, value)?))).collect()
}

fn attribute_name(name: &str) -> Result<&str, Refusal> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    let has_odd_dots = name.starts_with('.') || name.ends_with('.') || name.contains("..");
    let lower = name.to_ascii_lowercase();
    // The trace header is a system attribute and has no dot.
    let is_reserved = lower.starts_with("aws.") || lower.starts_with("amazon.");
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(is_plain) || has_odd_dots || is_reserved {
        return Err(Refusal::value("MessageAttributes", format!("{name:?}"), "this is no name of an attribute"));
    }
    Ok(name)
}

fn attribute(name: &str, request: &Json) -> Result<Attribute, Refusal> {
    let refused = |rule: &str| Refusal::value(&format!("MessageAttributes.{name}"), request, rule);
    let kind = text(request, "DataType").ok_or_else(|| refused("it has no DataType"))?;
    if kind.len() > MAX_NAME {
        return Err(refused("its DataType is too long"));
    }
    let value = match kind.split('.').next().unwrap_or_default() {
        "String" | "Number" => {
            let value = text(request, "StringValue").ok_or_else(|| refused("it has no StringValue"))?;
            if kind.starts_with('N') && value.parse::<f64>().is_err() {
                return Err(refused("it is not a number"));
            }
            if !value.chars().all(is_allowed) {
                return Err(refused("it has characters that SQS does not take"));
            }
            Value::Text(value.to_owned())
        }
        "Binary" => {
            let value = text(request, "BinaryValue").ok_or_else(|| refused("it has no BinaryValue"))?;
            Value::Bytes(STANDARD.decode(value).map_err(|_| refused("its BinaryValue is not Base64"))?)
        }
        _ => return Err(refused("its DataType must begin with String, Number or Binary")),
    };
    Ok(Attribute { kind: kind.to_owned(), value })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_message_is_read_with_all_that_belongs_to_it() {
        let draft = Draft::read(&json!({
            "MessageBody": "größe", "MessageGroupId": "draw-7", "MessageDeduplicationId": "d", "DelaySeconds": 3,
            "MessageAttributes": {
                "n": {"DataType": "Number.int", "StringValue": "4"}, "b": {"DataType": "Binary", "BinaryValue": "AP8="},
            },
            "MessageSystemAttributes": {"AWSTraceHeader": {"DataType": "String", "StringValue": "Root=1"}},
        }));
        let draft = draft.unwrap();
        assert_eq!(draft.attributes["b"].value, Value::Bytes(vec![0, 255]));
        assert_eq!((draft.group.as_deref(), draft.delay), (Some("draw-7"), Some(3)));
        assert_eq!(
            draft.bytes(),
            "größe".len() + "nNumber.int4".len() + "bBinary".len() + 2,
            "without the trace header"
        );
        let shown = as_json(&draft.attributes);
        assert_eq!(shown["b"], json!({"DataType": "Binary", "BinaryValue": "AP8="}));
    }

    #[test]
    fn what_sqs_does_not_take_is_refused_with_its_code() {
        let with = |name: &str, value: Json| {
            let mut request = json!({"MessageBody": "x"});
            request[name] = value;
            Draft::read(&request).map_err(|refusal| refusal.code)
        };
        let attribute = |value: Json| with("MessageAttributes", json!({"a": value}));
        assert_eq!(with("MessageBody", json!("")), Err(refusal::MISSING));
        for body in ["\u{0}", "a\u{b}", "\u{1f}", "\u{fffe}", "x\u{ffff}"] {
            assert_eq!(with("MessageBody", json!(body)), Err(refusal::BAD_CONTENTS), "{body:?}");
        }
        assert!(with("MessageBody", json!("\t\n\r \u{d7ff}\u{e000}\u{fffd}\u{10ffff}")).is_ok());
        for group in ["a b", "", "größe", &"x".repeat(129)] {
            assert_eq!(with("MessageGroupId", json!(group)), Err(refusal::BAD_VALUE), "{group:?}");
        }
        assert_eq!(with("DelaySeconds", json!(901)), Err(refusal::BAD_VALUE));
        assert_eq!(
            with("MessageSystemAttributes", json!({"x": {"DataType": "String", "StringValue": "1"}})),
            Err(refusal::BAD_VALUE)
        );
        for name in ["", "a b", ".a", "a..b", "AWS.x", "amazon.x"] {
            let named = json!({name: {"DataType": "String", "StringValue": "1"}});
            assert_eq!(with("MessageAttributes", named), Err(refusal::BAD_VALUE), "{name:?}");
        }
        for odd in [
            json!({}),
            json!({"DataType": "String"}),
            json!({"DataType": "String", "StringValue": ""}),
            json!({"DataType": "String", "StringValue": "\u{1}"}),
            json!({"DataType": "Number", "StringValue": "four"}),
            json!({"DataType": "Binary", "BinaryValue": "?"}),
            json!({"DataType": "Text", "StringValue": "1"}),
        ] {
            assert_eq!(attribute(odd.clone()), Err(refusal::BAD_VALUE), "{odd}");
        }
        let eleven: serde_json::Map<String, Json> =
            (0..11).map(|n| (format!("a{n}"), json!({"DataType": "String", "StringValue": "1"}))).collect();
        assert_eq!(with("MessageAttributes", Json::Object(eleven)), Err(refusal::BAD_VALUE));
    }
}
