//! Changes rows by hand, with the statements of the runbook, and writes some unusual rows.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::chronicle::Chronicle;
use crate::storm::pause;
use support::lottery::shop;

/// A FIFO destination for unusual rows; they must not affect other messages.
pub const ODD: &str = "by-hand";

/// The longest between two changes.
const PAUSE: Duration = Duration::from_secs(2);

/// The longest that a message is held back.
const HELD: Duration = Duration::from_secs(3);

/// A random pending message.
const SOME_MESSAGE: &str = "SELECT id FROM outbox.messages
    WHERE destination = $1 AND status = 'pending' AND available_at IS NULL ORDER BY random() LIMIT 1";

const HOLD: &str = "UPDATE outbox.messages SET available_at = 'infinity'
    WHERE destination = 'tickets' AND id = $1 AND status = 'pending'";

const LET_GO: &str = "UPDATE outbox.messages SET available_at = now()
    WHERE destination IN ('tickets', 'by-hand') AND available_at > now() + interval '1 hour' AND status = 'pending'";

const GIVE_UP: &str = "UPDATE outbox.messages
    SET status = 'dead', dead_at = now(), available_at = NULL, last_error = 'given up by hand'
    WHERE destination = 'audit' AND id = $1 AND status = 'pending'";

const GIVEN_UP: &str = "SELECT (e.payload ->> 'ticket')::bigint
    FROM outbox.messages AS m JOIN outbox.events AS e ON e.position = m.event_position
    WHERE m.destination = 'audit' AND m.status = 'dead'";

const REDRIVE: &str = "SELECT outbox.dead_redrive(destination => 'audit', max_count => 1000)";

/// Unusual rows. $1 a random number.
const ODD_ROWS: [&str; 8] = [
    "INSERT INTO outbox.messages (id, destination, event_position, group_id) OVERRIDING SYSTEM VALUE
     SELECT -$1::bigint, 'by-hand', max(position), 'negative' FROM outbox.events",
    "INSERT INTO outbox.messages (id, destination, event_position, group_id) OVERRIDING SYSTEM VALUE
     SELECT 9223372036854775807 - $1::bigint, 'by-hand', max(position), 'huge' FROM outbox.events",
    "INSERT INTO outbox.messages (destination, event_position, group_id, available_at)
     SELECT 'by-hand', max(position), 'far ahead', 'infinity' FROM outbox.events WHERE $1::bigint > 0",
    "INSERT INTO outbox.messages (destination, event_position, group_id, available_at)
     SELECT 'by-hand', max(position), 'long ago', '-infinity' FROM outbox.events WHERE $1::bigint > 0",
    "INSERT INTO outbox.messages (destination, event_position, group_id)
     VALUES ('by-hand', 1000000000000 + $1::bigint, 'no event')",
    "WITH e AS (
         INSERT INTO outbox.events (event_type, payload, metadata)
         VALUES ('Odd', '\"text\"', '{\"\": null, \"a b\": [1, {\"c\": 2}], \"ok\": 1e300}') RETURNING position
     )
     INSERT INTO outbox.messages (destination, event_position, group_id)
     SELECT 'by-hand', position, 'odd metadata' FROM e WHERE $1::bigint > 0",
    "WITH e AS (
         INSERT INTO outbox.events (event_type, payload)
         VALUES ('Odd', to_jsonb(repeat('x', 1100000))) RETURNING position
     )
     INSERT INTO outbox.messages (destination, event_position, group_id)
     SELECT 'by-hand', position, 'too long' FROM e WHERE $1::bigint > 0",
    "INSERT INTO outbox.messages (destination, event_position, group_id)
     SELECT 'nobody-serves-this', max(position), 'g' FROM outbox.events WHERE $1::bigint > 0",
];

/// The operator who changes rows.
#[derive(Debug)]
pub struct Operator {
    /// The application's address.
    pub url: String,
    pub chronicle: Arc<Chronicle>,
    pub dice: Rng,
}

impl Operator {
    /// Makes one change after the other until it is calm; then nothing is held back any more.
    pub async fn work(mut self, calm: CancellationToken) -> Result<()> {
        while !calm.is_cancelled() {
            pause(&calm, PAUSE.mul_f64(self.dice.f64())).await;
            // The database may be unavailable; then the next change is tried.
            self.change(&calm).await.ok();
        }
        let mut last = Ok(());
        for _ in 0..100 {
            last = self.let_all_go().await;
            if last.is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        last.context("messages held back by hand cannot be released")
    }

    async fn change(&mut self, calm: &CancellationToken) -> Result<()> {
        let client = shop::connect(&self.url).await?;
        client.batch_execute("SET lock_timeout = '1s'; SET statement_timeout = '5s'").await?;
        match self.dice.u32(..4) {
            0 => self.hold(&client, calm).await,
            1 => self.give_up(&client, calm).await,
            _ => self.write(&client).await,
        }
    }

    async fn hold(&mut self, client: &Client, calm: &CancellationToken) -> Result<()> {
        if let Some(row) = client.query_opt(SOME_MESSAGE, &[&"tickets"]).await?
            && client.execute(HOLD, &[&row.get::<_, i64>(0)]).await? == 1
        {
            self.chronicle.begin("message held back by hand", &row.get::<_, i64>(0).to_string());
            pause(calm, HELD.mul_f64(self.dice.f64())).await;
        }
        client.execute(LET_GO, &[]).await?;
        Ok(())
    }

    async fn give_up(&mut self, client: &Client, calm: &CancellationToken) -> Result<()> {
        if let Some(row) = client.query_opt(SOME_MESSAGE, &[&"audit"]).await?
            && client.execute(GIVE_UP, &[&row.get::<_, i64>(0)]).await? == 1
        {
            self.chronicle.begin("message given up by hand and redriven", &row.get::<_, i64>(0).to_string());
            pause(calm, HELD.mul_f64(self.dice.f64())).await;
        }
        self.redrive(client).await
    }

    /// It may have been in flight when it was declared dead.
    async fn redrive(&self, client: &Client) -> Result<()> {
        for row in client.query(GIVEN_UP, &[]).await? {
            self.chronicle.redriven(row.get::<_, i64>(0).cast_unsigned());
        }
        client.query(REDRIVE, &[]).await?;
        Ok(())
    }

    async fn write(&mut self, client: &Client) -> Result<()> {
        let statement = ODD_ROWS[self.dice.usize(..ODD_ROWS.len())];
        if client.execute(statement, &[&self.dice.i64(1..1_000_000_000)]).await? == 1 {
            self.chronicle.begin("odd row written by hand", "");
        }
        Ok(())
    }

    async fn let_all_go(&self) -> Result<()> {
        let client = shop::connect(&self.url).await?;
        client.execute(LET_GO, &[]).await?;
        self.redrive(&client).await?;
        let left: i64 = client
            .query_one("SELECT count(*) FROM outbox.messages_pending WHERE available_at = 'infinity'", &[])
            .await?
            .get(0);
        ensure!(left == 0, "{left} messages are still held back");
        Ok(())
    }
}
