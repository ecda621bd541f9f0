//! Metrics and probes over HTTP.
//!
//! `/livez` says whether the loops tick; a database or queue that is down never fails it, because restarting the relay
//! would not help. `/readyz` says whether database and queues answer, for people and for deployments of its own; a
//! sidecar's readiness counts for the whole pod, so the shipped manifest does not ask it.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::health::Health;
use crate::metrics::{CONTENT_TYPE, Metrics};

/// How long `healthcheck` waits for an answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);

/// What the routes show.
#[derive(Clone, Debug)]
pub struct Shown {
    /// For `/metrics`.
    pub metrics: Arc<Metrics>,
    /// For the probes.
    pub health: Arc<Health>,
}

/// Serves until told to stop.
///
/// # Errors
///
/// When the listener fails.
pub async fn serve(listener: TcpListener, shown: Shown, stop: CancellationToken) -> std::io::Result<()> {
    let router = Router::new()
        .route("/", get(landing))
        .route("/metrics", get(metrics))
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .with_state(shown);
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await
}

async fn landing() -> Html<&'static str> {
    Html(concat!(
        "<!doctype html><title>outbox-relay</title><h1>outbox-relay ",
        env!("CARGO_PKG_VERSION"),
        "</h1><ul><li><a href=\"/metrics\">metrics</a><li><a href=\"/livez\">livez</a><li><a href=\"/readyz\">readyz</a></ul>"
    ))
}

async fn metrics(State(shown): State<Shown>) -> impl IntoResponse {
    match shown.metrics.render() {
        Ok(text) => (StatusCode::OK, [(header::CONTENT_TYPE, CONTENT_TYPE)], text),
        Err(error) => {
            let text = format!("metrics cannot be written: {error}\n").into_bytes();
            (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, "text/plain")], text)
        }
    }
}

async fn livez(State(shown): State<Shown>) -> impl IntoResponse {
    verdict(&shown.health.hanging(), "alive", "these loops hang")
}

async fn readyz(State(shown): State<Shown>) -> impl IntoResponse {
    let stalled = shown.health.stalled();
    // Whoever stands still is no readier for a restart; people are told, and the alert says the same.
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

/// Asks a relay's probe, for images without a shell: the status and the first line of the answer.
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
