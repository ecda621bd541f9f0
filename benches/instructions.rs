//! Counts the instructions of a message without PostgreSQL and SQS, and compares them with `instructions.json`.
//!
//! On a shared machine a clock cannot show a change of ten percent; callgrind counts the same on every run. Part of
//! `make test`. The program runs itself under valgrind, once with some messages and once with more; the difference
//! excludes the cost of starting. `UPDATE=1 cargo bench --bench instructions` writes new figures, for a commit that
//! says why.
//!
//! It counts [`outbox_relay::relay::dry_run`], optimised and with the relay's allocator: all of it, and of that what
//! admits a read, what builds a request and applies its answer, what records outcomes, and the turns that decide what to
//! do next.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a bench talks to the person who started it")]

use std::collections::BTreeMap;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};

use outbox_relay::clock::Time;
use outbox_relay::message::{
    BodyForm, Content, DestinationKind, Event, EventPosition, LANES, Lane, Message, MessageId, MessageKey, Origin,
};
use outbox_relay::relay::dry_run::dry_run;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How far the count may exceed the committed figure.
const TOLERANCE: f64 = 0.10;

/// Messages of the smaller and of the larger run. A relay reads two thousand at once.
const MESSAGES: (u64, u64) = (2_000, 10_000);

const FIGURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.json");

const KINDS: [(&str, DestinationKind); 2] = [("standard", DestinationKind::Standard), ("fifo", DestinationKind::Fifo)];

/// Functions of the dry run that are counted apart.
const PARTS: [&str; 4] = ["read", "publish", "settle", "turn"];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let done = match arguments.as_slice() {
        [kind, messages] => work(kind, messages),
        _ => compare(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("instructions: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The work that is counted.
fn work(kind: &str, messages: &str) -> Result<()> {
    let (_, kind) = KINDS.into_iter().find(|(name, _)| *name == kind).context("no such kind of queue")?;
    let messages: u64 = messages.parse()?;
    let batch: Vec<Message> = (1..=messages).filter_map(message).collect();
    let count = batch.len();
    let done = dry_run(batch, kind).map_err(|fault| anyhow::anyhow!("{fault}"))?;
    ensure!(done.rows == count && done.requests == count.div_ceil(10), "{count} messages gave {done:?}");
    Ok(())
}

/// Like those of the lottery: 450 bytes, a stream, a trace; each group has one message in a batch.
fn message(number: u64) -> Option<Message> {
    let id = i64::try_from(number).ok()?;
    let lane = Lane::new(i16::try_from(number % LANES as u64).ok()?)?;
    Some(Message {
        key: MessageKey { lane, id: MessageId(id) },
        origin: Origin { event_position: EventPosition(id), enqueued_at: SystemTime::UNIX_EPOCH },
        group: Some(format!("ticket-{number}").into()),
        attempts: 0,
        age_when_read: Duration::ZERO,
        read_at: Time::now(),
        wait: None,
        hold: None,
        superseded: None,
        content: Content::Event(Event {
            event_id: format!("0190b7c4-5b5a-7000-8000-{number:012x}"),
            event_type: "TicketPurchased".to_owned(),
            stream: Some((format!("ticket-{number}"), 1)),
            body: format!("{{\"n\": {number}, \"ticket\": \"{}\"}}", "x".repeat(420)),
            form: BodyForm::Json,
            metadata: r#"{"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}"#.to_owned(),
        }),
    })
}

fn compare() -> Result<()> {
    let mut counted = BTreeMap::new();
    for (name, _) in KINDS {
        let (few, many) = (count(name, MESSAGES.0)?, count(name, MESSAGES.1)?);
        for (part, many) in many {
            let few = few.get(&part).with_context(|| format!("the smaller run has no {part}"))?;
            let each = many.saturating_sub(*few) / (MESSAGES.1 - MESSAGES.0);
            counted.insert(format!("{name}{part}-{}", std::env::consts::ARCH), each);
        }
    }
    let text = std::fs::read_to_string(FIGURES).unwrap_or_else(|_| "{}".to_owned());
    let mut committed: BTreeMap<String, u64> = serde_json::from_str(&text).context(FIGURES)?;
    if std::env::var_os("UPDATE").is_some() {
        committed.extend(counted);
        std::fs::write(FIGURES, serde_json::to_string_pretty(&committed)? + "\n")?;
        println!("written: {committed:?} instructions a message");
        return Ok(());
    }
    let mut too_many = Vec::new();
    for (name, instructions) in &counted {
        let Some(figure) = committed.get(name) else {
            println!("{name}: {instructions} instructions a message; no figure is committed for this architecture");
            continue;
        };
        let change = *instructions as f64 / *figure as f64 - 1.0;
        println!("{name}: {instructions} instructions a message, committed {figure}, {:+.1} %", change * 100.0);
        if change > TOLERANCE {
            too_many.push(name.as_str());
        }
    }
    if !too_many.is_empty() {
        bail!(
            "{} needs over {:.0} % more than committed in {FIGURES}; find what costs \
             (valgrind --tool=callgrind on this program with `standard 5000`), or write new figures with UPDATE=1",
            too_many.join(" and "),
            TOLERANCE * 100.0
        );
    }
    Ok(())
}

/// The instructions of a run: all of them, and those of each part with what it calls.
fn count(kind: &str, messages: u64) -> Result<BTreeMap<String, u64>> {
    let folder = tempfile::tempdir()?;
    let profile = folder.path().join("callgrind.out");
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--compress-strings=no", "--compress-pos=no"]);
    valgrind.arg(format!("--callgrind-out-file={}", profile.display())).arg(std::env::current_exe()?);
    let output = valgrind.args([kind, &messages.to_string()]).stdin(Stdio::null()).output();
    let output = output.context("cannot start valgrind; install it, for example by: apt-get install valgrind")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "valgrind ended with {}: {said}", output.status);
    let collected =
        said.lines().find_map(|line| line.split_once("Collected :")).context("callgrind counted nothing")?;
    let mut counts = BTreeMap::from([(String::new(), collected.1.trim().parse()?)]);
    let profile = std::fs::read_to_string(profile)?;
    for part in PARTS {
        let of_part = inclusive(&profile, &format!("dry_run::{part}"));
        counts.insert(format!("-{part}"), of_part.with_context(|| format!("callgrind saw no call of {part}"))?);
    }
    Ok(counts)
}

/// The instructions of a function and of what it calls (Callgrind Format Specification): below its name, each line of
/// its own cost and of a call's cost is a position and a number.
fn inclusive(profile: &str, function: &str) -> Option<u64> {
    let (mut is_here, mut sum) = (false, None);
    for line in profile.lines() {
        if let Some(name) = line.strip_prefix("fn=") {
            is_here = name.ends_with(function);
        } else if is_here && line.starts_with(|first: char| first.is_ascii_digit()) {
            let cost: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
            sum = Some(sum.unwrap_or(0) + cost);
        }
    }
    sum
}
