//! `docs/metrics.md` matches the declarations: `UPDATE=1 cargo test --test it metrics_page` writes it again.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use outbox_relay::message::FaultKind;
use outbox_relay::metrics::{Metrics, ProcessMetrics, render};

const HEAD: &str = "# Metrics\n\n\
    Served at `/metrics` of `OUTBOX_RELAY_HTTP_LISTEN`. This page is generated from `src/metrics.rs`; a test\n\
    compares the two.\n\n\
    - Counters exist from the start, with 0, so that `increase()` sees the first event after a scrape. Values measured in\n\
    \x20 PostgreSQL appear with the first measurement, moments later.\n\
    - What the process did is counted where it happens. Lag, backlog, dead messages and the horizon are measured in PostgreSQL\n\
    \x20 every few seconds, by each relay for all its destinations: take `max`, not `sum`, over several relays.\n\
    - If they could not be measured for 60 seconds, those series are left out of the answer, because a number that does not\n\
    \x20 change looks like a true one. `outbox_relay_database_up` and `outbox_relay_backlog_probe_timestamp_seconds` stay.\n\
    - The values of `reason` are REASONS;\n\
    \x20 [operations.md](operations.md) says what each means.\n\
    - `process_*` is Prometheus's own family: processor time, memory, open files, start time.\n\
    - If the relay serves [several databases](configuration.md#several-databases), every series about one of them has the label\n\
    \x20 `database` as well.\n\n\
    | metric | type | labels | what it says |\n|---|---|---|---|\n";

/// The text format's data about one metric.
#[derive(Debug, Default)]
struct Family {
    kind: String,
    help: String,
    labels: Vec<String>,
    bounds: Vec<String>,
}

/// Names and values of a series' labels.
fn labels(series: &str) -> Vec<(String, String)> {
    let inner = series.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map_or("", |(inner, _)| inner);
    let pairs = inner.split(',').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (name.to_owned(), value.trim_matches('"').to_owned())).collect()
}

fn families(text: &str) -> Result<BTreeMap<String, Family>> {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            current = name.to_owned();
            families.entry(current.clone()).or_default().help = help.to_owned();
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            families.entry(name.to_owned()).or_default().kind = kind.to_owned();
        } else {
            let family = families.get_mut(&current).with_context(|| format!("{line} has no name before it"))?;
            for (name, value) in labels(line) {
                if name == "le" {
                    if value != "+Inf" && !family.bounds.contains(&value) {
                        family.bounds.push(value);
                    }
                } else if !family.labels.contains(&name) {
                    family.labels.push(name);
                }
            }
        }
    }
    Ok(families)
}

/// The values of the label `reason`, as documents write them.
fn reasons() -> [String; FaultKind::ALL.len()] {
    FaultKind::ALL.map(|kind| format!("`{}`", kind.reason()))
}

fn page() -> Result<String> {
    let metrics = Metrics::new(None)?;
    metrics.destination("tickets");
    metrics.has_measured();
    // This series exists only while a destination is paused.
    metrics.set_paused("tickets", Some(std::time::Duration::ZERO));
    let families = families(&String::from_utf8(render(&ProcessMetrics::new()?, [&metrics])?)?)?;
    let ours = || families.iter().filter(|(name, _)| !name.starts_with("process_"));
    let mut page = HEAD.replace("REASONS", &reasons().join(", "));
    for (name, Family { kind, help, labels, .. }) in ours() {
        let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
        writeln!(page, "| `{name}` | {kind} | {} | {help} |", labels.join(", "))?;
    }
    page.push_str(
        "\n## Buckets\n\nUpper bounds, and one without a bound above them.\n\n| metric | bounds |\n|---|---|\n",
    );
    for (name, Family { bounds, .. }) in ours().filter(|(_, family)| family.kind == "histogram") {
        writeln!(page, "| `{name}` | {} |", bounds.join(", "))?;
    }
    Ok(page)
}

#[test]
fn the_page_of_metrics_says_what_is_declared() -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics.md");
    let page = page()?;
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(&path, &page)?;
    }
    ensure!(
        std::fs::read_to_string(&path)? == page,
        "{} does not match the declarations; write it with UPDATE=1",
        path.display()
    );
    Ok(())
}

#[test]
fn the_runbook_says_what_each_reason_means() {
    let runbook = include_str!("../../docs/operations.md");
    for reason in reasons() {
        assert!(runbook.contains(&reason), "{reason} is not in docs/operations.md");
    }
}
