//! The query side's consumers: each keeps a read model in its own tables, from its own queue, in its own process.
//!
//! The inbox and the effect are in one transaction, so each event takes effect once, however often SQS delivers it. The
//! effects come to the same in whatever order they happen: sums, facts of which a draw has one, and for a ticket a state
//! that no earlier event overwrites. So the queues may keep no order at all, or that of `OUTBOX_RELAY_FIFO_MODE=batched`.
//! A model is rebuilt by deleting it together with its inbox, and running `outbox-relay replay`.

use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use deadpool_postgres::{Object, Pool, Transaction};
use serde_json::Value;
use tokio_postgres::types::ToSql;

use super::draw::Fact;
use super::store::pool;
use super::until_the_parent_ends;
use support::emulator::{Queues, Received};

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
        view text NOT NULL, event_id uuid NOT NULL, arrivals bigint NOT NULL, effects bigint NOT NULL,
        first_at timestamptz NOT NULL DEFAULT clock_timestamp(), PRIMARY KEY (view, event_id)
    );";

/// How long a receiver waits at an empty queue.
const LONG_POLL: Duration = Duration::from_secs(1);

/// The pause before a failing database is retried.
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
    /// Let every message take effect, as in consumers without an inbox
    #[arg(long)]
    pub without_inbox: bool,
    /// Record how often each event arrived and took effect
    #[arg(long)]
    pub account: bool,
    /// Receivers at work at the same time
    #[arg(long, default_value_t = 2)]
    pub receivers: usize,
}

/// Runs it until its parent ends.
pub async fn run(view: View) -> Result<()> {
    let pool = pool(&view.database_url, view.receivers)?;
    let mut receivers = tokio::task::JoinSet::new();
    for _ in 0..view.receivers {
        receivers.spawn(keep(view.clone(), pool.clone()));
    }
    tokio::select! {
        () = until_the_parent_ends() => Ok(()),
        ended = receivers.join_next() => ended.context("no receivers")??,
    }
}

/// Receives and applies without end; failed messages come again.
async fn keep(view: View, pool: Pool) -> Result<()> {
    let queues = Queues::new(&view.endpoint);
    loop {
        if let Err(error) = receive(&view, &pool, &queues).await {
            eprintln!("view {}: {error:#}", view.name);
            tokio::time::sleep(PAUSE).await;
        }
    }
}

async fn receive(view: &View, pool: &Pool, queues: &Queues) -> Result<()> {
    let batch = queues.receive(&view.queue, LONG_POLL).await?;
    let (handles, messages): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
    if messages.is_empty() {
        return Ok(());
    }
    apply_all(view, &mut pool.get().await?, &messages).await?;
    // After the commit: in the opposite order a crash in between would lose them.
    queues.delete_messages(&view.queue, &handles).await
}

/// The inbox and all effects of a batch, in one transaction.
async fn apply_all(view: &View, database: &mut Object, messages: &[Received]) -> Result<()> {
    let transaction = database.transaction().await?;
    let attribute = |message: &Received, name: &str| {
        message.attributes.get(name).cloned().with_context(|| format!("no attribute {name}"))
    };
    // Draw by draw, so that two receivers never wait for each other's rows in a circle. The order within a draw is
    // kept.
    let mut messages: Vec<(String, &Received)> =
        messages.iter().map(|message| Ok((attribute(message, "stream_id")?, message))).collect::<Result<_>>()?;
    messages.sort_by(|one, other| one.0.cmp(&other.0));
    let ids: Vec<String> = messages.iter().map(|(_, message)| attribute(message, "event_id")).collect::<Result<_>>()?;
    // Sorted by id for the same reason.
    let accept = "SELECT i.n, outbox.accept($1, i.id::uuid)
        FROM (SELECT id, n FROM unnest($2::text[]) WITH ORDINALITY AS u (id, n) ORDER BY id) AS i";
    let mut is_new = vec![view.without_inbox; ids.len()];
    if !view.without_inbox {
        let accept = transaction.prepare_cached(accept).await?;
        for row in transaction.query(&accept, &[&view.name, &ids]).await? {
            is_new[usize::try_from(row.get::<_, i64>(0) - 1)?] = row.get(1);
        }
    }
    if view.account {
        let note = "INSERT INTO views.accounts AS a (view, event_id, arrivals, effects)
            SELECT $1, u.id::uuid, count(*), count(*) FILTER (WHERE u.is_new)
            FROM unnest($2::text[], $3::bool[]) AS u (id, is_new) GROUP BY u.id ORDER BY u.id
            ON CONFLICT (view, event_id) DO UPDATE
            SET arrivals = a.arrivals + excluded.arrivals, effects = a.effects + excluded.effects";
        let note = transaction.prepare_cached(note).await?;
        transaction.execute(&note, &[&view.name, &ids, &is_new]).await?;
    }
    for ((draw, message), _) in messages.iter().zip(is_new).filter(|(_, is_new)| *is_new) {
        let payload: Value = serde_json::from_str(&message.body).context("a body that is not JSON")?;
        let fact = Fact::read(&attribute(message, "event_type")?, &payload)?;
        apply(&view.name, &transaction, draw, &fact).await?;
    }
    transaction.commit().await?;
    Ok(())
}

async fn execute(transaction: &Transaction<'_>, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<()> {
    let statement = transaction.prepare_cached(sql).await?;
    transaction.execute(&statement, parameters).await?;
    Ok(())
}

pub(super) async fn apply(view: &str, transaction: &Transaction<'_>, draw: &str, fact: &Fact) -> Result<()> {
    match view {
        "tickets" => apply_to_tickets(transaction, draw, fact).await,
        "sales" => apply_to_sales(transaction, draw, fact).await,
        "payouts" => apply_to_payouts(transaction, draw, fact).await,
        other => anyhow::bail!("there is no view {other}"),
    }
}

/// Whichever event of a ticket comes first creates its row; the purchase changes nothing that a later event has written.
async fn apply_to_tickets(transaction: &Transaction<'_>, draw: &str, fact: &Fact) -> Result<()> {
    let create = "INSERT INTO views.tickets AS t (ticket, draw, player, state, won)";
    match fact {
        Fact::Purchased { ticket, player, .. } => {
            let bought = format!("{create} VALUES ($1, $2, $3, 'bought', 0) ON CONFLICT (ticket) DO NOTHING");
            execute(transaction, &bought, &[ticket, &draw, player]).await?;
        }
        Fact::Cancelled { ticket, player, .. } => {
            let cancelled = format!(
                "{create} VALUES ($1, $2, $3, 'cancelled', 0) ON CONFLICT (ticket) DO UPDATE SET state = excluded.state"
            );
            execute(transaction, &cancelled, &[ticket, &draw, player]).await?;
        }
        Fact::Paid { ticket, player, amount } => {
            let paid = format!(
                "{create} VALUES ($1, $2, $3, 'paid', $4)
                ON CONFLICT (ticket) DO UPDATE SET state = excluded.state, won = t.won + excluded.won"
            );
            execute(transaction, &paid, &[ticket, &draw, player, amount]).await?;
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
            return execute(transaction, drawn, &[&draw, &numbers.join(" ")]).await;
        }
    };
    execute(transaction, "INSERT INTO views.sales (draw) VALUES ($1) ON CONFLICT (draw) DO NOTHING", &[&draw]).await?;
    execute(transaction, &format!("UPDATE views.sales SET {column} WHERE draw = $1"), &[&draw, &number]).await
}

async fn apply_to_payouts(transaction: &Transaction<'_>, draw: &str, fact: &Fact) -> Result<()> {
    if let Fact::Paid { amount, .. } = fact {
        let paid = "INSERT INTO views.payouts AS p (draw, winners, amount) VALUES ($1, 1, $2)
            ON CONFLICT (draw) DO UPDATE SET winners = p.winners + 1, amount = p.amount + excluded.amount";
        execute(transaction, paid, &[&draw, amount]).await?;
    }
    Ok(())
}
