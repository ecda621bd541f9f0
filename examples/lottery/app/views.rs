//! The query side's consumers: each keeps a read model in tables of its own, from a queue of its own. A process each.
//!
//! The inbox and the effect are one transaction, so each event has its effect once, however often SQS delivers it. A model is
//! built anew by forgetting it together with its inbox, and `outbox-relay replay`.

use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use serde_json::Value;
use tokio_postgres::{Client, Transaction};

use super::draw::Fact;
use super::until_the_parent_ends;
use crate::emulator::{Queues, Received};
use crate::shop::connect;

/// The tables of the read models.
pub const TABLES: &str = "
    CREATE SCHEMA IF NOT EXISTS views;
    CREATE TABLE IF NOT EXISTS views.tickets (
        ticket text PRIMARY KEY, draw text NOT NULL, player text NOT NULL, state text NOT NULL, won bigint NOT NULL DEFAULT 0
    );
    CREATE INDEX IF NOT EXISTS tickets_player ON views.tickets (player);
    CREATE TABLE IF NOT EXISTS views.sales (
        draw text PRIMARY KEY, price bigint NOT NULL DEFAULT 0, sold bigint NOT NULL DEFAULT 0,
        cancelled bigint NOT NULL DEFAULT 0, revenue bigint NOT NULL DEFAULT 0, refunds bigint NOT NULL DEFAULT 0,
        prizes bigint NOT NULL DEFAULT 0, numbers text
    );
    CREATE TABLE IF NOT EXISTS views.payouts (
        draw text PRIMARY KEY, winners bigint NOT NULL DEFAULT 0, amount bigint NOT NULL DEFAULT 0
    );
    CREATE TABLE IF NOT EXISTS views.accounts (
        view text NOT NULL, event_id uuid NOT NULL, arrivals bigint NOT NULL, effects bigint NOT NULL, PRIMARY KEY (view, event_id)
    );";

/// How long a receiver waits at an empty queue.
const LONG_POLL: Duration = Duration::from_secs(1);

/// Before a failing database is tried again.
const PAUSE: Duration = Duration::from_millis(200);

/// A consumer that keeps a read model
#[derive(Debug, Clone, Args)]
pub struct View {
    /// tickets, sales or payouts
    pub name: String,
    /// The database of the read model
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    pub database_url: String,
    /// The queue
    #[arg(long)]
    pub queue: String,
    /// Its endpoint
    #[arg(long, env = "AWS_ENDPOINT_URL_SQS")]
    pub endpoint: String,
    /// Have every message take effect, as consumers do that have no inbox
    #[arg(long)]
    pub without_inbox: bool,
    /// Note how often each event arrived and took effect
    #[arg(long)]
    pub account: bool,
    /// Receivers at work at the same time
    #[arg(long, default_value_t = 2)]
    pub receivers: usize,
}

/// Runs it until its parent ends.
pub async fn run(view: View) -> Result<()> {
    let mut receivers = tokio::task::JoinSet::new();
    for _ in 0..view.receivers {
        receivers.spawn(keep(view.clone()));
    }
    tokio::select! {
        () = until_the_parent_ends() => Ok(()),
        ended = receivers.join_next() => ended.context("no receivers")??,
    }
}

/// Receives and applies for ever; what fails comes again.
async fn keep(view: View) -> Result<()> {
    let queues = Queues::new(&view.endpoint);
    loop {
        if let Err(error) = receive(&view, &queues).await {
            eprintln!("view {}: {error:#}", view.name);
            tokio::time::sleep(PAUSE).await;
        }
    }
}

async fn receive(view: &View, queues: &Queues) -> Result<()> {
    let mut database = connect(&view.database_url).await?;
    loop {
        let batch = queues.receive(&view.queue, LONG_POLL).await?;
        let (handles, messages): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
        if messages.is_empty() {
            // A connection that has ended meanwhile is noticed before messages wait for it.
            anyhow::ensure!(!database.is_closed(), "the connection to the database is lost");
            continue;
        }
        apply_all(view, &mut database, &messages).await?;
        // After the commit: the other way round, a crash in between would lose them.
        queues.delete_messages(&view.queue, &handles).await?;
    }
}

async fn apply_all(view: &View, database: &mut Client, messages: &[Received]) -> Result<()> {
    let transaction = database.transaction().await?;
    for message in messages {
        let attribute = |name: &str| message.attributes.get(name).with_context(|| format!("no attribute {name}"));
        let event_id = attribute("event_id")?;
        let is_new = view.without_inbox
            || transaction
                .query_one("SELECT outbox.accept($1, $2::text::uuid)", &[&view.name, event_id])
                .await?
                .try_get(0)?;
        if view.account {
            let note = "INSERT INTO views.accounts AS a VALUES ($1, $2::text::uuid, 1, $3::bool::int)
                ON CONFLICT (view, event_id) DO UPDATE SET arrivals = a.arrivals + 1, effects = a.effects + excluded.effects";
            transaction.execute(note, &[&view.name, event_id, &is_new]).await?;
        }
        if is_new {
            let payload: Value = serde_json::from_str(&message.body).context("a body that is not JSON")?;
            let draw = payload["draw"].as_str().context("a body without draw")?;
            let fact = Fact::read(attribute("event_type")?, &payload)?;
            apply(&view.name, &transaction, draw, &fact).await?;
        }
    }
    transaction.commit().await?;
    Ok(())
}

async fn apply(view: &str, transaction: &Transaction<'_>, draw: &str, fact: &Fact) -> Result<()> {
    match view {
        "tickets" => apply_to_tickets(transaction, draw, fact).await,
        "sales" => apply_to_sales(transaction, draw, fact).await,
        "payouts" => apply_to_payouts(transaction, draw, fact).await,
        other => anyhow::bail!("there is no view {other}"),
    }
}

async fn apply_to_tickets(transaction: &Transaction<'_>, draw: &str, fact: &Fact) -> Result<()> {
    match fact {
        Fact::Purchased { ticket, player, .. } => {
            let bought = "INSERT INTO views.tickets (ticket, draw, player, state) VALUES ($1, $2, $3, 'bought')
                ON CONFLICT (ticket) DO NOTHING";
            transaction.execute(bought, &[ticket, &draw, player]).await?;
        }
        Fact::Cancelled { ticket, .. } => {
            transaction.execute("UPDATE views.tickets SET state = 'cancelled' WHERE ticket = $1", &[ticket]).await?;
        }
        Fact::Paid { ticket, amount, .. } => {
            let paid = "UPDATE views.tickets SET state = 'paid', won = won + $2 WHERE ticket = $1";
            transaction.execute(paid, &[ticket, amount]).await?;
        }
        Fact::Opened { .. } | Fact::Drawn { .. } => {}
    }
    Ok(())
}

async fn apply_to_sales(transaction: &Transaction<'_>, draw: &str, fact: &Fact) -> Result<()> {
    let (column, number) = match fact {
        Fact::Opened { price } => ("price = $2", *price),
        Fact::Purchased { price, .. } => ("sold = sold + 1, revenue = revenue + $2", *price),
        Fact::Cancelled { price, .. } => ("cancelled = cancelled + 1, refunds = refunds + $2", *price),
        Fact::Paid { amount, .. } => ("prizes = prizes + $2", *amount),
        Fact::Drawn { numbers } => {
            let numbers: Vec<String> = numbers.iter().map(u64::to_string).collect();
            let drawn = "INSERT INTO views.sales (draw, numbers) VALUES ($1, $2)
                ON CONFLICT (draw) DO UPDATE SET numbers = excluded.numbers";
            transaction.execute(drawn, &[&draw, &numbers.join(" ")]).await?;
            return Ok(());
        }
    };
    transaction.execute("INSERT INTO views.sales (draw) VALUES ($1) ON CONFLICT (draw) DO NOTHING", &[&draw]).await?;
    transaction.execute(&format!("UPDATE views.sales SET {column} WHERE draw = $1"), &[&draw, &number]).await?;
    Ok(())
}

async fn apply_to_payouts(transaction: &Transaction<'_>, draw: &str, fact: &Fact) -> Result<()> {
    if let Fact::Paid { amount, .. } = fact {
        let paid = "INSERT INTO views.payouts AS p (draw, winners, amount) VALUES ($1, 1, $2)
            ON CONFLICT (draw) DO UPDATE SET winners = p.winners + 1, amount = p.amount + excluded.amount";
        transaction.execute(paid, &[&draw, amount]).await?;
    }
    Ok(())
}
