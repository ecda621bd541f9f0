//! A FIFO queue: one entry of a group in flight, or ten, with few groups and with many.

use anyhow::Result;

use super::{begin, scaled};
use crate::ground::{Backlog, Ground, How};
use crate::report::{Aim, Outcome};

const STRICT: &[(&str, &str)] = &[("OUTBOX_RELAY_FIFO_MODE", "strict")];
const BATCHED: &[(&str, &str)] = &[("OUTBOX_RELAY_FIFO_MODE", "batched")];

pub async fn run(ground: &Ground, scale: f64) -> Result<Outcome> {
    let mut outcome = begin("fifo", "a FIFO queue at 10 ms; the stand-in checks the order of each group");
    for (mode, settings) in [("strict", STRICT), ("batched", BATCHED)] {
        // In strict mode a group is as slow as its round trips, so few groups get few messages.
        for (groups, messages) in [(10, 10_000), (1_000, 200_000), (100_000, 200_000)] {
            let backlog = Backlog { messages: scaled(messages, scale), groups };
            let client = ground.filled("fifo", backlog).await?;
            let how = How { queue: "tickets.fifo", settings, ..How::at(10) };
            let drained = ground.drain("fifo", &client, backlog, &how).await?;
            let name = format!("{mode}, {groups} groups");
            match (mode, groups) {
                ("strict", 1_000) => outcome.aim(name, drained.rate, "messages/s", Aim::AtLeast(10_000.0)),
                _ => outcome.add(name, drained.rate, "messages/s"),
            }
        }
    }
    Ok(outcome)
}
