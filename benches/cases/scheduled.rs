//! Messages for later: how late they are sent, and what they cost while they wait.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tokio_postgres::Client;

use super::{ROUNDS, begin, scaled};
use crate::ground::{DESTINATION, Ground, micros_since_1970};
use crate::processes::server_cpu;
use crate::report::{Aim, Outcome};
use crate::stand_in::Wire;

/// A relay that starts scans the outbox once; after five quiet seconds it polls less often.
const QUIET: Duration = Duration::from_secs(7);

/// A session that an operator forgot.
const READER: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class";

/// Messages that wait, and messages that were scheduled and are gone.
const MANY: u64 = 1_000_000;

pub async fn run(ground: &Ground, scale: f64) -> Result<Outcome> {
    let mut outcome = begin(
        "scheduled",
        "from deliver_at to acceptance with default settings, SQS 0 ms; 1,000,000 that wait, in turn with none, three times 20 seconds each",
    );
    let client = ground.empty("scheduled").await?;
    let busy = Times { count: scaled(400, scale), apart: Duration::from_millis(25) };
    let alone = Times { count: scaled(8, scale), apart: QUIET };
    for (name, times) in [("400 in ten seconds", busy), ("one after seven quiet seconds", alone)] {
        report(&mut outcome, name, &times.measure(ground, &client, "scheduled").await?);
    }
    wait_at_no_cost(ground, scale, &mut outcome).await?;
    let reader = ground.connect("scheduled").await?;
    reader.batch_execute(READER).await?;
    leave_dead_entries(&client, scaled(MANY, scale)).await?;
    let late = busy.measure(ground, &client, "scheduled").await?;
    report(&mut outcome, "behind 1,000,000 sent ones that cannot be vacuumed", &late);
    drop(reader);
    Ok(outcome)
}

fn report(outcome: &mut Outcome, name: &str, late: &[u64]) {
    let percentile = |part: f64| late[((late.len() - 1) as f64 * part) as usize] as f64 / 1000.0;
    outcome.add(format!("{name}, p50"), percentile(0.5), "ms");
    outcome.aim(format!("{name}, p99"), percentile(0.99), "ms", Aim::AtMost(100.0));
}

/// When messages fall due.
#[derive(Clone, Copy)]
struct Times {
    count: u64,
    apart: Duration,
}

impl Times {
    /// The microseconds by which each was accepted after its time, ascending.
    async fn measure(self, ground: &Ground, client: &Client, database: &str) -> Result<Vec<u64>> {
        ground.stand_in.reset(Duration::ZERO, self.count).await?;
        let relay = ground.start(ground.command(database, "tickets", Wire::Https).arg("run"))?;
        tokio::time::sleep(QUIET).await;
        let apart = self.apart.as_micros() as u64;
        let first = micros_since_1970()? + QUIET.as_micros() as u64;
        let write =
            "SELECT outbox.enqueue($1, 'DrawReminder', jsonb_build_object('n', $2::bigint, 'ticket', repeat('x', 416)),
            deliver_at => 'epoch'::timestamptz + $3::bigint * interval '1 microsecond')";
        let write = client.prepare(write).await?;
        let mut due_at = vec![0];
        for number in 1..=self.count {
            // Not always at the same moment between two polls.
            let due = first + (number - 1) * apart + fastrand::u64(..apart.min(80_000));
            client.query_one(&write, &[&DESTINATION, &(number as i64), &(due as i64)]).await?;
            due_at.push(due);
        }
        let patience = Instant::now();
        let limit = QUIET + self.apart * self.count as u32 + Duration::from_secs(60);
        while ground.stand_in.counts().await?.entries < self.count {
            ensure!(patience.elapsed() < limit, "not everything arrived");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        relay.stop().await?;
        let accepted_at = ground.stand_in.accepted().await?;
        let pairs = due_at.iter().zip(&accepted_at).skip(1);
        ensure!(pairs.clone().all(|(due, accepted)| accepted >= due), "a message came before its time");
        let mut late: Vec<u64> = pairs.map(|(due, accepted)| accepted - due).collect();
        late.sort_unstable();
        Ok(late)
    }
}

/// What an idle relay and PostgreSQL use while a million wait, as a part of what they use without.
async fn wait_at_no_cost(ground: &Ground, scale: f64, outcome: &mut Outcome) -> Result<()> {
    let clients = [ground.empty("none_waits").await?, ground.empty("many_wait").await?];
    schedule(&clients[1], scaled(MANY, scale), "interval '1 year'").await?;
    for client in &clients {
        client.batch_execute("VACUUM ANALYZE").await?;
        client.batch_execute("CHECKPOINT").await?;
    }
    let seconds = (20.0 * scale).max(2.0);
    let (mut relays, mut servers) = ([0.0; 2], [0.0; 2]);
    for _ in 0..ROUNDS {
        for (which, database) in ["none_waits", "many_wait"].into_iter().enumerate() {
            let relay = ground.start(ground.command(database, "tickets", Wire::Https).arg("run"))?;
            tokio::time::sleep(QUIET).await;
            let backend: i32 = clients[which].query_one("SELECT pg_backend_pid()", &[]).await?.get(0);
            let before = (relay.used()?.cpu, server_cpu(backend)?);
            tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
            relays[which] += relay.used()?.cpu - before.0;
            servers[which] += server_cpu(backend)? - before.1;
            relay.stop().await?;
        }
    }
    let share = |cpu: f64| cpu / (seconds * ROUNDS as f64) * 100.0;
    for (who, [none, many]) in [("the relay's", relays), ("PostgreSQL's", servers)] {
        outcome.add(format!("none waits, {who} share of a core"), share(none), "%");
        outcome.add(format!("1,000,000 wait, {who} share of a core"), share(many), "%");
        outcome.aim(format!("1,000,000 wait, {who} processor, times none"), many / none, "", Aim::AtMost(1.1));
    }
    Ok(())
}

/// Writes scheduled messages for one event, at a thousandth of a second from each other.
async fn schedule(client: &Client, count: u64, ahead: &str) -> Result<()> {
    let write = format!(
        "WITH event AS (
            INSERT INTO outbox.events (event_type, payload) VALUES ('DrawReminder', '{{}}') RETURNING position
        )
        INSERT INTO outbox.messages (destination, event_position, group_id, status, deliver_at)
        SELECT $1, position, 'g' || n % 1000, 'scheduled', now() + {ahead} + n * interval '1 ms'
        FROM event, generate_series(1, $2::bigint) AS n"
    );
    client.execute(&write, &[&DESTINATION, &i64::try_from(count)?]).await?;
    Ok(())
}

/// Leaves what scheduled messages leave that became due and were sent: dead entries in the index of scheduled messages, below
/// all that is to come.
async fn leave_dead_entries(client: &Client, count: u64) -> Result<()> {
    schedule(client, count, "interval '-1 day'").await?;
    client.execute("DELETE FROM outbox.messages_scheduled WHERE destination = $1", &[&DESTINATION]).await?;
    Ok(())
}
