//! A transaction that holds the vacuum horizon back: rows that the relay marked delivered stay in its index as dead
//! entries.
//!
//! The control is the relay that most people write first: read the first undelivered rows, lock them, mark them.

use std::time::{Duration, Instant};

use anyhow::Result;
use tokio_postgres::Client;

use super::{ROUNDS, begin, median, scaled};
use crate::ground::{Backlog, Ground, How};
use crate::report::{Aim, Outcome};

/// The transactions that stay open; they are older than everything the relay does.
const READER: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class";
const WRITER: &str = "BEGIN; SELECT pg_current_xact_id()";

pub async fn run(ground: &Ground, scale: f64) -> Result<Outcome> {
    let mut outcome = begin(
        "horizon",
        "1,000,000 messages at 10 ms while an older transaction is open; the middle of three runs each",
    );
    let backlog = Backlog { messages: scaled(1_000_000, scale), groups: 20_000 };
    let ways = [("no such transaction", None), ("idle reader", Some(READER)), ("idle writer", Some(WRITER))];
    let mut runs = [const { Vec::new() }; 3];
    for _ in 0..ROUNDS {
        for (runs, (_, holder)) in runs.iter_mut().zip(ways) {
            let client = ground.filled("horizon", backlog).await?;
            let held = hold(ground, "horizon", holder).await?;
            runs.push(ground.drain("horizon", &client, backlog, &How::at(10)).await?.rate);
            drop(held);
        }
    }
    let rates = runs.map(median);
    for ((name, _), rate) in ways.into_iter().zip(rates) {
        outcome.add(name, rate, "messages/s");
    }
    outcome.aim("idle reader, part of the plain run", rates[1] / rates[0], "", Aim::AtLeast(0.95));
    outcome.aim("idle writer, part of the plain run", rates[2] / rates[0], "", Aim::AtLeast(0.95));
    let plain = control(ground, scale, None).await?;
    let held = control(ground, scale, Some(READER)).await?;
    outcome.add("control, no such transaction", plain, "messages/s");
    outcome.add("control, idle reader", held, "messages/s");
    outcome.aim("control, part of its plain run", held / plain, "", Aim::AtMost(0.2));
    Ok(outcome)
}

async fn hold(ground: &Ground, database: &str, statement: Option<&str>) -> Result<Option<Client>> {
    let Some(statement) = statement else { return Ok(None) };
    let client = ground.connect(database).await?;
    client.batch_execute(statement).await?;
    Ok(Some(client))
}

/// The time limit of the control: once it has collapsed, it would take hours for all messages.
const CONTROL_FOR: Duration = Duration::from_secs(60);

/// The rate of the control over its last third, when its dead entries have accumulated.
async fn control(ground: &Ground, scale: f64, holder: Option<&str>) -> Result<f64> {
    let client = ground.empty("control").await?;
    client
        .batch_execute(&format!(
            "CREATE TABLE outbox_table (
                 id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, payload jsonb NOT NULL, delivered_at timestamptz
             );
             CREATE INDEX ON outbox_table (id) WHERE delivered_at IS NULL;
             INSERT INTO outbox_table (payload)
                 SELECT jsonb_build_object('n', n, 'ticket', repeat(md5(n::text), 13))
                 FROM generate_series(1, {}) AS n",
            scaled(1_000_000, scale)
        ))
        .await?;
    client.batch_execute("VACUUM ANALYZE outbox_table").await?;
    let held = hold(ground, "control", holder).await?;
    let relay = "WITH next AS (
            SELECT id FROM outbox_table WHERE delivered_at IS NULL ORDER BY id LIMIT 100 FOR UPDATE SKIP LOCKED
        )
        UPDATE outbox_table AS o SET delivered_at = clock_timestamp() FROM next WHERE o.id = next.id
        RETURNING o.id, o.payload::text";
    let statement = client.prepare(relay).await?;
    let limit = CONTROL_FOR.mul_f64(scale.max(0.1));
    let started = Instant::now();
    let (mut late, mut since) = (0, None);
    while started.elapsed() < limit {
        let rows = client.query(&statement, &[]).await?.len();
        if rows == 0 {
            break;
        }
        if started.elapsed() >= limit.mul_f64(2.0 / 3.0) {
            since.get_or_insert_with(Instant::now);
            late += rows;
        }
    }
    drop(held);
    match since {
        Some(since) => Ok(late as f64 / since.elapsed().as_secs_f64().max(0.001)),
        // All were done before the time was over.
        None => Ok(scaled(1_000_000, scale) as f64 / started.elapsed().as_secs_f64()),
    }
}
