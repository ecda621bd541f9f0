//! HTTP on both sides of the proxy, and how a plan changes requests and answers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, TRANSFER_ENCODING};
use hyper::service::service_fn;
use hyper::{Response, StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::Shared;
use super::faults::{Asked, End, ErrorAnswer, Failure, Plan};
use super::journal::{Entry, Request};
use super::sns::{self, Form};

/// How long a request is held at most. A test that forgets the release fails long before.
const HOLD_TIMEOUT: Duration = Duration::from_secs(120);

type Answer = Response<Full<Bytes>>;

/// The emulator, seen from the proxy.
#[derive(Debug)]
pub(super) struct Upstream {
    client: Client<HttpConnector, Full<Bytes>>,
    authority: String,
}

impl Upstream {
    pub(super) fn new(endpoint: &str) -> Result<Upstream> {
        let authority = endpoint.strip_prefix("http://").context("the upstream must be http://HOST:PORT")?;
        let client = Client::builder(TokioExecutor::new()).build_http();
        Ok(Upstream { client, authority: authority.trim_end_matches('/').to_owned() })
    }

    /// Forwards a request. Once begun, it is finished even if its sender no longer waits: SQS has the request.
    async fn forward(&self, head: hyper::http::request::Parts, body: Bytes) -> Result<(StatusCode, Answer, Bytes)> {
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
        let mut request = hyper::Request::new(Full::new(body));
        *request.uri_mut() = format!("http://{}{path}", self.authority).parse::<Uri>()?;
        *request.method_mut() = head.method;
        *request.headers_mut() = head.headers;
        for name in [CONTENT_LENGTH, CONNECTION, TRANSFER_ENCODING] {
            request.headers_mut().remove(name);
        }
        let client = self.client.clone();
        let exchange = tokio::spawn(async move {
            let (head, body) = client.request(request).await?.into_parts();
            anyhow::Ok((head, body.collect().await?.to_bytes()))
        });
        let (head, body) = exchange.await??;
        let mut answer = Response::new(Full::new(Bytes::new()));
        *answer.status_mut() = head.status;
        *answer.headers_mut() = head.headers;
        for name in [CONTENT_LENGTH, CONNECTION, TRANSFER_ENCODING] {
            answer.headers_mut().remove(name);
        }
        Ok((head.status, answer, body))
    }
}

/// Serves one connection until either side closes it. An error of `answer` closes it without an answer.
pub(super) async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    stream.set_nodelay(true).ok();
    let service = service_fn(|request| answer(request, Arc::clone(&shared)));
    let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    connection.await.ok();
}

async fn answer(request: hyper::Request<Incoming>, shared: Arc<Shared>) -> Result<Answer> {
    let (head, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let target = head.headers.get("x-amz-target").and_then(|target| target.to_str().ok()).unwrap_or_default();
    let mut action = target.rsplit('.').next().unwrap_or_default().to_owned();
    let mut parsed: Value = serde_json::from_slice(&body).unwrap_or_default();
    let is_form =
        head.headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().ends_with(b"x-www-form-urlencoded"));
    let form = is_form.then(|| Form::of(&body)).filter(|form| form.get("Action") == Some("PublishBatch"));
    if let Some(form) = &form {
        (action, parsed) = ("SendMessageBatch".to_owned(), form.as_batch());
    }
    let queue_url = parsed["QueueUrl"].as_str().unwrap_or_default();
    let authorization = head.headers.get("authorization").and_then(|text| text.to_str().ok()).unwrap_or_default();
    let request = (action == "SendMessageBatch").then(|| Request::of(queue_url, authorization, &parsed));
    let entries = request.as_ref().map(|request| Arc::clone(&request.entries)).unwrap_or_default();
    let asked = Asked { action: &action, queue_url, authorization };
    let (plan, releases) = shared.plan(asked, &entries);
    let mut visit = Visit::enter(&shared, request, releases);
    visit.carry_out(plan, head, body, Parsed { json: parsed, form }, &entries).await
}

/// What a request says.
struct Parsed {
    json: Value,
    /// A PublishBatch as it came; the JSON is then what SendMessageBatch would have.
    form: Option<Form>,
}

/// One request's stay in the proxy. Its drop keeps the number of requests in flight right, however the stay ends.
struct Visit<'a> {
    shared: &'a Shared,
    number: Option<usize>,
    releases: watch::Receiver<u64>,
}

impl<'a> Visit<'a> {
    fn enter(shared: &'a Shared, request: Option<Request>, releases: watch::Receiver<u64>) -> Visit<'a> {
        let number = request.map(|request| shared.note(|journal| journal.enter(request)));
        Visit { shared, number, releases }
    }

    async fn carry_out(
        &mut self,
        plan: Plan,
        head: hyper::http::request::Parts,
        body: Bytes,
        parsed: Parsed,
        entries: &[Entry],
    ) -> Result<Answer> {
        if !plan.delay.is_zero() {
            tokio::time::sleep(plan.delay).await;
        }
        if plan.hold {
            self.hold().await?;
        }
        let answer = match plan.end {
            End::CutBefore => bail!("cut before forwarding"),
            End::Error(error) if parsed.form.is_some() => text_answer(error.status, sns::error(error)),
            End::Error(error) => error_answer(error),
            End::Forwarded | End::CutAfter | End::Instead(..) => {
                let answered = self.forward(&plan, head, body, parsed, entries).await?;
                match plan.end {
                    End::CutAfter => bail!("cut after forwarding"),
                    End::Instead(status, body) => text_answer(status, body.to_owned()),
                    _ => answered,
                }
            }
        };
        if plan.hold_answer {
            self.hold().await?;
        }
        self.note(|request| request.answered = Some(answer.status().as_u16()));
        Ok(answer)
    }

    async fn forward(
        &self,
        plan: &Plan,
        head: hyper::http::request::Parts,
        body: Bytes,
        parsed: Parsed,
        entries: &[Entry],
    ) -> Result<Answer> {
        if plan.failures.is_empty() && plan.omitted.is_empty() && !plan.numbers_fall {
            self.note(|request| request.forwarded = true);
            let (_, mut answer, body) = self.shared.upstream.forward(head, body).await?;
            *answer.body_mut() = Full::new(body);
            return Ok(answer);
        }
        if let Some(form) = parsed.form {
            return self.forward_form(plan, head, &form, entries).await;
        }
        let mut parsed = parsed.json;
        let (mut answer, mut outcomes) = if plan.fails_all(entries) {
            // Nothing is forwarded: SQS would refuse a request without entries.
            (text_answer(200, String::new()), json!({"Successful": [], "Failed": []}))
        } else {
            retain_positions(&mut parsed["Entries"], |position| !plan.fails(position));
            self.note(|request| request.forwarded = true);
            let (status, mut answer, body) =
                self.shared.upstream.forward(head, Bytes::from(parsed.to_string())).await?;
            if status != StatusCode::OK {
                *answer.body_mut() = Full::new(body);
                return Ok(answer);
            }
            (answer, serde_json::from_slice(&body)?)
        };
        add_failures(&mut outcomes, &plan.failures, entries);
        if plan.numbers_fall {
            turn_numbers(&mut outcomes)?;
        }
        for list in ["Successful", "Failed"] {
            let omitted = plan.omitted.iter().filter_map(|&position| entries.get(position));
            let omitted: Vec<_> = omitted.map(|entry| entry.id.as_str()).collect();
            if let Some(outcomes) = outcomes[list].as_array_mut() {
                outcomes.retain(|outcome| outcome["Id"].as_str().is_none_or(|id| !omitted.contains(&id)));
            }
        }
        *answer.body_mut() = Full::new(Bytes::from(outcomes.to_string()));
        Ok(answer)
    }

    /// The same for a PublishBatch, of which only entries can fail.
    async fn forward_form(
        &self,
        plan: &Plan,
        head: hyper::http::request::Parts,
        form: &Form,
        entries: &[Entry],
    ) -> Result<Answer> {
        if !plan.omitted.is_empty() || plan.numbers_fall {
            bail!("this fault is not known for SNS");
        }
        if plan.fails_all(entries) {
            return Ok(text_answer(200, sns::with_failures(sns::NOTHING_SAID, &plan.failures, entries)));
        }
        self.note(|request| request.forwarded = true);
        let rest = Bytes::from(form.without(&plan.failures));
        let (_, mut answer, body) = self.shared.upstream.forward(head, rest).await?;
        let body = sns::with_failures(std::str::from_utf8(&body)?, &plan.failures, entries);
        *answer.body_mut() = Full::new(Bytes::from(body));
        Ok(answer)
    }

    /// Waits for the next release.
    async fn hold(&mut self) -> Result<()> {
        let _held = Held::enter(self.shared);
        tokio::time::timeout(HOLD_TIMEOUT, self.releases.changed()).await??;
        Ok(())
    }

    fn note(&self, change: impl FnOnce(&mut Request)) {
        if let Some(number) = self.number {
            self.shared.note(|journal| journal.request(number).map(change));
        }
    }
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        if self.number.is_some() {
            self.note(|request| request.ended_at = Some(Instant::now()));
            self.shared.note(|journal| journal.in_flight -= 1);
        }
    }
}

/// A request that waits for its release. It stops waiting when its sender disconnects.
struct Held<'a>(&'a Shared);

impl<'a> Held<'a> {
    fn enter(shared: &'a Shared) -> Held<'a> {
        shared.note(|journal| journal.held += 1);
        Held(shared)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.note(|journal| journal.held -= 1);
    }
}

impl Plan {
    fn fails(&self, position: usize) -> bool {
        self.failures.iter().any(|failure| failure.position == position)
    }

    fn fails_all(&self, entries: &[Entry]) -> bool {
        (0..entries.len()).all(|position| self.fails(position))
    }
}

fn retain_positions(list: &mut Value, keep: impl Fn(usize) -> bool) {
    if let Some(list) = list.as_array_mut() {
        let mut positions = 0..;
        list.retain(|_| positions.next().is_some_and(&keep));
    }
}

/// The later the message, the lower its number.
fn turn_numbers(outcomes: &mut Value) -> Result<()> {
    const ABOVE_ALL: u128 = 10_u128.pow(30);
    for accepted in outcomes["Successful"].as_array_mut().into_iter().flatten() {
        let number: u128 = accepted["SequenceNumber"].as_str().context("it has no number")?.parse()?;
        accepted["SequenceNumber"] = (ABOVE_ALL - number).to_string().into();
    }
    Ok(())
}

fn add_failures(outcomes: &mut Value, failures: &[Failure], entries: &[Entry]) {
    let failed = failures.iter().filter_map(|failure| {
        let id = &entries.get(failure.position)?.id;
        let message = "from the fault proxy";
        Some(json!({"Id": id, "Code": failure.code, "SenderFault": failure.sender_fault, "Message": message}))
    });
    if let Some(list) = outcomes["Failed"].as_array_mut() {
        list.extend(failed);
    } else {
        outcomes["Failed"] = failed.collect();
    }
}

fn error_answer(error: ErrorAnswer) -> Answer {
    let body = match error.kind {
        "" => json!({"message": error.message}),
        kind => json!({"__type": kind, "message": error.message}),
    };
    let mut answer = text_answer(error.status, body.to_string());
    if !error.query_error.is_empty() {
        let code = hyper::header::HeaderValue::from_static(error.query_error);
        answer.headers_mut().insert("x-amzn-query-error", code);
    }
    answer
}

fn text_answer(status: u16, body: String) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let kind = hyper::header::HeaderValue::from_static("application/x-amz-json-1.0");
    answer.headers_mut().insert(CONTENT_TYPE, kind);
    answer
}
