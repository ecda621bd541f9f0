//! Before and after: the same buyers and the same faults against three ways of getting events into queues.
//!
//! `course` runs one of them, `outcome` computes its result, `report` writes it with the figures of `statistics`, and
//! `picture` draws it. `make experiment` runs all.

mod course;
mod outcome;
mod picture;
mod report;
mod statistics;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser as _};

use super::app::commands::Publishing;
use outcome::Outcome;

/// Compares publishing after the commit, before the commit, and through the outbox
#[derive(Debug, Clone, Args)]
pub struct Experiment {
    /// Seconds of load for each variant; the faults are at the same parts of it
    #[arg(long, default_value_t = 180, value_parser = clap::value_parser!(u64).range(45..=3600))]
    pub seconds: u64,
    /// How often each variant runs; every second time in the opposite order
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=20))]
    pub repetitions: u16,
    /// Buyers at work at the same time
    #[arg(long, default_value_t = 16)]
    pub buyers: u64,
    /// How long a buyer thinks between two purchases, on average
    #[arg(long, default_value = "25ms", value_parser = humantime::parse_duration)]
    pub think: Duration,
    /// What SQS takes for half of all requests; one in a hundred takes eight times as long
    #[arg(long, default_value = "10ms", value_parser = humantime::parse_duration)]
    pub latency: Duration,
    /// Draws that tickets are for
    #[arg(long, default_value_t = 24)]
    pub draws: u64,
    /// Decides who buys what
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Where the table and the picture go; nowhere if it is empty
    // The parser of paths would refuse an empty one.
    #[arg(long, default_value = "docs/experiment", value_parser = OsStringValueParser::new().map(PathBuf::from))]
    pub output: PathBuf,
}

/// One of the systems that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Variant {
    pub name: &'static str,
    pub publishing: Publishing,
    pub with_faults: bool,
}

/// The systems in the order of the table.
pub const VARIANTS: [Variant; 5] = [
    Variant { name: "A after commit", publishing: Publishing::AfterCommit, with_faults: true },
    Variant { name: "B before commit", publishing: Publishing::BeforeCommit, with_faults: true },
    Variant { name: "C outbox", publishing: Publishing::Outbox, with_faults: true },
    Variant { name: "A without faults", publishing: Publishing::AfterCommit, with_faults: false },
    Variant { name: "C without faults", publishing: Publishing::Outbox, with_faults: false },
];

/// A variant, and the outcomes of its runs in the order of the repetitions.
#[derive(Debug)]
pub struct Runs {
    pub variant: Variant,
    pub outcomes: Vec<Outcome>,
}

/// Runs all variants and writes the report; returns whether the outbox kept its promises.
pub async fn run(experiment: &Experiment, folder: &Path, relay: PathBuf) -> Result<bool> {
    let mut all: Vec<Runs> = VARIANTS.iter().map(|&variant| Runs { variant, outcomes: Vec::new() }).collect();
    for repetition in 1..=experiment.repetitions {
        let mut order: Vec<&mut Runs> = all.iter_mut().collect();
        // Slow changes of the machine then affect each of them alike.
        if repetition.is_multiple_of(2) {
            order.reverse();
        }
        for Runs { variant, outcomes } in order {
            println!("{repetition}. {}: {} s of load", variant.name, experiment.seconds);
            let outcome = course::run(experiment, *variant, folder, relay.clone()).await?;
            println!("  {}", outcome.line());
            outcomes.push(outcome);
        }
    }
    let table = report::table(experiment, &all)?;
    println!("\n{table}");
    if !experiment.output.as_os_str().is_empty() {
        report::write(experiment, &all, &table)?;
        println!("written: {}", experiment.output.display());
    }
    let broken = report::broken_promises(&all);
    if broken.is_empty() {
        println!("PASSED: with the outbox nothing is lost, invented or applied twice.");
    } else {
        println!("FAILED:");
        broken.iter().for_each(|promise| println!("  {promise}"));
    }
    Ok(broken.is_empty())
}
