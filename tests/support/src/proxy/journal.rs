//! What the proxy has seen: each SendMessageBatch, and how many there were at the same time.

use std::sync::Arc;
use std::time::Instant;

use serde_json::Value;

/// One entry of a request, as the sender wrote it.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// `Id`.
    pub id: String,
    /// `MessageBody`.
    pub body: String,
    /// `MessageGroupId`.
    pub group_id: Option<String>,
    /// `MessageDeduplicationId`.
    pub deduplication_id: Option<String>,
    /// `MessageAttributes`, null when there are none.
    pub attributes: Value,
    /// `MessageSystemAttributes`, null when there are none. The emulator does not keep them.
    pub system_attributes: Value,
}

impl Entry {
    fn of(value: &Value) -> Entry {
        let text = |name: &str| value[name].as_str().map(str::to_owned);
        Entry {
            id: text("Id").unwrap_or_default(),
            body: text("MessageBody").unwrap_or_default(),
            group_id: text("MessageGroupId"),
            deduplication_id: text("MessageDeduplicationId"),
            attributes: value["MessageAttributes"].clone(),
            system_attributes: value["MessageSystemAttributes"].clone(),
        }
    }
}

/// One SendMessageBatch and its result.
#[derive(Debug, Clone)]
pub struct Request {
    /// `QueueUrl`.
    pub queue_url: String,
    /// The access key that signed it.
    pub key: String,
    /// `Entries`, in their order.
    pub entries: Arc<[Entry]>,
    /// When its last byte had arrived.
    pub arrived_at: Instant,
    /// Whether some of it was forwarded to the emulator.
    pub forwarded: bool,
    /// The HTTP status that the sender got. `None` while in flight, if it was cut, or if the sender disconnected.
    pub answered: Option<u16>,
    /// When it left the proxy, answered or not; `None` while in flight.
    pub ended_at: Option<Instant>,
}

impl Request {
    pub(super) fn of(queue_url: &str, authorization: &str, body: &Value) -> Request {
        let key = authorization.split("Credential=").nth(1).and_then(|rest| rest.split('/').next());
        let entries = body["Entries"].as_array().map(Vec::as_slice).unwrap_or_default();
        Request {
            queue_url: queue_url.to_owned(),
            key: key.unwrap_or_default().to_owned(),
            entries: entries.iter().map(Entry::of).collect(),
            arrived_at: Instant::now(),
            forwarded: false,
            answered: None,
            ended_at: None,
        }
    }
}

/// The requests so far.
#[derive(Debug, Default)]
pub(super) struct Journal {
    pub requests: Vec<Request>,
    pub in_flight: usize,
    pub most_in_flight: usize,
    pub held: usize,
    /// How many requests were forgotten. Those in flight keep their numbers.
    forgotten: usize,
}

impl Journal {
    /// Notes a request that arrived; returns its number.
    pub(super) fn enter(&mut self, request: Request) -> usize {
        self.requests.push(request);
        self.in_flight += 1;
        self.most_in_flight = self.most_in_flight.max(self.in_flight);
        self.forgotten + self.requests.len() - 1
    }

    /// The request with this number, unless it was forgotten.
    pub(super) fn request(&mut self, number: usize) -> Option<&mut Request> {
        self.requests.get_mut(number.checked_sub(self.forgotten)?)
    }

    /// Returns the oldest requests, up to the first that is still in flight, and forgets them.
    pub(super) fn take_ended(&mut self) -> Vec<Request> {
        let ended = self.requests.iter().take_while(|request| request.ended_at.is_some()).count();
        self.forgotten += ended;
        self.requests.drain(..ended).collect()
    }

    pub(super) fn forget(&mut self) {
        self.forgotten += self.requests.len();
        self.requests.clear();
        self.most_in_flight = self.in_flight;
    }
}
