//! A span: what a request was, in the words of OpenTelemetry's semantic conventions for messaging (version 1.42.0, "Semantic
//! conventions for messaging spans" and "for AWS SQS"). Pure.
//!
//! What all spans of a destination have in common is written once. A span is that, followed by what is its own: fields of a
//! protobuf message may come in any order, and repeated ones in several places (Protocol Buffers, "Encoding", "Last One Wins").

use std::time::{Duration, SystemTime};

use prost::Message as _;

use super::context::{TraceContext, state};
use super::otlp::{CLIENT, ERROR, HAS_IS_REMOTE, IS_REMOTE, KeyValue, Link as WireLink, Span, Status};
use crate::causes::harmless;
use crate::way::Address;

/// What all requests of a destination have in common.
#[derive(Clone, Debug)]
pub struct Target {
    /// The destination, as in metrics and logs.
    pub destination: String,
    /// `messaging.system`.
    pub system: &'static str,
    /// The name of the queue.
    pub name: String,
    /// The attribute that identifies the queue to AWS, and its value.
    pub identity: (&'static str, String),
    /// The server that requests go to.
    pub server: Address,
}

/// A request that has ended.
#[derive(Debug)]
pub struct Request<'a> {
    /// Entries in it.
    pub entries: usize,
    /// The traces that its events belong to.
    pub links: Vec<Link<'a>>,
    /// When it ended, and how long it took.
    pub ended: SystemTime,
    /// The time from sending to the answer.
    pub took: Duration,
    /// AWS's id of the request, if it gave one.
    pub request_id: Option<&'a str>,
    /// Why it failed, as a whole or in part.
    pub failure: Option<Failure<'a>>,
}

/// The trace of an event, and what became of its entry.
#[derive(Clone, Copy, Debug)]
pub struct Link<'a> {
    /// The context in which the event was written.
    pub context: TraceContext,
    /// Its `tracestate`; empty if it has none.
    pub state: &'a str,
    /// The id that the queue gave the message, or the code of the failure.
    pub result: Result<&'a str, &'a str>,
}

/// A failure of a request.
#[derive(Debug)]
pub struct Failure<'a> {
    /// A code with few values.
    pub code: &'a str,
    /// What happened, for people.
    pub description: String,
}

/// The ids of a new trace and its only span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ids {
    pub(super) trace: [u8; 16],
    pub(super) span: [u8; 8],
}

/// What is the same in all spans of a destination.
pub(super) fn template(target: &Target) -> Vec<u8> {
    let Target { destination, system, name, identity: (identity, value), server } = target;
    let span = Span {
        name: format!("send {name}"),
        // Not PRODUCER: the context of the span is not in the messages, the one that the application gave them is.
        kind: CLIENT,
        attributes: vec![
            KeyValue::text("messaging.system", *system),
            KeyValue::text("messaging.operation.name", "send"),
            KeyValue::text("messaging.operation.type", "send"),
            KeyValue::text("messaging.destination.name", name),
            KeyValue::text(identity, value),
            KeyValue::text("server.address", &server.host),
            KeyValue::number("server.port", server.port.into()),
            KeyValue::text("outbox_relay.destination", destination),
        ],
        ..Span::default()
    };
    span.encode_to_vec()
}

/// Writes a span.
pub(super) fn write(template: &[u8], ids: Ids, request: &Request<'_>) -> Vec<u8> {
    let mut attributes = Vec::with_capacity(3);
    attributes.push(KeyValue::number("messaging.batch.message_count", request.entries as i64));
    attributes.extend(request.request_id.map(|id| KeyValue::text("aws.request_id", id)));
    attributes.extend(request.failure.iter().map(|failure| KeyValue::text("error.type", failure.code)));
    let message = |failure: &Failure<'_>| harmless(&failure.description);
    let end = nanoseconds(request.ended);
    let took = u64::try_from(request.took.as_nanos()).unwrap_or(u64::MAX);
    let own = Span {
        trace_id: ids.trace.to_vec(),
        span_id: ids.span.to_vec(),
        start_time_unix_nano: end.saturating_sub(took),
        end_time_unix_nano: end,
        attributes,
        links: request.links.iter().map(link).collect(),
        status: request.failure.as_ref().map(|failure| Status { message: message(failure), code: ERROR }),
        // Sampled, and the trace id is random (W3C Trace Context, level 2).
        flags: 0b11 | HAS_IS_REMOTE,
        ..Span::default()
    };
    let mut written = Vec::with_capacity(template.len() + own.encoded_len());
    written.extend_from_slice(template);
    own.encode_raw(&mut written);
    written
}

fn link(Link { context, state: given, result }: &Link<'_>) -> WireLink {
    WireLink {
        trace_id: context.trace_id.to_vec(),
        span_id: context.span_id.to_vec(),
        trace_state: state(given).to_owned(),
        attributes: vec![match result {
            Ok(id) => KeyValue::text("messaging.message.id", *id),
            Err(code) => KeyValue::text("error.type", *code),
        }],
        flags: u32::from(context.flags) | HAS_IS_REMOTE | IS_REMOTE,
    }
}

fn nanoseconds(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> Target {
        Target {
            destination: "tickets".to_owned(),
            system: "aws_sqs",
            name: "tickets.fifo".to_owned(),
            identity: ("aws.sqs.queue.url", "https://h/1/tickets.fifo".to_owned()),
            server: Address { host: "h".to_owned(), port: 443 },
        }
    }

    fn written(request: &Request<'_>) -> Span {
        let ids = Ids { trace: [1; 16], span: [2; 8] };
        Span::decode(&*write(&template(&target()), ids, request)).unwrap()
    }

    fn request() -> Request<'static> {
        let ended = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
        let took = Duration::from_millis(20);
        Request { entries: 2, links: Vec::new(), ended, took, request_id: Some("id"), failure: None }
    }

    fn text(span: &Span, key: &str) -> Option<String> {
        let value = |pair: &KeyValue| format!("{:?}", pair.value.as_ref().and_then(|value| value.value.clone()));
        span.attributes.iter().find(|pair| pair.key == key).map(value)
    }

    #[test]
    fn a_span_has_what_is_common_and_what_is_its_own() {
        let span = written(&request());
        assert_eq!((span.name.as_str(), span.kind, span.status.is_none()), ("send tickets.fifo", CLIENT, true));
        assert_eq!((span.trace_id.clone(), span.span_id.clone()), (vec![1; 16], vec![2; 8]));
        assert_eq!((span.start_time_unix_nano, span.end_time_unix_nano), (999_980_000_000, 1_000_000_000_000));
        let mut keys: Vec<&str> = span.attributes.iter().map(|pair| pair.key.as_str()).collect();
        assert_eq!((keys.len(), keys.contains(&"aws.request_id")), (10, true));
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), 10, "no key is there twice");
        assert_eq!(text(&span, "messaging.batch.message_count").unwrap(), "Some(Int(2))");
    }

    #[test]
    fn a_failure_is_a_status_with_text_that_does_no_harm() {
        let failure = Some(Failure { code: "NotConnected", description: "no\u{7}thing\n".repeat(100) });
        let span = written(&Request { failure, ..request() });
        let status = span.status.clone().unwrap();
        assert!(status.code == ERROR && status.message.starts_with("no?thing?no") && status.message.len() == 300);
        assert_eq!(text(&span, "error.type").unwrap(), "Some(String(\"NotConnected\"))");
    }

    #[test]
    fn a_time_before_1970_and_a_request_of_endless_length_do_no_harm() {
        let (ended, took) = (SystemTime::UNIX_EPOCH - Duration::from_secs(1), Duration::MAX);
        let span = written(&Request { ended, took, ..request() });
        assert_eq!((span.start_time_unix_nano, span.end_time_unix_nano), (0, 0));
    }
}
