//! The view as JSON, in one line. The script of the page does not need it; `outbox-relay status` asks the relay of its
//! host for it. It may change with any release: monitoring should read `/metrics`.

use serde_json::{Value, json};

use super::model::{Row, View};
use super::problems::Problem;
use super::{runbook, words};
use crate::reading::Replay;

pub(super) fn text(view: &View) -> String {
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "relay": view.relay,
        "at": words::stamp(view.now),
        "started_at": words::stamp(view.started),
        "database": {
            "name": view.name,
            "place": view.database.place,
            "schema": view.database.schema,
            "server": view.database.server,
            "state": view.database.word,
        },
        "is_measured": view.database.measured.is_some(),
        "problems": view.problems.iter().map(problem).collect::<Vec<Value>>(),
        "destinations": view.rows.iter().map(row).collect::<Vec<Value>>(),
        "relays": view.relays,
        "replays": view.replays.as_ref().map(|replays| replays.iter().map(replay).collect::<Vec<Value>>()),
    })
    .to_string()
}

fn problem(problem: &Problem) -> Value {
    json!({
        "severity": problem.severity.word(),
        "destination": problem.about,
        "text": problem.text,
        "runbook": runbook::link(problem.section.anchor),
    })
}

fn row(row: &Row) -> Value {
    let Row { name, state, is_well, detail, since, .. } = row;
    let died: serde_json::Map<String, Value> =
        row.died.iter().map(|(why, count)| ((*why).to_owned(), json!(count))).collect();
    json!({
        "destination": name,
        "state": state.word(),
        "is_well": is_well,
        "detail": detail,
        "since": since.map(words::stamp),
        "pending": row.pending,
        "lag_seconds": row.lag,
        "dead": row.dead,
        "died_since_start": died,
        "quarantined": row.quarantined,
        "delivered_since_start": row.delivered,
        "delivered_per_second": row.per_second,
        "requests_in_flight": row.in_flight,
        "in_flight_limit": row.in_flight_limit,
        "lanes_held": row.lanes_held,
        "hot_groups": row.hot_groups,
        "hot_group_messages_per_second": row.hot_group_rate,
        "fifo_mode": row.fifo_mode.word(),
    })
}

fn replay(replay: &Replay) -> Value {
    json!({
        "id": replay.id,
        "source": words::short(&replay.source),
        "destination": words::short(&replay.destination),
        "actor": words::short(&replay.actor),
        "position": replay.position,
        "last_position": replay.last_position,
        "messages": replay.messages,
    })
}
