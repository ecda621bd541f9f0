//! The cost of the outbox for the application that writes.
//!
//! It is compared with the one fat row that other relays ask for, in the same run. The statements of a transaction are
//! sent together, as libpq's pipeline mode, JDBC's batches and tokio-postgres do. Then they are sent again with a round
//! trip for each. Over loopback, with both ends on the same cores, a round trip costs more than the rows.

use std::time::{Duration, Instant};

use anyhow::Result;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Statement};

use super::begin;
use crate::ground::{DESTINATION, Ground};
use crate::report::{Aim, Outcome};

/// Sessions that write at the same time.
const WRITERS: usize = 4;

/// Messages of a transaction that writes a batch.
const BATCH: usize = 20;

/// How often each way takes its turn, so that a slow moment of the machine affects all of them.
const ROUNDS: usize = 5;

/// The least part of the fat row's rate. It is measured in the same run.
const AIM: Aim = Aim::AtLeast(0.8);

/// How the statements of a transaction are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sent {
    /// All at once.
    Together,
    /// Each after the answer to the one before.
    OneByOne,
}

/// What a transaction writes besides the business row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Written {
    Nothing,
    /// A row of a table with an identity key and the payload.
    Fat,
    Event,
    /// Event and message, by one INSERT.
    Insert,
    /// The same by `outbox.enqueue`.
    Function,
    /// Batches: parameters are arrays of payloads and groups, or one JSON array.
    FatBatch,
    InsertBatch,
    FunctionBatch,
}

/// A way to write.
struct Way {
    name: &'static str,
    written: Written,
    sent: Sent,
}

const WAYS: [Way; 11] = [
    Way { name: "(a) business row", written: Written::Nothing, sent: Sent::Together },
    Way { name: "(b) and fat row", written: Written::Fat, sent: Sent::Together },
    Way { name: "(c) and event", written: Written::Event, sent: Sent::Together },
    Way { name: "(d) and event and message, by INSERT", written: Written::Insert, sent: Sent::Together },
    Way { name: "(e) and event and message, by function", written: Written::Function, sent: Sent::Together },
    Way { name: "(f) and 20 fat rows", written: Written::FatBatch, sent: Sent::Together },
    Way { name: "(g) and 20 events and messages, by INSERT", written: Written::InsertBatch, sent: Sent::Together },
    Way { name: "(h) and 20 events and messages, by function", written: Written::FunctionBatch, sent: Sent::Together },
    Way { name: "(a), a round trip for each statement", written: Written::Nothing, sent: Sent::OneByOne },
    Way { name: "(b), a round trip for each statement", written: Written::Fat, sent: Sent::OneByOne },
    Way { name: "(e), a round trip for each statement", written: Written::Function, sent: Sent::OneByOne },
];

/// The ways whose parts are aims: index, index of what it is compared with.
const AIMS: [(usize, usize); 4] = [(3, 1), (4, 1), (6, 5), (7, 5)];

const BUSINESS: &str = "INSERT INTO tickets (n, draw, numbers) VALUES ($1, 'draw-7', repeat('x', 416))";

/// What peers ask for: an identity key, what the message is about, and the payload.
const TABLES: &str = "CREATE TABLE tickets (n bigint PRIMARY KEY, draw text, numbers text);
    CREATE TABLE fat_outbox (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, aggregate_type text NOT NULL, aggregate_id text NOT NULL,
        event_type text NOT NULL, payload jsonb NOT NULL, created_at timestamptz NOT NULL DEFAULT now()
    )";

impl Written {
    /// The statement that writes it, with the types of its parameters.
    fn statement(self) -> Option<(String, &'static [Type])> {
        const ONE: &[Type] = &[Type::TEXT, Type::TEXT];
        const MANY: &[Type] = &[Type::TEXT_ARRAY, Type::TEXT_ARRAY];
        let rows = "unnest($1::text[], $2::text[]) AS r (payload, group_id)";
        let event = "INSERT INTO outbox.events (event_type, payload)";
        let message = "INSERT INTO outbox.messages (destination, event_position, group_id)";
        Some(match self {
            Written::Nothing => return None,
            Written::Fat => (
                "INSERT INTO fat_outbox (aggregate_type, aggregate_id, event_type, payload)
                    VALUES ('ticket', $2, 'TicketPurchased', $1::jsonb)"
                    .to_owned(),
                ONE,
            ),
            Written::Event => (format!("{event} SELECT 'TicketPurchased', $1::jsonb WHERE $2 <> ''"), ONE),
            Written::Insert => (
                format!(
                    "WITH event AS ({event} VALUES ('TicketPurchased', $1::jsonb) RETURNING position)
                    {message} SELECT '{DESTINATION}', position, $2 FROM event"
                ),
                ONE,
            ),
            Written::Function => {
                (format!("SELECT outbox.enqueue('{DESTINATION}', 'TicketPurchased', $1::jsonb, $2)"), ONE)
            }
            Written::FatBatch => (
                format!(
                    "INSERT INTO fat_outbox (aggregate_type, aggregate_id, event_type, payload)
                    SELECT 'ticket', r.group_id, 'TicketPurchased', r.payload::jsonb FROM {rows}"
                ),
                MANY,
            ),
            Written::InsertBatch => (
                format!(
                    "WITH event AS (
                        {event} SELECT 'TicketPurchased', r.payload::jsonb FROM {rows} RETURNING position
                    ), numbered AS (SELECT position, row_number() OVER (ORDER BY position) AS n FROM event)
                    {message} SELECT '{DESTINATION}', e.position, ($2::text[])[e.n] FROM numbered AS e ORDER BY e.position"
                ),
                MANY,
            ),
            Written::FunctionBatch => {
                (format!("SELECT outbox.enqueue_many('{DESTINATION}', $1::jsonb)"), &[Type::TEXT])
            }
        })
    }

    /// The parameters of a transaction.
    fn parameters(self, number: i64) -> Vec<Box<dyn ToSql + Sync + Send>> {
        let filler = "x".repeat(416);
        let payload = |n: usize| format!("{{\"n\": {number}, \"part\": {n}, \"ticket\": \"{filler}\"}}");
        let group = |n: usize| format!("g{}", (number as usize + n) % 1000);
        match self {
            Written::Nothing => Vec::new(),
            Written::Fat | Written::Event | Written::Insert | Written::Function => {
                vec![Box::new(payload(0)), Box::new(group(0))]
            }
            Written::FatBatch | Written::InsertBatch => {
                let payloads: Vec<String> = (0..BATCH).map(payload).collect();
                let groups: Vec<String> = (0..BATCH).map(group).collect();
                vec![Box::new(payloads), Box::new(groups)]
            }
            Written::FunctionBatch => {
                let event = |n| {
                    let (payload, group) = (payload(n), group(n));
                    format!(
                        "{{\"event_type\": \"TicketPurchased\", \"payload\": {payload}, \"group_id\": \"{group}\"}}"
                    )
                };
                vec![Box::new(format!("[{}]", (0..BATCH).map(event).collect::<Vec<_>>().join(",")))]
            }
        }
    }
}

/// What one way did in all its turns.
#[derive(Default)]
struct Total {
    /// The time of each transaction.
    times: Vec<Duration>,
    seconds: f64,
    wal: i64,
}

impl Total {
    fn rate(&self) -> f64 {
        self.times.len() as f64 / self.seconds
    }

    /// The time that 99 of 100 transactions do not exceed, in milliseconds.
    fn p99(&mut self) -> f64 {
        self.times.sort_unstable();
        self.times.get(self.times.len() * 99 / 100).map_or(0.0, |time| time.as_secs_f64() * 1000.0)
    }
}

pub async fn run(ground: &Ground, scale: f64) -> Result<Outcome> {
    let mut outcome = begin("write-side", "transactions of four sessions, each on disk before it is confirmed");
    let client = ground.empty("writes").await?;
    client.batch_execute(TABLES).await?;
    let mut totals: [Total; WAYS.len()] = std::array::from_fn(|_| Total::default());
    let turn = Duration::from_secs_f64((4.0 * scale).max(0.5));
    let mut next = 0;
    for _ in 0..ROUNDS {
        for (total, way) in totals.iter_mut().zip(&WAYS) {
            client.batch_execute("CHECKPOINT").await?;
            let before = wal(&client).await?;
            let started = Instant::now();
            total.times.extend(write(ground, way, started + turn, &mut next).await?);
            total.seconds += started.elapsed().as_secs_f64();
            total.wal += wal(&client).await? - before;
        }
    }
    tell(&mut outcome, &mut totals);
    let indexes =
        "SELECT count(*) FROM pg_index AS i WHERE i.indrelid = ANY ($1::text[]::regclass[]) AND i.indpred IS NULL";
    let tables = ["outbox.events", "outbox.messages_pending"].as_slice();
    let indexes: i64 = client.query_one(indexes, &[&tables]).await?.get(0);
    outcome.add("index entries of event and message", indexes as f64, "a message");
    Ok(outcome)
}

fn tell(outcome: &mut Outcome, totals: &mut [Total; WAYS.len()]) {
    for (total, way) in totals.iter().zip(&WAYS) {
        outcome.add(way.name, total.rate(), "transactions/s");
    }
    for (total, way) in totals.iter_mut().zip(&WAYS) {
        outcome.add(format!("{}, p99", way.name), total.p99(), "ms");
    }
    let letter = |index: usize| WAYS[index].name.split_once(' ').map_or("", |(letter, _)| letter);
    for (index, of) in AIMS {
        let part = totals[index].rate() / totals[of].rate();
        outcome.aim(format!("{}, part of {}", letter(index), letter(of)), part, "", AIM);
    }
    for (index, of) in [(1, 0), (3, 0), (4, 0)] {
        outcome.add(format!("{}, part of {}", letter(index), letter(of)), totals[index].rate() / totals[of].rate(), "");
    }
    outcome.add("(e), part of (b), a round trip for each statement", totals[10].rate() / totals[9].rate(), "");
    let bytes = |index: usize| totals[index].wal as f64 / totals[index].times.len() as f64;
    outcome.add("WAL of a fat row", bytes(1) - bytes(0), "bytes");
    outcome.add("WAL of event and message", bytes(3) - bytes(0), "bytes");
}

async fn wal(client: &Client) -> Result<i64> {
    Ok(client.query_one("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint", &[]).await?.get(0))
}

/// Runs transactions in all sessions until the time is over; returns how long each took.
async fn write(ground: &Ground, way: &Way, until: Instant, next: &mut i64) -> Result<Vec<Duration>> {
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let client = ground.connect("writes").await?;
        let business = client.prepare(BUSINESS).await?;
        let other = match way.written.statement() {
            Some((text, types)) => Some(client.prepare_typed(&text, types).await?),
            None => None,
        };
        let (first, written, sent) = (*next + writer as i64, way.written, way.sent);
        writers.spawn(async move {
            let mut times = Vec::new();
            while Instant::now() < until {
                let number = first + (times.len() * WRITERS) as i64;
                let parameters = written.parameters(number);
                let began = Instant::now();
                transaction(&client, sent, (&business, number), other.as_ref().map(|other| (other, &parameters[..])))
                    .await?;
                times.push(began.elapsed());
            }
            anyhow::Ok(times)
        });
    }
    let (mut all, mut most) = (Vec::new(), 0);
    while let Some(times) = writers.join_next().await {
        let times = times??;
        most = most.max(times.len());
        all.extend(times);
    }
    *next += (most * WRITERS) as i64;
    Ok(all)
}

/// A statement with its parameters.
type Other<'a> = (&'a Statement, &'a [Box<dyn ToSql + Sync + Send>]);

async fn transaction(
    client: &Client,
    sent: Sent,
    (business, number): (&Statement, i64),
    other: Option<Other<'_>>,
) -> Result<()> {
    let business = async { client.execute(business, &[&number]).await };
    let other = async {
        let Some((statement, parameters)) = other else { return Ok(0) };
        let parameters: Vec<&(dyn ToSql + Sync)> =
            parameters.iter().map(|parameter| &**parameter as &(dyn ToSql + Sync)).collect();
        client.execute(statement, &parameters).await
    };
    match sent {
        Sent::Together => {
            // Polled in this order, so they are sent in it.
            let (begun, first, second, committed) =
                tokio::join!(biased; client.batch_execute("BEGIN"), business, other, client.batch_execute("COMMIT"));
            begun?;
            first?;
            second?;
            committed?;
        }
        Sent::OneByOne => {
            client.batch_execute("BEGIN").await?;
            business.await?;
            other.await?;
            client.batch_execute("COMMIT").await?;
        }
    }
    Ok(())
}
