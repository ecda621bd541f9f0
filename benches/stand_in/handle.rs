//! How the bench starts the stand-in, says how slow it is, and asks what it received.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::Request;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::Addresses;

/// How a client reaches it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wire {
    /// With TLS, as SQS is reached.
    Https,
    /// Without, to see what TLS costs.
    Plain,
}

impl Wire {
    pub const BOTH: [Wire; 2] = [Wire::Https, Wire::Plain];
}

/// What changes about an outage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outage {
    Begins,
    Ends,
}

/// Something for each way to reach it.
#[derive(Clone, Copy, Debug, Default)]
pub struct ByWire<T> {
    pub https: T,
    pub plain: T,
}

impl<T> ByWire<T> {
    /// That of this way.
    pub fn of(&mut self, wire: Wire) -> &mut T {
        match wire {
            Wire::Https => &mut self.https,
            Wire::Plain => &mut self.plain,
        }
    }

    /// The result of a function for each.
    pub fn map<R>(&self, result: impl Fn(&T) -> R) -> ByWire<R> {
        ByWire { https: result(&self.https), plain: result(&self.plain) }
    }
}

/// The bench's handle of the stand-in.
#[derive(Debug)]
pub struct StandIn {
    child: std::process::Child,
    addresses: Addresses,
    folder: TempDir,
}

/// What the stand-in counted.
#[derive(Clone, Copy, Debug)]
pub struct Counts {
    pub requests: u64,
    pub entries: u64,
    /// Entries whose number had been accepted before.
    pub duplicates: u64,
    /// Those of them that a FIFO queue drops.
    pub deduplicated: u64,
    pub order_breaks: u64,
    pub illegal: u64,
    pub first_at: u64,
    pub last_at: u64,
}

impl StandIn {
    /// Starts this program again, as the stand-in.
    pub fn start() -> Result<StandIn> {
        let folder = TempDir::new()?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("stand-in").arg(authority_in(&folder));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        let output = child.stdout.take().context("the stand-in has no output")?;
        BufReader::new(output).read_line(&mut line)?;
        let addresses = serde_json::from_str(&line).context("the stand-in did not start")?;
        Ok(StandIn { child, addresses, folder })
    }

    /// Its URL, without a path.
    pub fn endpoint(&self, wire: Wire) -> &str {
        match wire {
            Wire::Https => &self.addresses.https,
            Wire::Plain => &self.addresses.plain,
        }
    }

    /// The URL of the queue with this name.
    pub fn queue(&self, wire: Wire, name: &str) -> String {
        format!("{}/000000000000/{name}", self.endpoint(wire))
    }

    /// The file with the certificate to trust, in PEM.
    pub fn authority(&self) -> PathBuf {
        authority_in(&self.folder)
    }

    /// Forgets what was received; from now on an answer takes this long, and numbers up to this one may come.
    pub async fn reset(&self, median: Duration, numbers: u64) -> Result<()> {
        self.reset_keyed(median, numbers, 0).await
    }

    /// The same; numbers with the same remainder by `keys` must come in order, however the sender groups them.
    pub async fn reset_keyed(&self, median: Duration, numbers: u64, keys: u64) -> Result<()> {
        let body = json!({ "median_us": median.as_micros() as u64, "numbers": numbers, "keys": keys }).to_string();
        self.ask("/reset", body).await.map(drop)
    }

    /// Begins or ends an outage: every request is refused with status 503.
    pub async fn set_outage(&self, outage: Outage) -> Result<()> {
        let body = match outage {
            Outage::Begins => "on",
            Outage::Ends => "off",
        };
        self.ask("/outage", body.to_owned()).await.map(drop)
    }

    /// What was received.
    pub async fn counts(&self) -> Result<Counts> {
        let counts: Value = serde_json::from_slice(&self.ask("/counts", String::new()).await?)?;
        let count = |name: &str| counts[name].as_u64().with_context(|| format!("no {name} in {counts}"));
        Ok(Counts {
            requests: count("requests")?,
            entries: count("entries")?,
            duplicates: count("duplicates")?,
            deduplicated: count("deduplicated")?,
            order_breaks: count("order_breaks")?,
            illegal: count("illegal")?,
            first_at: count("first_at")?,
            last_at: count("last_at")?,
        })
    }

    /// How many entries came with each access key.
    pub async fn entries_by_key(&self) -> Result<BTreeMap<String, u64>> {
        Ok(serde_json::from_slice(&self.ask("/by-key", String::new()).await?)?)
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
        let stream = tokio::net::TcpStream::connect(self.addresses.plain.trim_start_matches("http://")).await?;
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

fn authority_in(folder: &TempDir) -> PathBuf {
    folder.path().join("authority.pem")
}

impl Drop for StandIn {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        self.child.wait().ok();
    }
}
