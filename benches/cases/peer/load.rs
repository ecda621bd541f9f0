//! A steady rate of writing into a peer's tables.

use std::time::{Duration, Instant};

use anyhow::Result;
use tokio::task::JoinSet;
use tokio_postgres::{Client, Statement};

use super::program::Place;
use crate::ground::micros_since_1970;

/// Sessions that write.
const WRITERS: u64 = 4;

/// Keys whose messages must stay in order. Each is written by one session, so its numbers are committed in order.
#[derive(Clone, Copy, Debug)]
pub struct Keys(pub u64);

/// So many that no peer waits for a key.
pub const MANY: Keys = Keys(10_000);

/// So few that also a slow peer sends several messages of each.
pub const FEW: Keys = Keys(100);

/// The sessions, while they write.
pub struct Load {
    writers: JoinSet<Result<Vec<(u64, u64)>>>,
    pub total: u64,
}

impl Load {
    /// Writes the numbers from 1 at this rate for so many seconds.
    pub async fn start(place: &Place<'_>, write: &str, keys: Keys, rate: f64, seconds: f64) -> Result<Load> {
        let total = (rate * seconds).ceil() as u64;
        let mut sessions = Vec::new();
        for _ in 0..WRITERS {
            let client = place.connect().await?;
            let statement = client.prepare(write).await?;
            sessions.push((client, statement));
        }
        let (mut writers, started) = (JoinSet::new(), Instant::now());
        for (writer, (client, statement)) in (0..).zip(sessions) {
            let queue = place.queue_url();
            writers.spawn(async move {
                let mut committed = Vec::new();
                for number in (1..=total).filter(|number| number % WRITERS == writer) {
                    let due = started + Duration::from_secs_f64(number as f64 / rate);
                    tokio::time::sleep_until(due.into()).await;
                    write_numbers(&client, &statement, (number, number), keys, &queue).await?;
                    committed.push((number, micros_since_1970()?));
                }
                Ok(committed)
            });
        }
        Ok(Load { writers, total })
    }

    /// Whether all is written.
    pub fn is_over(&mut self) -> bool {
        self.writers.is_empty()
    }

    /// Takes what a session has written, if one is done.
    pub fn try_take(&mut self) -> Result<Vec<(u64, u64)>> {
        match self.writers.try_join_next() {
            Some(written) => written?,
            None => Ok(Vec::new()),
        }
    }
}

/// Writes these numbers in one transaction. Statements that do not need the queue's URL leave it out.
pub async fn write_numbers(
    client: &Client,
    statement: &Statement,
    (first, last): (u64, u64),
    keys: Keys,
    queue: &str,
) -> Result<()> {
    let (first, last, keys) = (i64::try_from(first)?, i64::try_from(last)?, i64::try_from(keys.0)?);
    let all: [&(dyn tokio_postgres::types::ToSql + Sync); 4] = [&first, &last, &keys, &queue];
    client.execute(statement, &all[..statement.params().len()]).await?;
    Ok(())
}
