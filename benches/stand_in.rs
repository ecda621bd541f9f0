//! The stand-in for SQS: answers SendMessageBatch as fast as asked for, checks and counts what it receives.
//!
//! It is a separate process (`stand-in` as the first argument), so that its share of the processor can be measured. It
//! keeps only the time at which each number was accepted and the last number of each group. It knows no rule of the
//! relay: entries that break a limit of SQS, come twice or out of order are counted, never refused, and the bench
//! judges.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::fmt::Write as _;
use std::io::Write as _;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use md5::{Digest as _, Md5};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::LocalSet;

use support::proxy::lognormal;

/// Below the SequenceNumber of every message; SQS gives numbers of twenty digits, beyond 64 bits.
const FIRST_NUMBER: u128 = 18_849_496_460_467_696_128;

/// The most entries of a request (SQS quotas: SendMessageBatch).
const MOST_ENTRIES: usize = 10;
const MOST_BYTES: usize = 1_048_576;

/// What was received since the last reset.
#[derive(Debug, Default)]
struct Ledger {
    median: Duration,
    dice: fastrand::Rng,
    requests: u64,
    entries: u64,
    duplicates: u64,
    order_breaks: u64,
    illegal: u64,
    first_at: u64,
    last_at: u64,
    /// Microseconds since 1970 at which each number was accepted; 0 if it was not.
    accepted_at: Vec<u64>,
    last_of_group: HashMap<String, u64>,
}

/// Serves until its standard input ends, so that it never outlives the bench.
pub fn serve() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let mut output = std::io::stdout();
        writeln!(output, "http://{}", listener.local_addr()?)?;
        output.flush()?;
        let ledger = Rc::new(RefCell::new(Ledger::default()));
        let accept = async {
            loop {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                let ledger = Rc::clone(&ledger);
                tokio::task::spawn_local(async move {
                    let service = service_fn(move |request| answer(request, Rc::clone(&ledger)));
                    // A client that disconnects is no failure.
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await
                        .ok();
                });
            }
        };
        let ended = async { tokio::io::copy(&mut tokio::io::stdin(), &mut tokio::io::sink()).await.map(drop) };
        tokio::select! {
            failed = accept => failed,
            ended = ended => Ok(ended?),
        }
    })
}

async fn answer(request: Request<Incoming>, ledger: Rc<RefCell<Ledger>>) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let target = request.headers().get("x-amz-target").and_then(|value| value.to_str().ok()).map(str::to_owned);
    let Ok(body) = request.into_body().collect().await.map(|body| body.to_bytes()) else {
        return Ok(reply(400, "application/json", Bytes::new()));
    };
    Ok(match (path.as_str(), target.as_deref()) {
        ("/reset", _) => match reset(&body, &ledger) {
            Some(()) => reply(200, "application/json", Bytes::from_static(b"{}")),
            None => reply(400, "application/json", Bytes::new()),
        },
        ("/counts", _) => reply(200, "application/json", ledger.borrow().counts().into()),
        ("/accepted", _) => reply(200, "application/octet-stream", ledger.borrow().accepted()),
        (_, Some("AmazonSQS.SendMessageBatch")) => {
            let median = ledger.borrow().median;
            let pause = lognormal(median, &mut ledger.borrow_mut().dice);
            if !pause.is_zero() {
                tokio::time::sleep(pause).await;
            }
            match accept(&body, &mut ledger.borrow_mut()) {
                Some(answer) => reply(200, "application/x-amz-json-1.0", answer.into()),
                None => refuse("com.amazonaws.sqs#InvalidParameterValue"),
            }
        }
        (_, Some("AmazonSQS.GetQueueUrl")) => get_queue_url(&body),
        _ => refuse("com.amazonaws.sqs#UnsupportedOperation"),
    })
}

fn reply(status: u16, kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = hyper::StatusCode::from_u16(status).unwrap_or(hyper::StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert("content-type", hyper::header::HeaderValue::from_static(kind));
    response
}

fn refuse(code: &str) -> Response<Full<Bytes>> {
    reply(400, "application/x-amz-json-1.0", json!({ "__type": code, "message": "the stand-in" }).to_string().into())
}

fn get_queue_url(body: &[u8]) -> Response<Full<Bytes>> {
    let name =
        serde_json::from_slice::<Value>(body).ok().and_then(|body| body["QueueName"].as_str().map(str::to_owned));
    let Some(name) = name else { return refuse("com.amazonaws.sqs#InvalidParameterValue") };
    let url = json!({ "QueueUrl": format!("http://127.0.0.1/000000000000/{name}") });
    reply(200, "application/x-amz-json-1.0", url.to_string().into())
}

/// Forgets everything; the body says how long an answer takes and how many numbers will come.
fn reset(body: &[u8], ledger: &RefCell<Ledger>) -> Option<()> {
    let wanted: Value = serde_json::from_slice(body).ok()?;
    let median = Duration::from_micros(wanted["median_us"].as_u64()?);
    let numbers = usize::try_from(wanted["numbers"].as_u64()?).ok()?;
    *ledger.borrow_mut() = Ledger { median, accepted_at: vec![0; numbers + 1], ..Ledger::default() };
    Some(())
}

/// The parts of a request that the stand-in looks at. Borrowed if possible, so that it uses little of the cores.
#[derive(Deserialize)]
struct SendMessageBatch<'a> {
    #[serde(rename = "Entries", borrow)]
    entries: Vec<Entry<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry<'a> {
    #[serde(borrow)]
    id: Cow<'a, str>,
    #[serde(borrow)]
    message_body: Cow<'a, str>,
    #[serde(borrow)]
    message_group_id: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    message_attributes: BTreeMap<&'a str, Attribute<'a>>,
}

/// The bench sends only text.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Attribute<'a> {
    #[serde(borrow)]
    data_type: Cow<'a, str>,
    #[serde(borrow)]
    string_value: Cow<'a, str>,
}

fn accept(body: &[u8], ledger: &mut Ledger) -> Option<Vec<u8>> {
    let SendMessageBatch { entries } = serde_json::from_slice(body).ok()?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?.as_micros() as u64;
    let mut answer = String::with_capacity(64 + 256 * entries.len());
    answer.push_str("{\"Failed\":[],\"Successful\":[");
    let (mut bytes, mut ids) = (0, Vec::with_capacity(entries.len()));
    for entry in &entries {
        bytes += entry.message_body.len() + entry.message_attributes.iter().map(size_of_attribute).sum::<usize>();
        ledger.note(number_in(&entry.message_body), entry.message_group_id.as_deref(), now);
        let comma = if ids.is_empty() { "" } else { "," };
        // An id that a client may send to SQS needs no escapes.
        let id = entry.id.as_ref();
        let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        if !id.chars().all(is_plain) {
            return None;
        }
        let message_id = fastrand::u128(..);
        let digest = Hex(Md5::digest(entry.message_body.as_bytes()).into());
        write!(
            answer,
            "{comma}{{\"Id\":\"{id}\",\"MessageId\":\"{message_id:032x}\",\"MD5OfMessageBody\":\"{digest}\""
        )
        .ok()?;
        if !entry.message_attributes.is_empty() {
            let digest = md5_of_attributes(&entry.message_attributes);
            write!(answer, ",\"MD5OfMessageAttributes\":\"{digest}\"").ok()?;
        }
        if entry.message_group_id.is_some() {
            // As long as the numbers of SQS are.
            write!(answer, ",\"SequenceNumber\":\"{}\"", FIRST_NUMBER + u128::from(ledger.entries) + ids.len() as u128)
                .ok()?;
        }
        answer.push('}');
        ids.push(id);
    }
    answer.push_str("]}");
    ids.sort_unstable();
    ids.dedup();
    if ids.len() != entries.len() || entries.is_empty() || entries.len() > MOST_ENTRIES || bytes > MOST_BYTES {
        ledger.illegal += 1;
    }
    ledger.requests += 1;
    ledger.entries += entries.len() as u64;
    if ledger.first_at == 0 {
        ledger.first_at = now;
    }
    ledger.last_at = now;
    Some(answer.into_bytes())
}

impl Ledger {
    fn note(&mut self, number: Option<u64>, group: Option<&str>, now: u64) {
        let Some(number) = number else {
            self.illegal += 1;
            return;
        };
        match usize::try_from(number).ok().and_then(|index| self.accepted_at.get_mut(index)) {
            Some(at) if *at == 0 => *at = now,
            Some(_) => self.duplicates += 1,
            None => self.illegal += 1,
        }
        if let Some(group) = group {
            match self.last_of_group.get_mut(group) {
                Some(last) if *last > number => self.order_breaks += 1,
                Some(last) => *last = number,
                None => drop(self.last_of_group.insert(group.to_owned(), number)),
            }
        }
    }

    fn counts(&self) -> String {
        json!({
            "requests": self.requests, "entries": self.entries, "duplicates": self.duplicates,
            "order_breaks": self.order_breaks, "illegal": self.illegal, "first_at": self.first_at, "last_at": self.last_at,
        })
        .to_string()
    }

    fn accepted(&self) -> Bytes {
        self.accepted_at.iter().flat_map(|at| at.to_le_bytes()).collect()
    }
}

/// Bodies of the bench begin with `{"n": 1`, as PostgreSQL writes jsonb; shorter keys come first.
fn number_in(body: &str) -> Option<u64> {
    let rest = body.split_once("\"n\":")?.1.trim_start();
    let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
    rest.get(..digits)?.parse().ok()
}

fn size_of_attribute((name, attribute): (&&str, &Attribute<'_>)) -> usize {
    name.len() + attribute.data_type.len() + attribute.string_value.len()
}

/// Names in order, each part preceded by its length (SQS developer guide, "Calculating the MD5 message digest for
/// message attributes").
fn md5_of_attributes(attributes: &BTreeMap<&str, Attribute<'_>>) -> Hex {
    let mut digest = Md5::new();
    let part = |digest: &mut Md5, text: &str| {
        digest.update((text.len() as u32).to_be_bytes());
        digest.update(text);
    };
    for (name, attribute) in attributes {
        part(&mut digest, name);
        part(&mut digest, &attribute.data_type);
        digest.update([1]);
        part(&mut digest, &attribute.string_value);
    }
    Hex(digest.finalize().into())
}

/// An MD5 in hexadecimal digits.
struct Hex([u8; 16]);

impl std::fmt::Display for Hex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

/// The bench's handle of the stand-in.
#[derive(Debug)]
pub struct StandIn {
    child: std::process::Child,
    /// Where it listens.
    pub endpoint: String,
}

/// What the stand-in counted.
#[derive(Clone, Copy, Debug)]
pub struct Counts {
    pub requests: u64,
    pub entries: u64,
    pub duplicates: u64,
    pub order_breaks: u64,
    pub illegal: u64,
    pub first_at: u64,
    pub last_at: u64,
}

impl StandIn {
    /// Starts this program again, as the stand-in.
    pub fn start() -> Result<StandIn> {
        use std::io::BufRead as _;
        use std::process::Stdio;
        let mut command = std::process::Command::new(std::env::current_exe()?);
        let mut child = command.arg("stand-in").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        let output = child.stdout.take().context("the stand-in has no output")?;
        std::io::BufReader::new(output).read_line(&mut line)?;
        let endpoint = line.trim().to_owned();
        anyhow::ensure!(endpoint.starts_with("http://"), "the stand-in did not start");
        Ok(StandIn { child, endpoint })
    }

    /// Forgets what was received; from now on an answer takes this long, and numbers up to this one may come.
    pub async fn reset(&self, median: Duration, numbers: u64) -> Result<()> {
        let body = json!({ "median_us": median.as_micros() as u64, "numbers": numbers }).to_string();
        self.ask("/reset", body).await.map(drop)
    }

    /// What was received.
    pub async fn counts(&self) -> Result<Counts> {
        let counts: Value = serde_json::from_slice(&self.ask("/counts", String::new()).await?)?;
        let count = |name: &str| counts[name].as_u64().with_context(|| format!("no {name} in {counts}"));
        Ok(Counts {
            requests: count("requests")?,
            entries: count("entries")?,
            duplicates: count("duplicates")?,
            order_breaks: count("order_breaks")?,
            illegal: count("illegal")?,
            first_at: count("first_at")?,
            last_at: count("last_at")?,
        })
    }

    /// When each number was accepted, in microseconds since 1970, from number 0; 0 if it was not.
    pub async fn accepted(&self) -> Result<Vec<u64>> {
        let bytes = self.ask("/accepted", String::new()).await?;
        Ok(bytes
            .chunks_exact(8)
            .map(|chunk| chunk.iter().rev().fold(0, |all, byte| all << 8 | u64::from(*byte)))
            .collect())
    }

    async fn ask(&self, path: &str, body: String) -> Result<Bytes> {
        let stream = tokio::net::TcpStream::connect(self.endpoint.trim_start_matches("http://")).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let connection = tokio::spawn(connection);
        let request = Request::post(path).header("host", "stand-in").body(Full::new(Bytes::from(body)))?;
        let response = sender.send_request(request).await?;
        anyhow::ensure!(response.status().is_success(), "the stand-in answered {} to {path}", response.status());
        let body = response.into_body().collect().await?.to_bytes();
        drop(sender);
        connection.await??;
        Ok(body)
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        self.child.wait().ok();
    }
}
