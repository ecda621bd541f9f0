//! The dashboard: its expressions have answers, and it shows every metric that the relay exports.
//!
//! Grafana is not available here, so a script runs each expression on a real Prometheus and draws the panels into one
//! page (`tests/tools/dashboard/preview.mjs`); `make dashboard-preview` keeps that page.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::alerts::{exported, names_in};
use support::prometheus::Prometheus;
use support::proxy::{Choice, Fault, Rule};
use support::test_bed::TestBed;

fn dashboard() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/grafana/outbox-relay.json")
}

#[test]
fn the_dashboard_shows_every_metric_and_none_that_does_not_exist() -> Result<()> {
    let (named, exported) = (names_in(&std::fs::read_to_string(dashboard())?), exported()?);
    let ours: BTreeSet<String> = exported.into_iter().filter(|name| name.starts_with("outbox_relay_")).collect();
    let (missing, unknown) = (ours.difference(&named), named.difference(&ours));
    let (missing, unknown): (Vec<_>, Vec<_>) = (missing.collect(), unknown.collect());
    ensure!(missing.is_empty() && unknown.is_empty(), "not shown: {missing:?}; not exported: {unknown:?}");
    Ok(())
}

#[tokio::test]
async fn every_expression_of_the_dashboard_has_data_of_a_real_relay() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    bed.fifo("tickets").await?;
    bed.standard("audit").await?;
    // An ordinary day: a message fails once in a while, some answers are slow, one message is too large.
    let fails = Fault::FailEntries { which: Choice::chance(0.02, 7), code: "InternalError", sender_fault: false };
    proxy.script([Rule::new(Fault::Delay(Duration::from_millis(30))).chance(0.2, 5), Rule::new(fails).chance(0.3, 6)]);
    // Before the relays start: the first probe of the backlog sees it, and the next may come after the last scrape.
    let later = "SELECT outbox.enqueue('audit', 'T', '1', deliver_at => now() + interval '1 hour')";
    bed.client.batch_execute(later).await?;
    // With a name, as the filter for databases needs it.
    let folder = tempfile::tempdir()?;
    let databases = folder.path().join("databases");
    std::fs::write(&databases, format!("lottery {}", bed.relay_url()))?;
    let relay = bed.relay().without("DATABASE_URL").env("DATABASE_URLS_FILE", databases.to_string_lossy());
    let relays = [relay.start().await?, relay.start().await?];
    let targets = relays.iter().map(|relay| relay.address()).collect();
    let prometheus = Prometheus::start("groups: []\n", &[("outbox-relay", targets)]).await?;
    prometheus.wait_for_sample("outbox-relay").await?;
    bed.enqueue("audit", &format!("{{\"large\": \"{}\"}}", "x".repeat(1_100_000)), None).await?;
    let page = std::env::var_os("DASHBOARD_PAGE");
    let seconds = if page.is_some() { 90 } else { 12 };
    for second in 0..seconds {
        bed.enqueue_many("tickets", 40 + 30 * (second % 7), 20).await?;
        bed.enqueue_many("audit", 60 + second, 0).await?;
        // Time is the subject: rates need scrapes over some seconds, and the preview page shows a minute.
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let path =
        page.map_or_else(|| std::env::temp_dir().join(format!("dashboard-{}.html", std::process::id())), PathBuf::from);
    let mut preview = tokio::process::Command::new("node");
    preview.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tools/dashboard/preview.mjs"));
    preview.arg(format!("http://{}", prometheus.address())).arg(dashboard()).arg(&path);
    preview.args(["--rate-interval=10s", "--range=2m"]);
    let output = preview.output().await.context("node is missing; install Node.js >= 20")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{said}");
    ensure!(std::fs::read_to_string(&path)?.contains("</svg>"), "the page has no picture");
    Ok(())
}
