//! What spans cost: a backlog is drained without a collector, with one that takes all spans, and with one
//! that takes none.

use anyhow::Result;
use support::collector::{Collector, Manner};

use super::{ROUNDS, begin, median, scaled};
use crate::ground::{Backlog, Drained, Ground, How};
use crate::report::{Aim, Outcome};

pub async fn run(ground: &Ground, scale: f64) -> Result<Outcome> {
    let mut outcome = begin(
        "traces",
        "400,000 messages at 10 ms, each with a traceparent, one span for each request; the middle of three runs each",
    );
    let backlog = Backlog { messages: scaled(400_000, scale), groups: 20_000 };
    let ways = [
        ("no collector", None),
        ("a collector", Some(Manner::Discards)),
        ("one that fails", Some(Manner::Answers(503, "not today", 0))),
    ];
    let mut runs = [const { Vec::new() }; 3];
    for _ in 0..ROUNDS {
        for (runs, (_, manner)) in runs.iter_mut().zip(&ways) {
            let client = ground.filled("traces", backlog).await?;
            let collector = Collector::start().await?;
            collector.set(manner.clone().unwrap_or_default());
            let how = How { collector: manner.as_ref().map(|_| collector.port()), ..How::at(10) };
            runs.push(ground.drain("traces", &client, backlog, &how).await?);
        }
    }
    let middle = |of: fn(&Drained) -> f64| runs.each_ref().map(|runs| median(runs.iter().map(of).collect()));
    let (rates, cpu, memory) = (middle(|run| run.rate), middle(Drained::cpu_per_message), middle(|run| run.peak_mb));
    for (index, (name, _)) in ways.iter().enumerate() {
        outcome.add(*name, rates[index], "messages/s");
        outcome.add(format!("{name}, the relay's processor"), cpu[index], "us/message");
        outcome.add(format!("{name}, the relay's peak memory"), memory[index], "MB");
    }
    outcome.add("a collector, part of the rate without", rates[1] / rates[0], "");
    outcome.add("one that fails, part of the rate without", rates[2] / rates[0], "");
    // The rate depends on what else runs on the machine; the processor time hardly does.
    outcome.aim("a collector, processor in parts of that without", cpu[1] / cpu[0], "", Aim::AtMost(1.1));
    outcome.aim("one that fails, processor in parts of that without", cpu[2] / cpu[0], "", Aim::AtMost(1.1));
    Ok(outcome)
}
