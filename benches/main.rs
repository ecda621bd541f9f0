//! `make bench`: the throughput of the relay against a durable PostgreSQL and a stand-in for SQS, as ratios within one
//! run.
//!
//! `cases` has a file for each case, in the order of the table. `ground` starts what they need, `processes` what each
//! process uses, `ceilings` measures the fastest possible drain, `stand_in` is an SQS that is fast enough, and `report` writes the table, the JSON and the
//! picture. Nothing here is a test, since noise must not fail a build. `instructions.rs` counts instructions to detect
//! slowdowns.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a bench talks to the person who started it")]
#![allow(unreachable_pub, reason = "a bench has no users of its API")]

mod cases;
mod ceilings;
mod ground;
mod processes;
mod report;
mod stand_in;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use serde_json::{Value, json};

use ceilings::Ceiling;
use ground::Ground;

/// Measures the relay, and writes docs/benchmarks/results.json and results.svg
#[derive(Parser, Debug)]
#[command(name = "bench", max_term_width = 100)]
struct Flags {
    /// One case only, by its name
    #[arg(long, env = "CASE", value_parser = cases::NAMES)]
    case: Option<String>,

    /// Less work by this factor, to try out the bench itself; nothing is written then
    #[arg(long, env = "SCALE", default_value_t = 1.0, value_parser = scale)]
    scale: f64,

    /// The seed of all random choices
    #[arg(long, env = "SEED", default_value_t = 1)]
    seed: u64,

    /// Cargo passes this to every bench
    #[arg(long, hide = true)]
    bench: bool,
}

fn scale(text: &str) -> Result<f64, String> {
    let scale: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if scale > 0.0 && scale <= 1.0 { Ok(scale) } else { Err("more than 0 and at most 1".to_owned()) }
}

fn main() -> ExitCode {
    // Some parts of the bench are separate processes.
    let mut arguments = std::env::args();
    let program = arguments.next().unwrap_or_default();
    let part = arguments.next().unwrap_or_default();
    let rest = || std::iter::once(program.clone()).chain(std::env::args().skip(2));
    let done = match part.as_str() {
        "stand-in" => stand_in::serve(&PathBuf::from(std::env::args().nth(2).unwrap_or_default())),
        "database-ceiling" => Ceiling::parse_from(rest()).database().map(|rate| println!("{rate}")),
        "sender-ceiling" => Ceiling::parse_from(rest()).sender().map(|rate| println!("{rate}")),
        _ => bench(&Flags::parse()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bench(flags: &Flags) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        fastrand::seed(flags.seed);
        let ground = Ground::lay()?;
        let about = about(&ground, flags.seed).await?;
        println!("{about:#}\n");
        let mut outcomes = Vec::new();
        for name in cases::NAMES.into_iter().filter(|name| flags.case.as_ref().is_none_or(|wanted| wanted == name)) {
            let outcome = cases::run(name, &ground, flags.scale).await.with_context(|| format!("case {name}"))?;
            println!();
            outcomes.push(outcome);
            if flags.scale == 1.0 {
                // It is written after each case, because all of them take an hour.
                report::write(&folder(), &about, &outcomes)?;
            }
        }
        Ok(())
    })
}

fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/benchmarks"))
}

/// The machine, the versions and the seed of the measurement.
async fn about(ground: &Ground, seed: u64) -> Result<Value> {
    let row = ground.connect("postgres").await?.query_one("SELECT version(), now()::date::text", &[]).await?;
    let (version, date): (String, String) = (row.get(0), row.get(1));
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown");
    Ok(json!({
        "date": date,
        "seed": seed,
        "relay": env!("CARGO_PKG_VERSION"),
        "postgresql": version.split(" on ").next(),
        "cores": std::thread::available_parallelism()?.get(),
        "processor": model.trim_start_matches([' ', '\t', ':']),
    }))
}
