//! The consumers: each reads the messages of its destination as an application would.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::business::{is_large, receipt_text};
use crate::destinations::{Destination, Kind};
use support::emulator;
use support::emulator::{Buckets, Received};
use support::lottery::consumer;
use support::lottery::ledger::Receipt;

/// The version of a message whose body is not what was written. No purchase has it, so the ledger counts a phantom.
const ALTERED: u64 = 0;

/// Starts the receivers of a destination.
pub fn receive(destination: &Destination, clock: Instant, stop: &CancellationToken) -> Result<JoinSet<Result<()>>> {
    let Destination { kind, queue_url, bucket, inbox, .. } = destination;
    let endpoint = emulator()?.endpoint();
    let bucket = Arc::new(Bucket { buckets: Buckets::new(endpoint), name: bucket.clone() });
    let read = move |message, at| read(Arc::clone(&bucket), message, at);
    Ok(match kind {
        Kind::Receipts => consumer::receive_as(read, endpoint, queue_url, inbox, clock, stop),
        Kind::Reminders => {
            let read = |message: Received, at| std::future::ready(reminder(&message, at));
            consumer::receive_as(read, endpoint, queue_url, inbox, clock, stop)
        }
        _ => consumer::receive(endpoint, queue_url, inbox, clock, stop),
    })
}

struct Bucket {
    buckets: Buckets,
    name: String,
}

impl Bucket {
    /// The body that a message points to, as Amazon's libraries find it.
    async fn body(&self, pointer: &str, size: &str) -> Result<String> {
        let pointer: Value = serde_json::from_str(pointer)?;
        ensure!(pointer[0] == "software.amazon.payloadoffloading.PayloadS3Pointer", "no pointer: {pointer}");
        ensure!(pointer[1]["s3BucketName"].as_str() == Some(&self.name), "another bucket: {pointer}");
        let key = pointer[1]["s3Key"].as_str().context("a pointer without key")?;
        let body = self.buckets.object(&self.name, key).await.with_context(|| format!("the object {key}"))?;
        ensure!(size == body.len().to_string(), "{size} instead of {}", body.len());
        Ok(String::from_utf8(body)?)
    }
}

/// A receipt: a text, or the pointer to one, that must be the same byte for byte.
async fn read(bucket: Arc<Bucket>, message: Received, at: Duration) -> Result<Receipt> {
    let ticket: u64 = message.attributes.get("ticket").context("a receipt without ticket")?.parse()?;
    let draw = message.group_id.clone().context("a receipt without group")?;
    let size = message.attributes.get("ExtendedPayloadSize");
    ensure!(size.is_some() == is_large(ticket), "the receipt of {ticket} is where it does not belong: {size:?}");
    let text = match size {
        Some(size) => bucket.body(&message.body, size).await?,
        None => message.body,
    };
    let number = text.split("number=\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap_or_default();
    let number: u64 = number.parse().unwrap_or(ALTERED);
    let version = if text == receipt_text(ticket, &draw, number) { number } else { ALTERED };
    let sequence = message.sequence_number.as_deref().map(str::parse).transpose()?;
    Ok(Receipt { ticket, draw, version, sequence, at })
}

fn reminder(message: &Received, at: Duration) -> Result<Receipt> {
    let body: Value = serde_json::from_str(&message.body).context("a reminder that is not JSON")?;
    Ok(Receipt {
        ticket: body["ticket"].as_u64().context("a reminder without ticket")?,
        draw: body["draw"].as_str().unwrap_or_default().to_owned(),
        version: body["number"].as_u64().unwrap_or(ALTERED),
        sequence: None,
        at,
    })
}
