//! Several relays on one outbox.

use anyhow::Result;

use super::{begin, scaled};
use crate::ground::{Backlog, Ground, How};
use crate::report::{Aim, Outcome};

pub async fn run(ground: &Ground, scale: f64) -> Result<Outcome> {
    let mut outcome = begin("replicas", "400,000 messages, SQS 20 ms, drained by 1, 2 and 4 relays");
    let backlog = Backlog { messages: scaled(400_000, scale), groups: 20_000 };
    let (mut rates, mut duplicates) = (Vec::new(), 0);
    for relays in [1, 2, 4] {
        let client = ground.filled("replicas", backlog).await?;
        let drained = ground.drain("replicas", &client, backlog, &How { relays, ..How::at(20) }).await?;
        outcome.add(format!("{relays} relays"), drained.rate, "messages/s");
        duplicates += drained.counts.duplicates;
        rates.push(drained.rate);
    }
    outcome.aim("4 relays, part of the rate of 1", rates[2] / rates[0], "", Aim::AtLeast(1.0));
    outcome.aim("duplicates", duplicates as f64, "", Aim::AtMost(0.0));
    Ok(outcome)
}
