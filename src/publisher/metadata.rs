//! The attributes of a message: the relay's own, and those that members of metadata become.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::value::RawValue;

use super::attribute::{Attribute, is_text};
use super::claim_check;
use crate::message::{BodyForm, Event};

/// The most attributes of a message.
const MAX_ATTRIBUTES: usize = 10;

/// Longest attribute name.
const MAX_NAME: usize = 256;

/// The limits of a number in SQS: 38 digits, 10^-128 to 10^126; zeros at both ends do not count.
const NUMBER_DIGITS: usize = 38;
const NUMBER_POWERS: std::ops::Range<i64> = -128..126;

/// Members of metadata that are taken first when there are more than fit.
const FIRST: [&str; 4] = ["traceparent", "tracestate", "correlation_id", "causation_id"];

/// The member of metadata that becomes SQS's system attribute. That counts neither as an attribute nor towards the
/// size.
pub(super) const TRACE_HEADER: &str = "AWSTraceHeader";

/// The attributes of a message, its trace header, and how many members of metadata cannot become any.
pub(super) fn attributes(event: &Event) -> (Vec<Attribute>, Option<String>, usize) {
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
        // An ordinary message would look like one whose body is in a bucket.
        && !claim_check::OF_POINTERS.contains(&name)
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'))
        && !name.starts_with('.')
        && !name.ends_with('.')
        && !name.as_bytes().windows(2).any(|pair| pair == b"..")
        && !begins("aws.")
        && !begins("amazon.")
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
