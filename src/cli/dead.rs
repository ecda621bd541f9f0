//! `outbox-relay dead …`: the operations on dead messages.
//!
//! Every verb takes ids or the same filters. A verb that changes something first says how many messages are affected,
//! asks for confirmation, and leaves a row in `outbox.audit_log`. docs/operations.md says when to use which.

use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;
use clap::{Args, Subcommand};

use super::consent::{ask, messages, moment, rate};
use super::steer::Who;
use super::{Failure, complain, say};
use crate::config::{ConfigError, Flags};
use crate::message::{Accepts, BodyForm, Content, DestinationKind};
use crate::outbox::{DeadAction, DeadCount, DeadFilter, DeadLine, DeadMessage, Outbox, Since};
use crate::publisher::compose;

/// The most messages changed in one transaction.
const CHUNK: u64 = 1000;

/// What to do with dead messages.
#[derive(Subcommand)]
pub(super) enum Verb {
    /// List dead messages, the latest first
    #[command(
        after_help = "Examples:\n  outbox-relay dead list\n  outbox-relay dead list --destination tickets --since 2h\n  \
        outbox-relay dead list --reason InternalError --json"
    )]
    List {
        #[command(flatten)]
        choice: Choice,
        /// How many to show
        #[arg(long, value_name = "N", default_value_t = 100)]
        limit: u32,
        /// Print an array of JSON objects
        #[arg(long)]
        json: bool,
    },
    /// Show one dead message with its reason, attributes and body
    #[command(after_help = "Examples:\n  outbox-relay dead show 4711\n  outbox-relay dead show 4711 --json")]
    Show {
        /// The message's id
        id: i64,
        /// Print a JSON object
        #[arg(long)]
        json: bool,
    },
    /// Make dead messages pending again
    #[command(after_help = "Examples:\n  outbox-relay dead redrive 4711\n  \
        outbox-relay dead redrive --destination tickets --reason InternalError --rate 50/s\n  \
        outbox-relay dead redrive --all --dry-run")]
    Redrive {
        #[command(flatten)]
        choice: Choice,
        #[command(flatten)]
        consent: Consent,
        /// At most this many per second: 50/s
        #[arg(long, value_name = "N/s", value_parser = rate)]
        rate: Option<u32>,
    },
    /// Delete dead messages for good; their events stay
    #[command(after_help = "Examples:\n  outbox-relay dead discard 4711\n  \
        outbox-relay dead discard --event-type Ping --dry-run")]
    Discard {
        #[command(flatten)]
        choice: Choice,
        #[command(flatten)]
        consent: Consent,
    },
}

/// Selects dead messages.
#[derive(Args)]
pub(super) struct Choice {
    /// Ids of messages; none means all that match the filters
    ids: Vec<i64>,
    /// Only messages to this destination
    #[arg(long, value_name = "NAME")]
    destination: Option<String>,
    /// Only messages that carry events of this type
    #[arg(long, value_name = "TYPE")]
    event_type: Option<String>,
    /// Only messages of this group
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
    /// Only messages whose reason contains this text
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Only messages that died since then: 2h, 1day, 2026-11-25 or 2026-11-25T09:00:00Z
    #[arg(long, value_name = "WHEN", value_parser = since)]
    since: Option<Since>,
}

/// Whether to ask for confirmation, and who is responsible.
#[derive(Args)]
pub(super) struct Consent {
    /// Act on all dead messages; required when neither ids nor filters are given
    #[arg(long)]
    all: bool,
    /// Do not ask; for scripts
    #[arg(long)]
    yes: bool,
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    who: Who,
}

impl Choice {
    fn filter(self) -> DeadFilter {
        let Self { ids, destination, event_type, group, reason, since } = self;
        DeadFilter { ids, destination, event_type, group, reason, since }
    }

    fn is_all(&self) -> bool {
        let texts = [&self.destination, &self.event_type, &self.group, &self.reason];
        self.ids.is_empty() && texts.iter().all(|text| text.is_none()) && self.since.is_none()
    }
}

fn since(text: &str) -> Result<Since, String> {
    if let Ok(ago) = humantime::parse_duration(text) {
        return Ok(Since::Ago(ago));
    }
    moment(text)
        .map(Since::Time)
        .map_err(|_| "use a duration as 2h or 1day, or a time in UTC as 2026-11-25T09:00:00Z".to_owned())
}

/// Runs one verb.
pub(super) async fn run(flags: &Flags, verb: Verb) -> Result<(), Failure> {
    let outbox = Outbox::new(&flags.database()?, 1)?;
    match verb {
        Verb::List { choice, limit, json } => list(&outbox, &choice.filter(), limit, json).await,
        Verb::Show { id, json } => show(&outbox, id, json).await,
        Verb::Redrive { choice, consent, rate } => act(&outbox, DeadAction::Redrive, choice, &consent, rate).await,
        Verb::Discard { choice, consent } => act(&outbox, DeadAction::Discard, choice, &consent, None).await,
    }
}

async fn list(outbox: &Outbox, filter: &DeadFilter, limit: u32, json: bool) -> Result<(), Failure> {
    outbox.check_schema().await?;
    let counted = outbox.dead_count(filter).await?;
    let lines = outbox.dead_list(filter, &counted, i64::from(limit)).await?;
    if json {
        let objects: Vec<&str> = lines.iter().map(|line| line.json.as_str()).collect();
        say(&format!("[{}]\n", objects.join(",\n ")));
    } else {
        say(&table(&lines, &counted));
    }
    Ok(())
}

fn table(lines: &[DeadLine], counted: &DeadCount) -> String {
    if lines.is_empty() {
        return "no dead messages\n".to_owned();
    }
    let head = ["ID", "DIED", "DESTINATION", "EVENT TYPE", "GROUP", "ATTEMPTS", "REASON"].map(str::to_owned);
    let row = |line: &DeadLine| {
        let (id, attempts) = (line.id.to_string(), line.attempts.to_string());
        let reason = line.reason.replace('\n', " ");
        [id, line.died.clone(), line.destination.clone(), line.event_type.clone(), line.group.clone(), attempts, reason]
    };
    let mut text = super::table(std::iter::once(head).chain(lines.iter().map(row)).collect());
    if counted.messages > lines.len() as i64 {
        text.push_str(&format!("{} of {} dead messages; --limit shows more\n", lines.len(), counted.messages));
    }
    text
}

async fn show(outbox: &Outbox, id: i64, json: bool) -> Result<(), Failure> {
    outbox.check_schema().await?;
    let found = outbox.dead_show(id).await?;
    let dead = found.with_context(|| format!("message {id} is not dead, or does not exist"))?;
    say(&if json { format!("{}\n", dead.json) } else { description(dead) });
    Ok(())
}

fn description(dead: DeadMessage) -> String {
    let DeadMessage { message, destination, reason, died, enqueued, .. } = dead;
    let event = match &message.content {
        Content::Event(event) => Some(event.clone()),
        _ => None,
    };
    let group = message.group.as_deref().unwrap_or("none").to_owned();
    let mut lines = vec![
        ("message", message.key.id.0.to_string()),
        ("destination", destination),
        ("group", group),
        ("attempts", message.attempts.to_string()),
        ("enqueued", enqueued),
        ("died", died),
        ("reason", reason),
    ];
    if let Some(event) = &event {
        lines.push(("event id", event.event_id.clone()));
        lines.push(("event type", event.event_type.clone()));
        if let Some((stream, version)) = &event.stream {
            lines.push(("stream", format!("{stream}, version {version}")));
        }
    }
    // Composed as for a FIFO queue, which has the most attributes.
    match compose(message, &Accepts::queue(DestinationKind::Fifo)) {
        Ok(composed) => {
            lines.extend(composed.entry.described());
            if composed.dropped_attributes > 0 {
                lines.push((
                    "left out",
                    format!("{} members of metadata that SQS cannot take", composed.dropped_attributes),
                ));
            }
        }
        Err(fault) => lines.push(("cannot be sent", fault.to_string())),
    }
    let mut text: String = lines.iter().map(|(name, value)| format!("{name:<18} {value}\n")).collect();
    if let Some(event) = event {
        let name = match event.form {
            BodyForm::Json => "payload",
            BodyForm::Text => "body",
            BodyForm::Base64 => "body in base64",
        };
        text.push_str(&format!("{:<18} {}\n{name}\n{}\n", "metadata", event.metadata, event.body));
    }
    text
}

async fn act(
    outbox: &Outbox,
    action: DeadAction,
    choice: Choice,
    consent: &Consent,
    rate: Option<u32>,
) -> Result<(), Failure> {
    if choice.is_all() && !consent.all {
        let sentence = "which dead messages? Give ids or a filter such as --destination, or --all";
        return Err(ConfigError(vec![sentence.to_owned()]).into());
    }
    let is_all = choice.is_all();
    let mut filter = choice.filter();
    if is_all {
        filter.since = Some(Since::Time(SystemTime::UNIX_EPOCH));
    }
    outbox.check_schema().await?;
    let counted = outbox.dead_count(&filter).await?;
    if counted.messages == 0 && !filter.ids.is_empty() {
        return Err(
            anyhow::anyhow!("none of these messages is dead; outbox-relay dead list shows those that are").into()
        );
    }
    if counted.messages == 0 {
        say("no dead message matches\n");
        return Ok(());
    }
    let verb = match action {
        DeadAction::Redrive => "redrive",
        DeadAction::Discard => "discard",
    };
    if action == DeadAction::Redrive && counted.recent > 0 {
        complain(&format!(
            "{} of them died less than 5 minutes ago: should SQS have accepted one of those on an earlier attempt, a FIFO \
             queue drops it as a duplicate and it counts as delivered",
            counted.recent
        ));
    }
    if consent.dry_run {
        say(&format!("would {verb} {}\n", messages(counted.messages)));
        return Ok(());
    }
    if !consent.yes && !ask(&format!("{verb} {}?", messages(counted.messages)), "--yes, or --dry-run to look only")? {
        return Err(anyhow::anyhow!("nothing was done").into());
    }
    let changed = in_chunks(outbox, action, &filter, &counted, consent.who.name(outbox), rate).await?;
    say(&format!("{verb}: {}\n", messages(changed)));
    if changed < counted.messages {
        say(&format!(
            "{} fewer than counted: changed by somebody else, or locked; run it again to see\n",
            counted.messages - changed
        ));
    }
    Ok(())
}

/// Changes one chunk at a time, so that no transaction is long and the rate is even.
async fn in_chunks(
    outbox: &Outbox,
    action: DeadAction,
    filter: &DeadFilter,
    counted: &DeadCount,
    actor: &str,
    rate: Option<u32>,
) -> Result<i64, Failure> {
    let chunk = rate.map_or(CHUNK, |rate| u64::from(rate).min(CHUNK));
    let pause = rate.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(chunk as f64 / f64::from(rate)));
    let mut changed = 0;
    let mut next = Instant::now();
    loop {
        tokio::time::sleep_until(next.into()).await;
        next += pause;
        let (limit, before) = (i64::try_from(chunk).unwrap_or(i64::MAX), changed);
        let done = outbox.dead_act(action, filter, counted, limit, actor).await;
        changed += match done {
            Ok(done) => done,
            Err(error) if changed == 0 => return Err(error.into()),
            Err(error) => {
                return Err(anyhow::Error::from(error).context(format!("stopped after {}", messages(changed))).into());
            }
        };
        if changed == before || changed >= counted.messages {
            return Ok(changed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_is_a_duration_a_day_or_a_time() {
        assert!(matches!(since("2h"), Ok(Since::Ago(ago)) if ago == Duration::from_secs(7200)));
        assert!(matches!(since("2026-11-25"), Ok(Since::Time(_))));
        for text in ["", "yesterday"] {
            assert!(since(text).is_err(), "{text}");
        }
    }
}
