//! A backlog is drained at different speeds of SQS, compared with the two ceilings and the bound that follows from
//! them.

use anyhow::Result;

use super::{ROUNDS, begin, median, scaled};
use crate::ceilings;
use crate::ground::{Backlog, Ground, How};
use crate::report::{Aim, Outcome};

pub async fn run(ground: &Ground, scale: f64) -> Result<Outcome> {
    let mut outcome = begin(
        "drain",
        "400,000 messages of 450 bytes; SQS with a lognormal tail, p99 = 8 x median; the middle of three runs each",
    );
    let backlog = Backlog { messages: scaled(400_000, scale), groups: 20_000 };
    let medians = [0, 10, 20];
    let (mut runs, mut peak_mb) = ([const { Vec::new() }; 3], 0.0_f64);
    for _ in 0..ROUNDS {
        for (runs, at) in runs.iter_mut().zip(medians) {
            let client = ground.filled("drain", backlog).await?;
            let drained = ground.drain("drain", &client, backlog, &How::at(at)).await?;
            peak_mb = peak_mb.max(drained.peak_mb);
            runs.push(drained);
        }
    }
    let rates = runs.each_ref().map(|runs| median(runs.iter().map(|run| run.rate).collect()));
    for ((runs, at), rate) in runs.iter().zip(medians).zip(rates) {
        let name = format!("SQS {at} ms");
        match at {
            10 => outcome.aim(&name, rate, "messages/s", Aim::AtLeast(45_000.0)),
            _ => outcome.add(&name, rate, "messages/s"),
        }
        let fill = runs.iter().map(|run| run.counts.entries as f64 / run.counts.requests as f64).collect();
        outcome.add(format!("{name}, entries a request"), median(fill), "");
        let processor = runs.iter().map(|run| run.cpu / backlog.messages as f64 * 1e6).collect();
        outcome.add(format!("{name}, the relay's processor"), median(processor), "us/message");
    }
    drop(ground.filled("drain", backlog).await?);
    let database = ceilings::measure(ground, "database-ceiling", "drain", backlog.messages)?;
    ground.stand_in.reset(std::time::Duration::ZERO, backlog.messages).await?;
    let sender = ceilings::measure(ground, "sender-ceiling", "drain", backlog.messages)?;
    let bound = 1.0 / (1.0 / database + 1.0 / sender);
    outcome.add("ceiling of the database, no SQS", database, "messages/s");
    outcome.add("ceiling of the sender, no PostgreSQL", sender, "messages/s");
    outcome.add("bound of both on the same cores", bound, "messages/s");
    outcome.aim("SQS 10 ms, part of the bound", rates[1] / bound, "", Aim::AtLeast(0.85));
    outcome.aim("SQS 20 ms, part of the rate at 0 ms", rates[2] / rates[0], "", Aim::AtLeast(0.9));
    outcome.aim("peak memory", peak_mb, "MB", Aim::AtMost(64.0));
    Ok(outcome)
}
