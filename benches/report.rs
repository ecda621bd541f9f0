//! The report: one table on the screen, the same as JSON, and as a picture.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::{Map, json};

use crate::stand_in::ByWire;

type Json = serde_json::Value;

/// A figure of a case.
#[derive(Clone, Debug)]
pub struct Figure {
    pub name: String,
    pub value: f64,
    /// The same without TLS to SQS, if it was measured.
    pub plain: Option<f64>,
    pub unit: &'static str,
    /// The target, if there is one.
    pub aim: Option<Aim>,
}

/// What was measured: a number, or one with TLS to SQS and one without. The number with TLS is the figure.
#[derive(Clone, Copy, Debug)]
pub struct Value {
    https: f64,
    plain: Option<f64>,
}

impl From<f64> for Value {
    fn from(https: f64) -> Value {
        Value { https, plain: None }
    }
}

impl From<ByWire<f64>> for Value {
    fn from(ByWire { https, plain }: ByWire<f64>) -> Value {
        Value { https, plain: Some(plain) }
    }
}

/// The target of a figure.
#[derive(Clone, Copy, Debug)]
pub enum Aim {
    AtLeast(f64),
    AtMost(f64),
}

impl Aim {
    fn is_met(self, value: f64) -> bool {
        match self {
            Aim::AtLeast(least) => value >= least,
            Aim::AtMost(most) => value <= most,
        }
    }

    fn text(self) -> String {
        match self {
            Aim::AtLeast(least) => format!(">= {}", number(least)),
            Aim::AtMost(most) => format!("<= {}", number(most)),
        }
    }
}

/// The results of a case.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub case: &'static str,
    pub title: &'static str,
    pub figures: Vec<Figure>,
    /// The results as a table for docs/comparison.md, in Markdown.
    pub table: Option<String>,
}

impl Outcome {
    pub fn new(case: &'static str, title: &'static str) -> Outcome {
        Outcome { case, title, figures: Vec::new(), table: None }
    }

    /// Adds a figure, and shows it at once: the cases take minutes.
    pub fn add(&mut self, name: impl Into<String>, value: impl Into<Value>, unit: &'static str) {
        self.note(name.into(), value.into(), unit, None);
    }

    /// Adds a figure with a target.
    pub fn aim(&mut self, name: impl Into<String>, value: impl Into<Value>, unit: &'static str, aim: Aim) {
        self.note(name.into(), value.into(), unit, Some(aim));
    }

    fn note(&mut self, name: String, value: Value, unit: &'static str, aim: Option<Aim>) {
        let figure = Figure { name, value: value.https, plain: value.plain, unit, aim };
        println!("{}", line(&figure));
        self.figures.push(figure);
    }
}

fn line(figure: &Figure) -> String {
    let value = format!("{} {}", number(figure.value), figure.unit);
    let aim = figure.aim.map_or(String::new(), |aim| {
        format!("{:<12} {}", aim.text(), if aim.is_met(figure.value) { "reached" } else { "MISSED" })
    });
    let plain = figure.plain.map_or(String::new(), |plain| format!("plain {}", number(plain)));
    format!("  {:<52} {:>18}   {aim:<20}   {plain}", figure.name, value.trim_end()).trim_end().to_owned()
}

/// About three digits, so that the table shows no more precision than was measured.
pub fn number(value: f64) -> String {
    let places = match value.abs() {
        large if large >= 100.0 => 0,
        middle if middle >= 10.0 => 1,
        _ => 3,
    };
    let text = format!("{value:.places$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text };
    let digits = text.find('.').unwrap_or(text.len());
    let sign = usize::from(text.starts_with('-'));
    text.char_indices().fold(String::new(), |mut grouped, (index, character)| {
        if index > sign && index < digits && (digits - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(character);
        grouped
    })
}

/// Writes the results, and keeps earlier results of other cases.
pub fn write(folder: &Path, about: &Json, outcomes: &[Outcome]) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    let path = folder.join("results.json");
    let mut all: Map<String, Json> = match std::fs::read(&path) {
        Ok(text) => {
            serde_json::from_slice(&text).with_context(|| format!("{} is not what a bench wrote", path.display()))?
        }
        Err(_) => Map::new(),
    };
    for outcome in outcomes {
        let figures: Vec<Json> = outcome.figures.iter().map(figure_json).collect();
        let mut case = json!({ "case": outcome.case, "title": outcome.title, "run": about, "figures": figures });
        if let Some(table) = &outcome.table {
            insert_table(&folder.with_file_name(TABLES), outcome.case, &format!("{}\n\n{table}", said(about)))?;
            case["table"] = json!(TABLES);
        }
        all.insert(outcome.case.to_owned(), case);
    }
    std::fs::write(&path, serde_json::to_string_pretty(&all)? + "\n")?;
    std::fs::write(folder.join("results.svg"), picture(&all))?;
    Ok(())
}

/// The document with tables, beside the folder of the results.
const TABLES: &str = "comparison.md";

/// Puts a table between the two comments that mark its place.
fn insert_table(path: &Path, case: &str, table: &str) -> Result<()> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let [begin, end] = ["begin", "end"].map(|word| format!("<!-- {word}: make bench CASE={case} -->\n"));
    let place = text.split_once(&begin).and_then(|(before, rest)| Some((before, rest.split_once(&end)?.1)));
    let (before, after) = place.with_context(|| format!("{} has no place for the table of {case}", path.display()))?;
    Ok(std::fs::write(path, format!("{before}{begin}\n{table}\n{end}{after}"))?)
}

/// When and where it was measured.
fn said(about: &Json) -> String {
    let part = |name: &str| text(&about[name]);
    format!("{}, {}, {} cores ({}).", part("date"), part("postgresql"), about["cores"], part("processor"))
}

fn figure_json(figure: &Figure) -> Json {
    let rounded = (figure.value * 1000.0).round() / 1000.0;
    let mut value = json!({ "name": figure.name, "value": rounded, "unit": figure.unit });
    if let Some(plain) = figure.plain {
        value["plain"] = json!((plain * 1000.0).round() / 1000.0);
    }
    if let Some(aim) = figure.aim {
        value["aim"] = json!(aim.text());
        value["reached"] = json!(aim.is_met(figure.value));
    }
    value
}

/// Colours of a bar: without a target, target reached, target missed.
const COLOURS: [&str; 3] = ["#7a8aa0", "#2f855a", "#c05621"];

/// Where the column of figures without TLS ends.
const PLAIN: usize = 984;

/// One bar per figure, in proportion to the largest figure of its unit in its case.
fn picture(all: &Map<String, Json>) -> String {
    const ROW: usize = 20;
    let (mut rows, mut y) = (Vec::new(), 30);
    // What has a table of its own would be a hundred bars.
    for case in all.values().filter(|case| !case["table"].is_string()) {
        let run = &case["run"];
        let head =
            format!("{}: {} ({}, seed {})", text(&case["case"]), text(&case["title"]), text(&run["date"]), run["seed"]);
        rows.push(format!(r#"<text x="16" y="{y}" font-weight="bold">{}</text>"#, escape(&head)));
        y += ROW;
        let figures = case["figures"].as_array().map(Vec::as_slice).unwrap_or_default();
        if figures.iter().any(|figure| figure["plain"].is_number()) {
            rows.push(format!(r#"<text x="{PLAIN}" y="{y}" text-anchor="end">without TLS</text>"#));
            y += ROW;
        }
        for figure in figures {
            let same = figures.iter().filter(|other| other["unit"] == figure["unit"]);
            let largest = same.filter_map(|other| other["value"].as_f64()).fold(f64::MIN_POSITIVE, f64::max);
            rows.push(bar(figure, largest, y));
            y += ROW;
        }
        y += ROW / 2;
    }
    let rows = rows.join("\n");
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="1000" height="{y}" font-family="sans-serif" font-size="12" fill="#1a202c">
<rect width="1000" height="{y}" fill="#ffffff"/>
{rows}
</svg>
"##
    )
}

fn bar(figure: &Json, largest: f64, y: usize) -> String {
    let value = figure["value"].as_f64().unwrap_or_default();
    let colour = COLOURS[figure["reached"].as_bool().map_or(0, |reached| if reached { 1 } else { 2 })];
    let width = (value / largest * 300.0).max(1.0);
    let aim = figure["aim"].as_str().map_or(String::new(), |aim| format!(" ({aim})"));
    let label = escape(&format!("{} {}{aim}", number(value), text(&figure["unit"])));
    let name = escape(&text(&figure["name"]));
    let plain = figure["plain"].as_f64().map_or(String::new(), |plain| {
        format!(r#"<text x="{PLAIN}" y="{y}" text-anchor="end">{}</text>"#, number(plain))
    });
    format!(
        r#"<text x="380" y="{y}" text-anchor="end">{name}</text><rect x="390" y="{}" width="{width:.0}" height="12" fill="{colour}"/><text x="{:.0}" y="{y}">{label}</text>{plain}"#,
        y - 11,
        396.0 + width
    )
}

fn text(value: &Json) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
