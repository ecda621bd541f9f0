//! `make prove-alerts`: each alert is made to fire by a real fault, and observed through Prometheus's own API.
//!
//! A real Prometheus scrapes real relays and evaluates the shipped rules, with all times shortened by one factor
//! (`rules`). Each alert has its own stage: a database, queues, a relay and a scrape job (`stages`), so that no fault
//! affects another. First nothing may fire; then all faults are made; then each alert must fire on its own stage.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "it talks to the person who started it")]
#![allow(unreachable_pub, reason = "a test has no outside")]

mod rules;
mod stages;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Parser;

use stages::Stage;
use support::prometheus::{Alert, Prometheus, State};

/// Makes each alert fire by a real fault
#[derive(Parser, Debug)]
#[command(name = "prove-alerts", max_term_width = 100)]
struct Flags {
    /// A minute of the rules is this many seconds here; relays measure every two seconds, so not much less than three
    #[arg(long, env = "MINUTE", default_value_t = 3, value_parser = clap::value_parser!(u32).range(3..=60))]
    seconds: u32,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> ExitCode {
    let flags = Flags::parse();
    tokio::select! {
        ended = prove(flags.seconds) => match ended {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("prove-alerts: {error:#}");
                ExitCode::FAILURE
            }
        },
        // Dropping everything stops what was started.
        _ = tokio::signal::ctrl_c() => ExitCode::FAILURE,
    }
}

async fn prove(minute: u32) -> Result<bool> {
    let rules = rules::shortened(minute)?;
    let mut stages = stages::build(minute).await?;
    let jobs: Vec<(&str, Vec<&str>)> = stages.iter().map(|stage| (stage.job(), vec![stage.address()])).collect();
    let prometheus = Prometheus::start(&rules, &jobs).await?;
    println!(
        "a minute of the rules is {minute} s here; {} alerts; Prometheus at {}",
        stages.len(),
        prometheus.address()
    );
    for stage in &stages {
        prometheus.wait_for_sample(stage.job()).await?;
    }
    wait_for_quiet(&prometheus).await?;
    let started = Instant::now();
    for stage in &mut stages {
        stage.break_it().await?;
    }
    // The longest of them needs a little over an hour of the rules.
    let patience = Duration::from_secs(u64::from(minute) * 60 + 180);
    let mut seen: Vec<Seen> = stages.iter().map(Seen::new).collect();
    while started.elapsed() < patience && seen.iter().any(|seen| seen.firing.is_none()) {
        let alerts = prometheus.alerts().await?;
        for seen in &mut seen {
            seen.look(&alerts, started);
        }
        // Time is the subject: Prometheus evaluates once a second.
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    println!("\n{:<33} {:<62} {:>9} {:>9}", "alert", "fault", "pending", "firing");
    for seen in &seen {
        println!("{}", seen.line());
    }
    let all_fired = seen.iter().all(|seen| seen.firing.is_some());
    println!("\n{}", if all_fired { "PASSED: every alert fired" } else { "FAILED: not every alert fired" });
    drop(stages);
    Ok(all_fired)
}

/// Before any fault is made nothing may fire, and alerts that were pending when Prometheus began to scrape must have
/// ended.
async fn wait_for_quiet(prometheus: &Prometheus) -> Result<()> {
    let started = Instant::now();
    loop {
        let alerts = prometheus.alerts().await?;
        ensure!(alerts.iter().all(|alert| alert.state == State::Pending), "fires without a fault: {alerts:?}");
        if alerts.is_empty() {
            return Ok(());
        }
        ensure!(started.elapsed() < Duration::from_secs(30), "pending without a fault: {alerts:?}");
        // Time is the subject: Prometheus evaluates once a second.
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// When an alert was seen.
struct Seen {
    alert: &'static str,
    job: String,
    fault: &'static str,
    pending: Option<Duration>,
    firing: Option<Duration>,
}

impl Seen {
    fn new(stage: &Stage) -> Seen {
        let (alert, job, fault) = (stage.alert(), stage.job().to_owned(), stage.fault());
        Seen { alert, job, fault, pending: None, firing: None }
    }

    fn look(&mut self, alerts: &[Alert], started: Instant) {
        for alert in alerts.iter().filter(|alert| alert.name == self.alert && alert.job == self.job) {
            let slot = match alert.state {
                State::Pending => &mut self.pending,
                State::Firing => &mut self.firing,
            };
            slot.get_or_insert(started.elapsed());
        }
    }

    fn line(&self) -> String {
        let shown = |at: Option<Duration>| at.map_or("not seen".to_owned(), |at| format!("{:.0} s", at.as_secs_f64()));
        format!("{:<33} {:<62} {:>9} {:>9}", self.alert, self.fault, shown(self.pending), shown(self.firing))
    }
}
