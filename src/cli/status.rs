//! `outbox-relay status`: what waits in each destination, how fast it goes, and what holds it up.
//!
//! Measured in the database, so it tells of all relays; what the relay of this host says of itself is added where one answers.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};

use super::consent::printable;
use super::{Failure, say, table, where_to_ask};
use crate::config::Flags;
use crate::http;
use crate::message::MessageId;
use crate::outbox::{Backlog, COUNT_LIMIT, Destination, Outbox, OutboxError, Pause, Rate, Replay};
use crate::reading::{ByLane, Order};

/// How often `--watch` looks again.
const WATCH_EVERY: Duration = Duration::from_secs(2);

/// How often `--watch` looks from the bottom, and one part of how much time that may take.
const FLOORS_EVERY: Duration = Duration::from_secs(30);
const FLOORS_SHARE: u32 = 20;

/// Clears the terminal and goes to its first line (ECMA-48: ED, CUP).
const CLEAR: &str = "\u{1b}[2J\u{1b}[H";

/// What to show.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  outbox-relay status\n  outbox-relay status --watch\n  outbox-relay status --json\n\n\
    Counts stop at 100000. RATE is over the last ten seconds; with DELIVERED_RETENTION=0s it is always 0.0.\n    \
    Relays are those that are connected to the database, as HOST/PID."
)]
pub(super) struct Status {
    /// Print a JSON object
    #[arg(long, conflicts_with = "watch")]
    json: bool,
    /// Look again every two seconds, until interrupted
    #[arg(long)]
    watch: bool,
}

/// One destination.
struct Line {
    destination: String,
    /// A relay has served it, since the server's last crash at least.
    is_served: bool,
    backlog: Backlog,
    rate: Rate,
    pause: Option<Pause>,
}

/// Everything that is shown.
struct Seen {
    lines: Vec<Line>,
    /// Relays that are connected, as HOST/PID.
    relays: Vec<String>,
    /// Replays that have not ended.
    replays: Vec<Replay>,
    /// Where the relay of this host would answer.
    address: SocketAddr,
    /// What it answers.
    here: Option<(u16, String)>,
}

pub(super) async fn run(flags: &Flags, status: &Status) -> Result<(), Failure> {
    let outbox = Outbox::new(&flags.database()?, 1)?;
    outbox.check_schema().await?;
    let address = where_to_ask(flags)?;
    let mut floors = HashMap::new();
    loop {
        let seen = look(&outbox, &mut floors, address).await;
        if status.watch {
            // A failover is what one watches, so it goes on.
            let text = seen.as_ref().map_or_else(|error| format!("{error}; looking again\n"), as_text);
            say(&format!("{CLEAR}{text}"));
            // Ctrl+C ends it, at any moment.
            tokio::time::sleep(WATCH_EVERY).await;
            continue;
        }
        let seen = seen?;
        say(&if status.json { format!("{:#}\n", as_json(&seen)) } else { as_text(&seen) });
        return Ok(());
    }
}

async fn look(outbox: &Outbox, floors: &mut HashMap<String, Floors>, address: SocketAddr) -> Result<Seen, OutboxError> {
    let lines = measure(outbox, floors).await?;
    let relays = outbox.relays().await?;
    let replays = match outbox.replays().await {
        // A relay's own role need not see them.
        Err(error) if error.is_denied() => Vec::new(),
        replays => replays?,
    };
    let here = http::ask(address, "/readyz").await.ok();
    Ok(Seen { lines, relays, replays, address, here })
}

/// An id in each lane below which nothing waits but retries, and how long to believe that: finding it may mean to walk
/// millions of index entries that vacuum could not remove.
struct Floors {
    lanes: ByLane<MessageId>,
    until: Instant,
}

async fn measure(outbox: &Outbox, floors: &mut HashMap<String, Floors>) -> Result<Vec<Line>, OutboxError> {
    let steering = outbox.steering().await?;
    let mut lines = Vec::new();
    for Destination { name: destination, is_served } in outbox.destinations().await? {
        let started = Instant::now();
        if floors.get(&destination).is_none_or(|floors| started >= floors.until) {
            let Some(lanes) = outbox.floors(&destination, || true).await? else { continue };
            let until = Instant::now() + FLOORS_EVERY.max(started.elapsed() * FLOORS_SHARE);
            floors.insert(destination.clone(), Floors { lanes, until });
        }
        let Some(known) = floors.get(&destination) else { continue };
        let backlog = outbox.backlog(&destination, &known.lanes, Order::Groups).await?;
        let rate = outbox.rate(&destination).await?;
        let pause = steering.pause_of(&destination);
        lines.push(Line { destination, is_served, backlog, rate, pause });
    }
    Ok(lines)
}

/// Whole seconds, for people.
fn rounded(duration: Duration) -> String {
    humantime::format_duration(Duration::from_secs(duration.as_secs())).to_string()
}

/// A count, which says so where it stopped.
fn counted(messages: i64) -> String {
    if messages >= COUNT_LIMIT { format!("{messages}+") } else { messages.to_string() }
}

fn paused(pause: &Pause) -> String {
    let mut text = format!("paused for {} by {}", rounded(pause.age), pause.actor);
    if let Some(left) = pause.left {
        text.push_str(&format!(", {} left", rounded(left)));
    }
    if !pause.reason.is_empty() {
        text.push_str(&format!(": {}", pause.reason));
    }
    printable(&text)
}

/// How far a replay is.
fn replayed(replay: &Replay) -> String {
    let Replay { id, source, destination, actor, position, last_position, messages, idle, .. } = replay;
    let line = format!(
        "replay {id} by {actor}, {source} to {destination}: at position {position} of {last_position}, {messages} messages \
         written, last moved {} ago",
        rounded(*idle)
    );
    printable(&line) + "\n"
}

fn as_text(seen: &Seen) -> String {
    let Seen { lines, relays, replays, address, here } = seen;
    let mut text = if lines.is_empty() {
        "no relay has served a destination yet, and nothing is pending or dead\n".to_owned()
    } else {
        let head = ["DESTINATION", "PENDING", "LAG", "DEAD", "QUARANTINED", "RATE", "STATE"].map(str::to_owned);
        let row = |line: &Line| {
            let lag = Duration::try_from_secs_f64(line.backlog.lag).unwrap_or_default();
            let sign = if line.rate.is_capped { ">" } else { "" };
            let idle = if line.is_served { "not paused" } else { "no relay serves it" };
            let state = line.pause.as_ref().map_or_else(|| idle.to_owned(), paused);
            [
                line.destination.clone(),
                counted(line.backlog.messages),
                if line.backlog.messages == 0 { "-".to_owned() } else { rounded(lag) },
                counted(line.backlog.dead),
                counted(line.backlog.quarantined),
                format!("{sign}{:.1}/s", line.rate.per_second),
                state,
            ]
        };
        table(std::iter::once(head).chain(lines.iter().map(row)).collect())
    };
    for replay in replays {
        text.push_str(&replayed(replay));
    }
    let names = if relays.is_empty() { "none".to_owned() } else { relays.join(", ") };
    text.push_str(&format!("relays connected: {names}\n"));
    text.push_str(&match here {
        Some((_, says)) => format!("the relay at {address}: {says}\n"),
        None => format!("no relay answers at {address}\n"),
    });
    text
}

fn as_json(seen: &Seen) -> Value {
    let Seen { lines, relays, replays, address, here } = seen;
    let pause = |pause: &Pause| {
        json!({
            "reason": pause.reason,
            "actor": pause.actor,
            "for_seconds": pause.age.as_secs(),
            "left_seconds": pause.left.map(|left| left.as_secs()),
        })
    };
    let destination = |line: &Line| {
        json!({
            "destination": line.destination,
            "is_served": line.is_served,
            "pending": line.backlog.messages,
            "pending_is_capped": line.backlog.messages >= COUNT_LIMIT,
            "lag_seconds": line.backlog.lag,
            "dead": line.backlog.dead,
            "dead_is_capped": line.backlog.dead >= COUNT_LIMIT,
            "quarantined": line.backlog.quarantined,
            "quarantined_is_capped": line.backlog.quarantined >= COUNT_LIMIT,
            "delivered_per_second": line.rate.per_second,
            "delivered_per_second_is_capped": line.rate.is_capped,
            "paused": line.pause.as_ref().map(pause),
        })
    };
    let replay = |replay: &Replay| {
        json!({
            "id": replay.id,
            "source": replay.source,
            "destination": replay.destination,
            "actor": replay.actor,
            "start_position": replay.start_position,
            "position": replay.position,
            "last_position": replay.last_position,
            "messages": replay.messages,
            "idle_seconds": replay.idle.as_secs(),
        })
    };
    json!({
        "relays": relays,
        "replays": replays.iter().map(replay).collect::<Vec<Value>>(),
        "destinations": lines.iter().map(destination).collect::<Vec<Value>>(),
        "relay_here": {
            "address": address.to_string(),
            "answers": here.is_some(),
            "is_ready": here.as_ref().map(|(status, _)| *status == 200),
            "says": here.as_ref().map(|(_, says)| says),
        },
    })
}
