//! Draws in the event store: loaded from their streams, and written with the version that the decision was based on.
//!
//! Each instance keeps the draws it has seen and reads only events that others have appended since. If another instance
//! was faster, it reads those events, decides again and retries.
//! that, decides again and tries again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use deadpool_postgres::{Manager, ManagerConfig, Object, Pool, RecyclingMethod, Runtime};
use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use tokio::sync::Mutex as Turn;
use tokio_postgres::NoTls;

use super::draw::{Draw, Fact, Refusal, Wish};

/// How often to decide again when others were faster.
const TRIES: usize = 20;

/// If no connection is available within this time, the client gets an error.
const POOL_TIMEOUT: Duration = Duration::from_secs(5);

/// No statement of ours takes longer than this.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(5);

/// The SQLSTATE of `outbox.append` for a version that is not the expected one.
const CONFLICT: &str = "OX409";

/// A stored event, for variants that publish it themselves.
#[derive(Debug, Clone)]
pub struct Stored {
    pub event_id: String,
    pub fact: Fact,
    pub version: i64,
    pub payload: String,
}

/// The result of a command.
#[derive(Debug)]
pub enum Granted {
    /// These events were stored; none if the command had been granted before.
    Stored(Vec<Stored>),
    Refused(Refusal),
}

/// The destinations of each event, for variants with the outbox.
pub fn destinations(fact: &Fact) -> &'static [&'static str] {
    match fact {
        Fact::Opened { .. } => &["sales"],
        Fact::Purchased { .. } | Fact::Cancelled { .. } | Fact::Drawn { .. } => &["tickets", "sales"],
        Fact::Paid { .. } => &["tickets", "sales", "payouts"],
    }
}

/// Connections to a database; every wait is bounded.
pub fn pool(database_url: &str, connections: usize) -> Result<Pool> {
    let mut configuration: tokio_postgres::Config = database_url.parse()?;
    configuration.connect_timeout(POOL_TIMEOUT).application_name("lottery");
    let manager = Manager::from_config(configuration, NoTls, ManagerConfig { recycling_method: RecyclingMethod::Fast });
    let pool = Pool::builder(manager).max_size(connections).runtime(Runtime::Tokio1);
    Ok(pool.wait_timeout(Some(POOL_TIMEOUT)).create_timeout(Some(POOL_TIMEOUT)).build()?)
}

/// The store, and the draws that this instance has seen.
#[derive(Debug, Clone)]
pub struct Store {
    pool: Pool,
    draws: Arc<Mutex<HashMap<String, Arc<Turn<Draw>>>>>,
}

impl Store {
    pub fn open(database_url: &str, connections: usize) -> Result<Store> {
        Ok(Store { pool: pool(database_url, connections)?, draws: Arc::default() })
    }

    pub async fn connection(&self) -> Result<Object> {
        self.pool.get().await.context("no connection to the database")
    }

    fn draw(&self, name: &str) -> Arc<Turn<Draw>> {
        let mut draws = self.draws.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(draws.entry(name.to_owned()).or_default())
    }

    /// Grants a command or refuses it. `before_commit` gets the events while they can still be rolled back.
    pub async fn grant(
        &self,
        name: &str,
        wish: &Wish,
        through_outbox: bool,
        before_commit: impl Fn(Vec<Stored>) -> BoxFuture<'static, Result<()>> + Send + Sync,
    ) -> Result<Granted> {
        let turn = self.draw(name);
        // Commands for one draw take turns within an instance, so that only instances conflict.
        let mut draw = turn.lock().await;
        for attempt in 0..TRIES {
            let mut connection = self.connection().await?;
            if draw.version == 0 || attempt > 0 {
                catch_up(&connection, name, &mut draw).await?;
            }
            let facts = match draw.decide(wish) {
                // Events that others appended meanwhile, or that this instance missed, may allow it.
                Err(_) if attempt == 0 && catch_up(&connection, name, &mut draw).await? => continue,
                Err(refusal) => return Ok(Granted::Refused(refusal)),
                Ok(facts) if facts.is_empty() => return Ok(Granted::Stored(vec![])),
                Ok(facts) => facts,
            };
            let transaction = connection.transaction().await?;
            let appended = bounded(append(&transaction, name, draw.version, &facts, wish, through_outbox)).await;
            match appended? {
                Appended::Stored(stored) => {
                    before_commit(stored.clone()).await?;
                    bounded(async { Ok(transaction.commit().await?) }).await?;
                    for stored in &stored {
                        ensure!(stored.version == draw.version + 1, "{name} is not where it was");
                        draw.apply(stored.version, &stored.fact);
                    }
                    return Ok(Granted::Stored(stored));
                }
                Appended::Known => {
                    drop(transaction);
                    catch_up(&connection, name, &mut draw).await?;
                    return Ok(Granted::Stored(vec![]));
                }
                Appended::Conflict => {}
            }
        }
        bail!("others were faster {TRIES} times")
    }
}

async fn bounded<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(STATEMENT_TIMEOUT, work).await.context("the database does not answer")?
}

/// Reads events that were appended since; returns whether there were any.
async fn catch_up(connection: &Object, name: &str, draw: &mut Draw) -> Result<bool> {
    let mut is_news = false;
    loop {
        let query = "SELECT stream_version, event_type, payload::text FROM outbox.read_stream($1, $2)";
        let statement = connection.prepare_cached(query).await?;
        let rows = bounded(async { Ok(connection.query(&statement, &[&name, &(draw.version + 1)]).await?) }).await?;
        if rows.is_empty() {
            return Ok(is_news);
        }
        is_news = true;
        for row in rows {
            let payload: Value = serde_json::from_str(row.get(2))?;
            ensure!(row.get::<_, i64>(0) == draw.version + 1, "{name} has a gap");
            draw.apply(row.get(0), &Fact::read(row.get(1), &payload)?);
        }
    }
}

/// The result of an append.
enum Appended {
    Stored(Vec<Stored>),
    /// These very events exist already: the same command was granted before and its answer was lost.
    Known,
    /// The draw has a newer version.
    Conflict,
}

/// Appends events after a version.
async fn append(
    transaction: &deadpool_postgres::Transaction<'_>,
    name: &str,
    version: i64,
    facts: &[Fact],
    wish: &Wish,
    through_outbox: bool,
) -> Result<Appended> {
    // A ticket's id is also the event's, so the store would notice if two instances sold the same ticket.
    let event = |fact: &Fact| match (wish, fact) {
        (Wish::Buy { ticket, .. }, _) => {
            json!({"event_id": ticket, "event_type": fact.event_type(), "payload": fact.payload(name)})
        }
        _ => json!({"event_type": fact.event_type(), "payload": fact.payload(name)}),
    };
    let events = Value::from(facts.iter().map(event).collect::<Vec<Value>>()).to_string();
    let wanted: &[&str] = match facts.first() {
        Some(first) if through_outbox => destinations(first),
        _ => &[],
    };
    let query = "SELECT event_id::text, stream_version, was_stored FROM outbox.append($1, $2, $3::text::jsonb, $4)";
    let statement = transaction.prepare_cached(query).await?;
    match transaction.query(&statement, &[&name, &version, &events, &wanted]).await {
        Ok(rows) if rows.iter().any(|row| row.get(2)) => Ok(Appended::Known),
        Ok(rows) => {
            let stored = facts.iter().zip(&rows).map(|(fact, row)| Stored {
                event_id: row.get(0),
                fact: fact.clone(),
                version: row.get(1),
                payload: fact.payload(name).to_string(),
            });
            Ok(Appended::Stored(stored.collect()))
        }
        Err(error) if error.code().is_some_and(|code| code.code() == CONFLICT) => Ok(Appended::Conflict),
        Err(error) => Err(error.into()),
    }
}
