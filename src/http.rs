//! The status page, metrics and probes over HTTP; everything can only be read.
//!
//! `/livez` says whether the loops tick. It never fails because a database or queue is down: restarting the relay would
//! not help. `/readyz` says whether database and queues answer. It is meant for people and for separate deployments; a
//! sidecar's readiness counts for the whole pod, so the shipped manifest does not use it.
//!
//! [`connections`] bounds what clients can cost.

mod connections;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::health::Health;
use crate::metrics::{CONTENT_TYPE, Metrics};
use crate::page::{ICON, Page, RUNBOOK_PATH, SCRIPT, STYLE};

/// How long `healthcheck` waits for an answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);

/// The page loads only what the relay serves: no other origin, nothing inline, no frame around it, no form.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What the routes show.
#[derive(Clone, Debug)]
pub struct Shown {
    /// For `/metrics`.
    pub metrics: Arc<Metrics>,
    /// For the probes.
    pub health: Arc<Health>,
    /// For people.
    pub page: Arc<Page>,
}

/// What the routes show now; it is replaced when destinations change.
pub type Current = watch::Receiver<Shown>;

/// Serves until told to stop.
pub async fn serve(listener: TcpListener, current: Current, stop: CancellationToken) {
    let router = Router::new()
        .route("/", get(page))
        .route("/status.json", get(json))
        .route("/status.css", get(async || answer("text/css; charset=utf-8", STYLE)))
        .route("/status.js", get(async || answer("text/javascript; charset=utf-8", SCRIPT)))
        .route("/icon.svg", get(async || answer("image/svg+xml", ICON)))
        .route(&format!("/{RUNBOOK_PATH}"), get(runbook))
        .route("/metrics", get(metrics))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .with_state(current);
    connections::serve(listener, router, stop).await;
}

async fn page(State(current): State<Current>) -> impl IntoResponse {
    let shown = current.borrow().clone();
    answer("text/html; charset=utf-8", shown.page.html())
}

async fn json(State(current): State<Current>) -> impl IntoResponse {
    let shown = current.borrow().clone();
    answer("application/json", shown.page.json())
}

async fn runbook(State(current): State<Current>) -> impl IntoResponse {
    let shown = current.borrow().clone();
    answer("text/html; charset=utf-8", shown.page.runbook())
}

/// What belongs to the page, with headers that keep it to itself.
fn answer(content_type: &'static str, body: impl Into<Bytes>) -> (HeaderMap, Bytes) {
    let headers = [
        (header::CONTENT_TYPE, content_type),
        (header::CACHE_CONTROL, "no-store"),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    (headers.into_iter().map(|(name, value)| (name, HeaderValue::from_static(value))).collect(), body.into())
}

async fn metrics(State(current): State<Current>) -> impl IntoResponse {
    let shown = current.borrow().clone();
    match shown.metrics.render() {
        Ok(text) => (StatusCode::OK, [(header::CONTENT_TYPE, CONTENT_TYPE)], text),
        Err(error) => {
            let text = format!("metrics cannot be written: {error}\n").into_bytes();
            (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, "text/plain")], text)
        }
    }
}

async fn livez(State(current): State<Current>) -> impl IntoResponse {
    let shown = current.borrow().clone();
    verdict(&shown.health.hanging(), "alive", "these loops hang")
}

async fn readyz(State(current): State<Current>) -> impl IntoResponse {
    let shown = current.borrow().clone();
    let stalled = shown.health.stalled();
    // A destination that stands still does not make the process unready: a restart would not help. The text shows it,
    // and an alert reports it.
    let good = match &stalled[..] {
        [] => "ready".to_owned(),
        stalled => format!("ready; stalled: {}", stalled.join(", ")),
    };
    verdict(&shown.health.unreachable(), &good, "these do not answer")
}

fn verdict(names: &[String], good: &str, bad: &str) -> (StatusCode, String) {
    if names.is_empty() {
        (StatusCode::OK, format!("{good}\n"))
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("{bad}: {}\n", names.join(", ")))
    }
}

/// Asks a relay's probe, for images without a shell; returns the status and the first line of the answer.
///
/// # Errors
///
/// When nobody answers in time.
pub async fn ask(address: std::net::SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let exchange = async {
        let mut stream = tokio::net::TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<String, std::io::Error>(answer)
    };
    let answer = tokio::time::timeout(ASK_TIMEOUT, exchange)
        .await
        .map_err(|_| std::io::Error::new(std::io::ErrorKind::TimedOut, "no answer in time"))??;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer.as_str(), ""));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    Ok((status, body.lines().next().unwrap_or("").to_owned()))
}
