//! The collector: one request with spans, and what its answer means (OTLP specification, "OTLP/HTTP Response").

use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;

use super::otlp::{
    ExportTraceServiceRequest, ExportTraceServiceResponse, InstrumentationScope, KeyValue, PartialSuccess, Resource,
    ResourceSpans, RpcStatus, ScopeSpans,
};
use crate::aws::post::{Answer, Poster};
use crate::causes::harmless;
use crate::config::{Header, TracesConfig};

/// The version of the conventions that names and attributes follow.
const SCHEMA: &str = "https://opentelemetry.io/schemas/1.42.0";

/// Answers after which the same spans may be sent again.
const RETRYABLE: [u16; 4] = [429, 502, 503, 504];

/// A shorter text may occur by chance, so it is not looked for.
const LEAST_SECRET: usize = 4;

/// Where spans go.
#[derive(Debug)]
pub struct Collector {
    poster: Poster,
    url: String,
    headers: Vec<Header>,
    timeout: Duration,
    resource: Resource,
}

/// What became of spans that were sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// The collector has them, but for so many; it may say something.
    Accepted { rejected: u64, says: String },
    /// It will never take them.
    Refused { why: String },
    /// It may take them later.
    Failed { why: String, retry_after: Option<Duration> },
}

impl Collector {
    /// The collector that the settings name. It is not contacted.
    ///
    /// # Errors
    ///
    /// When TLS cannot be set up.
    pub fn new(config: &TracesConfig) -> Result<Self, String> {
        let attributes = config.resource.iter().map(|(name, value)| KeyValue::text(name, value)).collect();
        Ok(Self {
            poster: Poster::new(config.certificates.as_deref(), config.request_timeout)?,
            url: config.url.clone(),
            headers: config.headers.clone(),
            timeout: config.request_timeout,
            resource: Resource { attributes },
        })
    }

    /// The URL without its query, which may hold a key.
    pub fn place(&self) -> &str {
        self.url.split('?').next().unwrap_or_default()
    }

    /// Sends no span at all, to see whether the collector can be reached and takes them.
    ///
    /// # Errors
    ///
    /// Why not.
    pub async fn probe(&self) -> Result<(), String> {
        match self.send(Bytes::new()).await {
            Sent::Accepted { .. } => Ok(()),
            Sent::Refused { why } | Sent::Failed { why, .. } => Err(why),
        }
    }

    /// The request for these spans.
    pub(super) fn request(&self, spans: Vec<Vec<u8>>) -> Bytes {
        let scope =
            InstrumentationScope { name: "outbox-relay".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() };
        let scope_spans = vec![ScopeSpans { scope: Some(scope), spans, schema_url: SCHEMA.to_owned() }];
        let resource = Some(self.resource.clone());
        let resource_spans = vec![ResourceSpans { resource, scope_spans, schema_url: SCHEMA.to_owned() }];
        ExportTraceServiceRequest { resource_spans }.encode_to_vec().into()
    }

    /// Sends a request.
    pub(super) async fn send(&self, body: Bytes) -> Sent {
        let own = [
            ("content-type", "application/x-protobuf"),
            ("user-agent", concat!("outbox-relay/", env!("CARGO_PKG_VERSION"))),
        ];
        let given = self.headers.iter().map(|header| (header.name.as_str(), header.value.as_str()));
        let own = own.into_iter().filter(|(name, _)| self.headers.iter().all(|header| header.name != *name));
        let answer = tokio::time::timeout(self.timeout, self.poster.post(&self.url, own.chain(given), body)).await;
        match answer {
            Ok(Ok(answer)) => self.judge(&answer),
            Ok(Err(why)) => Sent::Failed { why: harmless(&self.without_secrets(why)), retry_after: None },
            Err(_) => Sent::Failed { why: format!("no answer within {:?}", self.timeout), retry_after: None },
        }
    }

    fn judge(&self, answer: &Answer) -> Sent {
        if (200..300).contains(&answer.status) {
            // A body that is none of OTLP's says nothing.
            let response = ExportTraceServiceResponse::decode(&*answer.body).unwrap_or_default();
            let PartialSuccess { rejected_spans, error_message } = response.partial_success.unwrap_or_default();
            let says = harmless(&self.without_secrets(error_message));
            return Sent::Accepted { rejected: u64::try_from(rejected_spans).unwrap_or(0), says };
        }
        let said = RpcStatus::decode(&*answer.body).unwrap_or_default().message;
        let said = harmless(&self.without_secrets(said));
        let why = if said.is_empty() { String::new() } else { format!(": {said}") };
        let why = format!("HTTP {}{why}", answer.status);
        if RETRYABLE.contains(&answer.status) {
            Sent::Failed { why, retry_after: answer.retry_after }
        } else {
            Sent::Refused { why }
        }
    }

    /// A server may repeat a key that it refuses.
    fn without_secrets(&self, mut text: String) -> String {
        for header in &self.headers {
            // The key itself stands behind a word such as Bearer.
            let values = [header.value.as_str(), header.value.rsplit(' ').next().unwrap_or_default()];
            for secret in values.into_iter().filter(|secret| secret.len() >= LEAST_SECRET) {
                text = text.replace(secret, "(not shown)");
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Batching, Sampling};

    fn collector() -> Collector {
        let header = |name: &str, value: &str| Header { name: name.to_owned(), value: value.to_owned() };
        Collector::new(&TracesConfig {
            url: "https://h/v1/traces?key=hunter2".to_owned(),
            headers: vec![header("authorization", "Bearer hunter2"), header("tenant", "a")],
            certificates: None,
            request_timeout: Duration::from_secs(1),
            resource: Vec::new(),
            sampling: Sampling { follows_events: true, ratio: 1.0 },
            batching: Batching { delay: Duration::ZERO, export_timeout: Duration::ZERO, max_queue: 1, max_batch: 1 },
        })
        .unwrap()
    }

    fn answer(status: u16, body: impl prost::Message) -> Answer {
        Answer { status, retry_after: Some(Duration::from_secs(7)), body: body.encode_to_vec() }
    }

    fn says(message: &str) -> RpcStatus {
        RpcStatus { message: message.to_owned() }
    }

    #[test]
    fn an_answer_says_whether_the_same_spans_may_be_sent_again() {
        let collector = collector();
        let accepted = Sent::Accepted { rejected: 0, says: String::new() };
        assert_eq!(collector.judge(&answer(200, ExportTraceServiceResponse::default())), accepted);
        assert_eq!(collector.judge(&Answer { status: 202, retry_after: None, body: b"{\"ok\":1}".to_vec() }), accepted);
        for status in [400, 401, 403, 404, 413, 500, 301] {
            let refused = Sent::Refused { why: format!("HTTP {status}: no") };
            assert_eq!(collector.judge(&answer(status, says("no"))), refused);
        }
        for status in [429, 502, 503, 504] {
            let retry_after = Some(Duration::from_secs(7));
            let failed = Sent::Failed { why: format!("HTTP {status}"), retry_after };
            assert_eq!(collector.judge(&answer(status, says(""))), failed);
        }
    }

    #[test]
    fn a_part_may_be_refused() {
        let partial = PartialSuccess { rejected_spans: 3, error_message: "too old\n".to_owned() };
        let response = ExportTraceServiceResponse { partial_success: Some(partial) };
        let expected = Sent::Accepted { rejected: 3, says: "too old?".to_owned() };
        assert_eq!(collector().judge(&answer(200, response)), expected);
    }

    #[test]
    fn a_key_that_the_collector_repeats_is_not_shown() {
        let collector = collector();
        let refused = collector.judge(&answer(401, says("unknown key hunter2 of tenant a in Bearer hunter2")));
        let why = "HTTP 401: unknown key (not shown) of tenant a in (not shown)".to_owned();
        assert_eq!(refused, Sent::Refused { why });
        assert_eq!(collector.place(), "https://h/v1/traces");
    }
}
