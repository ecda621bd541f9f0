//! The cost of the outbox for the application that writes.
//!
//! The statements of a transaction are sent together, as libpq's pipeline mode, JDBC's batches and tokio-postgres do.
//! Then they are sent again with a round trip for each, because an outbox also adds a statement. Over loopback, with
//! both ends on the same cores, a round trip costs more than the rows.

use std::time::{Duration, Instant};

use anyhow::Result;
use tokio_postgres::Client;
use tokio_postgres::types::ToSql;

use super::begin;
use crate::ground::{DESTINATION, Ground};
use crate::report::{Aim, Outcome};

/// Sessions that write at the same time.
const WRITERS: usize = 4;

/// How the statements of a transaction are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    /// All at once.
    Together,
    /// Each after the answer to the one before.
    OneByOne,
}

/// How often each way takes its turn, so that a slow moment of the machine affects all of them.
const ROUNDS: usize = 5;

const BUSINESS: &str = "INSERT INTO tickets (n, draw, numbers) VALUES ($1, 'draw-7', repeat('x', 416))";
const PAYLOAD: &str = "jsonb_build_object('n', $1::bigint, 'ticket', repeat('x', 416))";

/// The statements of one transaction in each of the ways.
fn ways() -> [(&'static str, Sent, Vec<String>); 6] {
    let event = format!("INSERT INTO outbox.events (event_type, payload) VALUES ('TicketPurchased', {PAYLOAD})");
    let message = format!(
        "WITH event AS ({event} RETURNING position)
         INSERT INTO outbox.messages (destination, event_position, group_id)
         SELECT '{DESTINATION}', position, 'g' || $1 % 1000 FROM event"
    );
    let function =
        format!("SELECT outbox.enqueue('{DESTINATION}', 'TicketPurchased', {PAYLOAD}, 'g' || $1::bigint % 1000)");
    let business = BUSINESS.to_owned();
    let both = vec![business.clone(), message];
    [
        ("(a) business row", Sent::Together, vec![business.clone()]),
        ("(b) and event", Sent::Together, vec![business.clone(), event]),
        ("(c) and event and message, by INSERT", Sent::Together, both.clone()),
        ("(d) and event and message, by function", Sent::Together, vec![business.clone(), function]),
        ("(a), a round trip for each statement", Sent::OneByOne, vec![business]),
        ("(c), a round trip for each statement", Sent::OneByOne, both),
    ]
}

pub async fn run(ground: &Ground, scale: f64) -> Result<Outcome> {
    let mut outcome = begin("write-side", "transactions of four sessions, each on disk before it is confirmed");
    let client = ground.empty("writes").await?;
    client.batch_execute("CREATE TABLE tickets (n bigint, draw text, numbers text, PRIMARY KEY (n))").await?;
    let ways = ways();
    let mut totals = [(0_u64, 0.0_f64, 0_i64); 6];
    let turn = Duration::from_secs_f64((4.0 * scale).max(0.5));
    let mut next = 0;
    for _ in 0..ROUNDS {
        for (total, (_, sent, statements)) in totals.iter_mut().zip(&ways) {
            client.batch_execute("CHECKPOINT").await?;
            let before = wal(&client).await?;
            let started = Instant::now();
            let done = write(ground, statements, *sent, started + turn, &mut next).await?;
            total.0 += done;
            total.1 += started.elapsed().as_secs_f64();
            total.2 += wal(&client).await? - before;
        }
    }
    let rate = |index: usize| totals[index].0 as f64 / totals[index].1;
    let bytes = |index: usize| totals[index].2 as f64 / totals[index].0 as f64;
    for (index, (name, ..)) in ways.iter().enumerate() {
        outcome.add(*name, rate(index), "transactions/s");
    }
    for (index, (name, ..)) in ways.iter().enumerate().take(4) {
        outcome.add(format!("{name}, WAL"), bytes(index), "bytes/transaction");
    }
    outcome.aim("(c), part of (a)", rate(2) / rate(0), "", Aim::AtLeast(0.75));
    outcome.add("(c), part of (a), a round trip for each statement", rate(5) / rate(4), "");
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

/// Runs transactions in all sessions until the time is over; returns their number.
async fn write(ground: &Ground, statements: &[String], sent: Sent, until: Instant, next: &mut i64) -> Result<u64> {
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let client = ground.connect("writes").await?;
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
                match sent {
                    Sent::Together => {
                        let parameters: [&(dyn ToSql + Sync); 1] = [&number];
                        let statements = prepared.iter().map(|statement| client.execute(statement, &parameters));
                        let statements = futures_util::future::join_all(statements);
                        let (begun, written, committed) =
                            tokio::join!(client.batch_execute("BEGIN"), statements, client.batch_execute("COMMIT"));
                        begun?;
                        written.into_iter().collect::<Result<Vec<_>, _>>()?;
                        committed?;
                    }
                    Sent::OneByOne => {
                        client.batch_execute("BEGIN").await?;
                        for statement in &prepared {
                            client.execute(statement, &[&number]).await?;
                        }
                        client.batch_execute("COMMIT").await?;
                    }
                }
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
