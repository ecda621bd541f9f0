//! The stand-in for SQS: answers SendMessageBatch as fast as asked for, checks and counts what it receives.
//!
//! It is a separate process, so that its share of the processor can be measured, and so that any program can send to
//! it: `stand-in AUTHORITY` writes the certificate to trust into the file AUTHORITY, and one line of JSON with its
//! addresses to its standard output. It speaks HTTP/1.1 and keeps connections, as SQS does, on one port with TLS and on
//! another without. `handle` starts it for the bench. It keeps only the time at which each number was accepted and the
//! last number of each group. It knows no rule of the relay: entries that break a limit of SQS, come twice or out of
//! order are counted, never refused, and the bench judges. `query` reads the older form of requests, for clients that
//! still send it.

mod handle;
mod ledger;
mod query;

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
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
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::LocalSet;
use tokio_rustls::TlsAcceptor;

use support::proxy::lognormal;
use support::tls_front::Identity;

use ledger::Ledger;

pub use handle::{ByWire, Counts, Outage, StandIn, Wire};

/// Below the SequenceNumber of every message; SQS gives numbers of twenty digits, beyond 64 bits.
const FIRST_NUMBER: u128 = 18_849_496_460_467_696_128;

/// The most entries of a request (SQS quotas: SendMessageBatch).
const MOST_ENTRIES: usize = 10;
const MOST_BYTES: usize = 1_048_576;

/// Where it listens: URLs without a path.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Addresses {
    pub https: String,
    pub plain: String,
}

/// Serves until its standard input ends, so that it never outlives the bench. The certificate to trust is written to
/// this file in PEM.
pub fn serve(authority: &Path) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        let Identity { acceptor, authority: pem } = Identity::of(&["127.0.0.1", "localhost"])?;
        std::fs::write(authority, pem).with_context(|| format!("cannot write {}", authority.display()))?;
        let (https, plain) = (TcpListener::bind("127.0.0.1:0").await?, TcpListener::bind("127.0.0.1:0").await?);
        let addresses = Addresses {
            https: format!("https://{}", https.local_addr()?),
            plain: format!("http://{}", plain.local_addr()?),
        };
        let mut output = std::io::stdout();
        writeln!(output, "{}", serde_json::to_string(&addresses)?)?;
        output.flush()?;
        let ledger = Rc::new(RefCell::new(Ledger::default()));
        let ended = async { tokio::io::copy(&mut tokio::io::stdin(), &mut tokio::io::sink()).await.map(drop) };
        tokio::select! {
            failed = listen(https, Some(acceptor), &ledger) => failed,
            failed = listen(plain, None, &ledger) => failed,
            ended = ended => Ok(ended?),
        }
    })
}

/// Serves connections, with TLS if there is an acceptor.
async fn listen(listener: TcpListener, acceptor: Option<TlsAcceptor>, ledger: &Rc<RefCell<Ledger>>) -> Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let (acceptor, ledger) = (acceptor.clone(), Rc::clone(ledger));
        tokio::task::spawn_local(async move {
            // A client that disconnects is no failure.
            match acceptor {
                Some(acceptor) => match acceptor.accept(stream).await {
                    Ok(stream) => converse(stream, "https", ledger).await.ok(),
                    Err(_) => None,
                },
                None => converse(stream, "http", ledger).await.ok(),
            }
        });
    }
}

async fn converse<S>(stream: S, scheme: &'static str, ledger: Rc<RefCell<Ledger>>) -> hyper::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let service = service_fn(move |request| answer(request, scheme, Rc::clone(&ledger)));
    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await
}

async fn answer(
    request: Request<Incoming>,
    scheme: &'static str,
    ledger: Rc<RefCell<Ledger>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path().to_owned();
    let target = request.headers().get("x-amz-target").and_then(|value| value.to_str().ok()).map(str::to_owned);
    let key = access_key(&request);
    let host = request.headers().get("host").and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned();
    let Ok(body) = request.into_body().collect().await.map(|body| body.to_bytes()) else {
        return Ok(reply(400, "application/json", Bytes::new()));
    };
    Ok(match (path.as_str(), target.as_deref()) {
        ("/reset", _) => match reset(&body, &ledger) {
            Some(()) => reply(200, "application/json", Bytes::from_static(b"{}")),
            None => reply(400, "application/json", Bytes::new()),
        },
        ("/counts", _) => reply(200, "application/json", ledger.borrow().counts().into()),
        ("/by-key", _) => {
            reply(200, "application/json", serde_json::to_vec(&ledger.borrow().by_key).unwrap_or_default().into())
        }
        ("/accepted", _) => reply(200, "application/octet-stream", ledger.borrow().accepted()),
        ("/outage", _) => {
            ledger.borrow_mut().refuses = body == "on";
            reply(200, "application/json", Bytes::from_static(b"{}"))
        }
        (_, Some("AmazonSQS.SendMessageBatch")) => {
            if !wait_as_sqs(&ledger).await {
                return Ok(refuse(503, "com.amazonaws.sqs#ServiceUnavailable"));
            }
            match accept(&body, key, &mut ledger.borrow_mut()) {
                Some(answer) => reply(200, "application/x-amz-json-1.0", answer.into()),
                None => refuse(400, "com.amazonaws.sqs#InvalidParameterValue"),
            }
        }
        (_, None) => query::answer(&body, &ledger).await,
        (_, Some("AmazonSQS.GetQueueUrl")) => get_queue_url(&body, &format!("{scheme}://{host}")),
        _ => refuse(400, "com.amazonaws.sqs#UnsupportedOperation"),
    })
}

/// The access key that signed a request (AWS Signature Version 4): `Credential=KEY/20261130/…`.
fn access_key(request: &Request<Incoming>) -> Option<String> {
    let authorization = request.headers().get("authorization")?.to_str().ok()?;
    let credential = authorization.split_once("Credential=")?.1;
    Some(credential.split('/').next()?.to_owned())
}

/// Waits for as long as SQS takes to answer; false if it is to refuse.
async fn wait_as_sqs(ledger: &RefCell<Ledger>) -> bool {
    let median = ledger.borrow().median;
    let pause = lognormal(median, &mut ledger.borrow_mut().dice);
    if !pause.is_zero() {
        tokio::time::sleep(pause).await;
    }
    !ledger.borrow().refuses
}

fn reply(status: u16, kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = hyper::StatusCode::from_u16(status).unwrap_or(hyper::StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert("content-type", hyper::header::HeaderValue::from_static(kind));
    response
}

fn refuse(status: u16, code: &str) -> Response<Full<Bytes>> {
    reply(status, "application/x-amz-json-1.0", json!({ "__type": code, "message": "the stand-in" }).to_string().into())
}

fn get_queue_url(body: &[u8], endpoint: &str) -> Response<Full<Bytes>> {
    let name =
        serde_json::from_slice::<Value>(body).ok().and_then(|body| body["QueueName"].as_str().map(str::to_owned));
    let Some(name) = name else { return refuse(400, "com.amazonaws.sqs#InvalidParameterValue") };
    let url = json!({ "QueueUrl": format!("{endpoint}/000000000000/{name}") });
    reply(200, "application/x-amz-json-1.0", url.to_string().into())
}

/// Forgets everything; the body says how long an answer takes, how many numbers will come, and in how many keys.
fn reset(body: &[u8], ledger: &RefCell<Ledger>) -> Option<()> {
    let wanted: Value = serde_json::from_slice(body).ok()?;
    let median = Duration::from_micros(wanted["median_us"].as_u64()?);
    let numbers = usize::try_from(wanted["numbers"].as_u64()?).ok()?;
    *ledger.borrow_mut() = Ledger::of(numbers, median, wanted["keys"].as_u64()?);
    Some(())
}

/// The parts of a request that the stand-in looks at. Borrowed if possible, so that it uses little of the cores.
#[derive(Deserialize)]
struct SendMessageBatch<'a> {
    #[serde(rename = "QueueUrl", borrow)]
    queue_url: Cow<'a, str>,
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
    #[serde(borrow)]
    message_deduplication_id: Option<Cow<'a, str>>,
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

fn micros_since_1970() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_micros() as u64
}

fn accept(body: &[u8], key: Option<String>, ledger: &mut Ledger) -> Option<Vec<u8>> {
    let SendMessageBatch { queue_url, entries } = serde_json::from_slice(body).ok()?;
    let now = micros_since_1970();
    let mut answer = String::with_capacity(64 + 256 * entries.len());
    answer.push_str("{\"Failed\":[],\"Successful\":[");
    let (mut bytes, mut ids) = (0, Vec::with_capacity(entries.len()));
    for entry in &entries {
        bytes += entry.message_body.len() + entry.message_attributes.iter().map(size_of_attribute).sum::<usize>();
        let deduplication = entry.message_deduplication_id.as_deref();
        let fifo = queue_url.ends_with(".fifo").then(|| deduplication.unwrap_or(&entry.message_body));
        ledger.note_entry(number_in(&entry.message_body), entry.message_group_id.as_deref(), fifo, now);
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
            write!(answer, ",\"SequenceNumber\":\"{}\"", FIRST_NUMBER + u128::from(ledger.sequence)).ok()?;
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
    *ledger.by_key.entry(key.unwrap_or_default()).or_default() += entries.len() as u64;
    ledger.note_request();
    Some(answer.into_bytes())
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
