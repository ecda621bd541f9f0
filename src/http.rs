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
use axum::extract::{RawPathParams, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use bytes::Bytes;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::health::Health;
use crate::metrics::{self, CONTENT_TYPE, Metrics, ProcessMetrics};
use crate::page::{ICON, Page, RUNBOOK_PATH, SCRIPT, STYLE, overview};

/// How long `healthcheck` waits for an answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);

/// The page loads only what the relay serves: no other origin, nothing inline, no frame around it, no form.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What the routes show of a database.
#[derive(Clone, Debug)]
pub struct Shown {
    /// For `/metrics`.
    pub metrics: Arc<Metrics>,
    /// For the probes.
    pub health: Arc<Health>,
    /// For people.
    pub page: Arc<Page>,
}

/// A database of the process.
#[derive(Debug)]
pub struct Site {
    /// Its name, if it has one.
    pub name: Option<Arc<str>>,
    /// What is shown of it now; it is replaced when destinations change.
    pub current: watch::Receiver<Shown>,
}

/// All databases of the process. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Sites {
    sites: Arc<[Site]>,
    process: Arc<ProcessMetrics>,
}

/// What a request is about: the databases, with their names.
type Asked = Vec<(Option<Arc<str>>, Shown)>;

impl Sites {
    /// The databases, and the metrics of the process.
    pub fn new(sites: Vec<Site>, process: Arc<ProcessMetrics>) -> Self {
        Self { sites: sites.into(), process }
    }

    /// The database in the path, or all if the path has none; `None` if there is no such database.
    fn asked(&self, path: &RawPathParams) -> Option<Asked> {
        let name = path.iter().next().map(|(_, name)| name);
        let is_asked = |site: &&Site| name.is_none() || site.name.as_deref() == name;
        let asked = self.sites.iter().filter(is_asked);
        let asked: Asked = asked.map(|site| (site.name.clone(), site.current.borrow().clone())).collect();
        (!asked.is_empty()).then_some(asked)
    }
}

/// Serves until told to stop. A database that has a name has its own pages below `/databases/NAME/`; the others are about
/// all of them.
pub async fn serve(listener: TcpListener, sites: Sites, stop: CancellationToken) {
    let mut router = Router::new();
    for root in ["", "/databases/{name}"] {
        let at = |path: &str| format!("{root}/{path}");
        router = router
            .route(&at(""), get(page))
            .route(&at("status.json"), get(json))
            .route(&at("status.css"), get(async || answer("text/css; charset=utf-8", STYLE)))
            .route(&at("status.js"), get(async || answer("text/javascript; charset=utf-8", SCRIPT)))
            .route(&at("icon.svg"), get(async || answer("image/svg+xml", ICON)))
            .route(&at(RUNBOOK_PATH), get(runbook))
            .route(&at("metrics"), get(metrics))
            .route(&at("livez"), get(livez))
            .route(&at("readyz"), get(readyz));
    }
    connections::serve(listener, router.with_state(sites), stop).await;
}

async fn page(State(sites): State<Sites>, path: RawPathParams) -> Response {
    let Some(asked) = sites.asked(&path) else { return StatusCode::NOT_FOUND.into_response() };
    let html = match &asked[..] {
        [(_, shown)] if is_one(&sites, &path) => shown.page.html(),
        several => overview(several.iter().map(|(name, shown)| (name.as_deref().unwrap_or_default(), &*shown.page))),
    };
    answer("text/html; charset=utf-8", html).into_response()
}

async fn json(State(sites): State<Sites>, path: RawPathParams) -> Response {
    let Some(asked) = sites.asked(&path) else { return StatusCode::NOT_FOUND.into_response() };
    let json = match &asked[..] {
        [(_, shown)] if is_one(&sites, &path) => shown.page.json(),
        several => {
            let each = several.iter().map(|(name, shown)| {
                let name = name.as_deref().unwrap_or_default();
                format!("\"{name}\":{}", String::from_utf8_lossy(&shown.page.json()))
            });
            format!("{{\"databases\":{{{}}}}}", each.collect::<Vec<_>>().join(",")).into()
        }
    };
    answer("application/json", json).into_response()
}

/// Whether the path is about one database: the only one has no name, or the path has it.
fn is_one(sites: &Sites, path: &RawPathParams) -> bool {
    path.iter().next().is_some() || matches!(&*sites.sites, [Site { name: None, .. }])
}

async fn runbook(State(sites): State<Sites>, path: RawPathParams) -> Response {
    let Some(asked) = sites.asked(&path) else { return StatusCode::NOT_FOUND.into_response() };
    // They differ in the name of the schema only.
    match asked.first() {
        Some((_, shown)) => answer("text/html; charset=utf-8", shown.page.runbook()).into_response(),
        None => StatusCode::NOT_FOUND.into_response(),
    }
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

async fn metrics(State(sites): State<Sites>, path: RawPathParams) -> Response {
    let Some(asked) = sites.asked(&path) else { return StatusCode::NOT_FOUND.into_response() };
    match metrics::render(&sites.process, asked.iter().map(|(_, shown)| &*shown.metrics)) {
        Ok(text) => ([(header::CONTENT_TYPE, CONTENT_TYPE)], text).into_response(),
        Err(error) => {
            let text = format!("metrics cannot be written: {error}\n");
            (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, "text/plain")], text).into_response()
        }
    }
}

async fn livez(State(sites): State<Sites>, path: RawPathParams) -> Response {
    let Some(asked) = sites.asked(&path) else { return StatusCode::NOT_FOUND.into_response() };
    verdict(&named(&asked, Health::hanging), "alive", "these loops hang").into_response()
}

async fn readyz(State(sites): State<Sites>, path: RawPathParams) -> Response {
    let Some(asked) = sites.asked(&path) else { return StatusCode::NOT_FOUND.into_response() };
    let stalled = named(&asked, Health::stalled);
    // A destination that stands still does not make the process unready: a restart would not help. The text shows it,
    // and an alert reports it.
    let good = match &stalled[..] {
        [] => "ready".to_owned(),
        stalled => format!("ready; stalled: {}", stalled.join(", ")),
    };
    verdict(&named(&asked, Health::unreachable), &good, "these do not answer").into_response()
}

/// What the health of each database lists, with the name of the database if it has one.
fn named(asked: &Asked, list: impl Fn(&Health) -> Vec<String>) -> Vec<String> {
    let of_one = |(name, shown): &(Option<Arc<str>>, Shown)| {
        let prefix = name.as_ref().map(|name| format!("{name}: ")).unwrap_or_default();
        list(&shown.health).into_iter().map(|what| format!("{prefix}{what}")).collect::<Vec<_>>()
    };
    asked.iter().flat_map(of_one).collect()
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
