//! The cost of relays while no messages come.

use std::time::{Duration, Instant};

use anyhow::Result;
use tokio_postgres::Client;

use super::begin;
use crate::ground::Ground;
use crate::report::{Aim, Outcome};
use crate::stand_in::Wire;

pub async fn run(ground: &Ground, scale: f64) -> Result<Outcome> {
    let mut outcome = begin("idle", "relays with default settings on an empty outbox, for a minute");
    for (relays, most) in [(1, 0.5), (20, 10.0)] {
        let client = ground.empty("idle").await?;
        let start = || ground.start(ground.command("idle", "tickets", Wire::Https).arg("run"));
        let running = (0..relays).map(|_| start()).collect::<Result<Vec<_>>>()?;
        tokio::time::sleep(Duration::from_secs(5)).await;
        let cpu = || running.iter().map(|relay| relay.used().map(|used| used.cpu)).sum::<Result<f64>>();
        let (cpu_before, before, started) = (cpu()?, transactions(&client).await?, Instant::now());
        tokio::time::sleep(Duration::from_secs_f64((60.0 * scale).max(2.0))).await;
        let seconds = started.elapsed().as_secs_f64();
        let share = (cpu()? - cpu_before) / seconds * 100.0;
        let statements = (transactions(&client).await? - before) as f64 / seconds;
        let plural = if relays == 1 { "relay" } else { "relays" };
        outcome.aim(format!("{relays} {plural}, share of a core"), share, "%", Aim::AtMost(most));
        outcome.add(format!("{relays} {plural}, transactions"), statements, "a second");
        for relay in running {
            relay.stop().await?;
        }
    }
    Ok(outcome)
}

/// Transactions of the database so far; nearly every transaction of an idle relay is one statement.
async fn transactions(client: &Client) -> Result<i64> {
    // A session reports its statistics with a delay of up to a second, which is little compared with a minute.
    let query = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()";
    Ok(client.query_one(query, &[]).await?.get(0))
}
