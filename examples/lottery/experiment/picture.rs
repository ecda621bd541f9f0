//! The picture of an experiment: the events of each second of the first repetition.

use std::fmt::Write as _;

use anyhow::Result;

use super::outcome::{Outcome, Second};
use super::{Experiment, Runs, Variant};

/// The positions and sizes of the plots.
const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 180.0;
const LEFT: f64 = 90.0;
const COLOURS: [(char, &str); 3] = [('A', "#b4532a"), ('B', "#8a6fb0"), ('C', "#1f7a5c")];

/// Granted per second, failed per second and the response time over time, with the faults as bands.
pub fn picture(experiment: &Experiment, all: &[Runs]) -> Result<String> {
    let first = |runs: &'_ Runs| runs.outcomes.first().map(|outcome| (runs.variant, outcome.clone()));
    let with_faults: Vec<(Variant, Outcome)> =
        all.iter().filter(|runs| runs.variant.with_faults).filter_map(first).collect();
    type Value = fn(&Second) -> Option<f64>;
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
    outcomes: &[(Variant, Outcome)],
    (top, title, is_logarithmic): (f64, &str, bool),
    value: impl Fn(&Second) -> Option<f64>,
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
        // A new line starts after each second without a value.
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
