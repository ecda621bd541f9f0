//! The HTTP shell of the queues: one route, the clock, and long polling.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use serde_json::{Value as Json, json};
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::arrival::Arrival;
use super::refusal::{self, Refusal};
use super::state::{Done, Queues};

/// The content type of the protocol.
const JSON: &str = "application/x-amz-json-1.0";

/// The largest request: ten entries of 1 MiB together, of which JSON may need six bytes for one.
const MAX_REQUEST: usize = 8 << 20;

/// How often a long poll looks again for messages whose visibility timeout or delay has ended.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// The longest wait of ReceiveMessage.
const MAX_WAIT: Duration = Duration::from_secs(20);

/// Where arrivals are shown, each with its time.
pub(crate) type Tap = mpsc::Sender<(SystemTime, Arrival)>;

/// The queues, and who wants to know of arrivals.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    queues: Arc<Mutex<Queues>>,
    changed: Arc<Notify>,
    tap: Tap,
    unshown: Arc<AtomicU64>,
    stop: CancellationToken,
}

impl Server {
    /// No queues yet. `base` is where it will listen, as URLs begin. What arrives is also given to `tap`; if that is full,
    /// it is not shown.
    pub(crate) fn new(base: String, region: &'static str, tap: Tap, stop: CancellationToken) -> Self {
        let queues = Arc::new(Mutex::new(Queues::new(base, region, fastrand::u64(..))));
        Self { queues, changed: Arc::default(), tap, unshown: Arc::default(), stop }
    }

    /// Creates a queue, and returns its URL.
    ///
    /// # Errors
    ///
    /// When SQS does not take the name.
    pub(crate) fn create(&self, name: &str) -> Result<String, String> {
        let mut attributes = json!({});
        if name.ends_with(".fifo") {
            attributes = json!({"FifoQueue": "true"});
        }
        let request = json!({"QueueName": name, "Attributes": attributes});
        let done =
            self.lock().act("CreateQueue", &request, millis(SystemTime::now())).map_err(|refusal| refusal.message)?;
        Ok(done.answer["QueueUrl"].as_str().unwrap_or_default().to_owned())
    }

    /// How many arrivals the tap could not take.
    pub(crate) fn unshown(&self) -> u64 {
        self.unshown.load(Ordering::Relaxed)
    }

    /// Serves until told to stop.
    ///
    /// # Errors
    ///
    /// When the listener fails.
    pub(crate) async fn serve(self, listener: TcpListener) -> std::io::Result<()> {
        let stop = self.stop.clone();
        let router = Router::new()
            .route("/", post(answer).fallback(not_post))
            .fallback(post(answer).fallback(not_post))
            .layer(DefaultBodyLimit::max(MAX_REQUEST))
            .with_state(self);
        axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await
    }

    fn act(&self, action: &str, request: &Json) -> Result<Json, Refusal> {
        let time = SystemTime::now();
        let Done { answer, arrivals } = self.lock().act(action, request, millis(time))?;
        for arrival in arrivals {
            // A terminal that stands still must not hold up the queues.
            if self.tap.try_send((time, arrival)).is_err() {
                self.unshown.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(answer)
    }

    /// Waits for messages as long as the request says.
    async fn receive(&self, request: &Json) -> Result<Json, Refusal> {
        let wait = Duration::from_millis(self.lock().wait_of(request)).min(MAX_WAIT);
        let deadline = Instant::now() + wait;
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            // From here on no change is missed.
            changed.as_mut().enable();
            let answer = self.act("ReceiveMessage", request)?;
            let left = deadline.saturating_duration_since(Instant::now());
            if !answer["Messages"].is_null() || left.is_zero() || self.stop.is_cancelled() {
                return Ok(answer);
            }
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep(left.min(LOOK_AGAIN)) => {}
                () = self.stop.cancelled() => {}
            }
        }
    }

    /// Every action leaves the state whole, even if a thread panics.
    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn answer(State(server): State<Server>, headers: HeaderMap, body: Bytes) -> Response {
    let result = match understood(&headers, &body) {
        Ok(("ReceiveMessage", request)) => server.receive(&request).await,
        Ok((action, request)) => {
            let result = server.act(action, &request);
            server.changed.notify_waiters();
            result
        }
        Err(refusal) => Err(refusal),
    };
    let id = format!("{:032x}", fastrand::u128(..));
    let common = [("content-type", JSON.to_owned()), ("x-amzn-requestid", id)];
    match result {
        Ok(answer) => (StatusCode::OK, common, answer.to_string()).into_response(),
        Err(Refusal { code, message }) => {
            let body = json!({"__type": code.shape, "message": message}).to_string();
            let legacy = [("x-amzn-query-error", format!("{};Sender", code.legacy))];
            let status = if code == refusal::OVER_LIMIT { StatusCode::FORBIDDEN } else { StatusCode::BAD_REQUEST };
            (status, common, legacy, body).into_response()
        }
    }
}

/// Other methods, such as a browser's: says what this is.
async fn not_post(uri: Uri) -> Response {
    let text =
        format!("{uri}: this is the SQS of `outbox-relay dev`, for development only. It takes the POST of AWS SDKs.\n");
    (StatusCode::METHOD_NOT_ALLOWED, text).into_response()
}

/// The action and its parameters.
///
/// The host and the content type are checked although nothing is signed: a page in a browser could otherwise reach this
/// server through a name that resolves to 127.0.0.1, or with a form.
fn understood<'a>(headers: &'a HeaderMap, body: &[u8]) -> Result<(&'a str, Json), Refusal> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let refused = |sentence: String| Err(Refusal::new(refusal::UNSUPPORTED, sentence));
    let host = header("host");
    if !is_of_this_machine(host) {
        return refused(format!("outbox-relay dev answers only at an address of this machine, not as {host:?}."));
    }
    let kind = header("content-type");
    let Some(action) = header("x-amz-target").strip_prefix("AmazonSQS.").filter(|_| kind.starts_with(JSON)) else {
        return refused(format!(
            "outbox-relay dev takes only the JSON protocol of SQS ({JSON}), not {kind:?}; use an AWS SDK or CLI from after 2023."
        ));
    };
    let request = serde_json::from_slice(body)
        .map_err(|error| Refusal::value("the request", "(not shown)", &format!("it is not JSON: {error}")))?;
    Ok((action, request))
}

/// Whether a `Host` names the loopback interface.
fn is_of_this_machine(host: &str) -> bool {
    let name = host.parse::<SocketAddr>().map(|address| address.ip()).or_else(|_| host.parse());
    match name {
        Ok(address) => address.is_loopback(),
        Err(_) => host.split(':').next().is_some_and(|name| name.eq_ignore_ascii_case("localhost")),
    }
}

/// Milliseconds since 1970.
fn millis(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_answered() {
        for host in ["127.0.0.1:9324", "127.0.0.1", "localhost:1", "LOCALHOST", "[::1]:9324", "127.1.2.3:9"] {
            assert!(is_of_this_machine(host), "{host}");
        }
        for host in ["", "evil.example:9324", "10.0.0.1:9324", "localhost.example", "0.0.0.0:9324", "[::]:1"] {
            assert!(!is_of_this_machine(host), "{host}");
        }
    }

    #[test]
    fn only_the_json_protocol_is_understood() {
        let headers = |pairs: [(&'static str, &'static str); 3]| {
            HeaderMap::from_iter(pairs.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())))
        };
        let good = [("host", "127.0.0.1:1"), ("content-type", JSON), ("x-amz-target", "AmazonSQS.ListQueues")];
        assert_eq!(understood(&headers(good), b"{}"), Ok(("ListQueues", json!({}))));
        assert!(understood(&headers(good), b"Action=ListQueues").is_err());
        for (at, value) in [(0, "evil.example"), (1, "application/x-www-form-urlencoded"), (2, "ListQueues")] {
            let mut bad = good;
            bad[at].1 = value;
            assert_eq!(
                understood(&headers(bad), b"{}").map_err(|refusal| refusal.code),
                Err(refusal::UNSUPPORTED),
                "{value}"
            );
        }
    }
}
