//! The MD5 digests that SQS returns and SDKs compare. Pure.

use std::collections::BTreeMap;

use md5::{Digest as _, Md5};

use super::message::{Attribute, Value};

/// Of a body.
pub(super) fn of_text(text: &str) -> String {
    hexadecimal(Md5::digest(text.as_bytes()).into())
}

/// Of attributes: names in order, each part preceded by its length, and a byte for the kind of the value (SQS developer
/// guide, "Calculating the MD5 message digest for message attributes"). `None` if there are none.
pub(super) fn of_attributes<'a>(attributes: impl IntoIterator<Item = (&'a String, &'a Attribute)>) -> Option<String> {
    let ordered: BTreeMap<&String, &Attribute> = attributes.into_iter().collect();
    if ordered.is_empty() {
        return None;
    }
    let mut digest = Md5::new();
    let mut part = |before: &[u8], bytes: &[u8]| {
        digest.update(before);
        digest.update((bytes.len() as u32).to_be_bytes());
        digest.update(bytes);
    };
    for (name, attribute) in ordered {
        part(&[], name.as_bytes());
        part(&[], attribute.kind.as_bytes());
        match &attribute.value {
            Value::Text(text) => part(&[1], text.as_bytes()),
            Value::Bytes(bytes) => part(&[2], bytes),
        }
    }
    Some(hexadecimal(digest.finalize().into()))
}

fn hexadecimal(digest: [u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(digest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_that_md5sum_and_botocore_compute() {
        // printf hello | md5sum
        assert_eq!(of_text("hello"), "5d41402abc4b2a76b9719d911017c592");
        let text = |text: &str| Attribute { kind: "String".to_owned(), value: Value::Text(text.to_owned()) };
        let number = Attribute { kind: "Number".to_owned(), value: Value::Text("42".to_owned()) };
        let bytes = Attribute { kind: "Binary".to_owned(), value: Value::Bytes(vec![0, 255, 1]) };
        let attributes = [("b".to_owned(), number), ("a".to_owned(), text("x")), ("c".to_owned(), bytes)]
            .map(|(name, value)| (name, value));
        let found = of_attributes(attributes.iter().map(|(name, value)| (name, value)));
        // With Python's hashlib and struct, after the guide.
        assert_eq!(found.as_deref(), Some("7ead8831ac89128233966c1ddc4b8990"));
        assert_eq!(of_attributes([]), None);
    }
}
