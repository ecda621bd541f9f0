//! The soak: business as usual for minutes while everything breaks at random, and a ledger at the end. `make soak` runs it.
//!
//! Writers sell lottery tickets, each in a transaction with messages to all kinds of `destinations`: FIFO, standard and fair
//! queues, a topic, texts of which the long ones go to a bucket, scheduled messages that may be cancelled (`business`). Two
//! relays publish them, and find the destinations in their table. Faults are drawn from the seed: of the queues, the topic
//! and the bucket (`storm`), of the database (`database`, on `servers`), of the relays (`crew`), and of people who change
//! rows (`by_hand`). Then the faults end, everything must arrive, and the contents of the database (`audit`) are compared
//! with what the `consumers` received, for each destination (`accounts`). `sends` says how many duplicates of a standard
//! queue had a cause; `report` is the table.
//!
//! The shop, its consumers and the ledger are those of examples/lottery.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a soak talks to the person who started it")]
#![allow(unreachable_pub, reason = "a test has no outside")]

mod accounts;
mod audit;
mod business;
mod by_hand;
mod chronicle;
mod consumers;
mod crew;
mod database;
mod destinations;
mod report;
mod sends;
mod servers;
mod stage;
mod storm;
mod writers;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Parser;

/// Lets everything break at random, and compares what was committed with what arrived
#[derive(Parser, Debug)]
#[command(name = "soak", max_term_width = 100)]
struct Flags {
    /// How long things break
    #[arg(long, env = "MINUTES", default_value_t = 5.0)]
    minutes: f64,

    /// Decides what breaks when; drawn when not given
    #[arg(long, env = "SEED")]
    seed: Option<u64>,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    let flags = Flags::parse();
    let seed = flags.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
    tokio::select! {
        ended = soak(flags.minutes, seed) => match ended {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("\nsoak: {error:#}\nSEED={seed}");
                ExitCode::FAILURE
            }
        },
        _ = tokio::signal::ctrl_c() => ExitCode::from(130),
    }
}

/// Returns whether all promises were kept.
async fn soak(minutes: f64, seed: u64) -> Result<bool> {
    println!("A soak of {minutes} minutes, SEED={seed}.");
    let stage = stage::Stage::set(seed).await?;
    let report = stage.play(Duration::from_secs_f64(minutes * 60.0)).await?;
    report.print();
    Ok(report.is_clean())
}
