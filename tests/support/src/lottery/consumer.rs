//! The consumers of the queues: receivers that record every message.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::ledger::Receipt;
use crate::emulator::{Queues, Received};

/// How long one request waits for a message at an empty queue.
const LONG_POLL: Duration = Duration::from_secs(1);

/// Receivers for each queue.
const RECEIVERS: usize = 3;

/// What was received from one queue.
#[derive(Debug, Default)]
pub struct Inbox(Mutex<Notes>);

#[derive(Debug, Default)]
struct Notes {
    receipts: Vec<Receipt>,
    tickets: HashSet<u64>,
}

impl Inbox {
    /// How many different tickets have arrived. A duplicate does not count as progress.
    pub fn tickets(&self) -> usize {
        self.notes().tickets.len()
    }

    /// Whether this ticket has arrived.
    pub fn has(&self, ticket: u64) -> bool {
        self.notes().tickets.contains(&ticket)
    }

    /// Everything that arrived, duplicates included.
    pub fn receipts(&self) -> Vec<Receipt> {
        self.notes().receipts.clone()
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts receivers for a queue; they end when `stop` is cancelled.
pub fn receive(
    endpoint: &str,
    queue_url: &str,
    inbox: &Arc<Inbox>,
    clock: Instant,
    stop: &CancellationToken,
) -> JoinSet<Result<()>> {
    let read = |message: Received, at| std::future::ready(receipt(&message, at));
    receive_as(read, endpoint, queue_url, inbox, clock, stop)
}

/// Starts receivers for a queue whose messages are read by a function, which gets each with the time of its arrival.
pub fn receive_as<F, R>(
    read: F,
    endpoint: &str,
    queue_url: &str,
    inbox: &Arc<Inbox>,
    clock: Instant,
    stop: &CancellationToken,
) -> JoinSet<Result<()>>
where
    F: Fn(Received, Duration) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Result<Receipt>> + Send,
{
    let mut receivers = JoinSet::new();
    let queues = Queues::new(endpoint);
    for _ in 0..RECEIVERS {
        let (queues, queue_url, inbox, stop) = (queues.clone(), queue_url.to_owned(), Arc::clone(inbox), stop.clone());
        let read = read.clone();
        receivers.spawn(async move {
            while !stop.is_cancelled() {
                let batch = queues.receive(&queue_url, LONG_POLL).await?;
                if batch.is_empty() {
                    continue;
                }
                let at = clock.elapsed();
                let (mut handles, mut receipts) = (Vec::new(), Vec::new());
                for (handle, message) in batch {
                    handles.push(handle);
                    receipts.push(read(message, at).await?);
                }
                {
                    let mut notes = inbox.notes();
                    notes.tickets.extend(receipts.iter().map(|receipt| receipt.ticket));
                    notes.receipts.extend(receipts);
                }
                queues.delete_messages(&queue_url, &handles).await?;
            }
            Ok(())
        });
    }
    receivers
}

/// Reads a message as any consumer would: the body is the event, and the attributes identify it.
pub fn receipt(message: &Received, at: Duration) -> Result<Receipt> {
    let body: serde_json::Value = serde_json::from_str(&message.body).context("a body that is not JSON")?;
    let attribute = |name: &str| message.attributes.get(name).with_context(|| format!("no attribute {name}"));
    Ok(Receipt {
        ticket: body["ticket"].as_u64().context("a body without ticket")?,
        draw: match &message.group_id {
            Some(group_id) => group_id.clone(),
            None => attribute("stream_id")?.clone(),
        },
        version: attribute("stream_version")?.parse()?,
        sequence: message.sequence_number.as_deref().map(str::parse).transpose()?,
        at,
    })
}
