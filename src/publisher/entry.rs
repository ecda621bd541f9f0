//! Composing: turns a message into an entry for SQS, and checks every rule of SQS that can be checked before sending.
//!
//! A message that SQS can never accept is refused here, alone and with a reason, before it can spoil a request with
//! nine others. For the rules see SendMessageBatch and "Amazon SQS message metadata" in the SQS documentation.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use super::attribute::Attribute;
use super::claim_check::{self, Offloaded};
use super::pack::Size;
use crate::message::{
    Accepts, BodyForm, Content, DestinationKind, Event, Message, MessageId, MessageKey, SequenceNumber, Service,
};
use crate::message::{Fault, FaultKind};

/// The most attributes of a message.
const MAX_ATTRIBUTES: usize = 10;

/// Longest MessageGroupId.
const MAX_GROUP: usize = 128;

/// Longest attribute name.
const MAX_NAME: usize = 256;

/// The limits of a number in SQS: 38 digits, 10^-128 to 10^126; zeros at both ends do not count.
const NUMBER_DIGITS: usize = 38;
const NUMBER_POWERS: std::ops::Range<i64> = -128..126;

/// Members of metadata that are taken first when there are more than fit.
const FIRST: [&str; 4] = ["traceparent", "tracestate", "correlation_id", "causation_id"];

/// The member of metadata that becomes SQS's system attribute. That counts neither as an attribute nor towards the
/// size.
const TRACE_HEADER: &str = "AWSTraceHeader";

/// The parameters for FIFO queues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FifoIds {
    pub(super) group: String,
    /// The deduplication id of the first copy.
    pub(super) deduplication: String,
    /// The number of the last copy that SQS accepted too early.
    pub(super) superseded: Option<SequenceNumber>,
}

impl FifoIds {
    /// The deduplication id. A copy that follows one that came too early has its own, or SQS would drop it; but always
    /// the same, so that SQS drops the second one if the first one's answer is lost.
    pub(super) fn deduplication_id(&self) -> String {
        match self.superseded {
            None => self.deduplication.clone(),
            Some(number) => format!("{}-{number}", self.deduplication),
        }
    }
}

/// One entry of a request: a message in SQS's terms.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    key: MessageKey,
    bytes: usize,
    pub(super) body: String,
    pub(super) attributes: Vec<Attribute>,
    pub(super) trace_header: Option<String>,
    pub(super) fifo: Option<FifoIds>,
    /// The MessageGroupId for a fair queue.
    pub(super) fair_group: Option<String>,
    /// The original body, which goes to a bucket.
    offloaded: Option<Box<Offloaded>>,
}

impl Entry {
    /// The message it is made of.
    pub fn key(&self) -> MessageKey {
        self.key
    }

    /// The number of the last copy that SQS accepted too early, if there was one.
    pub fn superseded(&self) -> Option<SequenceNumber> {
        self.fifo.as_ref().and_then(|fifo| fifo.superseded)
    }

    /// SQS has accepted it too early, under this number if it gave one; from now on it is a copy with another
    /// deduplication id. Returns the number that identifies the copy: the one given, or one above the last one if the
    /// given one is not above it.
    pub fn supersede(&mut self, number: Option<SequenceNumber>) -> SequenceNumber {
        let least = self.superseded().unwrap_or(SequenceNumber::NONE).next();
        let number = number.map_or(least, |number| number.max(least));
        if let Some(fifo) = &mut self.fifo {
            fifo.superseded = Some(number);
        }
        number
    }

    /// The value of a message attribute, if it has one of this name.
    pub fn attribute(&self, name: &str) -> Option<&str> {
        self.attributes.iter().find(|attribute| attribute.name == name).map(|attribute| attribute.value.as_str())
    }

    /// Group, deduplication id and attributes as text.
    pub fn described(&self) -> Vec<(&'static str, String)> {
        let mut lines = Vec::new();
        if let Some(fifo) = &self.fifo {
            lines.push(("MessageGroupId", fifo.group.clone()));
            lines.push(("deduplication id", fifo.deduplication_id()));
        }
        lines.extend(self.fair_group.iter().map(|group| ("MessageGroupId", group.clone())));
        let attributes = self.attributes.iter();
        lines.extend(attributes.map(|a| ("attribute", format!("{} = {} ({})", a.name, a.value, a.kind))));
        lines.extend(self.trace_header.iter().map(|header| (TRACE_HEADER, header.clone())));
        lines
    }

    /// The size that SQS and SNS count: the body and each attribute's name, type and value.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// How much of a request it takes.
    pub fn size(&self) -> Size {
        Size { bytes: self.bytes, offloaded: self.offloaded_bytes().unwrap_or_default() }
    }

    /// The memory that it takes: the same, and the body that goes to a bucket.
    pub fn memory_bytes(&self) -> usize {
        self.bytes + self.offloaded_bytes().unwrap_or_default()
    }

    /// The length of the body that goes to a bucket, if it does.
    pub fn offloaded_bytes(&self) -> Option<usize> {
        self.offloaded().map(|offloaded| offloaded.body.len())
    }

    /// The body that goes to a bucket.
    pub(super) fn offloaded(&self) -> Option<&Offloaded> {
        self.offloaded.as_deref()
    }
}

/// An entry, and how much could not be put into it.
#[derive(Clone, Debug)]
pub struct Composed {
    /// The entry.
    pub entry: Entry,
    /// The number of metadata members that SQS cannot take, or that are too many.
    pub dropped_attributes: usize,
}

/// Makes an entry of a message.
///
/// # Errors
///
/// A permanent fault when SQS can never accept the message.
pub fn compose(message: Message, accepts: &Accepts) -> Result<Composed, Fault> {
    let permanent = |code: &str, detail: String| Fault::new(FaultKind::MessagePermanent, code, detail);
    let key = message.key;
    let event = match message.content {
        Content::Event(event) => event,
        Content::Missing => {
            return Err(permanent("EventMissing", "the event of this message does not exist".to_owned()));
        }
        Content::TooLarge { bytes } => return Err(permanent("MessageTooLong", too_long(bytes, accepts))),
        Content::Unreadable { reason } => return Err(Fault::new(FaultKind::Internal, "NotRead", reason)),
        Content::Held => return Err(Fault::new(FaultKind::Internal, "NotRead", "its group is held up")),
    };
    let fifo = match accepts.kind {
        DestinationKind::Standard | DestinationKind::Fair => None,
        DestinationKind::Fifo => Some(FifoIds {
            group: group_id(message.group.as_deref(), key.id),
            // Unique per message, so that two messages of one event (a replay) both arrive, and across databases, so
            // that two outboxes can share a queue.
            deduplication: format!("{}-{}", event.event_id, key.id.0),
            superseded: message.superseded,
        }),
    };
    // A message without a group has none here: to SQS it is then a tenant of its own.
    let fair_group =
        message.group.filter(|_| accepts.kind == DestinationKind::Fair).map(|group| group_id(Some(&group), key.id));
    let (mut attributes, trace_header, mut dropped_attributes) = attributes(&event);
    // SNS has no system attributes.
    let trace_header = trace_header.filter(|_| {
        let has_place = accepts.service == Service::Sqs;
        dropped_attributes += usize::from(!has_place);
        has_place
    });
    let mut body = match event.form {
        BodyForm::Json => printable(event.body),
        BodyForm::Text | BodyForm::Base64 if is_text(&event.body) => event.body,
        // The trigger of the table refuses them, if it has not been turned off.
        BodyForm::Text | BodyForm::Base64 => return Err(permanent("InvalidMessageContents", not_text(&event.body))),
    };
    let mut bytes = size(&body, &attributes);
    let mut offloaded = None;
    if let Some(claim_check) = accepts.claim_check.as_deref().filter(|claim_check| bytes > claim_check.above) {
        if body.len() > claim_check.max_bytes {
            return Err(permanent("MessageTooLong", too_long(body.len() as u64, accepts)));
        }
        let pointer = claim_check::offload(claim_check, &event.event_id, key.id, body, &mut attributes);
        dropped_attributes += pointer.dropped_attributes;
        (body, offloaded) = (pointer.body, Some(Box::new(pointer.offloaded)));
        bytes = size(&body, &attributes);
    }
    if bytes > accepts.max_bytes() {
        return Err(permanent("MessageTooLong", too_long(bytes as u64, accepts)));
    }
    let entry = Entry { key, bytes, body, attributes, trace_header, fifo, fair_group, offloaded };
    Ok(Composed { entry, dropped_attributes })
}

/// The size that SQS and SNS count.
fn size(body: &str, attributes: &[Attribute]) -> usize {
    body.len() + attributes.iter().map(Attribute::bytes).sum::<usize>()
}

fn too_long(bytes: u64, accepts: &Accepts) -> String {
    if let Some(claim_check) = &accepts.claim_check {
        let most = claim_check.max_bytes;
        return format!(
            "{bytes} bytes, the relay takes {most} to S3; raise OUTBOX_RELAY_MEMORY, a part of which it is"
        );
    }
    format!("{bytes} bytes with attributes, {} takes {}", accepts.service.name(), accepts.max_bytes())
}

/// Why a body is no text for SQS.
fn not_text(body: &str) -> String {
    match body.chars().zip(1..).find(|(c, _)| !is_allowed(*c)) {
        Some((c, place)) => format!("the body has U+{:04X} at character {place}", u32::from(c)),
        None => "the body is empty".to_owned(),
    }
}

/// SQS allows letters, digits and ASCII punctuation, 128 at most. Any other group is replaced by its hash, which keeps
/// groups distinct and their order intact. A message without a group is a group of its own.
fn group_id(group: Option<&str>, id: MessageId) -> String {
    match group {
        None => id.0.to_string(),
        Some(group) if group.len() <= MAX_GROUP && group.chars().all(|c| c.is_ascii_graphic()) => group.to_owned(),
        Some(group) => {
            let digest = Sha256::digest(group.as_bytes());
            format!("sha256-{}", digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
        }
    }
}

/// JSON text from PostgreSQL escapes control characters but not U+FFFE and U+FFFF, which SQS refuses. They can only
/// occur inside strings, where the escape has the same meaning.
fn printable(json: String) -> String {
    // Both begin with this byte, and searching for a byte costs a tenth of searching for characters.
    if memchr::memchr(0xef, json.as_bytes()).is_some() && json.contains(['\u{fffe}', '\u{ffff}']) {
        json.replace('\u{fffe}', "\\ufffe").replace('\u{ffff}', "\\uffff")
    } else {
        json
    }
}

fn attributes(event: &Event) -> (Vec<Attribute>, Option<String>, usize) {
    let string = |name, value: &str| Attribute { name: Cow::Borrowed(name), kind: "String", value: value.to_owned() };
    let mut attributes = Vec::with_capacity(5);
    let mut dropped_attributes = 0;
    let mut add = |attributes: &mut Vec<Attribute>, attribute: Attribute| {
        let is_new = attributes.iter().all(|known| known.name != attribute.name);
        if attributes.len() < MAX_ATTRIBUTES && is_new && is_acceptable(&attribute) {
            attributes.push(attribute);
        } else {
            dropped_attributes += 1;
        }
    };
    add(&mut attributes, string("event_id", &event.event_id));
    add(&mut attributes, string("event_type", &event.event_type));
    if let Some((stream_id, version)) = &event.stream {
        add(&mut attributes, string("stream_id", stream_id));
        add(
            &mut attributes,
            Attribute { name: Cow::Borrowed("stream_version"), kind: "Number", value: version.to_string() },
        );
    }
    if event.form == BodyForm::Base64 {
        add(&mut attributes, string("content-encoding", "base64"));
    }
    if event.metadata == "{}" {
        return (attributes, None, dropped_attributes);
    }
    // The column's CHECK makes it an object. Its members are judged one by one, so that a bad one does not affect the
    // others.
    let Ok(mut members) = serde_json::from_str::<BTreeMap<String, Box<RawValue>>>(&event.metadata) else {
        return (attributes, None, dropped_attributes + 1);
    };
    let given = members.remove(TRACE_HEADER).filter(|value| value.get() != "null");
    for name in FIRST {
        if let Some((name, value)) = members.remove_entry(name) {
            member(name, &value).into_iter().for_each(|attribute| add(&mut attributes, attribute));
        }
    }
    for (name, value) in members {
        member(name, &value).into_iter().for_each(|attribute| add(&mut attributes, attribute));
    }
    let header = given
        .as_ref()
        .and_then(|value| serde_json::from_str(value.get()).ok())
        .filter(|text: &String| is_trace_header(text));
    let dropped_attributes = dropped_attributes + usize::from(given.is_some() && header.is_none());
    (attributes, header, dropped_attributes)
}

/// Null means absent. A number keeps its digits, and anything that is neither text nor number is sent as its JSON text.
fn member(name: String, value: &RawValue) -> Option<Attribute> {
    let json = value.get();
    match json.as_bytes().first()? {
        b'n' => None,
        // A value that is not text after all becomes empty and is left out.
        b'"' => {
            Some(Attribute { name: name.into(), kind: "String", value: serde_json::from_str(json).unwrap_or_default() })
        }
        b'-' | b'0'..=b'9' => Some(Attribute { name: name.into(), kind: "Number", value: json.to_owned() }),
        _ => Some(Attribute { name: name.into(), kind: "String", value: json.to_owned() }),
    }
}

/// Whether SQS accepts a JSON number. A number outside its limits would make it refuse the whole message.
fn is_number(json: &str) -> bool {
    let unsigned = json.trim_start_matches('-');
    let (mantissa, exponent) = unsigned.split_once(['e', 'E']).unwrap_or((unsigned, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let Ok(exponent) = exponent.parse::<i32>() else { return false };
    let digits = [whole, fraction].concat();
    let significant = digits.trim_start_matches('0');
    let leading_zeros = digits.len() - significant.len();
    // The power of ten of the first significant digit.
    let power = whole.len() as i64 - 1 - leading_zeros as i64 + i64::from(exponent);
    let significant = significant.trim_end_matches('0');
    significant.is_empty() || (significant.len() <= NUMBER_DIGITS && NUMBER_POWERS.contains(&power))
}

fn is_acceptable(attribute: &Attribute) -> bool {
    // The relay's own names and numbers are valid; those from metadata can be anything.
    let has_good_name = match &attribute.name {
        Cow::Borrowed(_) if attribute.kind == "Number" => return true,
        Cow::Borrowed(_) => true,
        Cow::Owned(name) => is_name(name),
    };
    has_good_name && is_text(&attribute.value) && (attribute.kind != "Number" || is_number(&attribute.value))
}

/// SQS: letters, digits, `_`, `-` and `.`, no period at either end nor two in a row, no prefix of AWS's, 256 at most.
fn is_name(name: &str) -> bool {
    let begins = |prefix: &str| name.get(..prefix.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(prefix));
    !name.is_empty()
        && name.len() <= MAX_NAME
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'))
        && !name.starts_with('.')
        && !name.ends_with('.')
        && !name.as_bytes().windows(2).any(|pair| pair == b"..")
        && !begins("aws.")
        && !begins("amazon.")
}

/// SQS: #x9 #xA #xD #x20 to #xD7FF #xE000 to #xFFFD #x10000 to #x10FFFF.
fn is_allowed(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
}

/// Whether SQS takes a text as a body or as the value of an attribute: allowed characters, at least one.
fn is_text(value: &str) -> bool {
    // Covers nearly all values and is quick to check.
    let is_plain = || value.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    !value.is_empty() && (is_plain() || value.chars().all(is_allowed))
}

/// The form of a trace header (X-Ray, "Tracing header"): `Root=1-8 digits-24 digits`, and other fields after
/// semicolons. With any other form SQS refuses the whole message.
fn is_trace_header(text: &str) -> bool {
    let is_hex = |text: &str, digits: usize| text.len() == digits && text.bytes().all(|b| b.is_ascii_hexdigit());
    let is_root = |value: &str| {
        let parts: Vec<&str> = value.split('-').collect();
        matches!(parts[..], ["1", time, id] if is_hex(time, 8) && is_hex(id, 24))
    };
    let is_field = |field: &str| match field.split_once('=') {
        Some(("Root", value)) => is_root(value),
        Some(("Parent", value)) => is_hex(value, 16),
        Some(("Sampled", value)) => matches!(value, "0" | "1" | "?"),
        Some((name, value)) => !name.is_empty() && is_text(value) && text.is_ascii(),
        None => false,
    };
    text.starts_with("Root=") && text.split(';').all(is_field)
}

#[cfg(test)]
mod tests;
