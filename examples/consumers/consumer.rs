//! Counts what each draw has sold, from a queue: the effect happens exactly once, although SQS delivers at least once.
//!
//! ```sh
//! DATABASE_URL=postgres://… QUEUE_URL=https://sqs.… cargo run --example consumer -- --init
//! ```
//!
//! What a draw has sold does not depend on the order of its tickets, so `outbox.accept` by `event_id` is right, in both
//! modes of `OUTBOX_RELAY_FIFO_MODE`: with `batched` a queue may hold an event, an earlier one, and the first one
//! again. An effect that depends on the events before it uses `outbox.accept_in_order` instead (docs/patterns.md,
//! "Consuming in order").
//!
//! The database is the one that has the effect. It needs `outbox-relay migrate` as well, for `outbox.inbox`.
//! `consumer.py` does the same in Python.

#![allow(clippy::print_stderr, reason = "an example that needs no logging library to say what failed")]

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aws_sdk_sqs::error::DisplayErrorContext;
use aws_sdk_sqs::types::{Message, MessageSystemAttributeName};
use clap::Parser;
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};
use tokio_postgres::{Client, NoTls};

/// How long each replica holds a receive open; SQS allows 20 s, and fewer receives cost less.
const LONG_POLL_SECONDS: i32 = 5;

const PRUNE_EVERY: Duration = Duration::from_secs(3600);

/// Two replicas that start at once would both find no table, and one of them would fail; the lock prevents that.
const TABLE: &str = "
    BEGIN;
    SELECT pg_advisory_xact_lock(hashtext('create table sales'));
    CREATE TABLE IF NOT EXISTS sales (draw text PRIMARY KEY, tickets bigint NOT NULL, revenue bigint NOT NULL);
    COMMIT";

const SELL: &str = "
    INSERT INTO sales AS s (draw, tickets, revenue) VALUES ($1, 1, $2)
    ON CONFLICT (draw) DO UPDATE SET tickets = s.tickets + 1, revenue = s.revenue + excluded.revenue";

/// Counts what each draw has sold
#[derive(Parser, Debug)]
#[command(name = "consumer", max_term_width = 100)]
struct Flags {
    /// The database that the effect is in; without TLS, to keep the example short
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    database_url: String,

    /// The queue to receive from
    #[arg(long, env = "QUEUE_URL")]
    queue_url: String,

    /// Identifies the effect: another effect of the same events, or a rebuilt one, has another name
    #[arg(long, env = "CONSUMER", default_value = "sales")]
    consumer: String,

    /// Create the table sales if it is missing
    #[arg(long)]
    init: bool,

    /// Exit when nothing has come for two seconds
    #[arg(long)]
    until_empty: bool,
}

/// The resources of a consumer.
#[derive(Debug)]
struct Consumer {
    database: Client,
    queue: aws_sdk_sqs::Client,
    queue_url: String,
    name: String,
}

impl Consumer {
    async fn connect(flags: &Flags) -> Result<Consumer> {
        let (database, connection) =
            tokio_postgres::connect(&flags.database_url, NoTls).await.context("cannot connect to the database")?;
        tokio::spawn(connection);
        let configuration = aws_config::load_defaults(aws_config::BehaviorVersion::latest()).await;
        Ok(Consumer {
            database,
            queue: aws_sdk_sqs::Client::new(&configuration),
            queue_url: flags.queue_url.clone(),
            name: flags.consumer.clone(),
        })
    }

    /// Up to ten messages; none if none came in time.
    async fn receive(&self, seconds: i32) -> Result<Vec<Message>> {
        let request = self.queue.receive_message().queue_url(&self.queue_url).max_number_of_messages(10);
        let request = request.wait_time_seconds(seconds).message_attribute_names("All");
        let request = request.message_system_attribute_names(MessageSystemAttributeName::MessageGroupId);
        Ok(request.send().await.map_err(plain)?.messages.unwrap_or_default())
    }

    /// Processes one message after the other, and leaves failed ones to SQS.
    async fn take(&mut self, batch: &[Message]) -> Result<()> {
        let mut failed_groups = HashSet::<&String>::new();
        for message in batch {
            // A standard queue has no groups, and so no order to keep.
            let group = message.attributes().and_then(|all| all.get(&MessageSystemAttributeName::MessageGroupId));
            if group.is_some_and(|group| failed_groups.contains(group)) {
                continue; // It would overtake the one that failed. SQS delivers both again, in order.
            }
            if let Err(error) = self.take_one(message).await {
                // SQS delivers it again, and in the end moves it to its dead-letter queue.
                eprintln!("message {} failed: {error:#}", message.message_id().unwrap_or_default());
                failed_groups.extend(group);
            }
            // Without it nothing works any more: the process ends, and its supervisor restarts it.
            ensure!(!self.database.is_closed(), "the connection to the database is lost");
        }
        Ok(())
    }

    async fn take_one(&mut self, message: &Message) -> Result<()> {
        self.accept(message).await?;
        // After the commit: in the opposite order a crash in between would lose the event.
        let request = self.queue.delete_message().queue_url(&self.queue_url);
        request.set_receipt_handle(message.receipt_handle.clone()).send().await.map_err(plain)?;
        Ok(())
    }

    /// Applies the effect of an event, unless this consumer has done so before. Both are in one transaction, so that
    /// both are committed or neither. Another consumer with the same event at the same time waits, and then learns that
    /// it is not the first.
    async fn accept(&mut self, message: &Message) -> Result<()> {
        let (event_id, event_type) = (attribute(message, "event_id")?, attribute(message, "event_type")?);
        // If it is dropped without a commit, as on an error, it is rolled back.
        let transaction = self.database.transaction().await.map_err(quiet)?;
        let accept = "SELECT outbox.accept($1, $2::text::uuid)";
        let is_first: bool =
            transaction.query_one(accept, &[&self.name, &event_id]).await.map_err(quiet)?.try_get(0)?;
        if is_first && event_type == "TicketPurchased" {
            let (draw, price) = ticket(message.body().unwrap_or_default())?;
            transaction.execute(SELL, &[&draw, &price]).await.map_err(quiet)?;
        }
        transaction.commit().await.map_err(quiet)
    }

    /// Deletes inbox rows of messages that SQS cannot deliver any more, in chunks, each in a short transaction.
    async fn prune(&self) -> Result<()> {
        while self.database.query_one("SELECT outbox.prune_inbox()", &[]).await?.try_get::<_, i64>(0)? > 0 {}
        Ok(())
    }

    /// Works until told to stop, or until the queue is empty if that is requested.
    async fn run(&mut self, stop: impl Fn() -> bool, until_empty: bool) -> Result<()> {
        let mut pruned_at: Option<Instant> = None;
        while !stop() {
            if pruned_at.is_none_or(|at| at.elapsed() >= PRUNE_EVERY) {
                self.prune().await?;
                pruned_at = Some(Instant::now());
            }
            let batch = self.receive(if until_empty { 2 } else { LONG_POLL_SECONDS }).await?;
            self.take(&batch).await?;
            if until_empty && batch.is_empty() {
                break;
            }
        }
        Ok(())
    }
}

/// A message attribute, which the relay sends with each event.
fn attribute<'a>(message: &'a Message, name: &str) -> Result<&'a str> {
    let value = message.message_attributes().and_then(|all| all.get(name)?.string_value());
    value.with_context(|| format!("it has no attribute {name}"))
}

/// Draw and price of a ticket.
fn ticket(body: &str) -> Result<(String, i64)> {
    // The parser's own error may quote the body, and logs have more readers than tickets.
    let ticket: Value = serde_json::from_str(body).ok().context("its body is not JSON")?;
    let draw = ticket["draw"].as_str().context("it has no draw")?;
    let price = ticket["price"].as_i64().context("it has no price")?;
    Ok((draw.to_owned(), price))
}

/// Only the SQLSTATE: PostgreSQL's message may quote the body too.
fn quiet(error: tokio_postgres::Error) -> anyhow::Error {
    match error.code() {
        Some(code) => anyhow::anyhow!("the database refused it with SQLSTATE {}", code.code()),
        None => error.into(),
    }
}

/// The SDK's errors say little without their causes.
fn plain<E: std::error::Error>(error: E) -> anyhow::Error {
    anyhow::anyhow!("{}", DisplayErrorContext(&error))
}

#[tokio::main]
async fn main() -> Result<()> {
    let flags = Flags::parse();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut consumer = Consumer::connect(&flags).await?;
    if flags.init {
        consumer.database.batch_execute(TABLE).await?;
    }
    // A signal ends the wait for messages when the long poll ends, at the latest; a batch is finished.
    let signalled = tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    });
    consumer.run(|| signalled.is_finished(), flags.until_empty).await
}
