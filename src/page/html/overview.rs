//! The page about all databases of a process: a line for each, which leads to its own page.

use maud::{Markup, html};

use super::super::summary::Summary;
use super::super::words;
use super::{REFRESH, document, titled};

/// Shown for a number that is not known.
const UNKNOWN: &str = "–";

/// The page; each database with its name.
pub(in crate::page) fn overview(databases: &[(&str, Summary)]) -> String {
    let serious = databases.iter().map(|(_, summary)| summary.serious).sum();
    let body = html! {
        header { h1 { "outbox-relay " small { (env!("CARGO_PKG_VERSION")) } } }
        p #stale .stale role="alert" hidden { "Not up to date: the relay has not answered since " span #since {} "." }
        main {
            section aria-labelledby="databases-title" {
                h2 #databases-title { "Databases" }
                div #databases data-live { (table(databases)) }
            }
        }
        footer {
            nav aria-label="More about this relay" {
                ul { @for target in ["metrics", "livez", "readyz", "status.json"] { li { a href=(target) { (target) } } } }
            }
            p .aside { "This page can only be read. It is served to everybody who reaches this port (" code { "OUTBOX_RELAY_HTTP_LISTEN" } ")." }
        }
    };
    let head = html! {
        noscript { meta http-equiv="refresh" content=(REFRESH); }
        script src="status.js" defer {}
    };
    document(&titled(serious, "outbox-relay"), "", &head, &body)
}

fn table(databases: &[(&str, Summary)]) -> Markup {
    let head = ["Database", "State", "Delivered a second", "Pending", "Lag", "Dead"];
    html! {
        table .destinations role="table" {
            caption .aside { "Numbers are of all destinations of a database; the lag is that of its oldest message." }
            thead role="rowgroup" {
                tr role="row" { @for name in head { th role="columnheader" scope="col" { (name) } } }
            }
            tbody role="rowgroup" { @for (name, summary) in databases { (row(name, summary)) } }
        }
    }
}

fn row(name: &str, summary: &Summary) -> Markup {
    html! {
        tr role="row" {
            th role="rowheader" scope="row" {
                a id=(format!("database-{name}")) href=(format!("databases/{name}/")) { strong { (name) } }
                span .url { (words::short(&summary.place)) }
            }
            td role="cell" .what {
                span .state .(summary.tone) { (summary.word) }
                @if summary.serious > 0 {
                    " " span .state .bad {
                        (summary.serious) @if summary.serious == 1 { " problem" } @else { " problems" }
                    }
                }
                span .reason {
                    (summary.destinations) @if summary.destinations == 1 { " destination" } @else { " destinations" }
                }
                @if let Some(first) = &summary.first {
                    span .reason { (first) }
                }
            }
            (number("Delivered a second", summary.per_second.map(words::rate)))
            (number("Pending", summary.pending.map(words::counted)))
            // An empty outbox has no lag.
            (number("Lag", summary.lag.filter(|_| summary.pending != Some(0)).map(words::seconds)))
            (number("Dead", summary.dead.map(words::counted)))
        }
    }
}

fn number(label: &str, value: Option<String>) -> Markup {
    html! {
        td role="cell" .number data-label=(label) { span .value { (value.unwrap_or_else(|| UNKNOWN.to_owned())) } }
    }
}
