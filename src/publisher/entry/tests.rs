use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::*;
use crate::clock::Time;
use crate::message::{ClaimCheck, Event, EventPosition, Lane, MAX_MESSAGE_BYTES, MessageId, Origin};

fn message(payload: &str, metadata: &str) -> Message {
    Message {
        key: MessageKey { lane: Lane::new(3).unwrap(), id: MessageId(42) },
        origin: Origin { event_position: EventPosition(42), enqueued_at: SystemTime::UNIX_EPOCH },
        group: Some(Arc::from("draw-7")),
        attempts: 0,
        superseded: None,
        age_when_read: Duration::ZERO,
        read_at: Time::default(),
        wait: None,
        hold: None,
        content: Content::Event(Event {
            event_id: "0190a0b0-0000-7000-8000-000000000001".to_owned(),
            event_type: "TicketPurchased".to_owned(),
            stream: Some(("draw-7".to_owned(), 5)),
            body: payload.to_owned(),
            form: BodyForm::Json,
            metadata: metadata.to_owned(),
        }),
    }
}

/// The same with a body of another form.
fn other(body: &str, form: BodyForm, metadata: &str) -> Message {
    let mut message = message(body, metadata);
    if let Content::Event(event) = &mut message.content {
        event.form = form;
    }
    message
}

fn entry(payload: &str, metadata: &str) -> Composed {
    compose(message(payload, metadata), &Accepts::queue(DestinationKind::Fifo)).unwrap()
}

fn names(composed: &Composed) -> Vec<&str> {
    composed.entry.attributes.iter().map(|attribute| attribute.name.as_ref()).collect()
}

#[test]
fn the_body_is_the_payload_byte_for_byte() {
    for payload in [r#"{"a": 12345678901234567890.10}"#, "{}", "[1e3]", "\"ünïcödé 🎟\""] {
        assert_eq!(entry(payload, "{}").entry.body, payload);
    }
}

#[test]
fn the_two_characters_that_json_text_may_hold_and_sqs_refuses_are_escaped() {
    assert_eq!(entry("\"a\u{ffff}b\u{fffe}\"", "{}").entry.body, "\"a\\uffffb\\ufffe\"");
}

#[test]
fn a_body_of_text_is_sent_as_it_is_or_not_at_all() {
    for body in ["<a b='c' >\r\n\t</a>", "\\ufffe {\"b\": 1,  \"a\": 2}", "\u{7f}\u{fffd}\u{10ffff}"] {
        let composed = compose(other(body, BodyForm::Text, "{}"), &Accepts::queue(DestinationKind::Standard)).unwrap();
        assert_eq!(composed.entry.body, body);
        assert_eq!(names(&composed), ["event_id", "event_type", "stream_id", "stream_version"]);
    }
    for (body, detail) in [
        ("", "the body is empty"),
        ("ä\u{0}", "the body has U+0000 at character 2"),
        ("a\u{ffff}\u{1}", "the body has U+FFFF at character 2"),
    ] {
        let fault = compose(other(body, BodyForm::Text, "{}"), &Accepts::queue(DestinationKind::Standard)).unwrap_err();
        assert_eq!((fault.kind, fault.code.as_str()), (FaultKind::MessagePermanent, "InvalidMessageContents"));
        assert_eq!(fault.detail, detail);
    }
}

#[test]
fn bytes_have_an_attribute_that_says_so_before_any_of_metadata() {
    let metadata = r#"{"a":1,"b":1,"c":1,"d":1,"e":1,"f":1,"content-encoding":"gzip"}"#;
    let composed =
        compose(other("AP8=", BodyForm::Base64, metadata), &Accepts::queue(DestinationKind::Standard)).unwrap();
    assert_eq!(names(&composed)[4..], ["content-encoding", "a", "b", "c", "d", "e"]);
    assert_eq!(composed.entry.attributes[4].value, "base64");
    assert_eq!(composed.dropped_attributes, 2, "f is the eleventh, and the other encoding is not that of this body");
    let text = compose(other("AP8=", BodyForm::Text, "{}"), &Accepts::queue(DestinationKind::Standard)).unwrap();
    let bytes = compose(other("AP8=", BodyForm::Base64, "{}"), &Accepts::queue(DestinationKind::Standard)).unwrap();
    assert_eq!(bytes.entry.bytes() - text.entry.bytes(), "content-encodingStringbase64".len());
}

#[test]
fn a_fifo_entry_has_the_group_and_a_deduplication_id_of_its_own() {
    let fifo = entry("{}", "{}").entry.fifo.unwrap();
    assert_eq!(fifo.group, "draw-7");
    assert_eq!(fifo.deduplication, "0190a0b0-0000-7000-8000-000000000001-42");
    assert_eq!(compose(message("{}", "{}"), &Accepts::queue(DestinationKind::Standard)).unwrap().entry.fifo, None);
}

#[test]
fn a_fair_queue_is_told_the_group_and_nothing_else_and_a_standard_queue_not_even_that() {
    let fair = compose(message("{}", "{}"), &Accepts::queue(DestinationKind::Fair)).unwrap().entry;
    assert_eq!((fair.fair_group.as_deref(), &fair.fifo), (Some("draw-7"), &None));
    assert!(fair.described().contains(&("MessageGroupId", "draw-7".to_owned())));
    let mut odd = message("{}", "{}");
    odd.group = Some(Arc::from("with space"));
    let hashed = compose(odd, &Accepts::queue(DestinationKind::Fair)).unwrap().entry.fair_group.unwrap();
    assert_eq!(hashed, group_id(Some("with space"), MessageId(1)), "by the rules of FIFO queues");
    let mut alone = message("{}", "{}");
    alone.group = None;
    assert_eq!(compose(alone, &Accepts::queue(DestinationKind::Fair)).unwrap().entry.fair_group, None);
    for kind in [DestinationKind::Standard, DestinationKind::Fifo] {
        assert_eq!(compose(message("{}", "{}"), &Accepts::queue(kind)).unwrap().entry.fair_group, None);
    }
}

#[test]
fn a_message_without_a_group_is_its_own_group() {
    let mut message = message("{}", "{}");
    message.group = None;
    assert_eq!(compose(message, &Accepts::queue(DestinationKind::Fifo)).unwrap().entry.fifo.unwrap().group, "42");
}

#[test]
fn a_group_that_sqs_refuses_is_hashed() {
    let long = "x".repeat(129);
    for group in ["with space", "straße", "tab\t", long.as_str()] {
        let mut message = message("{}", "{}");
        message.group = Some(Arc::from(group));
        let sent = compose(message, &Accepts::queue(DestinationKind::Fifo)).unwrap().entry.fifo.unwrap().group;
        assert!(sent.starts_with("sha256-") && sent.len() <= MAX_GROUP, "{group:?} became {sent}");
    }
    assert_ne!(group_id(Some("a b"), MessageId(1)), group_id(Some("a  b"), MessageId(1)));
    assert_eq!(
        group_id(Some("a b"), MessageId(1)),
        group_id(Some("a b"), MessageId(2)),
        "all messages of a group go to one group"
    );
}

#[test]
fn metadata_becomes_attributes_with_the_trace_context_first() {
    let composed = entry("{}", r#"{"b": 1.5, "a": {"x": [true]}, "traceparent": "00-1-2-01", "none": null}"#);
    assert_eq!(names(&composed), ["event_id", "event_type", "stream_id", "stream_version", "traceparent", "a", "b"]);
    assert_eq!(composed.entry.attributes[5].value, r#"{"x": [true]}"#);
    assert_eq!((composed.entry.attributes[6].kind, composed.entry.attributes[6].value.as_str()), ("Number", "1.5"));
    assert_eq!(composed.dropped_attributes, 0);
}

#[test]
fn the_trace_header_of_aws_is_a_system_attribute_and_costs_no_bytes() {
    let plain = entry("{}", "{}");
    let traced = entry("{}", r#"{"AWSTraceHeader": "Root=1-5759e988-bd862e3fe1be46a994272793"}"#);
    assert_eq!(traced.entry.trace_header.as_deref(), Some("Root=1-5759e988-bd862e3fe1be46a994272793"));
    assert_eq!(traced.entry.bytes(), plain.entry.bytes());
}

#[test]
fn members_that_sqs_cannot_take_as_attributes_are_left_out_and_counted() {
    let composed =
        entry("{}", r#"{"aws.x": "1", "a b": "1", "empty": "", ".x": "1", "x..y": "1", "bell": "\u0007", "ok": "1"}"#);
    assert_eq!(composed.dropped_attributes, 6);
    assert_eq!(names(&composed).last(), Some(&"ok"));
}

#[test]
fn a_member_that_sqs_cannot_take_does_not_affect_the_others() {
    let metadata = r#"{"big": 1e400, "traceparent": "00-1", "AWSTraceHeader": "Root=1-5759e988-bd862e3fe1be46a994272793", "in": {"x": 1e400}}"#;
    let composed = entry("{}", metadata);
    assert_eq!(names(&composed)[4..], ["traceparent", "in"]);
    assert_eq!(composed.entry.attributes[5].value, r#"{"x": 1e400}"#);
    assert_eq!(composed.entry.trace_header.as_deref(), Some("Root=1-5759e988-bd862e3fe1be46a994272793"));
    assert_eq!(composed.dropped_attributes, 1);
    let deep = format!(r#"{{"a": {}{}, "traceparent": "00-1"}}"#, "[".repeat(5000), "]".repeat(5000));
    assert_eq!(names(&entry("{}", &deep))[4..], ["traceparent", "a"]);
    for (header, dropped_attributes) in [("1", 1), ("{}", 1), (r#""""#, 1), (r#""Root=1""#, 1), ("null", 0)] {
        let composed = entry("{}", &format!(r#"{{"AWSTraceHeader": {header}}}"#));
        assert_eq!((composed.entry.trace_header, composed.dropped_attributes), (None, dropped_attributes), "{header}");
    }
    assert_eq!(entry("{}", "not JSON").dropped_attributes, 1, "it was not sent");
}

#[test]
fn a_number_is_sent_with_all_its_digits_or_not_at_all() {
    let nines = "9".repeat(38);
    let (long, tiny) = (format!("1{}", "0".repeat(125)), format!("0.{}1", "0".repeat(127)));
    for number in ["0", "-0.00", "1.500", "-12345678901234567890.10", "1e3", "-2.5E-7", &nines, &long, &tiny] {
        let composed = entry("{}", &format!(r#"{{"n": {number}}}"#));
        assert_eq!(composed.dropped_attributes, 0, "{number}");
        assert_eq!(
            (composed.entry.attributes[4].kind, composed.entry.attributes[4].value.as_str()),
            ("Number", number)
        );
    }
    let (longer, tinier) = (format!("{long}0"), format!("0.{}1", "0".repeat(128)));
    for number in [&format!("{nines}.9"), &longer, &tinier, "1e400", "1e-400", "-1e99999999999999999999"] {
        let composed = entry("{}", &format!(r#"{{"n": {number}}}"#));
        assert_eq!((names(&composed).len(), composed.dropped_attributes), (4, 1), "{number}");
    }
}

#[test]
fn the_eleventh_attribute_is_left_out() {
    let composed = entry("{}", r#"{"a":1,"b":1,"c":1,"d":1,"e":1,"f":1,"g":1,"traceparent":"t"}"#);
    assert_eq!(composed.entry.attributes.len(), 10);
    assert_eq!(composed.dropped_attributes, 2);
    assert!(names(&composed).contains(&"traceparent"), "the trace context goes before the rest");
}

#[test]
fn the_size_limit_counts_attributes_and_is_exact() {
    let overhead = entry("", "{}").entry.bytes();
    let largest = "x".repeat(MAX_MESSAGE_BYTES - overhead);
    assert_eq!(entry(&largest, "{}").entry.bytes(), MAX_MESSAGE_BYTES);
    let fault = compose(message(&format!("{largest}x"), "{}"), &Accepts::queue(DestinationKind::Fifo)).unwrap_err();
    assert_eq!((fault.kind, fault.code.as_str()), (FaultKind::MessagePermanent, "MessageTooLong"));
    assert!(fault.detail.contains("1048577"), "{fault}");
}

#[test]
fn a_message_without_an_event_is_refused_with_a_reason() {
    let mut message = message("{}", "{}");
    message.content = Content::Missing;
    assert_eq!(compose(message, &Accepts::queue(DestinationKind::Standard)).unwrap_err().code, "EventMissing");
}

/// A queue with a bucket for bodies above this size.
fn with_bucket(kind: DestinationKind, above: usize) -> Accepts {
    with_bucket_of("r1", kind, above)
}

/// The same, of another relay.
fn with_bucket_of(relay: &str, kind: DestinationKind, above: usize) -> Accepts {
    let (bucket, prefix, relay) = ("bodies".to_owned(), "large/".to_owned(), relay.to_owned());
    let claim_check = ClaimCheck { bucket, prefix, relay, above, max_bytes: 1 << 24 };
    Accepts { claim_check: Some(Arc::new(claim_check)), ..Accepts::queue(kind) }
}

#[test]
fn a_copy_that_follows_one_that_came_too_early_has_an_object_of_its_own() {
    let accepts = with_bucket(DestinationKind::Fifo, 1024);
    let mut entry = compose(message(&"x".repeat(2000), "{}"), &accepts).unwrap().entry;
    let first = entry.offloaded().unwrap().key.clone();
    assert_eq!(first, "large/0190a0b0-0000-7000-8000-000000000001-42-r1");
    assert_eq!(entry.supersede(SequenceNumber::parse("17")), SequenceNumber::parse("17").unwrap());
    let second = entry.offloaded().unwrap().clone();
    assert_eq!(second.key, "large/0190a0b0-0000-7000-8000-000000000001-42-17-r1");
    assert_eq!(second.body.len(), 2000);
    assert!(entry.body.contains("-42-17-r1\""), "the message points to it: {}", entry.body);
    assert_eq!(entry.bytes(), size(&entry.body, &entry.attributes));
    let mut again = message(&"x".repeat(2000), "{}");
    again.superseded = SequenceNumber::parse("17");
    assert_eq!(compose(again, &accepts).unwrap().entry, entry, "the next relay makes the same of it");
}

#[test]
fn attributes_that_are_too_large_are_told_from_a_body_that_is() {
    let metadata = format!("{{\"a\": \"{}\"}}", "x".repeat(MAX_MESSAGE_BYTES));
    for accepts in [Accepts::queue(DestinationKind::Standard), with_bucket(DestinationKind::Standard, 1024)] {
        let fault = compose(message("{}", &metadata), &accepts).unwrap_err();
        assert_eq!((fault.kind, fault.code.as_str()), (FaultKind::MessagePermanent, "MessageTooLong"));
        assert!(fault.detail.starts_with("attributes of 1048"), "{fault}");
        assert!(fault.detail.ends_with("bytes, SQS takes 1048576 with the body; shorten metadata"), "{fault}");
    }
}

#[test]
fn no_member_makes_an_ordinary_message_look_like_one_whose_body_is_in_a_bucket() {
    let composed = entry("{}", r#"{"ExtendedPayloadSize": 5, "SQSLargePayloadSize": "5", "extendedPayloadSize": 5}"#);
    assert_eq!(names(&composed)[4..], ["extendedPayloadSize"]);
    assert_eq!(composed.dropped_attributes, 2);
    let large = compose(
        message(&"x".repeat(2000), r#"{"ExtendedPayloadSize": 5}"#),
        &with_bucket(DestinationKind::Standard, 1024),
    );
    assert_eq!(large.unwrap().entry.attribute("ExtendedPayloadSize"), Some("2000"));
}

#[test]
fn relays_share_no_objects() {
    let key = |relay| {
        let accepts = with_bucket_of(relay, DestinationKind::Standard, 1024);
        let entry = compose(message(&"x".repeat(2000), "{}"), &accepts).unwrap().entry;
        entry.offloaded().unwrap().key.clone()
    };
    assert_eq!(key("r1"), key("r1"), "a retry replaces its own object");
    assert_ne!(key("r1"), key("r2"), "what a consumer deletes with a message of one is not what the other has stored");
}

#[test]
fn a_body_that_may_be_too_large_for_its_queue_alone_goes_to_the_bucket_once() {
    let of = |body: &str, accepts: &Accepts| compose(message(body, "{}"), accepts).unwrap().entry;
    let refused = |code: &str| Fault::new(FaultKind::MessagePermanent, code, "");
    let accepts = with_bucket(DestinationKind::Standard, MAX_MESSAGE_BYTES);
    let mut entry = of(&"x".repeat(2000), &accepts);
    assert_eq!(entry.offload_after(&refused("InvalidMessageContents")), None);
    assert_eq!(entry.offload_after(&Fault::new(FaultKind::Destination, "InvalidParameterValue", "")), None);
    assert_eq!(entry.offload_after(&refused("InvalidParameterValue")), Some(0));
    assert_eq!(entry.offloaded_bytes(), Some(2000));
    assert_eq!(entry.bytes(), size(&entry.body, &entry.attributes));
    assert_eq!(entry.offload_after(&refused("InvalidParameterValue")), None, "then its size is not the reason");
    assert_eq!(of("{}", &accepts).offload_after(&refused("InvalidParameterValue")), None, "every queue takes that");
    let without = Accepts::queue(DestinationKind::Standard);
    assert_eq!(of(&"x".repeat(2000), &without).offload_after(&refused("InvalidParameterValue")), None);
}
