//! Small charts of the last quarter of an hour as paths of SVG. Pure.

use std::time::Duration;

use super::history::{Past, Point, SPAN};
use super::words;

/// The size of the drawing, in units of SVG: whole numbers that are finer than a pixel, since whole numbers are short.
pub(super) const WIDTH: i64 = 1800;
pub(super) const HEIGHT: i64 = 280;

/// Room above the highest value and below zero for half of the line.
const EDGE: i64 = 15;

/// A line over time.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Chart {
    /// What it shows, for those who do not see it.
    pub(super) label: String,
    /// The highest value, as words; empty when nothing is known.
    pub(super) highest: String,
    /// The line, and the area below it; empty when nothing is known.
    pub(super) line: String,
    pub(super) area: String,
}

/// Rate, pending messages and lag, each up to its current value, which is shown beside the chart.
pub(super) fn all(past: &Past, [rate, pending, lag]: [Option<f64>; 3]) -> [Chart; 3] {
    let of =
        |value: fn(&Point) -> Option<f64>| past.points.iter().map(move |(ago, point)| (*ago, value(point))).collect();
    [
        chart("Delivered a second", &up_to(rate, past.rates(|point| point.delivered)), |value| {
            format!("{}/s", words::rate(value))
        }),
        chart("Pending messages", &up_to(pending, of(|point| point.pending.map(f64::from))), |value| {
            words::counted(value as i64)
        }),
        chart("Lag", &up_to(lag, of(|point| point.lag.map(f64::from))), words::seconds),
    ]
}

/// With the value of now at the end.
fn up_to(current: Option<f64>, mut values: Vec<(Duration, Option<f64>)>) -> Vec<(Duration, Option<f64>)> {
    values.push((Duration::ZERO, current));
    values
}

fn chart(what: &str, values: &[(Duration, Option<f64>)], text: impl Fn(f64) -> String) -> Chart {
    let known: Vec<f64> = values.iter().filter_map(|(_, value)| *value).collect();
    let Some(last) = known.last() else {
        let label = format!("{what}: nothing is known yet");
        return Chart { label, highest: String::new(), line: String::new(), area: String::new() };
    };
    let highest = known.iter().copied().fold(0.0, f64::max);
    let lowest = known.iter().copied().fold(f64::INFINITY, f64::min);
    let label =
        format!("{what} in the last 15 minutes: from {} to {}, at last {}", text(lowest), text(highest), text(*last));
    let (mut line, mut area) = (String::new(), String::new());
    for run in runs(values) {
        let points: Vec<(i64, i64)> = run.iter().map(|(ago, value)| (x(*ago), y(*value, highest))).collect();
        let path = path(&thinned(&points));
        area.push_str(&format!("{path}V{HEIGHT}H{}z", points.first().map_or(0, |(first, _)| *first)));
        // A single point has no length; the round end of the line makes it a dot.
        line.push_str(&format!("{path}h0"));
    }
    Chart { label, highest: text(highest), line, area }
}

/// The values in runs without a hole: a line across a hole would be a claim.
fn runs(values: &[(Duration, Option<f64>)]) -> Vec<Vec<(Duration, f64)>> {
    let mut runs: Vec<Vec<(Duration, f64)>> = vec![Vec::new()];
    for (ago, value) in values {
        match (value, runs.last_mut()) {
            (Some(value), Some(run)) => run.push((*ago, *value)),
            _ => runs.push(Vec::new()),
        }
    }
    runs.retain(|run| !run.is_empty());
    runs
}

fn x(ago: Duration) -> i64 {
    let left = 1.0 - (ago.as_secs_f64() / SPAN.as_secs_f64()).min(1.0);
    (left * WIDTH as f64).round() as i64
}

fn y(value: f64, highest: f64) -> i64 {
    let share = if highest > 0.0 { (value / highest).clamp(0.0, 1.0) } else { 0.0 };
    HEIGHT - EDGE - (share * (HEIGHT - 2 * EDGE) as f64).round() as i64
}

/// Without the points in the middle of a level stretch: most charts are level for most of the time.
fn thinned(points: &[(i64, i64)]) -> Vec<(i64, i64)> {
    let is_needed = |index: usize| {
        let y = |index: usize| points.get(index).map(|(_, y)| *y);
        index == 0 || y(index - 1) != y(index) || y(index + 1) != y(index)
    };
    points.iter().enumerate().filter(|(index, _)| is_needed(*index)).map(|(_, point)| *point).collect()
}

/// The first point, and the way from each to the next, which is shorter in text.
fn path(points: &[(i64, i64)]) -> String {
    let mut text = String::with_capacity(points.len() * 7);
    let mut last = (0, 0);
    for (index, (x, y)) in points.iter().enumerate() {
        let (right, down) = (x - last.0, y - last.1);
        let command = if index == 0 { "M" } else { "l" };
        let gap = if down < 0 { "" } else { " " };
        text.push_str(&format!("{command}{right}{gap}{down}"));
        last = (*x, *y);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(values: &[(u64, Option<f64>)]) -> Vec<(Duration, Option<f64>)> {
        values.iter().map(|(ago, value)| (Duration::from_secs(*ago), *value)).collect()
    }

    #[test]
    fn a_line_goes_from_left_to_right_and_from_zero_to_the_highest_value() {
        let chart = chart("Lag", &at(&[(900, Some(0.0)), (450, Some(2.0)), (0, Some(1.0))]), words::seconds);
        assert_eq!(chart.line, "M0 265l900-250l900 125h0");
        assert_eq!(chart.area, "M0 265l900-250l900 125V280H0z");
        assert_eq!(
            (chart.highest.as_str(), chart.label.as_str()),
            ("2.0 s", "Lag in the last 15 minutes: from 0 s to 2.0 s, at last 1.0 s")
        );
    }

    #[test]
    fn a_hole_stays_a_hole_and_a_single_point_is_a_dot() {
        let values = at(&[(900, Some(1.0)), (600, None), (300, Some(1.0)), (0, Some(1.0))]);
        assert_eq!(chart("Lag", &values, words::seconds).line, "M0 15h0M1200 15l600 0h0");
        assert_eq!(chart("Lag", &at(&[(0, None)]), words::seconds).line, "");
        assert_eq!(chart("Lag", &[], words::seconds).label, "Lag: nothing is known yet");
    }

    #[test]
    fn a_level_stretch_needs_two_points_however_long_it_is() {
        let values: Vec<_> = (0..=180).rev().map(|sample| (sample * 5, Some(0.0))).collect();
        assert_eq!(chart("Lag", &at(&values), words::seconds).line, "M0 265l1800 0h0");
    }

    #[test]
    fn the_longest_line_is_short_enough_for_fifty_destinations() {
        let values: Vec<_> = (0..=180).rev().map(|sample| (sample * 5, Some((sample * 7919 % 1000) as f64))).collect();
        let chart = chart("Lag", &at(&values), words::seconds);
        assert!(chart.line.len() + chart.area.len() < 3500, "{}", chart.line.len() + chart.area.len());
    }
}
