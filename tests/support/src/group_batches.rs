//! A FIFO queue that hands out several messages of a group at once, as SQS does. The emulator hands out only one.
//!
//! It implements ReceiveMessage and DeleteMessage, and serves the messages that a relay has sent to a queue of the
//! emulator.

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use axum::Router;
use axum::extract::State;
use axum::http::HeaderMap;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::emulator::Received;

/// The most messages that one ReceiveMessage returns (SQS quotas).
const MAX_RECEIVED: usize = 10;

/// After this time a message that was received and not deleted is handed out again.
const VISIBILITY: Duration = Duration::from_secs(1);

/// How long a ReceiveMessage that finds nothing waits before its empty answer. In SQS it waits longer.
const LONG_POLL: Duration = Duration::from_millis(50);

struct Held {
    message: Received,
    receipt: String,
    hidden_until: Option<Instant>,
}

type Messages = Arc<Mutex<Vec<Held>>>;

/// The queue. Its server ends when this is dropped.
pub struct GroupBatches {
    endpoint: String,
    messages: Messages,
    server: JoinHandle<()>,
}

impl GroupBatches {
    /// Serves these messages in the order in which their queue accepted them.
    pub async fn start(mut messages: Vec<Received>) -> Result<GroupBatches> {
        messages.sort_by(|one, other| one.sequence_number.cmp(&other.sequence_number));
        let held =
            |(number, message): (usize, Received)| Held { message, receipt: number.to_string(), hidden_until: None };
        let messages: Messages = Arc::new(Mutex::new(messages.into_iter().enumerate().map(held).collect()));
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let endpoint = format!("http://{}", listener.local_addr()?);
        let routes = Router::new().fallback(answer).with_state(Arc::clone(&messages));
        let server = tokio::spawn(async move {
            // Only an abort ends it.
            axum::serve(listener, routes).await.ok();
        });
        Ok(GroupBatches { endpoint, messages, server })
    }

    /// The address that it listens on.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// The queue's URL.
    pub fn queue_url(&self) -> String {
        format!("{}/000000000000/sales.fifo", self.endpoint)
    }

    /// How many messages have not been deleted.
    pub fn left(&self) -> usize {
        self.messages.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

impl Drop for GroupBatches {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn answer(State(messages): State<Messages>, headers: HeaderMap, body: String) -> String {
    let what = headers.get("x-amz-target").and_then(|value| value.to_str().ok()).unwrap_or_default();
    if what.ends_with("DeleteMessage") {
        let wanted: Value = serde_json::from_str(&body).unwrap_or_default();
        let mut messages = messages.lock().unwrap_or_else(PoisonError::into_inner);
        messages.retain(|held| wanted["ReceiptHandle"] != held.receipt.as_str());
        return json!({}).to_string();
    }
    let batch = receive(&mut messages.lock().unwrap_or_else(PoisonError::into_inner));
    if batch.is_empty() {
        tokio::time::sleep(LONG_POLL).await;
    }
    json!({ "Messages": batch }).to_string()
}

/// The next messages of groups that have no message in flight.
fn receive(messages: &mut [Held]) -> Vec<Value> {
    let now = Instant::now();
    let is_hidden = |held: &Held| held.hidden_until.is_some_and(|until| until > now);
    let locked: HashSet<Option<String>> =
        messages.iter().filter(|held| is_hidden(held)).map(|held| held.message.group_id.clone()).collect();
    let free = messages.iter_mut().filter(|held| !locked.contains(&held.message.group_id)).take(MAX_RECEIVED);
    free.map(|held| {
        held.hidden_until = Some(now + VISIBILITY);
        let attributes: serde_json::Map<String, Value> = held
            .message
            .attributes
            .iter()
            .map(|(name, value)| (name.clone(), json!({"DataType": "String", "StringValue": value})))
            .collect();
        json!({
            "MessageId": held.message.message_id,
            "ReceiptHandle": held.receipt,
            "Body": held.message.body,
            "Attributes": {"MessageGroupId": held.message.group_id},
            "MessageAttributes": attributes,
        })
    })
    .collect()
}
