//! Changes rows by hand, with the statements of the runbook, and writes some unusual rows; takes destinations away and
//! brings them back.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::chronicle::Chronicle;
use crate::destinations::{ALL, Kind, ODD, Route, names, set_missing};
use crate::storm::pause;
use support::lottery::shop;

/// The longest between two changes.
const PAUSE: Duration = Duration::from_secs(2);

/// The longest that a message is held back.
const HELD: Duration = Duration::from_secs(3);

/// A random pending message.
const SOME_MESSAGE: &str = "SELECT id FROM outbox.messages
    WHERE destination = $1 AND status = 'pending' AND available_at IS NULL ORDER BY random() LIMIT 1";

const HOLD: &str = "UPDATE outbox.messages SET available_at = 'infinity'
    WHERE destination = $1 AND id = $2 AND status = 'pending'";

const LET_GO: &str = "UPDATE outbox.messages SET available_at = now()
    WHERE destination = ANY ($1) AND available_at > now() + interval '1 hour' AND status = 'pending'";

const GIVE_UP: &str = "UPDATE outbox.messages
    SET status = 'dead', dead_at = now(), available_at = NULL, last_error = 'given up by hand'
    WHERE destination = $1 AND id = $2 AND status = 'pending'";

const GIVEN_UP: &str = "SELECT (e.payload ->> 'ticket')::bigint
    FROM outbox.messages AS m JOIN outbox.events AS e ON e.position = m.event_position
    WHERE m.destination = $1 AND m.status = 'dead'";

const REDRIVE: &str = "SELECT outbox.dead_redrive(destination => $1, max_count => 1000)";

/// $1 milliseconds. The business notes the new times in the same transaction.
const MOVE: &str = "WITH chosen AS (
        SELECT ticket, message_id FROM lottery.reminders
        WHERE NOT cancelled AND deliver_at > now() ORDER BY deliver_at LIMIT 20 FOR UPDATE SKIP LOCKED
    ), moved AS (
        UPDATE outbox.messages_scheduled AS m SET deliver_at = m.deliver_at + $1::bigint * interval '1 ms'
        FROM chosen AS c WHERE m.destination = 'reminders' AND m.id = c.message_id RETURNING c.ticket, m.deliver_at
    )
    UPDATE lottery.reminders AS r SET deliver_at = m.deliver_at FROM moved AS m WHERE r.ticket = m.ticket";

/// How far scheduled messages are moved, to and fro, in milliseconds.
const MOVED_MS: std::ops::Range<i64> = -1500..2500;

/// One change in this many takes a destination away.
const TAKES_AWAY_ONE_IN: u32 = 10;

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
    pub routes: Vec<Route>,
    pub chronicle: Arc<Chronicle>,
    pub dice: Rng,
}

impl Operator {
    /// Makes one change after the other until it is calm; then nothing is held back any more, and nothing missing.
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
        last.context("what was changed by hand cannot be undone")
    }

    async fn change(&mut self, calm: &CancellationToken) -> Result<()> {
        let client = shop::connect(&self.url).await?;
        client.batch_execute("SET lock_timeout = '1s'; SET statement_timeout = '5s'").await?;
        set_missing(&self.routes, &client).await?;
        if self.dice.u32(..TAKES_AWAY_ONE_IN) == 0 {
            return self.take_away(&client, calm).await;
        }
        match self.dice.u32(..5) {
            0 => self.hold(&client, calm).await,
            1 => self.give_up(&client, calm).await,
            2 => self.reschedule(&client).await,
            _ => self.write(&client).await,
        }
    }

    /// The name of a destination of a sort.
    fn some(&mut self, is_wanted: impl Fn(Kind) -> bool) -> Kind {
        let wanted: Vec<Kind> = ALL.into_iter().filter(|kind| is_wanted(*kind)).collect();
        wanted[self.dice.usize(..wanted.len())]
    }

    async fn hold(&mut self, client: &Client, calm: &CancellationToken) -> Result<()> {
        let name = self.some(Kind::is_fifo).name();
        if let Some(row) = client.query_opt(SOME_MESSAGE, &[&name]).await?
            && client.execute(HOLD, &[&name, &row.get::<_, i64>(0)]).await? == 1
        {
            self.chronicle.begin("message held back by hand", &format!("{name} {}", row.get::<_, i64>(0)));
            pause(calm, HELD.mul_f64(self.dice.f64())).await;
        }
        self.let_go(client).await
    }

    async fn let_go(&self, client: &Client) -> Result<()> {
        let held = [names(Kind::is_fifo), vec![ODD]].concat();
        client.execute(LET_GO, &[&held]).await?;
        Ok(())
    }

    async fn give_up(&mut self, client: &Client, calm: &CancellationToken) -> Result<()> {
        let kind = self.some(|kind| !kind.is_fifo());
        if let Some(row) = client.query_opt(SOME_MESSAGE, &[&kind.name()]).await?
            && client.execute(GIVE_UP, &[&kind.name(), &row.get::<_, i64>(0)]).await? == 1
        {
            let message = format!("{} {}", kind.name(), row.get::<_, i64>(0));
            self.chronicle.begin("message given up by hand and redriven", &message);
            pause(calm, HELD.mul_f64(self.dice.f64())).await;
        }
        self.redrive(kind, client).await
    }

    /// It may have been in flight when it was declared dead.
    async fn redrive(&self, kind: Kind, client: &Client) -> Result<()> {
        for row in client.query(GIVEN_UP, &[&kind.name()]).await? {
            self.chronicle.redriven(kind, row.get::<_, i64>(0).cast_unsigned());
        }
        client.query(REDRIVE, &[&kind.name()]).await?;
        Ok(())
    }

    async fn reschedule(&mut self, client: &Client) -> Result<()> {
        let moved = client.execute(MOVE, &[&self.dice.i64(MOVED_MS)]).await?;
        if moved > 0 {
            self.chronicle.begin("scheduled messages moved by hand", &format!("({moved})"));
        }
        Ok(())
    }

    /// Relays serve a destination only while its row is there. The messages wait.
    async fn take_away(&mut self, client: &Client, calm: &CancellationToken) -> Result<()> {
        let route = &self.routes[self.dice.usize(..self.routes.len())];
        self.chronicle.begin("destination removed and set again", route.name());
        route.remove(client).await?;
        pause(calm, HELD.mul_f64(self.dice.f64())).await;
        route.set(client).await
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
        set_missing(&self.routes, &client).await?;
        self.let_go(&client).await?;
        for kind in ALL.into_iter().filter(|kind| !kind.is_fifo()) {
            self.redrive(kind, &client).await?;
        }
        let left: i64 = client
            .query_one("SELECT count(*) FROM outbox.messages_pending WHERE available_at = 'infinity'", &[])
            .await?
            .get(0);
        ensure!(left == 0, "{left} messages are still held back");
        Ok(())
    }
}
