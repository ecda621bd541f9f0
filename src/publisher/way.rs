//! The way to an endpoint, step by step: name, proxy, connection, TLS. The SDK would say only that a request failed.
//!
//! With a proxy the first steps are those to the proxy, which looks up the name of the endpoint itself; TLS goes through
//! its tunnel.

use std::io::{Error, ErrorKind};
use std::net::{IpAddr, SocketAddr};

use futures_util::future::select_ok;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;

use super::certificate;
use super::endpoint;
use crate::aws::http::{self, Proxy};
use crate::way::{Address, LIMIT, Step, Trouble};

/// The longest head of a proxy's answer.
const MAX_HEAD: usize = 16 * 1024;

/// Goes to the endpoint at this URL, trusting this bundle of certificates or the system's. If a step fails, it is the last.
pub async fn walk(url: &str, ca_bundle: Option<&[u8]>) -> Vec<Step> {
    let mut steps = Steps::default();
    // The trouble is in the last step.
    steps.go(url, ca_bundle).await.unwrap_or_default();
    steps.0
}

/// The steps so far.
#[derive(Default)]
struct Steps(Vec<Step>);

impl Steps {
    async fn go(&mut self, url: &str, ca_bundle: Option<&[u8]>) -> Option<()> {
        let target = endpoint::address_of(url);
        let proxy = http::proxy_of(url);
        let (first, whose) = match &proxy {
            Some(proxy) => (&proxy.address, "the proxy "),
            None => (&target, ""),
        };
        let where_named = match &proxy {
            Some(_) => "HTTPS_PROXY, HTTP_PROXY or ALL_PROXY",
            None => "the queue URL or AWS_ENDPOINT_URL_SQS",
        };
        let addresses = match first.host.parse::<IpAddr>() {
            Ok(address) => vec![SocketAddr::new(address, first.port)],
            Err(_) => self.note(format!("name of {whose}{}", first.host), resolve(first, where_named).await)?,
        };
        let mut stream = self.note(format!("connection to {whose}{first}"), connect(&addresses).await)?;
        if url.starts_with("http://") {
            return Some(());
        }
        if let Some(proxy) = &proxy {
            self.note(format!("tunnel to {target}"), tunnel(&mut stream, &target, proxy).await)?;
        }
        let shaken = certificate::handshake(stream, &target.host, ca_bundle).await;
        self.note(format!("TLS of {target}"), shaken.map(|says| ((), says)))
    }

    /// Notes what a step says; returns what it found.
    fn note<T>(&mut self, what: String, found: Result<(T, String), Trouble>) -> Option<T> {
        match found {
            Ok((value, says)) => {
                self.0.push(Step { what, result: Ok(says) });
                Some(value)
            }
            Err(trouble) => {
                self.0.push(Step { what, result: Err(trouble) });
                None
            }
        }
    }
}

async fn resolve(address: &Address, where_named: &str) -> Result<(Vec<SocketAddr>, String), Trouble> {
    let remedy = format!("check the name in {where_named}, and the DNS of this host");
    let found = match timeout(LIMIT, lookup_host((address.host.as_str(), address.port))).await {
        Ok(Ok(found)) => found.collect::<Vec<_>>(),
        Ok(Err(error)) => return Err(Trouble::new(format!("cannot be resolved: {error}"), remedy)),
        Err(_) => return Err(Trouble::new(format!("cannot be resolved within {LIMIT:?}"), remedy)),
    };
    if found.is_empty() {
        return Err(Trouble::new("has no address", remedy));
    }
    let shown: Vec<String> = found.iter().map(|address| address.ip().to_string()).collect();
    Ok((found, format!("resolves to {}", shown.join(", "))))
}

/// Connects to the address that answers first.
async fn connect(addresses: &[SocketAddr]) -> Result<(TcpStream, String), Trouble> {
    let attempts = addresses.iter().map(|&address| {
        Box::pin(async move {
            TcpStream::connect(address).await.map(|stream| (stream, address)).map_err(|error| (address, error))
        })
    });
    match timeout(LIMIT, select_ok(attempts)).await {
        Ok(Ok(((stream, address), _))) => Ok((stream, format!("{} accepts it", address.ip()))),
        Ok(Err((address, error))) => Err(not_connected(address, &error)),
        Err(_) => Err(no_answer(addresses)),
    }
}

fn not_connected(address: SocketAddr, error: &Error) -> Trouble {
    match error.kind() {
        ErrorKind::ConnectionRefused => Trouble::new(
            format!("refused by {address}"),
            "nothing listens there, or a firewall refuses it; check host and port, and that the service runs",
        ),
        ErrorKind::TimedOut => no_answer(&[address]),
        _ => Trouble::new(format!("not possible to {address}: {error}"), "check the routes and firewalls of this host"),
    }
}

fn no_answer(addresses: &[SocketAddr]) -> Trouble {
    let shown: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    Trouble::new(
        format!("no answer from {} within {LIMIT:?}", shown.join(", ")),
        "let this host get there (security group, network ACL, route, VPC endpoint), or set HTTPS_PROXY",
    )
}

/// Has the proxy connect to the endpoint.
async fn tunnel(stream: &mut TcpStream, target: &Address, proxy: &Proxy) -> Result<((), String), Trouble> {
    let authorization = proxy.authorization.as_ref();
    let authorization = authorization.map(|value| format!("Proxy-Authorization: {value}\r\n")).unwrap_or_default();
    let request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{authorization}\r\n");
    let remedy = format!("let the proxy connect to {target}, or except it with NO_PROXY");
    let answer = match timeout(LIMIT, ask(stream, request.as_bytes())).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return Err(Trouble::new(format!("the proxy does not answer: {error}"), remedy)),
        Err(_) => return Err(Trouble::new(format!("the proxy does not answer within {LIMIT:?}"), remedy)),
    };
    let status = answer.lines().next().and_then(|line| line.split_once(' ')).map_or("", |(_, status)| status.trim());
    match status.get(..3) {
        Some(code) if code.starts_with('2') => Ok(((), "opened by the proxy".to_owned())),
        Some("407") => Err(Trouble::new(
            "the proxy wants a user and a password, or does not accept these (407)",
            "set HTTPS_PROXY=http://USER:PASSWORD@HOST:PORT, with percent signs for odd characters",
        )),
        _ => Err(Trouble::new(format!("the proxy answers {:?}", status.chars().take(60).collect::<String>()), remedy)),
    }
}

/// The head of the answer.
async fn ask(stream: &mut TcpStream, request: &[u8]) -> Result<String, Error> {
    stream.write_all(request).await?;
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") && head.len() < MAX_HEAD {
        if stream.read_buf(&mut head).await? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}
