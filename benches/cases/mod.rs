//! The cases. Each compares its result with something measured in the same run, because the machines are noisy.

mod backlog;
mod dead_rows;
mod drain;
mod fifo;
mod horizon;
mod idle;
mod latency;
mod peer;
mod replicas;
mod scheduled;
mod traces;
mod write_side;

use anyhow::{Result, bail};

use crate::ground::Ground;
use crate::report::{Aim, Outcome};

/// Their names, in the order of the table.
pub const NAMES: [&str; 12] = [
    "drain",
    "latency",
    "scheduled",
    "horizon",
    "dead-rows",
    "backlog",
    "replicas",
    "fifo",
    "write-side",
    "traces",
    "peer",
    "idle",
];

/// Runs one of them.
pub async fn run(name: &str, ground: &Ground, scale: f64) -> Result<Outcome> {
    let mut outcome = measure(name, ground, scale).await?;
    if let Some(peak_mb) = ground.take_peak_mb() {
        outcome.aim("peak memory of a relay", peak_mb, "MB", Aim::AtMost(64.0));
    }
    Ok(outcome)
}

async fn measure(name: &str, ground: &Ground, scale: f64) -> Result<Outcome> {
    match name {
        "drain" => drain::run(ground, scale).await,
        "latency" => latency::run(ground, scale).await,
        "scheduled" => scheduled::run(ground, scale).await,
        "horizon" => horizon::run(ground, scale).await,
        "dead-rows" => dead_rows::run(ground, scale).await,
        "backlog" => backlog::run(ground, scale).await,
        "replicas" => replicas::run(ground, scale).await,
        "fifo" => fifo::run(ground, scale).await,
        "write-side" => write_side::run(ground, scale).await,
        "traces" => traces::run(ground, scale).await,
        "peer" => peer::run(ground, scale).await,
        "idle" => idle::run(ground, scale).await,
        other => bail!("there is no case {other}"),
    }
}

/// How often the compared ways take turns, so that a slow moment of the machine affects all of them.
const ROUNDS: usize = 3;

/// The median.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

/// This number, reduced by the scale.
fn scaled(count: u64, scale: f64) -> u64 {
    ((count as f64 * scale) as u64).max(1)
}

fn begin(case: &'static str, title: &'static str) -> Outcome {
    println!("{case}: {title}");
    Outcome::new(case, title)
}
