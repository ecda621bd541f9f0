//! Several relays on one outbox: how fast they are together, what a message costs, and how evenly two of them share it.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;

use super::{ROUNDS, begin, median, scaled};
use crate::ground::{Backlog, Drained, Ground, How};
use crate::report::{Aim, Outcome};

/// How many relays there are.
const RELAYS: [usize; 3] = [1, 2, 4];

pub async fn run(ground: &Ground, scale: f64) -> Result<Outcome> {
    let mut outcome =
        begin("replicas", "400,000 messages, SQS 20 ms, drained by 1, 2 and 4 relays; the middle of three runs each");
    let backlog = Backlog { messages: scaled(400_000, scale), groups: 20_000 };
    let (mut runs, mut halves) = ([const { Vec::<Drained>::new() }; RELAYS.len()], Vec::new());
    for _ in 0..ROUNDS {
        for (runs, relays) in runs.iter_mut().zip(RELAYS) {
            let client = ground.filled("replicas", backlog).await?;
            let how = How { relays, ..How::at(20) };
            let drain = ground.drain("replicas", &client, backlog, &how);
            if relays == 2 {
                // What the run before has sent does not count.
                ground.stand_in.reset(how.median, backlog.messages).await?;
                let (run, before) = tokio::try_join!(drain, both_work(ground, backlog.messages))?;
                runs.push(run);
                halves.push(smaller_part(&before, &ground.stand_in.entries_by_key().await?));
            } else {
                runs.push(drain.await?);
            }
        }
    }
    let figure = |runs: &[Drained], of: fn(&Drained) -> f64| median(runs.iter().map(of).collect());
    for (runs, relays) in runs.iter().zip(RELAYS) {
        let name = if relays == 1 { "1 relay".to_owned() } else { format!("{relays} relays") };
        outcome.add(&name, figure(runs, |run| run.rate), "messages/s");
        let fill = figure(runs, |run| run.counts.entries as f64 / run.counts.requests as f64);
        outcome.add(format!("{name}, entries a request"), fill, "");
        outcome.add(format!("{name}, processor of all relays"), figure(runs, Drained::cpu_per_message), "us/message");
        let server = figure(runs, Drained::server_cpu_per_message);
        outcome.add(format!("{name}, PostgreSQL's processor"), server, "us/message");
    }
    let [one, _, four] = runs.each_ref().map(|runs| figure(runs, |run| run.rate));
    outcome.aim("4 relays, part of the rate of 1", four / one, "", Aim::AtLeast(1.0));
    outcome.aim("2 relays, part of the one with fewer, once both work", median(halves), "", Aim::AtLeast(0.4));
    let duplicates: u64 = runs.iter().flatten().map(|run| run.counts.duplicates).sum();
    outcome.aim("duplicates", duplicates as f64, "", Aim::AtMost(0.0));
    Ok(outcome)
}

/// What each relay has sent when both of them have begun. The one that starts first has all lanes until its claim ends.
async fn both_work(ground: &Ground, messages: u64) -> Result<BTreeMap<String, u64>> {
    loop {
        let by_key = ground.stand_in.entries_by_key().await?;
        // With two relays that are fast enough to finish before the other begins, nothing is left to share.
        if by_key.len() == 2 || by_key.values().sum::<u64>() >= messages {
            return Ok(by_key);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The part of the messages that the relay with fewer of two sent since then.
fn smaller_part(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> f64 {
    let sent = |(key, count): (&String, &u64)| count - before.get(key).copied().unwrap_or_default();
    let sent: Vec<u64> = after.iter().map(sent).collect();
    let all: u64 = sent.iter().sum();
    match sent[..] {
        [one, other] if all > 0 => one.min(other) as f64 / all as f64,
        _ => 0.0,
    }
}
