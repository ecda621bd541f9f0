//! The application: writers that sell tickets. Each purchase is one transaction of plain SQL.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use tokio::task::JoinSet;
use tokio_postgres::{Client, NoTls, Statement, Transaction};

use super::ledger::Sale;

const TABLES: &str = include_str!("../../../../sql/examples/lottery_tables.sql");
const BUY_TICKET: &str = include_str!("../../../../sql/examples/buy_ticket.sql");

/// One purchase in this many is rolled back after everything is written.
const ROLLED_BACK_ONE_IN: u64 = 20;

/// What to sell.
#[derive(Debug, Clone, Copy)]
pub struct Season {
    /// How many purchases are attempted.
    pub purchases: u64,
    /// How many connections buy at the same time.
    pub writers: usize,
    /// How many draws there are; each is a group of the FIFO queue.
    pub draws: u64,
    /// The most purchases per second; 0 means as many as the machine can do.
    pub rate: u64,
    /// The seed of all random choices.
    pub seed: u64,
}

impl Season {
    /// The purchase of a ticket. It is the same in every run with this seed.
    fn purchase(&self, ticket: u64) -> Purchase {
        let mut dice = Rng::with_seed(self.seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ ticket);
        let mut numbers = dice.choose_multiple(1..=49, 6);
        numbers.sort_unstable();
        let numbers: Vec<String> = numbers.iter().map(u8::to_string).collect();
        Purchase {
            ticket: ticket.cast_signed(),
            draw: draw_name(dice.u64(..self.draws)),
            numbers: numbers.join(" "),
            rolled_back: dice.u64(..ROLLED_BACK_ONE_IN) == 0,
            hesitation: Duration::ZERO,
        }
    }
}

/// The name of the draw with this number, counted from 0.
pub fn draw_name(number: u64) -> String {
    format!("draw-{:02}", number + 1)
}

/// What one transaction buys.
#[derive(Debug)]
pub struct Purchase {
    /// The ticket.
    pub ticket: i64,
    /// Its draw.
    pub draw: String,
    /// Six numbers of 49, as text.
    pub numbers: String,
    /// Whether the transaction is rolled back at the end.
    pub rolled_back: bool,
    /// How long the transaction stays open after everything is written.
    pub hesitation: Duration,
}

/// What the writers have done so far.
#[derive(Debug, Default)]
pub struct Till {
    next_ticket: AtomicU64,
    committed: AtomicU64,
    rolled_back: AtomicU64,
    /// By ticket.
    committed_at: Mutex<HashMap<u64, Duration>>,
}

impl Till {
    /// Purchases that were committed.
    pub fn committed(&self) -> u64 {
        self.committed.load(Ordering::Relaxed)
    }

    /// Purchases that were rolled back.
    pub fn rolled_back(&self) -> u64 {
        self.rolled_back.load(Ordering::Relaxed)
    }
}

/// Creates the shop's tables.
pub async fn open(database_url: &str, draws: u64) -> Result<()> {
    let client = connect(database_url).await?;
    client.batch_execute(TABLES).await.context("lottery_tables.sql")?;
    let names: Vec<String> = (0..draws).map(draw_name).collect();
    client.execute("INSERT INTO lottery.draws (draw) SELECT unnest($1::text[])", &[&names]).await?;
    Ok(())
}

/// Starts the writers; they end when all purchases have been attempted.
pub async fn sell(database_url: &str, season: Season, clock: Instant, till: &Arc<Till>) -> Result<JoinSet<Result<()>>> {
    let mut writers = JoinSet::new();
    let opening = clock.elapsed();
    for _ in 0..season.writers {
        let client = connect(database_url).await?;
        let till = Arc::clone(till);
        writers.spawn(async move {
            let mut writer = Writer::prepare(client).await?;
            loop {
                let ticket = till.next_ticket.fetch_add(1, Ordering::Relaxed);
                if ticket >= season.purchases {
                    return Ok(());
                }
                if season.rate > 0 {
                    let due = opening + Duration::from_secs(1) * u32::try_from(ticket)? / u32::try_from(season.rate)?;
                    tokio::time::sleep(due.saturating_sub(clock.elapsed())).await;
                }
                let purchase = season.purchase(ticket);
                writer.buy(&purchase).await.context("buy_ticket.sql")?;
                if purchase.rolled_back {
                    till.rolled_back.fetch_add(1, Ordering::Relaxed);
                } else {
                    let mut committed_at = till.committed_at.lock().unwrap_or_else(PoisonError::into_inner);
                    committed_at.insert(ticket, clock.elapsed());
                    till.committed.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
    }
    Ok(writers)
}

/// What was sold according to the database, with the times that the writers recorded.
pub async fn audit(database_url: &str, till: &Till) -> Result<HashMap<u64, Sale>> {
    let client = connect(database_url).await?;
    let statement = "SELECT ticket, draw, number_in_draw FROM lottery.tickets";
    let rows = client.query(statement, &[]).await?;
    let committed_at = till.committed_at.lock().unwrap_or_else(PoisonError::into_inner);
    ensure!(
        rows.len() == committed_at.len(),
        "the database holds {} tickets, but {} commits succeeded",
        rows.len(),
        committed_at.len()
    );
    let sale = |row: &tokio_postgres::Row| {
        let ticket = row.get::<_, i64>(0).cast_unsigned();
        let committed_at = *committed_at.get(&ticket).context("a ticket that nobody bought")?;
        let (draw, version) = (row.get(1), row.get::<_, i64>(2).cast_unsigned());
        Ok((ticket, Sale { draw, version, committed_at }))
    };
    rows.iter().map(sale).collect()
}

/// Connects to the database. The connection ends with the client.
pub async fn connect(database_url: &str) -> Result<Client> {
    let connecting = tokio_postgres::connect(database_url, NoTls);
    let (client, connection) = tokio::time::timeout(Duration::from_secs(10), connecting).await??;
    // The client gets its errors as well.
    tokio::spawn(connection);
    Ok(client)
}

/// One writer, with the prepared statements of `buy_ticket.sql`.
pub struct Writer {
    /// The number in its draw of the last ticket, whether it was committed or not.
    pub number_in_draw: i64,
    client: Client,
    lock_draw: Statement,
    insert_ticket: Statement,
    insert_event: Statement,
    insert_messages: Statement,
}

impl Writer {
    /// Prepares the statements of `sql/examples/buy_ticket.sql`.
    pub async fn prepare(client: Client) -> Result<Writer> {
        let statements: Vec<&str> = BUY_TICKET.split_inclusive(";\n").map(str::trim).collect();
        let [_begin, lock_draw, insert_ticket, insert_event, insert_messages, _commit] = statements[..] else {
            anyhow::bail!("buy_ticket.sql has {} statements instead of 6", statements.len());
        };
        Ok(Writer {
            lock_draw: client.prepare(lock_draw).await?,
            insert_ticket: client.prepare(insert_ticket).await?,
            insert_event: client.prepare(insert_event).await?,
            insert_messages: client.prepare(insert_messages).await?,
            client,
            number_in_draw: 0,
        })
    }

    /// Buys a ticket in one transaction, or rolls it back.
    pub async fn buy(&mut self, purchase: &Purchase) -> Result<()> {
        self.begin(purchase).await?.end(purchase).await
    }

    /// Writes everything that belongs to a purchase, and leaves the transaction open.
    pub async fn begin(&mut self, purchase: &Purchase) -> Result<Begun<'_>> {
        let Purchase { ticket, draw, numbers, .. } = purchase;
        let transaction = self.client.transaction().await?;
        let sold: i64 = transaction.query_one(&self.lock_draw, &[draw]).await?.get(0);
        self.number_in_draw = sold;
        transaction.execute(&self.insert_ticket, &[ticket, draw, &sold, numbers]).await?;
        let event = transaction.query_one(&self.insert_event, &[draw, &sold, ticket, numbers]).await?;
        let position: i64 = event.get(0);
        transaction.execute(&self.insert_messages, &[&position, draw]).await?;
        Ok(Begun { transaction, number_in_draw: sold, position })
    }

    /// Prepares one more statement in the writer's session.
    pub async fn prepare_another(&self, statement: &str) -> Result<Statement> {
        Ok(self.client.prepare(statement).await?)
    }
}

/// A purchase that is neither committed nor rolled back.
pub struct Begun<'a> {
    /// More can be written in it.
    pub transaction: Transaction<'a>,
    /// The number of the ticket in its draw.
    pub number_in_draw: i64,
    /// The position of the event.
    pub position: i64,
}

impl Begun<'_> {
    /// Hesitates, and commits or rolls back.
    pub async fn end(self, purchase: &Purchase) -> Result<()> {
        if !purchase.hesitation.is_zero() {
            tokio::time::sleep(purchase.hesitation).await;
        }
        if purchase.rolled_back {
            self.transaction.rollback().await?;
        } else {
            self.transaction.commit().await?;
        }
        Ok(())
    }
}
