//! `outbox-relay replay`: publishes past events again as new messages, for example to fill a new read model from
//! history.
//!
//! It writes messages to the outbox, and any running relay delivers them. The database records the progress, so the
//! same command continues where it stopped. docs/operations.md says when to use it, and what consumers have to know.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::consent::{ask, messages, moment, printable, rate};
use super::steer::{Who, known, open};
use super::{Failure, complain, say, table};
use crate::config::{ConfigError, Flags};
use crate::outbox::{Outbox, OutboxError, ReplayCount, ReplayOf, ReplayStep};
use crate::reading::Replay as Unfinished;
use crate::retry::Delays;

/// The most messages written in one transaction.
const CHUNK: u32 = 1000;

/// The most events counted to say how large a replay is: the person only needs to see whether the size is as expected.
const MOST_COUNTED: i64 = 100_000;

/// How long to retry a failing database, and the first and longest pause in between.
const RETRY_FOR: Duration = Duration::from_secs(60);
const RETRY_PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(5));

/// How long to wait for transactions that were running when the replay began, and how often to check.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// How often to report progress where no progress bar can be drawn.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// What to publish again.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    outbox-relay replay --destination tickets --to-destination sales --dry-run\n  \
    outbox-relay replay --destination tickets --to-destination sales --rate 2000/s\n  \
    outbox-relay replay --destination audit --from 2026-11-25T09:00:00Z --to 2026-11-25T10:00:00Z\n  \
    outbox-relay replay --destination sales --all-events --event-type TicketPurchased --event-type TicketCancelled\n\n\
    Messages are new, with deduplication ids of their own; the attribute event_id is that of the event, so a consumer that \
    remembers event ids takes them for what it has seen. Events that are known to have gone to the new destination are left \
    out. The same command goes on where it was interrupted.")]
pub(super) struct Replay {
    /// The destination whose events are published again
    #[arg(long, value_name = "NAME")]
    destination: String,
    /// Publish them to this destination instead
    #[arg(long, value_name = "NAME")]
    to_destination: Option<String>,
    /// Also events that are not known to have gone to the destination; their stream is their group
    #[arg(long)]
    all_events: bool,
    /// Only events recorded then or later: 2026-11-25 or 2026-11-25T09:00:00Z
    #[arg(long, value_name = "WHEN", value_parser = moment)]
    from: Option<std::time::SystemTime>,
    /// Only events recorded before then
    #[arg(long, value_name = "WHEN", value_parser = moment)]
    to: Option<std::time::SystemTime>,
    /// Only events from this position on, or between two: 4711 or 4711..9000
    #[arg(long, value_name = "N|N..M", value_parser = positions)]
    position: Option<Positions>,
    /// Only events of this type; may be given several times
    #[arg(long, value_name = "TYPE")]
    event_type: Vec<String>,
    /// Only events of this stream
    #[arg(long, value_name = "ID")]
    stream: Option<String>,
    /// At most this many messages per second: 2000/s
    #[arg(long, value_name = "N/s", value_parser = rate)]
    rate: Option<u32>,
    /// Do not wait for transactions that have written events and not committed when it starts; leave out those events
    #[arg(long)]
    skip_running: bool,
    /// Start over, and abandon the rest of an interrupted replay
    #[arg(long)]
    restart: bool,
    /// Do not ask; for scripts
    #[arg(long)]
    yes: bool,
    /// Say how many events there are, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    who: Who,
}

/// From the first to the last, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Positions {
    first: i64,
    last: Option<i64>,
}

fn positions(text: &str) -> Result<Positions, String> {
    let number = |text: &str| text.parse::<i64>().ok().filter(|number| *number > 0);
    let parsed = match text.split_once("..") {
        None => number(text).map(|first| Positions { first, last: None }),
        Some((first, last)) => {
            number(first).zip(number(last)).map(|(first, last)| Positions { first, last: Some(last) })
        }
    };
    let parsed = parsed.filter(|positions| positions.last.is_none_or(|last| last >= positions.first));
    parsed.ok_or_else(|| "use a position from 1 on as 4711, or the first and the last as 4711..9000".to_owned())
}

impl Replay {
    fn of(&self) -> ReplayOf {
        ReplayOf {
            source: self.destination.clone(),
            destination: self.to_destination.clone().unwrap_or_else(|| self.destination.clone()),
            all_events: self.all_events,
            event_types: (!self.event_type.is_empty()).then(|| self.event_type.clone()),
            stream: self.stream.clone(),
            since: self.from,
            until: self.to,
            first: self.position.map(|positions| positions.first),
            stop: self.position.and_then(|positions| positions.last),
        }
    }
}

/// Runs the command.
pub(super) async fn run(flags: &Flags, mut replay: Replay) -> Result<(), Failure> {
    if replay.from.zip(replay.to).is_some_and(|(from, to)| from >= to) {
        return Err(ConfigError(vec!["--from is not before --to, so there is nothing between them".to_owned()]).into());
    }
    replay.event_type.sort();
    replay.event_type.dedup();
    let outbox = open(flags).await?;
    let of = replay.of();
    // Messages that no relay serves would wait without end.
    known(&outbox, Some(&of.destination)).await?;
    let mut unfinished = outbox.replays().await?;
    let id = outbox.replay_unfinished(&of).await?;
    unfinished.retain(|replay| Some(replay.id) == id);
    if replay.dry_run {
        return counted(&outbox, &of).await.map(|counted| say(&counted.shown(&of, unfinished.first(), replay.json)));
    }
    if replay.restart {
        unfinished.clear();
    }
    if !agreed(&outbox, &of, unfinished.first(), &replay).await? {
        return Ok(());
    }
    if let Some(id) = id.filter(|_| replay.restart) {
        outbox.replay_end(id, replay.who.name(&outbox)).await?;
    }
    let id = outbox.replay_begin(&of, replay.who.name(&outbox)).await?;
    let end = tokio::select! {
        end = steps(&outbox, id, replay.rate, replay.skip_running) => end?,
        _ = tokio::signal::ctrl_c() => {
            return Err(anyhow::anyhow!("replay {id} was interrupted; the same command continues it").into());
        }
    };
    if end.position < end.last_position {
        let (position, last) = (end.position, end.last_position);
        return Err(anyhow::anyhow!("replay {id} was abandoned by somebody at position {position} of {last}").into());
    }
    let (messages, last) = (end.all_messages, end.last_position);
    say(&if replay.json {
        format!("{:#}\n", json!({"replay": id, "messages": messages, "last_position": last}))
    } else {
        format!("replay {id}: {} written for {}, up to position {last}\n", self::messages(messages), of.destination)
    });
    Ok(())
}

/// Whether to proceed: there is something to do, and the person has confirmed it.
async fn agreed(
    outbox: &Outbox,
    of: &ReplayOf,
    unfinished: Option<&Unfinished>,
    replay: &Replay,
) -> Result<bool, Failure> {
    let question = match unfinished {
        Some(unfinished) => format!("continue {}?", described(unfinished)),
        None => {
            let counted = counted(outbox, of).await?;
            if !counted.may_be_more && counted.matching() == 0 {
                say(&counted.shown(of, None, replay.json));
                return Ok(false);
            }
            if !replay.json {
                say(&counted.shown(of, None, false));
            }
            format!("publish {}{} to {}?", counted.sign(), messages(counted.matching()), of.destination)
        }
    };
    if replay.yes || ask(&question, "--yes, or --dry-run to look only")? {
        return Ok(true);
    }
    Err(anyhow::anyhow!("nothing was done").into())
}

fn described(unfinished: &Unfinished) -> String {
    let Unfinished { id, actor, position, last_position, messages: written, idle, .. } = unfinished;
    let idle = humantime::format_duration(Duration::from_secs(idle.as_secs()));
    printable(&format!(
        "replay {id} of {actor}, at position {position} of {last_position} with {} written, last moved {idle} ago",
        messages(*written)
    ))
}

/// The size of a replay.
struct Counted {
    counts: Vec<ReplayCount>,
    may_be_more: bool,
}

async fn counted(outbox: &Outbox, of: &ReplayOf) -> Result<Counted, Failure> {
    let (counts, may_be_more) = outbox.replay_count(of, MOST_COUNTED).await?;
    Ok(Counted { counts, may_be_more })
}

impl Counted {
    fn matching(&self) -> i64 {
        self.counts.iter().map(|count| count.matching).sum()
    }

    fn sign(&self) -> &'static str {
        if self.may_be_more { "at least " } else { "" }
    }

    fn shown(&self, of: &ReplayOf, unfinished: Option<&Unfinished>, as_json: bool) -> String {
        let matching = self.matching();
        let others: i64 = self.counts.iter().map(|count| count.others).sum();
        if as_json {
            let count = |count: &ReplayCount| json!({"event_type": count.event_type, "messages": count.matching, "others": count.others});
            let types: Vec<_> = self.counts.iter().map(count).collect();
            let unfinished = unfinished.map(|unfinished| unfinished.id);
            let object = json!({
                "replay": null, "messages": matching, "may_be_more": self.may_be_more, "others": others,
                "event_types": types, "unfinished": unfinished,
            });
            return format!("{object:#}\n");
        }
        let mut text = String::new();
        if matching + others > 0 {
            let head = ["EVENT TYPE", "MESSAGES", "OTHERS"].map(str::to_owned);
            let row = |count: &ReplayCount| {
                [printable(&count.event_type), count.matching.to_string(), count.others.to_string()]
            };
            text = table(std::iter::once(head).chain(self.counts.iter().map(row)).collect());
        }
        if self.may_be_more {
            text.push_str(&format!("of the first {MOST_COUNTED} events; there may be more\n"));
        }
        text.push_str(&format!("{}{} would be written for {}\n", self.sign(), messages(matching), of.destination));
        if others > 0 && !of.all_events {
            let source = &of.source;
            text.push_str(&format!(
                "{others} more events do not name {source}; --all-events includes them, wherever they went\n"
            ));
        }
        if let Some(unfinished) = unfinished {
            text.push_str(&format!(
                "the same command would continue {}; --restart starts over\n",
                described(unfinished)
            ));
        }
        text
    }
}

/// Runs all steps to the end, at the given rate.
async fn steps(outbox: &Outbox, id: i64, rate: Option<u32>, skip_running: bool) -> Result<ReplayStep, Failure> {
    let limit = i64::from(rate.map_or(CHUNK, |rate| rate.min(CHUNK)));
    let mut progress = Progress::new();
    let mut waiting_since = None;
    loop {
        let started = Instant::now();
        let step = persistently(outbox, id, limit, skip_running).await;
        let step = step.with_context(|| format!("replay {id} stopped; the same command continues it"))?;
        progress.show(id, &step);
        if step.has_ended {
            return Ok(step);
        }
        if step.must_wait {
            let since = *waiting_since.get_or_insert_with(|| {
                complain("waiting for transactions that were writing events when the replay began");
                Instant::now()
            });
            if since.elapsed() >= PATIENCE {
                let (position, last) = (step.position, step.last_position);
                return Err(anyhow::anyhow!(
                    "replay {id} stopped at position {position} of {last}: a transaction that has written events behind it is \
                     still open. End it (docs/event-sourcing.md shows which one it is), and the same command goes on; \
                     --skip-running goes on without its events"
                )
                .into());
            }
            tokio::time::sleep(LOOK_AGAIN).await;
            continue;
        }
        waiting_since = None;
        if let Some(rate) = rate {
            // The time that the step took is subtracted. Only messages that were written count, not events that were
            // skipped.
            let pause = Duration::from_secs_f64(step.messages as f64 / f64::from(rate));
            tokio::time::sleep(pause.saturating_sub(started.elapsed())).await;
        }
    }
}

/// Runs a step, which may be repeated: a failover must not end a replay that takes hours.
async fn persistently(outbox: &Outbox, id: i64, limit: i64, skip_running: bool) -> Result<ReplayStep, OutboxError> {
    let started = Instant::now();
    let mut pauses = Delays::new(RETRY_PAUSES.0, RETRY_PAUSES.1);
    loop {
        match outbox.replay_step(id, limit, skip_running).await {
            Err(error) if !error.is_final() && !error.is_denied() && started.elapsed() < RETRY_FOR => {
                complain(&format!("{error}; trying again"));
                tokio::time::sleep(pauses.next_delay(&mut fastrand::Rng::new())).await;
            }
            result => return result,
        }
    }
}

/// A progress bar for people, lines for logs.
struct Progress {
    bar: ProgressBar,
    told_at: Instant,
}

impl Progress {
    fn new() -> Self {
        let style = ProgressStyle::with_template("{wide_bar} {percent} %, {msg}, {eta} left");
        let bar = ProgressBar::no_length().with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        Self { bar, told_at: Instant::now() }
    }

    fn show(&mut self, id: i64, step: &ReplayStep) {
        let unsigned = |position: i64| u64::try_from(position).unwrap_or(0);
        if self.bar.length().is_none() {
            self.bar.set_length(unsigned(step.last_position - step.start_position));
            // The progress of an interrupted replay says nothing about the speed of this one.
            self.bar.set_position(unsigned(step.position - step.start_position));
            self.bar.reset_eta();
        }
        self.bar.set_message(messages(step.all_messages));
        self.bar.set_position(unsigned(step.position - step.start_position));
        if !std::io::stderr().is_terminal() && self.told_at.elapsed() >= TELL_EVERY {
            self.told_at = Instant::now();
            let (position, last) = (step.position, step.last_position);
            complain(&format!(
                "replay {id}: at position {position} of {last}, {} written",
                messages(step.all_messages)
            ));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_one_or_two_numbers_in_order() {
        assert_eq!(positions("7"), Ok(Positions { first: 7, last: None }));
        assert_eq!(positions("7..7"), Ok(Positions { first: 7, last: Some(7) }));
        for text in ["", "0", "-1", "9..7", "..7", "7..", "x"] {
            assert!(positions(text).is_err(), "{text}");
        }
    }
}
