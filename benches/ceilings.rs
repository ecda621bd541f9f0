//! The two ceilings of a drain: the relay's statements without SQS, and its requests without PostgreSQL.
//!
//! Each runs as a separate process, with the environment and the code of the relay, and prints one number. Work that
//! shares the processors takes at best the sum of both times, so the bound of a drain is `1 / (1 / database + 1 /
//! sender)`.

use std::collections::VecDeque;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};

use outbox_relay::clock::Time;
use outbox_relay::config::Flags;
use outbox_relay::message::{
    Accepts, BodyForm, Content, DestinationKind, Event, EventPosition, LANES, Lane, Message, MessageId, MessageKey,
    Origin, Outcome, Settlement,
};
use outbox_relay::outbox::{Keep, Outbox};
use outbox_relay::publisher::{self, compose};
use outbox_relay::reading::{ByLane, ClaimProof, Lookup, Order, Position, READ_BYTES, ReadRequest};

use crate::ground::{BODY_BYTES, DESTINATION, Ground};
use crate::stand_in::Wire;

/// Settings come from the environment, as the relay's do.
#[derive(Parser, Debug)]
pub struct Ceiling {
    /// How many messages
    messages: u64,

    #[command(flatten)]
    flags: HiddenDebug,
}

/// The relay's flags may contain a password, so nothing prints them.
#[derive(clap::Args)]
struct HiddenDebug {
    #[command(flatten)]
    flags: Flags,
}

impl std::fmt::Debug for HiddenDebug {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Flags")
    }
}

/// How long a claim is held, as in the relay's claim sessions.
const CLAIM_FOR: Duration = Duration::from_millis(3500);

/// How many outcomes are written at a time, as in the relay when there are enough.
const SETTLE_SIZE: usize = 500;

impl Ceiling {
    /// Claims, reads and settles until nothing is left; returns messages a second.
    pub fn database(self) -> Result<f64> {
        let config = self.flags.flags.relay()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let outbox = Outbox::new(&config.database, 3)?;
            let destination: Arc<str> = DESTINATION.into();
            outbox.create_lanes(&destination).await?;
            let lanes: Vec<Lane> = Lane::all().collect();
            let started = Instant::now();
            let (mut cursors, mut settled) = (ByLane::all(MessageId::NONE), 0);
            while settled < self.messages {
                let claim = outbox.claim(&destination, &lanes, lanes.len(), CLAIM_FOR * 2).await?;
                let (claim, claimed) = claim.context("another claim holds the lanes")?;
                let (until, batch) = (claimed.asked_at + CLAIM_FOR, config.tuning.batch_size);
                let read = stream(&outbox, &mut cursors, batch, &claimed.proof, until).await?;
                claim.release().await?;
                ensure!(read > 0 || settled >= self.messages, "{settled} of {} messages were there", self.messages);
                settled += read;
            }
            Ok(settled as f64 / started.elapsed().as_secs_f64())
        })
    }

    /// Composes and sends generated messages; returns messages a second.
    pub fn sender(self) -> Result<f64> {
        let config = self.flags.flags.relay()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let queue =
                publisher::connect(&config.destinations, config.ca_bundle.as_deref(), config.tuning.request_timeout)
                    .await?
                    .remove(0)?;
            let started = Instant::now();
            let mut requests = FuturesUnordered::new();
            let mut next = 1;
            while next <= self.messages || !requests.is_empty() {
                while next <= self.messages && requests.len() < config.tuning.max_in_flight {
                    let last = self.messages.min(next + config.tuning.request_size as u64 - 1);
                    let messages: Vec<Message> = (next..=last).filter_map(made_up).collect();
                    next = last + 1;
                    let queue = queue.clone();
                    requests.push(async move {
                        let composed: Result<Vec<_>, _> = messages
                            .into_iter()
                            .map(|message| compose(message, &Accepts::queue(DestinationKind::Standard)))
                            .collect();
                        let composed = composed.map_err(|fault| anyhow::anyhow!("{fault}"))?;
                        let entries: Vec<_> = composed.iter().map(|composed| &composed.entry).collect();
                        let published = queue.publish(&entries, Time::now() + CLAIM_FOR).await;
                        ensure!(published.results.iter().all(Result::is_ok), "{:?}", published.results);
                        anyhow::Ok(())
                    });
                }
                requests.next().await.transpose()?;
            }
            Ok(self.messages as f64 / started.elapsed().as_secs_f64())
        })
    }
}

/// Reads and settles at the same time until the claim is old or nothing is left; returns how many messages were
/// settled.
async fn stream(
    outbox: &Outbox,
    cursors: &mut ByLane<MessageId>,
    batch: usize,
    proof: &ClaimProof,
    until: Time,
) -> Result<u64> {
    let (mut read_keys, mut is_over, mut settled) = (VecDeque::<(MessageKey, Origin)>::new(), false, 0);
    let limit = batch.div_ceil(LANES);
    let mut reading = None;
    let mut settling = None;
    loop {
        is_over |= Time::now() >= until;
        if reading.is_none() && !is_over && read_keys.len() < 4 * batch {
            let lanes = cursors.iter().map(|(lane, above)| Position { lane, above: *above, limit }).collect();
            let request = ReadRequest {
                lanes,
                stored_bytes: READ_BYTES,
                bytes: READ_BYTES,
                lookup: Lookup::Together,
                order: Order::None,
                ..ReadRequest::default()
            };
            reading = Some(async move { outbox.read(DESTINATION, &request, proof).await }.boxed().fuse());
        }
        if settling.is_none() && (read_keys.len() >= SETTLE_SIZE || (reading.is_none() && !read_keys.is_empty())) {
            let many = read_keys.len().min(SETTLE_SIZE);
            // As long as the ids of SQS, which are UUIDs.
            let outcome = |key: MessageKey| Outcome::Delivered {
                sqs_message_id: format!("{:036}", key.id.0),
                sequence_number: None,
            };
            let settlement = |(key, origin)| Settlement { key, origin, group: None, outcome: outcome(key) };
            let settlements: Vec<Settlement> = read_keys.drain(..many).map(settlement).collect();
            let settle = async move {
                outbox.settle(DESTINATION, Keep::Delivered, &settlements, Some(proof)).await.map(|_| many)
            };
            settling = Some(settle.boxed().fuse());
        }
        if reading.is_none() && settling.is_none() {
            return Ok(settled);
        }
        tokio::select! {
            Some(read) = maybe(&mut reading) => {
                reading = None;
                let batch = read?.lanes;
                is_over |= batch.messages.is_empty();
                for message in &batch.messages {
                    let cursor = &mut cursors[message.key.lane];
                    *cursor = message.key.id.max(*cursor);
                    read_keys.push_back((message.key, message.origin));
                }
            }
            Some(many) = maybe(&mut settling) => {
                settling = None;
                settled += many? as u64;
            }
        }
    }
}

/// The result of a task that may not exist.
async fn maybe<F: Future + Unpin>(task: &mut Option<F>) -> Option<F::Output> {
    match task {
        Some(task) => Some(task.await),
        None => std::future::pending().await,
    }
}

/// A message like those of the backlog.
fn made_up(number: u64) -> Option<Message> {
    let id = i64::try_from(number).ok()?;
    let lane = Lane::new(i16::try_from(number % LANES as u64).ok()?)?;
    let payload = format!("{{\"n\": {number}, \"ticket\": \"{}\"}}", "x".repeat((BODY_BYTES - 24) / 32 * 32));
    let trace = r#"{"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}"#;
    Some(Message {
        key: MessageKey { lane, id: MessageId(id) },
        origin: Origin { event_position: EventPosition(id), enqueued_at: SystemTime::UNIX_EPOCH },
        group: Some(format!("g{}", number % 20_000).into()),
        attempts: 0,
        age_when_read: Duration::ZERO,
        read_at: Time::now(),
        wait: None,
        hold: None,
        content: Content::Event(Event {
            event_id: format!("0190b7c4-5b5a-7000-8000-{number:012x}"),
            event_type: "TicketPurchased".to_owned(),
            stream: None,
            body: payload,
            form: BodyForm::Json,
            metadata: trace.to_owned(),
        }),
        superseded: None,
    })
}

/// Runs a ceiling as a separate process.
pub fn measure(ground: &Ground, which: &str, database: &str, messages: u64, wire: Wire) -> Result<f64> {
    let relay = ground.command(database, "tickets", wire);
    let mut command = Command::new(std::env::current_exe()?);
    command.env_clear().envs(relay.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let output = command.args([which, &messages.to_string()]).stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
    ensure!(output.status.success(), "{which} ended with {}", output.status);
    Ok(String::from_utf8(output.stdout)?.trim().parse()?)
}
