//! `outbox-relay status`: what is pending in each destination, how fast it is delivered, and what holds it up.
//!
//! It is measured in the database, so it covers all relays. If the relay of this host answers, what it says of itself is
//! added: whether a queue works is known only to relays.

mod hot;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant, UNIX_EPOCH};

use clap::Args;
use serde_json::{Value, json};

use super::consent::printable;
use super::{Failure, say, table, where_to_ask};
use crate::config::Flags;
use crate::http;
use crate::message::MessageId;
use crate::outbox::{Backlog, Destination, Outbox, OutboxError, Rate, Scheduled};
use crate::reading::{ByLane, COUNT_LIMIT, Order, Pause, Replay};
use crate::way::moment;
use hot::Hot;

/// How often `--watch` measures again.
const WATCH_EVERY: Duration = Duration::from_secs(2);

/// How often `--watch` finds the floors again, and which fraction of the time that may take.
const FLOORS_EVERY: Duration = Duration::from_secs(30);
const FLOORS_SHARE: u32 = 20;

/// Clears the terminal and goes to its first line (ECMA-48: ED, CUP).
const CLEAR: &str = "\u{1b}[2J\u{1b}[H";

/// What to show.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  outbox-relay status\n  outbox-relay status --watch\n  outbox-relay status --json\n\n\
    STATE is paused by an operator, or what the relay of this host says: working, idle, halted and why.\n    \
    Counts stop at 100000. RATE is over the last ten seconds; with DELIVERED_RETENTION=0s it is always 0.0.\n    \
    Relays are those that are connected to the database, as HOST/PID.\n    \
    A group is hot if OUTBOX_RELAY_FIFO_MODE is what limits it, as far as the relay of this host knows."
)]
pub(super) struct Status {
    /// Print a JSON object
    #[arg(long, conflicts_with = "watch")]
    json: bool,
    /// Measure again every two seconds, until interrupted
    #[arg(long)]
    watch: bool,
}

/// One destination.
struct Line {
    destination: String,
    /// Whether a relay has served it, at least since the server's last crash.
    is_served: bool,
    backlog: Backlog,
    scheduled: Scheduled,
    rate: Rate,
    pause: Option<Pause>,
}

/// Everything to show.
struct Seen {
    lines: Vec<Line>,
    /// Relays that are connected, as HOST/PID.
    relays: Vec<String>,
    /// Replays that have not ended.
    replays: Vec<Replay>,
    /// Where the relay of this host would answer.
    address: SocketAddr,
    /// What it answers, if it serves this outbox.
    here: Option<(u16, String)>,
    /// What is said of a relay there that serves another one.
    elsewhere: Option<String>,
    /// What it says of its destinations, if it serves this outbox.
    told: HashMap<String, Told>,
    /// The hot groups of destinations that have some.
    hot: HashMap<String, Hot>,
}

/// The state of a destination, as the relay of this host tells it on its status page.
#[derive(Debug, Default, PartialEq)]
struct Told {
    state: String,
    since: Option<String>,
    detail: String,
    hot: Option<hot::Told>,
}

pub(super) async fn run(flags: &Flags, status: &Status) -> Result<(), Failure> {
    let database = flags.database()?;
    let outbox = Outbox::new(&database, 1)?;
    outbox.check_schema().await?;
    let address = where_to_ask(flags)?;
    // A relay with several databases has a page for each.
    let root = database.name.as_ref().map(|name| format!("/databases/{name}")).unwrap_or_default();
    let mut floors = HashMap::new();
    loop {
        let seen = look(&outbox, &mut floors, (address, &root)).await;
        if status.watch {
            // A failover is one of the things to watch, so this continues.
            let text = seen.as_ref().map_or_else(|error| format!("{error}; looking again\n"), as_text);
            say(&format!("{CLEAR}{text}"));
            // Ctrl+C ends it at any moment.
            tokio::time::sleep(WATCH_EVERY).await;
            continue;
        }
        let seen = seen?;
        say(&if status.json { format!("{:#}\n", as_json(&seen)) } else { as_text(&seen) });
        return Ok(());
    }
}

async fn look(
    outbox: &Outbox,
    floors: &mut HashMap<String, Floors>,
    (address, root): (SocketAddr, &str),
) -> Result<Seen, OutboxError> {
    let lines = measure(outbox, floors).await?;
    let relays = outbox.relays().await?;
    let replays = match outbox.replays().await {
        // A relay's own role need not see replays.
        Err(error) if error.is_denied() => Vec::new(),
        replays => replays?,
    };
    let here = http::ask(address, &format!("{root}/readyz")).await.ok();
    // A relay that does not serve this database has no page for it.
    let here = here.filter(|(status, _)| *status != 404);
    let page = if here.is_some() { http::ask(address, &format!("{root}/status.json")).await.ok() } else { None };
    let page = page.filter(|(status, _)| *status == 200).map(|(_, text)| Page::read(&text)).unwrap_or_default();
    // Another outbox of the database may have destinations of the same names.
    let (here, elsewhere, told) = match page.schema {
        Some(other) if other != outbox.schema().name() => (None, Some(serves(&other)), HashMap::new()),
        _ => (here, None, page.told),
    };
    let hot = hot_groups(outbox, floors, &told).await?;
    Ok(Seen { lines, relays, replays, address, here, elsewhere, told, hot })
}

/// The hot groups that the relay of this host tells, with their names.
async fn hot_groups(
    outbox: &Outbox,
    floors: &HashMap<String, Floors>,
    told: &HashMap<String, Told>,
) -> Result<HashMap<String, Hot>, OutboxError> {
    let mut all = HashMap::new();
    for (destination, told) in told {
        if let (Some(told), Some(floors)) = (told.hot, floors.get(destination)) {
            all.insert(destination.clone(), Hot::find(told, outbox, destination, &floors.lanes).await?);
        }
    }
    Ok(all)
}

/// What is read of the status page of a relay.
#[derive(Debug, Default)]
struct Page {
    /// The schema of the outbox that the relay serves.
    schema: Option<String>,
    /// Its destinations; none if a relay of another version writes them in another way.
    told: HashMap<String, Told>,
}

impl Page {
    fn read(page: &str) -> Self {
        let page: Value = serde_json::from_str(page).unwrap_or_default();
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let one = |row: &Value| {
            let (state, detail) = (text(&row["state"])?, text(&row["detail"]).unwrap_or_default());
            let told = Told { state, since: text(&row["since"]), detail, hot: hot::Told::read(row) };
            Some((text(&row["destination"])?, told))
        };
        let told = page["destinations"].as_array().into_iter().flatten().filter_map(one).collect();
        Self { schema: text(&page["database"]["schema"]), told }
    }
}

/// What is said of a relay of this host that serves another outbox.
fn serves(other: &str) -> String {
    printable(&format!("serves the schema {other}; OUTBOX_RELAY_HTTP_LISTEN says where another relay answers"))
}

/// An id in each lane below which nothing but retries is pending, and how long to rely on it: finding it may mean
/// walking millions of index entries that vacuum could not remove.
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
        let scheduled = outbox.scheduled(&destination).await?;
        let pause = steering.pause_of(&destination);
        lines.push(Line { destination, is_served, backlog, scheduled, rate, pause });
    }
    Ok(lines)
}

/// Whole seconds, for people.
fn rounded(duration: Duration) -> String {
    humantime::format_duration(Duration::from_secs(duration.as_secs())).to_string()
}

/// A count, marked if it reached the limit.
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

/// The state that the relay of this host tells.
fn tells(told: &Told) -> String {
    let Told { state, since, detail, .. } = told;
    let since = since.as_ref().map(|since| format!(" since {since}")).unwrap_or_default();
    let detail = if detail.is_empty() { String::new() } else { format!(": {detail}") };
    printable(&format!("{state}{since}{detail}"))
}

/// What is scheduled.
fn later(line: &Line) -> Option<String> {
    let next = line.scheduled.next?;
    let next = UNIX_EPOCH + Duration::try_from_secs_f64(next.max(0.0)).unwrap_or_default();
    let next = moment(next);
    let count = counted(line.scheduled.messages);
    Some(printable(&format!("{}: {count} scheduled, the next for {next}", line.destination)) + "\n")
}

/// The progress of a replay.
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
    let Seen { lines, relays, replays, address, here, elsewhere, told, hot } = seen;
    let mut text = if lines.is_empty() {
        "no relay has served a destination yet, and nothing is pending or dead\n".to_owned()
    } else {
        let head = ["DESTINATION", "PENDING", "LAG", "DEAD", "QUARANTINED", "RATE", "STATE"].map(str::to_owned);
        let row = |line: &Line| {
            let lag = Duration::try_from_secs_f64(line.backlog.lag).unwrap_or_default();
            let sign = if line.rate.is_capped { ">" } else { "" };
            let state = match (&line.pause, told.get(&line.destination)) {
                (Some(pause), _) => paused(pause),
                (None, Some(told)) => tells(told),
                (None, None) if line.is_served => "unknown: no relay answers here".to_owned(),
                (None, None) => "no relay serves it".to_owned(),
            };
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
    for line in lines {
        text.extend(later(line));
        text.extend(hot.get(&line.destination).map(|hot| hot.as_text(&line.destination)));
    }
    for replay in replays {
        text.push_str(&replayed(replay));
    }
    let names = if relays.is_empty() { "none".to_owned() } else { relays.join(", ") };
    text.push_str(&format!("relays connected: {names}\n"));
    text.push_str(&match (here, elsewhere) {
        (Some((_, says)), _) => format!("the relay at {address}: {says}\n"),
        (None, Some(says)) => format!("the relay at {address} {says}\n"),
        (None, None) => format!("no relay answers at {address}\n"),
    });
    text
}

fn as_json(seen: &Seen) -> Value {
    let Seen { lines, relays, replays, address, here, elsewhere, told, hot } = seen;
    let pause = |pause: &Pause| {
        json!({
            "reason": pause.reason,
            "actor": pause.actor,
            "for_seconds": pause.age.as_secs(),
            "left_seconds": pause.left.map(|left| left.as_secs()),
        })
    };
    let here_of = |told: &Told| json!({"state": told.state, "since": told.since, "detail": told.detail});
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
            "scheduled": line.scheduled.messages,
            "scheduled_is_capped": line.scheduled.messages >= COUNT_LIMIT,
            "next_scheduled_at": line.scheduled.next,
            "delivered_per_second": line.rate.per_second,
            "delivered_per_second_is_capped": line.rate.is_capped,
            "paused": line.pause.as_ref().map(pause),
            "here": told.get(&line.destination).map(here_of),
            "hot": hot.get(&line.destination).map(Hot::as_json),
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
            "says": here.as_ref().map(|(_, says)| says).or(elsewhere.as_ref()),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_is_read_from_the_page_of_a_relay_and_another_page_is_passed_over() {
        let page = r#"{"database": {"schema": "outbox"}, "destinations": [
            {"destination": "a", "state": "halted", "since": "2026-01-01T00:00:00Z", "detail": "NoQueue\u001b[2J"}, {"destination": "b", "state": "idle", "since": null, "detail": ""}, {"x": 1}]}"#;
        let Page { schema, told } = Page::read(page);
        assert_eq!(schema.as_deref(), Some("outbox"));
        assert_eq!(told.len(), 2);
        assert!(tells(&told["a"]).starts_with("halted since 2026-01-01T00:00:00Z: NoQueue"));
        assert!(!tells(&told["a"]).contains('\u{1b}'), "a terminal would follow it");
        assert_eq!(tells(&told["b"]), "idle");
        for page in ["", "<html>", "[]", "{}", "{\"destinations\": 3}"] {
            let Page { schema, told } = Page::read(page);
            assert_eq!((schema, told), (None, HashMap::new()), "{page}");
        }
    }
}
