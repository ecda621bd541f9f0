//! Whether a long backlog costs more for each message than a short one, in time or in memory.

use anyhow::Result;

use super::{begin, scaled};
use crate::ground::{Backlog, Ground, How};
use crate::report::{Aim, Outcome};

pub async fn run(ground: &Ground, scale: f64) -> Result<Outcome> {
    let mut outcome = begin("backlog", "rate and memory by what waits, SQS 10 ms");
    let mut rates = Vec::new();
    for (name, messages) in [("10 k", 10_000), ("100 k", 100_000), ("1 M", 1_000_000), ("5 M", 5_000_000)] {
        let backlog = Backlog { messages: scaled(messages, scale), groups: 20_000 };
        let client = ground.filled("growth", backlog).await?;
        let drained = ground.drain("growth", &client, backlog, &How::at(10)).await?;
        outcome.add(format!("{name} waiting"), drained.rate, "messages/s");
        outcome.aim(format!("{name} waiting, peak memory"), drained.peak_mb, "MB", Aim::AtMost(64.0));
        rates.push(drained.rate);
        drop(client);
        if messages >= 1_000_000 {
            ground.cluster.drop_database("growth").await?;
            ground.forget_templates().await?;
        }
    }
    outcome.aim("rate at 5 M, part of that at 100 k", rates[3] / rates[1], "", Aim::AtLeast(0.9));
    Ok(outcome)
}
