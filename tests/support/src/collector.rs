//! An OpenTelemetry collector as far as a sender can see it: it takes spans by OTLP over HTTP and reads them with the project's
//! own types. It can be slow, refuse, or take a part.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use anyhow::{Context, Result};
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, Response, StatusCode};
use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use prost::Message;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::test_bed::locked;

pub use opentelemetry_proto::tonic::trace::v1::{Span, span, status};

/// The most bytes of a request, as collectors have it.
const MAX_BODY: usize = 20 * 1024 * 1024;

/// What the collector does with a request.
#[derive(Debug, Clone, Default)]
pub enum Manner {
    /// Takes all spans.
    #[default]
    Takes,
    /// Takes all spans, and keeps none: for measurements.
    Discards,
    /// Never answers.
    Hangs,
    /// Answers with this status and this message, and wants to be left alone for so many seconds if that is not 0.
    Answers(u16, &'static str, u64),
    /// Takes all but so many, and says why.
    Rejects(i64, &'static str),
}

/// One request.
#[derive(Debug, Clone)]
pub struct Export {
    /// Its path, with the query.
    pub path: String,
    /// Its headers, names in lower case.
    pub headers: HashMap<String, String>,
    /// What it says of the sender.
    pub resource: HashMap<String, String>,
    /// Its spans.
    pub spans: Vec<Span>,
    /// When it came.
    pub at: SystemTime,
}

/// A running collector. It ends when this is dropped.
#[derive(Debug)]
pub struct Collector {
    shared: Arc<Shared>,
    port: u16,
    _task: AbortOnDropHandle<()>,
}

#[derive(Debug, Default)]
struct Shared {
    manner: Mutex<Manner>,
    exports: Mutex<Vec<Export>>,
    seen: watch::Sender<usize>,
}

impl Collector {
    /// Starts one on a free port of 127.0.0.1.
    pub async fn start() -> Result<Collector> {
        Collector::at(0).await
    }

    /// Starts one on a port.
    pub async fn at(port: u16) -> Result<Collector> {
        let listener = TcpListener::bind(("127.0.0.1", port)).await?;
        let port = listener.local_addr()?.port();
        let shared = Arc::<Shared>::default();
        let service = Router::new().fallback(take).with_state(Arc::clone(&shared));
        let task = tokio::spawn(async move { axum::serve(listener, service).await.unwrap_or_default() });
        Ok(Collector { shared, port, _task: AbortOnDropHandle::new(task) })
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The value for `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// From now on it does this.
    pub fn set(&self, manner: Manner) {
        *locked(&self.shared.manner) = manner;
    }

    /// How many requests came, whatever became of them.
    pub fn seen(&self) -> usize {
        *self.shared.seen.borrow()
    }

    /// Waits until so many requests have come.
    pub async fn wait_for_requests(&self, count: usize) -> Result<()> {
        self.shared.seen.subscribe().wait_for(|seen| *seen >= count).await.context("the collector has ended")?;
        Ok(())
    }

    /// The requests that it took.
    pub fn exports(&self) -> Vec<Export> {
        locked(&self.shared.exports).clone()
    }

    /// All spans that it took.
    pub fn spans(&self) -> Vec<Span> {
        self.exports().into_iter().flat_map(|export| export.spans).collect()
    }
}

/// An attribute as text.
pub fn attribute(attributes: &[KeyValue], key: &str) -> Option<String> {
    let pair = attributes.iter().find(|pair| pair.key == key)?;
    match pair.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(number) => Some(number.to_string()),
        other => Some(format!("{other:?}")),
    }
}

async fn take(State(shared): State<Arc<Shared>>, request: Request) -> Response<Body> {
    let manner = locked(&shared.manner).clone();
    let (head, body) = request.into_parts();
    let body = to_bytes(body, MAX_BODY).await.unwrap_or_default();
    shared.seen.send_modify(|seen| *seen += 1);
    let (status, answer, quiet) = match manner {
        Manner::Hangs => std::future::pending().await,
        Manner::Discards => (200, Vec::new(), 0),
        Manner::Answers(status, message, quiet) => (status, rpc_status(message), quiet),
        Manner::Takes => shared.keep(&head, body, None),
        Manner::Rejects(rejected_spans, message) => shared.keep(
            &head,
            body,
            Some(ExportTracePartialSuccess { rejected_spans, error_message: message.to_owned() }),
        ),
    };
    let mut response = Response::new(Body::from(answer));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or_default();
    if quiet > 0 {
        response.headers_mut().insert("retry-after", quiet.into());
    }
    response
}

impl Shared {
    /// Reads and keeps a request; status, body and quiet time of the answer. One without a body is only a question.
    fn keep(
        &self,
        head: &Parts,
        body: Bytes,
        partial_success: Option<ExportTracePartialSuccess>,
    ) -> (u16, Vec<u8>, u64) {
        let is_question = body.is_empty();
        let Ok(request) = ExportTraceServiceRequest::decode(body) else {
            return (400, rpc_status("not an ExportTraceServiceRequest"), 0);
        };
        let header = |(name, value): (&HeaderName, &HeaderValue)| {
            (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        let (mut resource, mut spans) = (HashMap::new(), Vec::new());
        for of_resource in request.resource_spans {
            let attributes = of_resource.resource.unwrap_or_default().attributes;
            let text = |pair: &KeyValue| (pair.key.clone(), attribute(&attributes, &pair.key).unwrap_or_default());
            resource.extend(attributes.iter().map(text));
            spans.extend(of_resource.scope_spans.into_iter().flat_map(|of_scope| of_scope.spans));
        }
        let path = head.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
        let headers = head.headers.iter().map(header).collect();
        if !is_question {
            locked(&self.exports).push(Export { path, headers, resource, spans, at: SystemTime::now() });
        }
        (200, ExportTraceServiceResponse { partial_success }.encode_to_vec(), 0)
    }
}

/// A `google.rpc.Status` with this message.
fn rpc_status(message: &str) -> Vec<u8> {
    let mut bytes = vec![2 << 3 | 2];
    prost::encoding::encode_varint(message.len() as u64, &mut bytes);
    bytes.extend_from_slice(message.as_bytes());
    bytes
}
