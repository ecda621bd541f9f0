//! Shows what arrives in the queues, and counts it. It is only told of messages, and takes none.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::{Duration, SystemTime};

use tokio::sync::mpsc;
use tokio::time::timeout;

use super::queues::Arrival;
use super::text::{self, Kind, Latency, Tally};
use super::voice::Voice;
use crate::outbox::{Outbox, Recorded};

/// The most messages that are shown with one question to the database.
const CHUNK: usize = 500;

/// How long the database may take to say when these were committed; then they are shown without.
const PATIENCE: Duration = Duration::from_secs(1);

/// How many events are remembered, to recognise those that come again.
const REMEMBERED: usize = 1_000_000;

/// What is still to be shown, and what was.
#[derive(Debug)]
pub(super) struct Printer {
    arrivals: mpsc::Receiver<(SystemTime, Arrival)>,
    chunk: Vec<(SystemTime, Arrival)>,
    outbox: Outbox,
    voice: Voice,
    tallies: BTreeMap<String, Tally>,
    /// Digests of queue and event.
    known: HashSet<u64>,
}

impl Printer {
    pub(super) fn new(arrivals: mpsc::Receiver<(SystemTime, Arrival)>, outbox: Outbox, voice: Voice) -> Self {
        Self { arrivals, chunk: Vec::new(), outbox, voice, tallies: BTreeMap::new(), known: HashSet::new() }
    }

    /// Waits for messages and shows them; `false` when no more can come. What is not yet shown when this is cancelled is
    /// shown the next time.
    pub(super) async fn step(&mut self) -> bool {
        if self.chunk.is_empty() && self.arrivals.recv_many(&mut self.chunk, CHUNK).await == 0 {
            return false;
        }
        self.show_chunk().await;
        true
    }

    async fn rest(&mut self) {
        loop {
            while self.chunk.len() < CHUNK
                && let Ok(arrival) = self.arrivals.try_recv()
            {
                self.chunk.push(arrival);
            }
            if self.chunk.is_empty() {
                return;
            }
            self.show_chunk().await;
        }
    }

    /// How many messages have arrived, without copies.
    pub(super) fn messages(&self) -> u64 {
        self.tallies.values().map(|tally| tally.messages).sum()
    }

    /// Shows what has come already, and what arrived in each queue; `unshown` is what came faster than it could be taken.
    pub(super) async fn end(mut self, unshown: u64) {
        // A terminal that stands still is not waited for.
        timeout(PATIENCE, self.rest()).await.ok();
        self.voice.say(text::tallies(&self.tallies, unshown)).await;
    }

    async fn show_chunk(&mut self) {
        let ids: Vec<&str> = self.chunk.iter().filter_map(|(_, arrival)| event_id(arrival)).collect();
        let recorded = match timeout(PATIENCE, self.outbox.events_recorded(&ids)).await {
            Ok(Ok(recorded)) => recorded,
            // The relay reports the state of the database.
            Ok(Err(_)) | Err(_) => HashMap::new(),
        };
        let voice = self.voice.clone();
        let permit = voice.reserve().await;
        // From here on nothing is awaited, so nothing is shown twice or never.
        let lines: String = std::mem::take(&mut self.chunk)
            .into_iter()
            .map(|(time, arrival)| self.line(&arrival, time, &recorded))
            .collect();
        if let Some(permit) = permit {
            permit.send(lines);
        }
    }

    fn line(&mut self, arrival: &Arrival, time: SystemTime, recorded: &HashMap<String, Recorded>) -> String {
        let latency = event_id(arrival).and_then(|id| recorded.get(id)).map(|recorded| latency(*recorded, time));
        let kind = self.kind(arrival);
        let tally = self.tallies.entry(arrival.queue.clone()).or_default();
        match kind {
            Kind::New => tally.messages += 1,
            Kind::Dropped => tally.dropped += 1,
            Kind::Again => tally.again += 1,
        }
        text::arrival(arrival, latency, kind)
    }

    fn kind(&mut self, arrival: &Arrival) -> Kind {
        if arrival.is_copy {
            return Kind::Dropped;
        }
        let Some(id) = event_id(arrival) else { return Kind::New };
        let mut hasher = DefaultHasher::new();
        (&arrival.queue, id).hash(&mut hasher);
        let digest = hasher.finish();
        if self.known.contains(&digest) {
            return Kind::Again;
        }
        if self.known.len() < REMEMBERED {
            self.known.insert(digest);
        }
        Kind::New
    }
}

/// The event that a message of the relay carries; others may send messages, too.
fn event_id(arrival: &Arrival) -> Option<&str> {
    let is_uuid = |id: &&str| {
        let has_dashes = [8, 13, 18, 23].iter().all(|at| id.as_bytes().get(*at) == Some(&b'-'));
        id.len() == 36 && has_dashes && id.bytes().filter(u8::is_ascii_hexdigit).count() == 32
    };
    arrival.attribute("event_id").filter(is_uuid)
}

fn latency(recorded: Recorded, time: SystemTime) -> Latency {
    let (moment, of) = match recorded {
        Recorded::Committed(moment) => (moment, "commit"),
        Recorded::Written(moment) => (moment, "INSERT"),
    };
    // Two clocks may differ.
    Latency { time: time.duration_since(moment).unwrap_or_default(), of }
}
