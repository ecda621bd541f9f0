//! The table of destinations, with a small chart below each number that changes over time.

use maud::{Markup, html};

use super::super::chart::{Chart, HEIGHT, WIDTH};
use super::super::model::{Row, View};
use super::super::words;

/// Shown for a number that is not known.
const UNKNOWN: &str = "–";

pub(super) fn table(view: &View) -> Markup {
    let head = ["Destination", "State", "Delivered a second", "Pending", "Lag", "Dead", "Quarantine"];
    html! {
        // The roles stay when a narrow screen lays the cells below each other.
        table .destinations role="table" {
            caption .aside { "Rates are over ten seconds, charts over the last 15 minutes. " (measured(view)) }
            thead role="rowgroup" {
                tr role="row" { @for name in head { th role="columnheader" scope="col" { (name) } } }
            }
            tbody role="rowgroup" { @for one in &view.rows { (row(one, view)) } }
        }
        @if view.more_rows > 0 { p .aside { (view.more_rows) " more destinations are not shown." } }
    }
}

fn measured(view: &View) -> Markup {
    html! {
        @match &view.database.measured {
            Some(ago) => { "Pending, lag, dead and quarantine were measured " (ago) " ago, for all relays." }
            None => { "Pending, lag, dead and quarantine are not measured now." }
        }
    }
}

fn row(row: &Row, view: &View) -> Markup {
    let [rate, pending, lag] = match &row.charts {
        Some([rate, pending, lag]) => [Some(rate), Some(pending), Some(lag)],
        None => [None; 3],
    };
    html! {
        tr role="row" {
            th role="rowheader" scope="row" {
                strong { (row.name) } " "
                span .aside { (row.kind) }
                span .url { (row.target) }
            }
            td role="cell" .what {
                span .state .(row.state.tone()) { (row.state.word()) }
                (reason(row, view))
            }
            (number("Delivered a second", row.per_second.map(words::rate), rate, &total(row)))
            (number("Pending", row.pending.map(words::counted), pending, &html! {}))
            (number("Lag", row.lag.map(|lag| lag_of(row, lag)), lag, &html! {}))
            (number("Dead", row.dead.map(words::counted), None, &died(row)))
            (number("Quarantine", row.quarantined.map(words::counted), None, &html! {}))
        }
    }
}

/// An empty outbox has no lag.
fn lag_of(row: &Row, lag: f64) -> String {
    if row.pending == Some(0) { UNKNOWN.to_owned() } else { words::seconds(lag) }
}

fn reason(row: &Row, view: &View) -> Markup {
    html! {
        @if row.since.is_some() || !row.detail.is_empty() {
            span .reason {
                @if let Some(since) = row.since {
                    "since " (super::time(since, view))
                    @if let Ok(lasting) = view.now.duration_since(since) { " (" (words::lasting(lasting)) ")" }
                    @if !row.detail.is_empty() { ": " }
                }
                (row.detail)
            }
        }
        @if row.in_flight > 0 || row.lanes_held > 0 {
            span .reason {
                (row.in_flight) " of " (row.in_flight_limit) " requests in flight, " (row.lanes_held) " of 16 lanes"
            }
        }
    }
}

fn total(row: &Row) -> Markup {
    html! { span .note { "total " (words::grouped(row.delivered)) } }
}

fn died(row: &Row) -> Markup {
    html! {
        @if !row.died.is_empty() {
            span .note {
                "since start: "
                @for (index, (why, messages)) in row.died.iter().enumerate() {
                    @if index > 0 { ", " }
                    (words::grouped(*messages)) " "
                    // The name of the metric's label, which may be broken where it has an underscore.
                    @for (index, part) in why.split('_').enumerate() { @if index > 0 { "_" wbr; } (part) }
                }
            }
        }
    }
}

fn number(label: &str, value: Option<String>, chart: Option<&Chart>, note: &Markup) -> Markup {
    html! {
        td role="cell" .number data-label=(label) {
            span .value { (value.unwrap_or_else(|| UNKNOWN.to_owned())) }
            @if let Some(chart) = chart { (drawn(chart)) }
            (note)
        }
    }
}

fn drawn(chart: &Chart) -> Markup {
    html! {
        svg .chart viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) preserveAspectRatio="none" role="img" aria-label=(chart.label) {
            title { (chart.label) }
            path .area d=(chart.area) {}
            path .line d=(chart.line) {}
        }
        span .note aria-hidden="true" {
            @if chart.highest.is_empty() { "no data yet" } @else { "max " (chart.highest) }
        }
    }
}
