//! What the outbox costs the application that writes.

use std::time::{Duration, Instant};

use anyhow::Result;
use tokio_postgres::Client;

use super::begin;
use crate::ground::{DESTINATION, Ground};
use crate::report::{Aim, Outcome};

/// Sessions that write at the same time.
const WRITERS: usize = 4;

/// Each way takes its turn this often, so that a slow moment of the machine meets all of them.
const ROUNDS: usize = 5;

const BUSINESS: &str = "INSERT INTO tickets (n, draw, numbers) VALUES ($1, 'draw-7', repeat('x', 416))";
const PAYLOAD: &str = "jsonb_build_object('n', $1::bigint, 'ticket', repeat('x', 416))";

/// The statements of one transaction in each of the ways.
fn ways() -> [(&'static str, Vec<String>); 4] {
    let event = format!("INSERT INTO outbox.events (event_type, payload) VALUES ('TicketPurchased', {PAYLOAD})");
    let message = format!(
        "WITH event AS ({event} RETURNING position)
         INSERT INTO outbox.messages (destination, event_position, group_id)
         SELECT '{DESTINATION}', position, 'g' || $1 % 1000 FROM event"
    );
    let function =
        format!("SELECT outbox.enqueue('{DESTINATION}', 'TicketPurchased', {PAYLOAD}, 'g' || $1::bigint % 1000)");
    let business = BUSINESS.to_owned();
    [
        ("(a) business row", vec![business.clone()]),
        ("(b) and event", vec![business.clone(), event]),
        ("(c) and event and message, by INSERT", vec![business.clone(), message]),
        ("(d) and event and message, by function", vec![business, function]),
    ]
}

pub async fn run(ground: &Ground, scale: f64) -> Result<Outcome> {
    let mut outcome = begin("write-side", "transactions of four sessions, each on disk before it is confirmed");
    let client = ground.empty("writes").await?;
    client.batch_execute("CREATE TABLE tickets (n bigint, draw text, numbers text, PRIMARY KEY (n))").await?;
    let ways = ways();
    let mut totals = [(0_u64, 0.0_f64, 0_i64); 4];
    let turn = Duration::from_secs_f64((4.0 * scale).max(0.5));
    let mut next = 0;
    for _ in 0..ROUNDS {
        for (total, (_, statements)) in totals.iter_mut().zip(&ways) {
            client.batch_execute("CHECKPOINT").await?;
            let before = wal(&client).await?;
            let started = Instant::now();
            let done = write(ground, statements, started + turn, &mut next).await?;
            total.0 += done;
            total.1 += started.elapsed().as_secs_f64();
            total.2 += wal(&client).await? - before;
        }
    }
    let rate = |index: usize| totals[index].0 as f64 / totals[index].1;
    let bytes = |index: usize| totals[index].2 as f64 / totals[index].0 as f64;
    for (index, (name, _)) in ways.iter().enumerate() {
        outcome.add(*name, rate(index), "transactions/s");
    }
    for (index, (name, _)) in ways.iter().enumerate() {
        outcome.add(format!("{name}, WAL"), bytes(index), "bytes/transaction");
    }
    outcome.aim("(c), part of (a)", rate(2) / rate(0), "", Aim::AtLeast(0.75));
    outcome.add("WAL of event and message", bytes(2) - bytes(0), "bytes/message");
    let indexes =
        "SELECT count(*) FROM pg_index AS i WHERE i.indrelid = ANY ($1::text[]::regclass[]) AND i.indpred IS NULL";
    let tables = ["outbox.events", "outbox.messages_pending"].as_slice();
    let indexes: i64 = client.query_one(indexes, &[&tables]).await?.get(0);
    outcome.add("index entries of event and message", indexes as f64, "a message");
    Ok(outcome)
}

async fn wal(client: &Client) -> Result<i64> {
    Ok(client.query_one("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint", &[]).await?.get(0))
}

/// Runs transactions in all sessions until the time is over; returns how many.
async fn write(ground: &Ground, statements: &[String], until: Instant, next: &mut i64) -> Result<u64> {
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let mut client = ground.connect("writes").await?;
        let statements = statements.to_vec();
        let first = *next + writer as i64;
        writers.spawn(async move {
            let mut prepared = Vec::new();
            for statement in &statements {
                prepared.push(client.prepare(statement).await?);
            }
            let mut done = 0;
            while Instant::now() < until {
                let number = first + (done * WRITERS) as i64;
                let transaction = client.transaction().await?;
                for statement in &prepared {
                    transaction.query(statement, &[&number]).await?;
                }
                transaction.commit().await?;
                done += 1;
            }
            anyhow::Ok(done)
        });
    }
    let (mut total, mut most) = (0, 0);
    while let Some(done) = writers.join_next().await {
        let done = done??;
        total += done as u64;
        most = most.max(done);
    }
    *next += (most * WRITERS) as i64;
    Ok(total)
}
