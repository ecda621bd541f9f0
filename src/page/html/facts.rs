//! Everything but problems and destinations: the relay itself, its neighbours, its settings, and where else to look.

use maud::{Markup, html};

use super::super::model::View;
use super::super::{runbook, words};
use crate::config::Shown;
use crate::reading::Replay;

pub(super) fn head(view: &View) -> Markup {
    let database = &view.database;
    html! {
        span { "as of " (super::time(view.now, view)) " UTC" }
        span { (words::short(&view.relay)) ", up for " (words::lasting(view.now.duration_since(view.started).unwrap_or_default())) }
        span {
            "database " (words::short(&database.place)) ": "
            span .state .(database.tone) { (database.word) }
            @if let Some(server) = &database.server { " in use: " (words::short(server)) }
        }
        span { (database.in_use) " of at most " (database.max) " connections in use, " (database.idle) " idle" }
    }
}

pub(super) fn neighbours(view: &View) -> Markup {
    html! {
        p {
            @match view.relays.as_deref() {
                None => { "It is not known yet which relays are connected to the database." }
                Some([]) => { "No relay is connected to the database by its own name." }
                Some(relays) => {
                    "Connected to the database, seen " (view.neighbours_age) " ago: "
                    @for (index, relay) in relays.iter().enumerate() {
                        @if index > 0 { ", " }
                        span .name { (words::short(relay)) }
                    }
                    @if view.more_relays > 0 { " and " (view.more_relays) " more" }
                    "."
                }
            }
        }
        @match view.replays.as_deref() {
            None if view.relays.is_none() => {}
            None => p .aside { "This relay's role may not see replays; run deploy/roles.sql again to allow it." }
            Some([]) => p { "No replay is unfinished." }
            Some(replays) => (replay_table(replays, view.more_replays)),
        }
    }
}

fn replay_table(replays: &[Replay], more: usize) -> Markup {
    html! {
        table role="table" {
            caption { "Unfinished replays" }
            thead role="rowgroup" {
                tr role="row" {
                    @for name in ["Replay", "From", "To", "By", "Position", "Written", "Last moved"] {
                        th role="columnheader" scope="col" { (name) }
                    }
                }
            }
            tbody role="rowgroup" {
                @for one in replays {
                    tr role="row" {
                        th role="rowheader" scope="row" { (one.id) }
                        td role="cell" data-label="From" { (words::short(&one.source)) }
                        td role="cell" data-label="To" { (words::short(&one.destination)) }
                        td role="cell" data-label="By" { (words::short(&one.actor)) }
                        td role="cell" data-label="Position" { (one.position) " of " (one.last_position) }
                        td role="cell" data-label="Written" { (words::messages(one.messages)) }
                        td role="cell" data-label="Last moved" { (words::lasting(one.idle)) " ago" }
                    }
                }
            }
        }
        @if more > 0 { p .aside { (more) " more are not shown." } }
    }
}

pub(super) fn settings(view: &View) -> Markup {
    html! {
        details {
            summary { (view.settings.len()) " settings, as " code { "outbox-relay config" } " shows them" }
            div #settings data-live {
                (setting_table("Settings of this relay", &view.settings))
                @if view.more_settings > 0 { p .aside { (view.more_settings) " more are not shown." } }
            }
        }
        details {
            summary { "Connection to PostgreSQL, and variables for AWS, proxies and certificates" }
            @if view.surroundings.is_empty() { p { "None is set." } }
            @else { (setting_table("As they were at the start; secrets are not shown", &view.surroundings)) }
        }
    }
}

fn setting_table(caption: &str, lines: &[Shown]) -> Markup {
    html! {
        table .settings role="table" {
            caption .aside { (caption) }
            thead role="rowgroup" {
                tr role="row" {
                    @for name in ["Setting", "Value", "From"] { th role="columnheader" scope="col" { (name) } }
                }
            }
            tbody role="rowgroup" {
                @for line in lines {
                    tr role="row" {
                        th role="rowheader" scope="row" {
                            (words::short(&line.name))
                            @if let Some(destination) = &line.destination { " of " (words::short(destination)) }
                        }
                        td role="cell" data-label="Value" { @if line.value.is_empty() { "–" } @else { (words::short(&line.value)) } }
                        td role="cell" data-label="From" { (words::short(&line.origin.to_string())) }
                    }
                }
            }
        }
    }
}

pub(super) fn links(view: &View) -> Markup {
    let runbook = runbook::link("");
    let links = [
        ("metrics", "metrics"),
        ("livez", "livez"),
        ("readyz", "readyz"),
        ("status.json", "this page as JSON"),
        (runbook.trim_end_matches('#'), "runbook"),
    ];
    html! {
        nav aria-label="More about this relay" {
            ul {
                @if view.name.is_some() { li { a href="../../" { "all databases" } } }
                @for (target, name) in links { li { a href=(target) { (name) } } }
            }
        }
        p .aside { "This page can only be read. It is served to everybody who reaches this port (" code { "OUTBOX_RELAY_HTTP_LISTEN" } ")." }
    }
}
