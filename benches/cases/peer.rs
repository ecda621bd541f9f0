//! Other relays and this one, side by side: the same messages, PostgreSQL with the same settings, the same stand-in
//! with TLS and the same latency, the same measures (`peer/measures.rs`). A folder of `benches/peers` is a peer
//! (`peer/program.rs` says what is in it). One that cannot run here is listed with the reason. PEER=NAME with a SCALE
//! below 1 tries out one of them.

mod load;
mod measures;
mod program;
mod supervised;
mod table;

use anyhow::{Result, ensure};

use super::begin;
use crate::ground::{Ground, durable_cluster};
use crate::report::Outcome;
use measures::{Bed, Results, Spans};
use program::{Peer, WalLevel};
use table::Row;

pub async fn run(ground: &Ground, scale: f64) -> Result<Outcome> {
    let title = "other relays and this one with default and with best settings, SQS 10 ms by TLS";
    let mut outcome = begin("peer", title);
    let logical = durable_cluster(&[("wal_level", "logical")])?;
    let (mut rows, mut left_out) = (Vec::new(), Vec::new());
    let only = std::env::var("PEER").ok();
    ensure!(only.is_none() || scale < 1.0, "PEER tries out one peer; give SCALE as well, so that nothing is written");
    for peer in Peer::all()?.into_iter().filter(|peer| only.as_ref().is_none_or(|only| *only == peer.name)) {
        if let Some(reason) = peer.obstacle().await? {
            println!("  {}: not run: {reason}", peer.name);
            left_out.push((peer.title(), reason));
            continue;
        }
        for settings in peer.settings() {
            let cluster = match peer.about.wal_level {
                WalLevel::Replica => &ground.cluster,
                WalLevel::Logical => &logical,
            };
            let bed = Bed { peer: &peer, settings, cluster, stand_in: &ground.stand_in, spans: Spans::of(scale) };
            let results = bed.measure().await;
            add(&mut outcome, &format!("{}, {}", peer.name, settings.word()), &results);
            let about = peer.about.of(settings).to_owned();
            rows.push(Row { peer: peer.title(), settings, about, results });
        }
    }
    let table = table::markdown(&rows, &left_out, &Spans::of(scale));
    println!("\n{table}");
    outcome.table = Some(table);
    Ok(outcome)
}

/// The figures of a peer; what it did not reach has none, and a remark in the table.
fn add(outcome: &mut Outcome, name: &str, results: &Results) {
    let mut add = |what: &str, value: Option<f64>, unit| {
        if let Some(value) = value {
            outcome.add(format!("{name}, {what}"), value, unit);
        }
    };
    add("drain", results.drain, "messages/s");
    add("peak memory", results.peak_mb, "MB");
    if let Some(latency) = &results.latency {
        add("latency, written", Some(latency.rate), "messages/s");
        add("latency, p50", Some(latency.p50), "ms");
        add("latency, p99", Some(latency.p99), "ms");
    }
    for (what, interrupted) in [("outage", &results.outage), ("kill", &results.kill)] {
        let Some(interrupted) = interrupted else { continue };
        add(&format!("{what}, resumed after"), interrupted.resumed, "s");
        add(&format!("{what}, missing"), Some(interrupted.missing as f64), "messages");
        add(&format!("{what}, sent twice"), Some(interrupted.duplicates as f64), "messages");
        add(&format!("{what}, of these dropped by FIFO"), Some(interrupted.deduplicated as f64), "messages");
        add(&format!("{what}, out of order"), interrupted.order_breaks.map(|breaks| breaks as f64), "messages");
        add(&format!("{what}, restarts"), Some(interrupted.restarts as f64), "");
    }
    add("behind a long transaction, part of its plain drain", results.held, "");
    for remark in &results.remarks {
        println!("  {name}: {remark}");
    }
}
