//! The table of the peers, as Markdown for the documentation.

use std::fmt::Write as _;

use super::measures::{Interrupted, Results, Spans};
use super::program::Settings;
use crate::report::number;

/// A peer with some settings.
pub struct Row {
    pub peer: String,
    pub settings: Settings,
    pub about: String,
    pub results: Results,
}

pub fn markdown(rows: &[Row], left_out: &[(String, String)], spans: &Spans) -> String {
    let mut text = format!(
        "| | settings | drain, messages/s | memory, MB | latency p50, p99 in ms | SQS refuses for {} s | kill -9 | \
         long transaction |\n|---|---|---|---|---|---|---|---|\n",
        spans.outage.as_secs()
    );
    for Row { peer, settings, results, .. } in rows {
        let latency = results.latency.map(|latency| {
            let (p50, p99) = (number(latency.p50), number(latency.p99));
            format!("{p50}, {p99} at {}/s", number(latency.rate))
        });
        let cells = [
            peer.clone(),
            settings.word().to_owned(),
            results.drain.map_or_else(none, number),
            results.peak_mb.map_or_else(none, number),
            latency.unwrap_or_else(none),
            results.outage.map_or_else(none, |outage| cost(&outage, spans)),
            results.kill.map_or_else(none, |kill| cost(&kill, spans)),
            results.held.map_or_else(none, number),
        ];
        writeln!(text, "| {} |", cells.join(" | ")).ok();
    }
    text.push_str("\n| | settings, and what was not reached |\n|---|---|\n");
    for Row { peer, settings, about, results } in rows {
        let said = std::iter::once(about).chain(&results.remarks).map(|text| text.replace('|', "\\|"));
        writeln!(text, "| {peer}, {} | {} |", settings.word(), said.collect::<Vec<_>>().join("; ")).ok();
    }
    for (peer, reason) in left_out {
        writeln!(text, "| {peer} | not run: {reason} |").ok();
    }
    text
}

fn none() -> String {
    "-".to_owned()
}

/// What an interruption has cost, in words.
fn cost(interrupted: &Interrupted, spans: &Spans) -> String {
    let mut parts = vec![match interrupted.resumed {
        Some(seconds) => format!("goes on after {} s", number(seconds)),
        None => format!("did not go on within {} s", spans.patience.as_secs()),
    }];
    let mut add = |count: u64, what: &str| {
        if count > 0 {
            parts.push(format!("{} {what}", number(count as f64)));
        }
    };
    add(interrupted.missing, &format!("missing {} s later", spans.patience.as_secs()));
    add(interrupted.duplicates, "sent twice");
    add(interrupted.deduplicated, "of them dropped by FIFO");
    add(interrupted.order_breaks.unwrap_or_default(), "out of order");
    add(interrupted.restarts, "restarts");
    parts.join(", ")
}
