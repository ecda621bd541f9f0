//! The destinations of the soak, one of each kind that the relay serves, as rows of `outbox.destinations`.

use std::sync::Arc;

use anyhow::Result;
use tokio_postgres::Client;

use crate::sends::Sends;
use support::emulator::{Buckets, Subscription, Topics};
use support::lottery::consumer::Inbox;
use support::test_bed::TestBed;

/// A FIFO destination for unusual rows; they must not affect other messages.
pub const ODD: &str = "by-hand";

/// Messages above this size go to the bucket.
const CLAIM_CHECK_ABOVE: i64 = 4096;

/// What kind of destination it is, and so what is promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A FIFO queue that gets each purchase.
    Tickets,
    /// A standard queue that gets each purchase.
    Audit,
    /// A fair queue, which is told the groups.
    Players,
    /// A FIFO topic with a FIFO queue subscribed.
    Feed,
    /// A FIFO queue that gets texts; long ones go to a bucket.
    Receipts,
    /// A standard queue that gets scheduled messages.
    Reminders,
}

/// In the order in which they are shown.
pub const ALL: [Kind; 6] = [Kind::Tickets, Kind::Audit, Kind::Players, Kind::Feed, Kind::Receipts, Kind::Reminders];

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Tickets => "tickets",
            Kind::Audit => "audit",
            Kind::Players => "players",
            Kind::Feed => "feed",
            Kind::Receipts => "receipts",
            Kind::Reminders => "reminders",
        }
    }

    /// Whether each group arrives in order and nothing arrives twice.
    pub fn is_fifo(self) -> bool {
        matches!(self, Kind::Tickets | Kind::Feed | Kind::Receipts)
    }

    /// Whether it gets a message for this ticket. The emulator has one thread, so most get a part only.
    pub fn is_for(self, ticket: u64) -> bool {
        match self {
            Kind::Tickets | Kind::Audit => true,
            Kind::Players => ticket.is_multiple_of(3),
            Kind::Feed => ticket % 3 == 1,
            Kind::Receipts => ticket.is_multiple_of(4),
            Kind::Reminders => ticket.is_multiple_of(5),
        }
    }
}

/// The names of all destinations of a sort.
pub fn names(is_wanted: impl Fn(Kind) -> bool) -> Vec<&'static str> {
    ALL.into_iter().filter(|kind| is_wanted(*kind)).map(Kind::name).collect()
}

/// A destination with what went to it and what arrived.
#[derive(Debug)]
pub struct Destination {
    pub kind: Kind,
    /// The queue's URL or the topic's ARN, as requests name it.
    pub target: String,
    /// The queue that consumers read.
    pub queue_url: String,
    /// Of large bodies.
    pub bucket: String,
    pub inbox: Arc<Inbox>,
    pub sends: Sends,
}

/// A row of `outbox.destinations`.
#[derive(Debug, Clone)]
pub struct Route {
    name: &'static str,
    target: String,
    is_fair: bool,
    claim_check: Option<String>,
}

impl Route {
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Writes the row, as `outbox-relay destinations set` does.
    pub async fn set(&self, client: &Client) -> Result<()> {
        let above = self.claim_check.as_ref().map(|_| CLAIM_CHECK_ABOVE);
        let set = "SELECT outbox.set_destination($1, $2, fair => $3, claim_check => $4, claim_check_above => $5)";
        client.execute(set, &[&self.name, &self.target, &self.is_fair, &self.claim_check, &above]).await?;
        Ok(())
    }

    /// Removes it, as `outbox-relay destinations remove` does.
    pub async fn remove(&self, client: &Client) -> Result<()> {
        client.query_one("SELECT outbox.remove_destination($1)", &[&self.name]).await?;
        Ok(())
    }
}

impl Destination {
    pub async fn create(kind: Kind, bed: &TestBed) -> Result<Destination> {
        let name = kind.name();
        let queue_url =
            if kind.is_fifo() { bed.queues.create_fifo(name).await? } else { bed.queues.create_standard(name).await? };
        let mut target = queue_url.clone();
        if kind == Kind::Feed {
            target = bed.topics.create(&Topics::name(name, true)).await?;
            let subscription = Subscription { is_raw: true, filter_policy: "" };
            bed.topics.subscribe(&target, &bed.queues, &queue_url, subscription).await?;
        }
        let bucket = Buckets::name(name);
        if kind == Kind::Receipts {
            bed.buckets.create(&bucket).await?;
        }
        Ok(Destination { kind, target, queue_url, bucket, inbox: Arc::default(), sends: Sends::default() })
    }

    pub fn route(&self) -> Route {
        Route {
            name: self.kind.name(),
            target: self.target.clone(),
            is_fair: self.kind == Kind::Players,
            claim_check: (self.kind == Kind::Receipts).then(|| format!("{}/large", self.bucket)),
        }
    }
}

/// The rows of all destinations, with that of the unusual rows.
pub async fn routes(destinations: &[Destination], bed: &TestBed) -> Result<Vec<Route>> {
    let target = bed.queues.create_fifo(ODD).await?;
    let odd = Route { name: ODD, target, is_fair: false, claim_check: None };
    Ok(destinations.iter().map(Destination::route).chain([odd]).collect())
}

/// Sets those that are missing. A lost commit may have removed one again, or set it.
pub async fn set_missing(routes: &[Route], client: &Client) -> Result<()> {
    let rows = client.query("SELECT name FROM outbox.destinations", &[]).await?;
    let known: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    for route in routes.iter().filter(|route| !known.iter().any(|name| name == route.name)) {
        route.set(client).await?;
    }
    Ok(())
}
