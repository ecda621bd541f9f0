//! The table, the picture and the figures of an experiment.

use std::fmt::Write as _;
use std::fs;

use anyhow::Result;
use serde_json::json;

use super::outcome::Outcome;
use super::{Experiment, Variant};

/// Outcomes by the letter with which a variant's name begins.
fn outcome(outcomes: &[(Variant, Outcome)], letter: char, with_faults: bool) -> Option<&Outcome> {
    let is_it = |variant: &Variant| variant.name.starts_with(letter) && variant.with_faults == with_faults;
    outcomes.iter().find(|(variant, _)| is_it(variant)).map(|(_, outcome)| outcome)
}

/// What the outbox promised and did not keep.
pub fn broken_promises(outcomes: &[(Variant, Outcome)]) -> Vec<String> {
    let mut broken = Vec::new();
    for (variant, outcome) in outcomes.iter().filter(|(variant, _)| variant.name.starts_with('C')) {
        for (what, count) in
            [("lost", outcome.lost), ("phantom", outcome.phantom), ("applied twice", outcome.effects_twice)]
        {
            if count != 0 {
                broken.push(format!("{}: {count} {what}", variant.name));
            }
        }
        if outcome.errors_outside_restart >= 0.01 {
            broken.push(format!("{}: {:.2} % errors", variant.name, outcome.errors_outside_restart * 100.0));
        }
    }
    broken
}

/// One row of the table: its name, and its value in each variant.
type Row = (String, Vec<String>);

fn rows(outcomes: &[(Variant, Outcome)]) -> Vec<Row> {
    let row = |name: &str, value: &dyn Fn(&Outcome) -> String| {
        (name.to_owned(), outcomes.iter().map(|(_, outcome)| value(outcome)).collect())
    };
    let mut rows = vec![
        row("messages of committed events", &|o| o.messages.to_string()),
        row("lost", &|o| o.lost.to_string()),
        row("phantom", &|o| o.phantom.to_string()),
        row("duplicates", &|o| o.duplicates.to_string()),
        row("effects applied twice", &|o| o.effects_twice.to_string()),
        row("granted a second", &|o| format!("{:.1}", o.granted_per_second)),
        row("errors", &|o| format!("{:.2} %", o.errors * 100.0)),
        row("errors outside the database's restart", &|o| format!("{:.2} %", o.errors_outside_restart * 100.0)),
        row("response, mean", &|o| format!("{:.1} ms", o.response[0])),
        row("response, p50", &|o| format!("{:.1} ms", o.response[1])),
        row("response, p95", &|o| format!("{:.1} ms", o.response[2])),
        row("response, p99", &|o| format!("{:.1} ms", o.response[3])),
        row("commit to consumer, of what arrived, p50", &|o| format!("{:.0} ms", o.arrival[0])),
        row("commit to consumer, of what arrived, p99", &|o| format!("{:.0} ms", o.arrival[1])),
    ];
    let faults: Vec<&str> =
        outcomes.iter().flat_map(|(_, outcome)| outcome.catch_up.iter().map(|fault| fault.what)).collect();
    let mut seen = Vec::new();
    for fault in faults {
        if !seen.contains(&fault) {
            seen.push(fault);
            let value = |outcome: &Outcome| match outcome.catch_up.iter().find(|one| one.what == fault) {
                None => "-".to_owned(),
                Some(one) if one.lost > 0 => format!("never ({} lost)", one.lost),
                Some(one) => format!("{:.1} s", one.seconds),
            };
            rows.push(row(&format!("caught up after: {fault}"), &value));
        }
    }
    rows
}

fn ratio(after: f64, before: f64) -> String {
    if before > 0.0 { format!("{:.2}", after / before) } else { "-".to_owned() }
}

/// The customer's figures beside ours.
fn customers_rows(outcomes: &[(Variant, Outcome)]) -> Vec<[String; 3]> {
    let (Some(a), Some(c)) = (outcome(outcomes, 'A', true), outcome(outcomes, 'C', true)) else { return Vec::new() };
    let row = |what: &str, customer: &str, ours: String| [what.to_owned(), customer.to_owned(), ours];
    let mut rows = vec![
        row(
            "events lost or doubled for consumers",
            "500 to under 10 a day",
            format!("{} to {} in {:.0} s", a.lost + a.effects_twice, c.lost + c.effects_twice, a.time.as_secs_f64()),
        ),
        row("throughput", "+30 %", format!("x {}", ratio(c.granted_per_second, a.granted_per_second))),
        row("errors", "5 % to under 1 %", format!("{:.2} % to {:.2} %", a.errors * 100.0, c.errors * 100.0)),
        row(
            "errors outside the database's restart",
            "",
            format!("{:.2} % to {:.2} %", a.errors_outside_restart * 100.0, c.errors_outside_restart * 100.0),
        ),
    ];
    for (at, name) in ["mean", "p50", "p95", "p99"].iter().enumerate() {
        let customer = if at == 0 { "500 ms to under 200 ms (x 0.40)" } else { "" };
        let (before, after) = (a.response[at], c.response[at]);
        let ours = format!("{before:.1} ms to {after:.1} ms (x {})", ratio(after, before));
        rows.push(row(&format!("response, {name}"), customer, ours));
    }
    if let (Some(a), Some(c)) = (outcome(outcomes, 'A', false), outcome(outcomes, 'C', false)) {
        rows.push(row(
            "without faults: throughput",
            "",
            format!("x {}", ratio(c.granted_per_second, a.granted_per_second)),
        ));
        rows.push(row("without faults: response, p95", "", format!("x {}", ratio(c.response[2], a.response[2]))));
    }
    rows
}

/// The tables, in Markdown.
pub fn table(experiment: &Experiment, outcomes: &[(Variant, Outcome)]) -> Result<String> {
    let mut text = String::from("|");
    for (variant, _) in outcomes {
        write!(text, " | {}", variant.name)?;
    }
    text.push_str(" |\n|---|");
    text.push_str(&"---:|".repeat(outcomes.len()));
    text.push('\n');
    for (name, values) in rows(outcomes) {
        writeln!(text, "| {name} | {} |", values.join(" | "))?;
    }
    text.push_str("\n| | the customer | here, A to C, under the faults |\n|---|---|---|\n");
    for row in customers_rows(outcomes) {
        writeln!(text, "| {} |", row.join(" | "))?;
    }
    let Experiment { seconds, buyers, think, latency, draws, seed, .. } = experiment;
    writeln!(
        text,
        "\n{buyers} buyers in a closed loop, {think:?} of thought on average, {draws} draws, {seconds} s for each variant, \
         {latency:?} for a request to the queue, seed {seed}."
    )?;
    Ok(text)
}

/// Writes table, figures and picture.
pub fn write(experiment: &Experiment, outcomes: &[(Variant, Outcome)], table: &str) -> Result<()> {
    let folder = &experiment.output;
    fs::create_dir_all(folder)?;
    let date = humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string();
    let head = "# Before and after\n\nWritten by `make experiment`, which repeats it; what it is about, and what the \
                variants are, is in [experiment.md](../experiment.md).\n";
    fs::write(folder.join("results.md"), format!("{head}\nRun on {date}.\n\n{table}\n![over time](results.svg)\n"))?;
    let runs: Vec<_> = outcomes
        .iter()
        .map(|(variant, outcome)| json!({"variant": variant.name, "with_faults": variant.with_faults, "outcome": outcome}))
        .collect();
    let Experiment { seconds, buyers, think, latency, draws, seed, .. } = experiment;
    let figures = json!({
        "date": date, "seconds": seconds, "buyers": buyers, "think_ms": think.as_millis(),
        "latency_ms": latency.as_millis(), "draws": draws, "seed": seed, "runs": runs,
    });
    fs::write(folder.join("results.json"), format!("{figures:#}\n"))?;
    fs::write(folder.join("results.svg"), picture(experiment, outcomes)?)?;
    Ok(())
}

/// The plots' places and sizes.
const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 180.0;
const LEFT: f64 = 90.0;
const COLOURS: [(char, &str); 3] = [('A', "#b4532a"), ('B', "#8a6fb0"), ('C', "#1f7a5c")];

/// Granted a second, failed a second and the response time over time, with the faults as bands.
fn picture(experiment: &Experiment, outcomes: &[(Variant, Outcome)]) -> Result<String> {
    let with_faults: Vec<&(Variant, Outcome)> = outcomes.iter().filter(|(variant, _)| variant.with_faults).collect();
    type Value = fn(&super::outcome::Second) -> Option<f64>;
    let plots: [(&str, Value, bool); 3] = [
        ("granted a second", |second| Some(second.granted as f64), false),
        ("failed a second", |second| Some(second.failed as f64), false),
        ("response, p95 in ms (logarithmic)", |second| second.p95, true),
    ];
    let total = 3.0 * (HEIGHT + 60.0) + 60.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"1000\" height=\"{total}\" font-family=\"sans-serif\" \
         font-size=\"12\" fill=\"#1a202c\">\n<rect width=\"1000\" height=\"{total}\" fill=\"#fff\"/>\n"
    );
    for (at, (letter, colour)) in COLOURS.iter().enumerate() {
        let name =
            with_faults.iter().find(|(variant, _)| variant.name.starts_with(*letter)).map_or("", |one| one.0.name);
        let x = LEFT + 200.0 * at as f64;
        writeln!(
            svg,
            "<rect x=\"{x}\" y=\"16\" width=\"14\" height=\"14\" fill=\"{colour}\"/><text x=\"{}\" y=\"28\">{name}</text>",
            x + 20.0
        )?;
    }
    for (at, (title, value, is_logarithmic)) in plots.into_iter().enumerate() {
        let top = 60.0 + (HEIGHT + 60.0) * at as f64;
        plot(&mut svg, experiment, &with_faults, (top, title, is_logarithmic), value)?;
    }
    svg.push_str("</svg>\n");
    Ok(svg)
}

fn plot(
    svg: &mut String,
    experiment: &Experiment,
    outcomes: &[&(Variant, Outcome)],
    (top, title, is_logarithmic): (f64, &str, bool),
    value: impl Fn(&super::outcome::Second) -> Option<f64>,
) -> Result<()> {
    let scaled = |value: f64| if is_logarithmic { value.max(1.0).log10() } else { value };
    let values = outcomes.iter().flat_map(|(_, outcome)| outcome.seconds.iter().filter_map(&value));
    let highest = values.fold(1.0, f64::max);
    let most = scaled(highest).max(f64::MIN_POSITIVE);
    let x = |second: f64| LEFT + second / experiment.seconds as f64 * WIDTH;
    let y = |value: f64| top + HEIGHT - scaled(value) / most * HEIGHT;
    writeln!(svg, "<text x=\"{LEFT}\" y=\"{}\" font-weight=\"bold\">{title}</text>", top - 8.0)?;
    // The faults were at the same times in all of them.
    for trouble in outcomes.first().map_or(&[][..], |(_, outcome)| &outcome.troubles) {
        let (from, to) = (x(trouble.began.as_secs_f64()), x(trouble.ended.as_secs_f64()));
        writeln!(
            svg,
            "<rect x=\"{from:.1}\" y=\"{top}\" width=\"{:.1}\" height=\"{HEIGHT}\" fill=\"#f3e2b3\"/>\
             <text x=\"{from:.1}\" y=\"{}\" fill=\"#6b5a1f\">{}</text>",
            (to - from).max(2.0),
            top + HEIGHT + 16.0,
            trouble.what
        )?;
    }
    let steps: Vec<f64> = if is_logarithmic {
        (0..).map(|power| 10_f64.powi(power)).take_while(|step| *step <= highest).collect()
    } else {
        (0..=4).map(|part| (highest * f64::from(part) / 4.0).round()).collect()
    };
    for step in steps {
        let at = y(step);
        writeln!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#dfe4ea\"/>\
             <text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{step}</text>",
            LEFT + WIDTH,
            LEFT - 8.0,
            at + 4.0
        )?;
    }
    for (variant, outcome) in outcomes {
        let colour = COLOURS.iter().find(|(letter, _)| variant.name.starts_with(*letter)).map_or("#000", |one| one.1);
        // A new line behind each second without a value.
        let mut lines = vec![Vec::new()];
        for (second, of) in (0_u32..).zip(&outcome.seconds) {
            match (value(of), lines.last_mut()) {
                (Some(value), Some(line)) => line.push(format!("{:.1},{:.1}", x(f64::from(second) + 0.5), y(value))),
                _ => lines.push(Vec::new()),
            }
        }
        for line in lines.iter().filter(|line| !line.is_empty()) {
            let points = line.join(" ");
            writeln!(
                svg,
                "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\" stroke-linecap=\"round\"/>"
            )?;
        }
    }
    Ok(())
}
