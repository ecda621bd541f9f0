//! A backlog is drained at different speeds of SQS, with TLS and without, compared with the two ceilings and the bound
//! that follows from them.

use anyhow::Result;

use super::{ROUNDS, begin, median, scaled};
use crate::ceilings;
use crate::ground::{Backlog, Drained, Ground, How};
use crate::report::{Aim, Outcome};
use crate::stand_in::{ByWire, Wire};

/// SQS's median times to answer, in milliseconds.
const MEDIANS: [u64; 3] = [0, 10, 20];

type Runs = [ByWire<Vec<Drained>>; MEDIANS.len()];

pub async fn run(ground: &Ground, scale: f64) -> Result<Outcome> {
    let mut outcome = begin(
        "drain",
        "400,000 messages of 450 bytes; SQS with a lognormal tail, p99 = 8 x median; the middle of three runs each",
    );
    let backlog = Backlog { messages: scaled(400_000, scale), groups: 20_000 };
    let runs = drain(ground, backlog).await?;
    for (runs, at) in runs.iter().zip(MEDIANS) {
        let name = format!("SQS {at} ms");
        let figure = |of: fn(&Drained) -> f64| runs.map(|runs| median(runs.iter().map(of).collect()));
        match at {
            10 => outcome.aim(&name, figure(|run| run.rate), "messages/s", Aim::AtLeast(45_000.0)),
            _ => outcome.add(&name, figure(|run| run.rate), "messages/s"),
        }
        let fill = figure(|run| run.counts.entries as f64 / run.counts.requests as f64);
        outcome.add(format!("{name}, entries a request"), fill, "");
        outcome.add(format!("{name}, the relay's processor"), figure(Drained::cpu_per_message), "us/message");
        let server = figure(Drained::server_cpu_per_message);
        outcome.add(format!("{name}, PostgreSQL's processor"), server, "us/message");
    }
    let rates = runs.map(|runs| median(runs.https.iter().map(|run| run.rate).collect()));
    compare_with_ceilings(ground, backlog, rates, &mut outcome).await?;
    Ok(outcome)
}

/// All runs, in turns.
async fn drain(ground: &Ground, backlog: Backlog) -> Result<Runs> {
    let mut runs = Runs::default();
    for _ in 0..ROUNDS {
        for (runs, at) in runs.iter_mut().zip(MEDIANS) {
            for wire in Wire::BOTH {
                let client = ground.filled("drain", backlog).await?;
                let how = How { wire, ..How::at(at) };
                runs.of(wire).push(ground.drain("drain", &client, backlog, &how).await?);
            }
        }
    }
    Ok(runs)
}

async fn compare_with_ceilings(
    ground: &Ground,
    backlog: Backlog,
    rates: [f64; MEDIANS.len()],
    outcome: &mut Outcome,
) -> Result<()> {
    drop(ground.filled("drain", backlog).await?);
    let database = ceilings::measure(ground, "database-ceiling", "drain", backlog.messages, Wire::Https)?;
    let mut sender = ByWire::default();
    for wire in Wire::BOTH {
        ground.stand_in.reset(std::time::Duration::ZERO, backlog.messages).await?;
        *sender.of(wire) = ceilings::measure(ground, "sender-ceiling", "drain", backlog.messages, wire)?;
    }
    let bound = sender.map(|sender| 1.0 / (1.0 / database + 1.0 / sender));
    outcome.add("ceiling of the database, no SQS", database, "messages/s");
    outcome.add("ceiling of the sender, no PostgreSQL", sender, "messages/s");
    outcome.add("bound of both on the same cores", bound, "messages/s");
    outcome.aim("SQS 10 ms, part of the bound", rates[1] / bound.https, "", Aim::AtLeast(0.85));
    outcome.aim("SQS 20 ms, part of the rate at 0 ms", rates[2] / rates[0], "", Aim::AtLeast(0.9));
    Ok(())
}
