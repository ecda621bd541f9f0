//! Latency where an old snapshot keeps millions of dead rows from being vacuumed, to one destination and to two.

use anyhow::Result;
use tokio_postgres::Client;

use super::latency::Load;
use super::{ROUNDS, begin, median, scaled};
use crate::ground::Ground;
use crate::report::{Aim, Outcome};
use crate::stand_in::Wire;

const DATABASE: &str = "dead_rows";

/// A session that an operator forgot.
const READER: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class";

/// One table's rows of a destination, and their end.
const SLICE: u64 = 250_000;

pub async fn run(ground: &Ground, scale: f64) -> Result<Outcome> {
    let mut outcome = begin(
        "dead-rows",
        "commit to acceptance, 200 transactions/s for 20 seconds, an idle REPEATABLE READ session keeps 3,000,000 dead rows of each destination; the middle of three runs each",
    );
    let client = ground.empty(DATABASE).await?;
    let reader = ground.connect(DATABASE).await?;
    reader.batch_execute(READER).await?;
    for destination in ["tickets", "audit"] {
        leave_dead_rows(&client, destination, scaled(3_000_000, scale)).await?;
    }
    for (kind, queue) in [("standard", "tickets"), ("FIFO", "tickets.fifo")] {
        let ways: [&[&str]; 2] = [&["tickets"], &["tickets", "audit"]];
        let mut runs = [const { Vec::new() }; 2];
        for _ in 0..ROUNDS {
            for (runs, destinations) in runs.iter_mut().zip(ways) {
                let load = Load {
                    database: DATABASE,
                    destinations,
                    queue,
                    wire: Wire::Https,
                    rate: 200,
                    before: 10,
                    seconds: scaled(20, scale),
                };
                runs.push(load.measure(ground).await?.percentile(0.99));
            }
        }
        let [one, two] = runs.map(median);
        outcome.add(format!("{kind}, one destination, p99"), one, "ms");
        outcome.add(format!("{kind}, two destinations, p99"), two, "ms");
        outcome.aim(format!("{kind}, two, times one"), two / one, "", Aim::AtMost(1.5));
    }
    drop(reader);
    Ok(outcome)
}

/// Leaves the dead rows of a relay that has delivered this many messages, as the index of pending messages contains
/// them.
async fn leave_dead_rows(client: &Client, destination: &str, count: u64) -> Result<()> {
    let write = "INSERT INTO outbox.messages (destination, event_position, group_id)
        SELECT $1, -n, 'g' || n % 1000 FROM generate_series(1, $2::bigint) AS n";
    let mut left = count;
    while left > 0 {
        let slice = left.min(SLICE);
        client.execute(write, &[&destination, &i64::try_from(slice)?]).await?;
        client.execute("DELETE FROM outbox.messages_pending WHERE destination = $1", &[&destination]).await?;
        left -= slice;
    }
    Ok(())
}
