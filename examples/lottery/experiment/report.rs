//! The table and the figures of an experiment.

use std::fmt::Write as _;
use std::fs;

use anyhow::Result;
use serde_json::json;

use super::outcome::Outcome;
use super::picture::picture;
use super::statistics::{counts, spread};
use super::{Experiment, Runs};

/// The outcomes of a variant, selected by the first letter of its name.
fn outcomes(all: &[Runs], letter: char, with_faults: bool) -> &[Outcome] {
    let is_it = |runs: &&Runs| runs.variant.name.starts_with(letter) && runs.variant.with_faults == with_faults;
    all.iter().find(is_it).map_or(&[], |runs| &runs.outcomes)
}

/// The promises that the outbox did not keep.
pub fn broken_promises(all: &[Runs]) -> Vec<String> {
    let mut broken = Vec::new();
    for runs in all.iter().filter(|runs| runs.variant.name.starts_with('C')) {
        for outcome in &runs.outcomes {
            for (what, count) in
                [("lost", outcome.lost), ("phantom", outcome.phantom), ("applied twice", outcome.effects_twice)]
            {
                if count != 0 {
                    broken.push(format!("{}: {count} {what}", runs.variant.name));
                }
            }
            if outcome.errors_outside_restart >= 0.01 {
                broken.push(format!("{}: {:.2} % errors", runs.variant.name, outcome.errors_outside_restart * 100.0));
            }
        }
    }
    broken
}

/// One row of the table: its name, and its value in each variant.
type Row = (String, Vec<String>);

fn rows(all: &[Runs]) -> Vec<Row> {
    let counted = |name: &str, value: &dyn Fn(&Outcome) -> i64| {
        let cell = |runs: &Runs| counts(&runs.outcomes.iter().map(value).collect::<Vec<_>>());
        (name.to_owned(), all.iter().map(cell).collect())
    };
    let measured = |name: &str, unit: &str, digits: usize, value: &dyn Fn(&Outcome) -> f64| {
        let show = |value: f64| format!("{value:.digits$}{unit}");
        let cell = |runs: &Runs| spread(&runs.outcomes.iter().map(value).collect::<Vec<_>>(), show);
        (name.to_owned(), all.iter().map(cell).collect())
    };
    let mut rows = vec![
        counted("messages of committed events", &|o| o.messages),
        counted("lost", &|o| o.lost),
        counted("phantom", &|o| o.phantom),
        counted("duplicates", &|o| o.duplicates),
        counted("effects applied twice", &|o| o.effects_twice),
        measured("granted a second", "", 0, &|o| o.granted_per_second),
        measured("errors", " %", 2, &|o| o.errors * 100.0),
        measured("errors outside the database's restart", " %", 2, &|o| o.errors_outside_restart * 100.0),
        measured("response, mean", " ms", 1, &|o| o.response[0]),
        measured("response, p50", " ms", 1, &|o| o.response[1]),
        measured("response, p95", " ms", 1, &|o| o.response[2]),
        measured("response, p99", " ms", 1, &|o| o.response[3]),
        measured("commit to consumer, of what arrived, p50", " ms", 0, &|o| o.arrival[0]),
        measured("commit to consumer, of what arrived, p99", " ms", 0, &|o| o.arrival[1]),
    ];
    rows.extend(catch_ups(all));
    rows
}

fn seconds(took: &[f64]) -> String {
    if took.is_empty() { "-".to_owned() } else { spread(took, |seconds| format!("{seconds:.1} s")) }
}

fn catch_ups(all: &[Runs]) -> Vec<Row> {
    let mut faults = Vec::new();
    for fault in all.iter().flat_map(|runs| &runs.outcomes).flat_map(|outcome| &outcome.catch_up) {
        if !faults.contains(&fault.what) {
            faults.push(fault.what);
        }
    }
    let cell = |runs: &Runs, fault: &str| {
        let seen = runs.outcomes.iter().flat_map(|outcome| &outcome.catch_up).filter(|one| one.what == fault);
        let (took, lost): (Vec<f64>, Vec<i64>) = seen.map(|one| (one.seconds, one.lost)).unzip();
        if lost.iter().any(|lost| *lost > 0) { format!("never ({} lost)", counts(&lost)) } else { seconds(&took) }
    };
    let published = |runs: &Runs, fault: &str| {
        let seen = runs.outcomes.iter().flat_map(|outcome| &outcome.catch_up).filter(|one| one.what == fault);
        seconds(&seen.filter_map(|one| one.published_seconds).collect::<Vec<_>>())
    };
    let row = |name: &str, fault: &str, cell: &dyn Fn(&Runs, &str) -> String| {
        (format!("{name}: {fault}"), all.iter().map(|runs| cell(runs, fault)).collect())
    };
    let caught_up = faults.iter().map(|fault| row("caught up after", fault, &cell));
    caught_up.chain(faults.iter().map(|fault| row("published after", fault, &published))).collect()
}

/// The change from A to C: both figures, and their ratio. Each ratio is of two runs of the same repetition.
struct Change<'a> {
    before: &'a [Outcome],
    after: &'a [Outcome],
}

impl Change<'_> {
    fn ratio(&self, value: impl Fn(&Outcome) -> f64) -> String {
        let pairs = self.before.iter().zip(self.after).map(|(before, after)| (value(before), value(after)));
        let ratios: Vec<f64> =
            pairs.filter(|(before, _)| *before > 0.0).map(|(before, after)| after / before).collect();
        format!("x {}", spread(&ratios, |ratio| format!("{ratio:.2}")))
    }

    fn figures(&self, show: impl Fn(f64) -> String, value: impl Fn(&Outcome) -> f64) -> String {
        let of = |outcomes: &[Outcome]| spread(&outcomes.iter().map(&value).collect::<Vec<_>>(), &show);
        format!("{} → {}", of(self.before), of(self.after))
    }
}

/// The customer's figures beside ours.
fn customers_rows(all: &[Runs]) -> Vec<[String; 3]> {
    let row = |what: &str, customer: &str, ours: String| [what.to_owned(), customer.to_owned(), ours];
    let change = Change { before: outcomes(all, 'A', true), after: outcomes(all, 'C', true) };
    let wrong =
        |outcomes: &[Outcome]| counts(&outcomes.iter().map(|one| one.lost + one.effects_twice).collect::<Vec<_>>());
    let seconds = change.before.first().map_or(0.0, |outcome| outcome.time.as_secs_f64());
    let percent = |value: f64| format!("{:.2} %", value * 100.0);
    let mut rows = vec![
        row(
            "events lost or doubled for consumers",
            "500 → under 10 a day",
            format!("{} → {} in {seconds:.0} s", wrong(change.before), wrong(change.after)),
        ),
        row("throughput", "+30 % (x 1.30)", change.ratio(|o| o.granted_per_second)),
        row("errors", "5 % → under 1 %", change.figures(percent, |o| o.errors)),
        row("errors outside the database's restart", "", change.figures(percent, |o| o.errors_outside_restart)),
    ];
    for (at, name) in ["mean", "p50", "p95", "p99"].iter().enumerate() {
        let customer = if at == 0 { "500 ms → under 200 ms (x 0.40)" } else { "" };
        rows.push(row(&format!("response, {name}"), customer, change.ratio(|o| o.response[at])));
    }
    let calm = Change { before: outcomes(all, 'A', false), after: outcomes(all, 'C', false) };
    rows.push(row("without faults: throughput", "", calm.ratio(|o| o.granted_per_second)));
    rows.push(row("without faults: response, mean", "", calm.ratio(|o| o.response[0])));
    rows.push(row("without faults: response, p95", "", calm.ratio(|o| o.response[2])));
    rows
}

/// The tables, in Markdown.
pub fn table(experiment: &Experiment, all: &[Runs]) -> Result<String> {
    let mut text = String::from("|");
    for runs in all {
        write!(text, " | {}", runs.variant.name)?;
    }
    text.push_str(" |\n|---|");
    text.push_str(&"---:|".repeat(all.len()));
    text.push('\n');
    for (name, values) in rows(all) {
        writeln!(text, "| {name} | {} |", values.join(" | "))?;
    }
    text.push_str("\n| | the customer | here, A to C, under the faults |\n|---|---|---|\n");
    for row in customers_rows(all) {
        writeln!(text, "| {} |", row.join(" | "))?;
    }
    let Experiment { seconds, repetitions, buyers, think, latency, draws, seed, .. } = experiment;
    writeln!(
        text,
        "\n{buyers} buyers in a closed loop, {think:?} of thought on average, {draws} draws, {seconds} s for each variant, \
         requests to a queue with a median of {latency:?} and a 99th percentile of {:?}, seed {seed}.",
        *latency * 8
    )?;
    if *repetitions > 1 {
        writeln!(
            text,
            "Each variant ran {repetitions} times, every second time in the opposite order. Counts are of each run; what was \
             measured is the median, with the lowest and the highest behind it; ratios are of two runs of the same repetition."
        )?;
    }
    Ok(text)
}

/// Writes table, figures and picture.
pub fn write(experiment: &Experiment, all: &[Runs], table: &str) -> Result<()> {
    let folder = &experiment.output;
    fs::create_dir_all(folder)?;
    let date = humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string();
    let Experiment { seconds, repetitions, buyers, think, latency, draws, seed, .. } = experiment;
    let (think, latency) = (humantime::format_duration(*think), humantime::format_duration(*latency));
    let command = format!(
        "make experiment ARGS='--repetitions {repetitions} --seconds {seconds} --buyers {buyers} --think {think} \
         --latency {latency} --draws {draws} --seed {seed}'"
    );
    let head =
        "# Before and after\n\nWhat it is about, and what the variants are, is in [experiment.md](../experiment.md).";
    let text = format!(
        "{head} Written by the command that repeats it, on {date}:\n\n```sh\n{command}\n```\n\n{table}\n\
         ![the first repetition over time](results.svg)\n"
    );
    fs::write(folder.join("results.md"), text)?;
    let runs = |runs: &Runs| {
        let Runs { variant, outcomes } = runs;
        json!({"variant": variant.name, "with_faults": variant.with_faults, "outcomes": outcomes})
    };
    let runs: Vec<_> = all.iter().map(runs).collect();
    let figures = json!({"date": date, "command": command, "runs": runs});
    fs::write(folder.join("results.json"), format!("{figures:#}\n"))?;
    fs::write(folder.join("results.svg"), picture(experiment, all)?)?;
    Ok(())
}
