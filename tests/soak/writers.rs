//! The application: sessions that sell tickets, change their mind, hesitate before COMMIT, and reconnect.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use fastrand::Rng;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::business::Business;
use support::lottery::shop::{Purchase, Writer, connect, draw_name};

/// Draws, each a group of the FIFO queue.
pub const DRAWS: u64 = 300;

/// Sessions at work at the same time.
const WRITERS: usize = 12;

/// Between two purchases of a session at most.
const PAUSE: Duration = Duration::from_millis(40);

/// A session that cannot connect tries again after this.
const RECONNECT: Duration = Duration::from_millis(50);

/// A session whose purchases fail this many times in a row is itself at fault.
const FAILURES_IN_A_ROW: u32 = 1000;

/// What the writers did so far.
#[derive(Debug, Default)]
pub struct Till {
    next_ticket: AtomicU64,
    pub committed: AtomicU64,
    pub rolled_back: AtomicU64,
    /// Purchases whose connection broke, so only the database knows.
    pub unclear: AtomicU64,
    /// All purchases that were to be committed, by ticket.
    attempts: Mutex<HashMap<u64, Attempt>>,
}

/// A purchase that was to be committed.
#[derive(Debug, Clone)]
pub struct Attempt {
    pub draw: String,
    pub number_in_draw: u64,
    pub ended_at: Instant,
    /// Whether the database confirmed the commit.
    pub is_heard: bool,
}

impl Till {
    fn note(&self, purchase: &Purchase, number_in_draw: i64, is_heard: bool) {
        let (draw, number_in_draw) = (purchase.draw.clone(), number_in_draw.cast_unsigned());
        let attempt = Attempt { draw, number_in_draw, ended_at: Instant::now(), is_heard };
        self.attempts().insert(purchase.ticket.cast_unsigned(), attempt);
    }

    pub fn attempts(&self) -> MutexGuard<'_, HashMap<u64, Attempt>> {
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts the writers; they end when told to.
pub fn sell(database_url: &str, dice: &mut Rng, till: &Arc<Till>, stop: &CancellationToken) -> JoinSet<Result<()>> {
    let mut writers = JoinSet::new();
    for _ in 0..WRITERS {
        writers.spawn(write(database_url.to_owned(), dice.fork(), Arc::clone(till), stop.clone()));
    }
    writers
}

async fn write(database_url: String, mut dice: Rng, till: Arc<Till>, stop: CancellationToken) -> Result<()> {
    let mut failures = 0;
    while !stop.is_cancelled() {
        let Ok((mut writer, business)) = open(&database_url).await else {
            tokio::time::sleep(RECONNECT).await;
            continue;
        };
        while !stop.is_cancelled() {
            tokio::time::sleep(PAUSE.mul_f64(dice.f64())).await;
            let purchase = draw_purchase(&mut dice, &till);
            let bought = buy(&mut writer, &business, &purchase, &mut dice).await;
            if !purchase.rolled_back {
                till.note(&purchase, writer.number_in_draw, bought.is_ok());
            }
            let ended = match bought {
                Err(error) => {
                    till.unclear.fetch_add(1, Ordering::Relaxed);
                    failures += 1;
                    ensure!(failures < FAILURES_IN_A_ROW, "a writer cannot write: {error:#}");
                    break;
                }
                Ok(()) if purchase.rolled_back => &till.rolled_back,
                Ok(()) => &till.committed,
            };
            ended.fetch_add(1, Ordering::Relaxed);
            failures = 0;
        }
    }
    Ok(())
}

async fn open(database_url: &str) -> Result<(Writer, Business)> {
    let writer = Writer::prepare(connect(database_url).await?).await?;
    let business = Business::prepare(&writer).await?;
    Ok((writer, business))
}

/// A ticket with everything that belongs to it, in one transaction.
async fn buy(writer: &mut Writer, business: &Business, purchase: &Purchase, dice: &mut Rng) -> Result<()> {
    let begun = writer.begin(purchase).await?;
    business.write(&begun, purchase, dice).await?;
    begun.end(purchase).await
}

fn draw_purchase(dice: &mut Rng, till: &Till) -> Purchase {
    // A few groups are much busier than the others.
    let draw = if dice.f64() < 0.2 { dice.u64(..5) } else { dice.u64(..DRAWS) };
    Purchase {
        ticket: till.next_ticket.fetch_add(1, Ordering::Relaxed).cast_signed(),
        draw: draw_name(draw),
        numbers: dice.u32(..).to_string(),
        rolled_back: dice.f64() < 0.05,
        hesitation: hesitation(dice),
    }
}

/// Usually none; sometimes longer than the relay's reads wait for a running transaction.
fn hesitation(dice: &mut Rng) -> Duration {
    let most = match dice.u32(..1000) {
        0..3 => Duration::from_millis(3500),
        3..60 => Duration::from_millis(150),
        _ => return Duration::ZERO,
    };
    most.mul_f64(dice.f64())
}
