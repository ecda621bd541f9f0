//! What the relays sent to a destination, as their proxies saw it, and which of it may legitimately have been sent twice to
//! a standard queue.
//!
//! An entry may be sent again if the relay never got an answer, if it got one and was disturbed (killed, frozen, cut
//! off from the database) before the outbox recorded it, or if somebody had it sent again. Nothing else excuses a
//! duplicate.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::chronicle::Disturbance;
use support::proxy::{Entry, Request};

/// The time between the delivery time in a row and the end of the transaction that wrote it.
const COMMIT: Duration = Duration::from_millis(200);

/// No disturbance lasts longer.
const LONGEST: Duration = Duration::from_secs(120);

/// An entry of a request that was forwarded.
#[derive(Debug)]
pub struct Sent {
    pub ticket: u64,
    /// The group that the destination was told.
    pub group_id: Option<String>,
    relay: usize,
    pub arrived_at: Instant,
    ended_at: Option<Instant>,
    status: Option<u16>,
    is_answered: bool,
}

/// Entries that the destination may have accepted.
#[derive(Debug, Default)]
pub struct Sends(Vec<Sent>);

/// How often each ticket may have been sent again, and why.
#[derive(Debug, Default)]
pub struct Excuses {
    by_ticket: HashMap<u64, usize>,
    /// Entries that went to the queue without an answer to the sender.
    pub unanswered: usize,
    /// Entries whose answer was not yet recorded when the sender was disturbed.
    pub unrecorded: usize,
}

impl Sends {
    /// Adds what went through a relay's proxy to a queue or topic.
    pub fn take(&mut self, relay: usize, target: &str, requests: &[Request]) -> Result<()> {
        for request in requests.iter().filter(|request| request.forwarded && request.queue_url == target) {
            for entry in request.entries.iter() {
                self.0.push(Sent {
                    ticket: ticket_of(entry)?,
                    group_id: entry.group_id.clone(),
                    relay,
                    arrived_at: request.arrived_at,
                    ended_at: request.ended_at,
                    status: request.answered,
                    is_answered: request.answered.is_some(),
                });
            }
        }
        Ok(())
    }

    /// All of them, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Sent> {
        self.0.iter()
    }

    /// When a ticket went to the destination, for display.
    pub fn told(&self, ticket: u64, began_at: Instant) -> Vec<String> {
        let seconds = |at: Instant| at.saturating_duration_since(began_at).as_secs_f64();
        let of_ticket = self.0.iter().filter(|sent| sent.ticket == ticket);
        of_ticket
            .map(|sent| {
                let ended =
                    sent.ended_at.map_or("never ended".to_owned(), |at| format!("ended at {:.3} s", seconds(at)));
                let status = sent.status.map_or("no answer".to_owned(), |status| format!("answer {status}"));
                format!("sent by relay {} at {:.3} s, {ended}, {status}", sent.relay, seconds(sent.arrived_at))
            })
            .collect()
    }

    /// Which entries may have been sent again, based on when the outbox recorded each delivery.
    pub fn excuses(
        &self,
        recorded_at: &HashMap<u64, Instant>,
        disturbances: &[Disturbance],
        redriven: &[u64],
    ) -> Excuses {
        let mut excuses = Excuses::default();
        for sent in &self.0 {
            if !sent.is_answered {
                excuses.unanswered += 1;
            } else if was_disturbed(sent, recorded_at.get(&sent.ticket).copied(), disturbances) {
                excuses.unrecorded += 1;
            } else {
                continue;
            }
            *excuses.by_ticket.entry(sent.ticket).or_default() += 1;
        }
        for ticket in redriven {
            *excuses.by_ticket.entry(*ticket).or_default() += 1;
        }
        excuses
    }
}

/// It is in the body, or an attribute beside a text.
fn ticket_of(entry: &Entry) -> Result<u64> {
    if let Some(ticket) = entry.attributes["ticket"]["StringValue"].as_str() {
        return Ok(ticket.parse()?);
    }
    let body: serde_json::Value = serde_json::from_str(&entry.body)?;
    body["ticket"].as_u64().context("a body without ticket")
}

fn was_disturbed(sent: &Sent, recorded_at: Option<Instant>, disturbances: &[Disturbance]) -> bool {
    let first = disturbances.partition_point(|disturbance| disturbance.from + LONGEST < sent.arrived_at);
    let concerns = |disturbance: &&Disturbance| disturbance.relay.is_none_or(|relay| relay == sent.relay);
    disturbances[first..]
        .iter()
        .filter(concerns)
        .take_while(|disturbance| recorded_at.is_none_or(|recorded_at| disturbance.from <= recorded_at + COMMIT))
        .any(|disturbance| disturbance.until >= sent.arrived_at)
}

impl Excuses {
    /// Arrivals of a ticket beyond its first that nothing excuses.
    pub fn unexcused(&self, arrivals: &HashMap<u64, usize>) -> Vec<u64> {
        let allowed = |ticket: &u64| 1 + self.by_ticket.get(ticket).copied().unwrap_or(0);
        let beyond = arrivals.iter().filter(|(ticket, count)| **count > allowed(ticket));
        beyond.map(|(ticket, _)| *ticket).collect()
    }
}
