//! Several relays on one outbox.

use anyhow::Result;

use super::{ROUNDS, begin, median, scaled};
use crate::ground::{Backlog, Ground, How};
use crate::report::{Aim, Outcome};

pub async fn run(ground: &Ground, scale: f64) -> Result<Outcome> {
    let mut outcome =
        begin("replicas", "400,000 messages, SQS 20 ms, drained by 1, 2 and 4 relays; the middle of three runs each");
    let backlog = Backlog { messages: scaled(400_000, scale), groups: 20_000 };
    let counts = [1, 2, 4];
    let (mut runs, mut duplicates) = ([const { Vec::new() }; 3], 0);
    for _ in 0..ROUNDS {
        for (runs, relays) in runs.iter_mut().zip(counts) {
            let client = ground.filled("replicas", backlog).await?;
            let drained = ground.drain("replicas", &client, backlog, &How { relays, ..How::at(20) }).await?;
            duplicates += drained.counts.duplicates;
            runs.push(drained.rate);
        }
    }
    let rates = runs.map(median);
    for (relays, rate) in counts.into_iter().zip(rates) {
        outcome.add(if relays == 1 { "1 relay".to_owned() } else { format!("{relays} relays") }, rate, "messages/s");
    }
    outcome.aim("4 relays, part of the rate of 1", rates[2] / rates[0], "", Aim::AtLeast(1.0));
    outcome.aim("duplicates", duplicates as f64, "", Aim::AtMost(0.0));
    Ok(outcome)
}
