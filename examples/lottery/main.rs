//! A lottery sells tickets while the relay that publishes them is killed half-way: nothing may get lost, appear from
//! nowhere, or come in the wrong order. `make demo` builds and runs it.
//!
//! The demo starts everything it needs, and everything ends with it: a private PostgreSQL cluster, an SQS emulator, and
//! the relay as a separate process. In reading order: `stage` (what runs, and the scenario), `shop` (the application,
//! which writes plain SQL), `consumer` (the consuming end of the queues), `ledger` (the judge), `relay`, `screen`,
//! `folder`.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a demo talks to the person who started it")]
#![allow(unreachable_pub, reason = "the modules of an example have no outside")]

mod app;
mod experiment;
mod folder;
mod interrupts;
mod relay;
mod screen;
mod stage;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::{Parser, Subcommand};
use interrupts::Interrupts;
use screen::grouped;
use stage::Stage;
use support::lottery::shop::Season;

/// Sells lottery tickets, kills the relay half-way, and compares what was bought with what arrived
#[derive(Parser, Debug)]
#[command(name = "lottery", max_term_width = 100, args_conflicts_with_subcommands = true)]
struct Flags {
    #[command(subcommand)]
    verb: Option<Verb>,

    /// Purchases to make
    #[arg(long, value_name = "N", default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(2..=10_000_000))]
    purchases: u64,

    /// Writers at work at the same time
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u8).range(1..=100))]
    writers: u8,

    /// Draws that the tickets are for; each is a group of the FIFO queue
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    draws: u64,

    /// Purchases a second at most; 0 is as fast as this machine can
    #[arg(long, value_name = "N", default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(0..=1_000_000))]
    rate: u64,

    /// Decides who buys what and who changes his mind
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,

    /// Stay up after the table and print the URLs
    #[arg(long, env = "KEEP", value_parser = clap::builder::FalseyValueParser::new(), action = clap::ArgAction::SetTrue)]
    keep: bool,

    /// The relay's binary [default: the one built beside this example]
    #[arg(long, value_name = "PATH", env = "LOTTERY_RELAY", global = true)]
    relay: Option<PathBuf>,

    /// Where to work; emptied before and after [default: demo in cargo's target folder]
    #[arg(long, value_name = "PATH", env = "LOTTERY_FOLDER", global = true)]
    folder: Option<PathBuf>,
}

/// The other programs in this binary.
#[derive(Subcommand, Debug)]
enum Verb {
    Serve(app::serve::Serve),
    Experiment(experiment::Experiment),
    #[command(hide = true)]
    Commands(app::commands::Commands),
    #[command(hide = true)]
    View(app::views::View),
}

impl Flags {
    fn season(&self) -> Season {
        let Flags { purchases, draws, rate, seed, .. } = *self;
        Season { purchases, writers: self.writers.into(), draws, rate, seed }
    }

    fn relay(&self) -> Result<PathBuf> {
        let binary = match &self.relay {
            Some(binary) => binary.clone(),
            None => profile_folder()?.join("outbox-relay"),
        };
        ensure!(
            binary.is_file(),
            "{} is missing: run `make demo`, which builds it, or name the relay with --relay",
            binary.display()
        );
        Ok(binary.canonicalize()?)
    }

    fn folder(&self) -> Result<PathBuf> {
        match &self.folder {
            Some(folder) => Ok(folder.clone()),
            None => Ok(profile_folder()?.parent().context("no target folder")?.join("demo")),
        }
    }
}

/// `target/release` of `target/release/examples/lottery`.
fn profile_folder() -> Result<PathBuf> {
    let example = std::env::current_exe()?;
    let folder = example.parent().and_then(Path::parent);
    Ok(folder.context("the example is not where cargo built it; give --relay and --folder")?.to_owned())
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    let mut flags = Flags::parse();
    if let Some(verb) = flags.verb.take() {
        let code = match perform_as(verb, &flags).await {
            Ok(true) => 0,
            Ok(false) => 1,
            Err(error) => {
                eprintln!("lottery: {error:#}");
                1
            }
        };
        // Not by returning: a thread may still be waiting for standard input.
        std::process::exit(code);
    }
    let mut interrupts = match Interrupts::install() {
        Ok(interrupts) => interrupts,
        Err(error) => {
            eprintln!("lottery: signals cannot be received: {error}");
            return ExitCode::FAILURE;
        }
    };
    let performed = tokio::select! {
        performed = perform(&flags) => performed,
        () = interrupts.next() => {
            eprintln!("\ninterrupted; everything is put away");
            return ExitCode::from(130);
        }
    };
    let ended = match performed {
        Ok((stage, passed)) => leave(&flags, stage, passed, &mut interrupts).await.map(|()| passed),
        Err(error) => Err(error),
    };
    match ended {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("\ndemo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs one of the application's processes, or all of them; returns whether all was well.
async fn perform_as(verb: Verb, flags: &Flags) -> Result<bool> {
    match verb {
        Verb::Serve(serve) => {
            let mut interrupts = Interrupts::install().context("signals cannot be received")?;
            app::serve::run(&serve, &flags.folder()?, flags.relay()?, &mut interrupts).await
        }
        Verb::Experiment(experiment) => experiment::run(&experiment, &flags.folder()?, flags.relay()?).await,
        Verb::Commands(commands) => app::commands::run(commands).await.map(|()| true),
        Verb::View(view) => app::views::run(view).await.map(|()| true),
    }
}

/// Runs the scenario and prints the table; returns whether all promises were kept.
async fn perform(flags: &Flags) -> Result<(Stage, bool)> {
    let season = flags.season();
    println!(
        "A lottery sells {} tickets for {} draws, with {} writers at a time (seed {}).",
        grouped(season.purchases),
        season.draws,
        season.writers,
        season.seed
    );
    println!();
    let mut stage = Stage::set(flags).await?;
    let report = stage.play(season).await?;
    report.print();
    let broken = report.broken_promises();
    if broken.is_empty() {
        println!("PASSED: nothing lost, nothing invented, every draw in order.");
    } else {
        println!("FAILED:");
        broken.iter().for_each(|promise| println!("  {promise}"));
    }
    Ok((stage, broken.is_empty()))
}

/// Cleans up, once the user has seen enough.
async fn leave(flags: &Flags, mut stage: Stage, passed: bool, interrupts: &mut Interrupts) -> Result<()> {
    if flags.keep {
        println!();
        stage.print_urls();
        interrupts.next().await;
        println!();
    }
    stage.strike().await?;
    if passed {
        stage.forget_log();
    } else {
        println!("The relay's log is {}", stage.relay_log().display());
    }
    Ok(())
}
