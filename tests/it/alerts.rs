//! The alert rules: Prometheus accepts them, they fire when they should and stay silent otherwise, and everything they
//! name exists.
//!
//! `make prove-alerts` shows that they fire on a running relay.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use outbox_relay::metrics::{Metrics, ProcessMetrics, render};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn rules() -> PathBuf {
    root().join("deploy/prometheus/outbox-relay.rules.yml")
}

fn promtool(arguments: &[&str]) -> Result<String> {
    let output = std::process::Command::new("promtool").args(arguments).output();
    let output = output
        .context("promtool is not installed; it is in the Debian package prometheus: apt-get install prometheus")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "promtool {arguments:?}: {said}");
    Ok(said)
}

/// Metric names with our prefix; those of a histogram's series without their suffix.
pub fn names_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let ours = words.filter(|word| word.starts_with("outbox_relay_"));
    ours.map(|word| {
        let histogram = ["_bucket", "_count", "_sum"].iter().find_map(|ending| word.strip_suffix(ending));
        histogram.unwrap_or(word).to_owned()
    })
    .collect()
}

pub fn exported() -> Result<BTreeSet<String>> {
    let metrics = Metrics::new(None)?;
    metrics.destination("tickets");
    metrics.set_paused("tickets", Some(std::time::Duration::ZERO));
    metrics.has_measured();
    let text = String::from_utf8(render(&ProcessMetrics::new()?, [&metrics])?)?;
    let name = |line: &str| Some(line.strip_prefix("# TYPE ")?.split(' ').next()?.to_owned());
    Ok(text.lines().filter_map(name).collect())
}

#[test]
fn the_alert_rules_pass_the_lints_of_promtool() -> Result<()> {
    let rules = rules();
    promtool(&["check", "rules", "--lint=all", "--lint-fatal", rules.to_str().context("no UTF-8")?]).map(drop)
}

#[test]
fn each_alert_fires_when_it_should_and_not_a_moment_before() -> Result<()> {
    let tests = root().join("deploy/prometheus/outbox-relay.rules.test.yml");
    promtool(&["test", "rules", tests.to_str().context("no UTF-8")?])?;
    let (rules, tests) = (std::fs::read_to_string(rules())?, std::fs::read_to_string(tests)?);
    let alerts = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    for alert in alerts {
        ensure!(tests.contains(&format!("alertname: {alert}")), "{alert} has no test");
    }
    Ok(())
}

#[test]
fn every_alert_leads_to_a_heading_of_the_runbook() -> Result<()> {
    let rules = std::fs::read_to_string(rules())?;
    let operations = std::fs::read_to_string(root().join("docs/operations.md"))?;
    let anchors = crate::documents::anchors(&operations);
    let mut count = 0;
    for anchor in rules.lines().filter_map(|line| line.trim().strip_prefix("runbook: docs/operations.md#")) {
        ensure!(anchors.contains(anchor), "docs/operations.md has no heading for #{anchor}");
        count += 1;
    }
    let alerts = rules.matches("- alert: ").count();
    ensure!(count == alerts && alerts >= 11, "{alerts} alerts, {count} runbooks");
    Ok(())
}

#[test]
fn every_metric_that_an_alert_names_is_exported() -> Result<()> {
    let (named, exported) = (names_in(&std::fs::read_to_string(rules())?), exported()?);
    ensure!(named.len() > 5, "{named:?}");
    let missing: Vec<&String> = named.difference(&exported).collect();
    ensure!(missing.is_empty(), "not exported: {missing:?}");
    Ok(())
}
