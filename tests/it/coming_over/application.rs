//! An application that goes on to write whatever happens to its table, and an old way that sends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::task::JoinSet;

use support::emulator::Queues;
use support::eventually;

use super::Ground;

/// Aggregates, each of which has one writer.
const AGGREGATES: usize = 4;

/// Between two rows of a writer: the old ways send one message at a time, and must keep up.
const PAUSE: Duration = Duration::from_millis(50);

/// Writes numbers from 1, each in a transaction of its own, those of an aggregate in their order.
pub(super) struct Application {
    statement: fn(i64, &str) -> String,
    last: Arc<AtomicI64>,
    stops: Arc<AtomicBool>,
    writers: JoinSet<Result<()>>,
}

impl Application {
    /// The statement writes a number for an aggregate.
    pub(super) fn new(statement: fn(i64, &str) -> String) -> Application {
        Application { statement, last: Arc::default(), stops: Arc::default(), writers: JoinSet::new() }
    }

    /// Starts writing, from the number that is next.
    pub(super) async fn start(&mut self, ground: &Ground) -> Result<()> {
        self.stops.store(false, Ordering::Relaxed);
        for aggregate in 0..AGGREGATES {
            let client = ground.shop().await?;
            let (statement, last, stops) = (self.statement, Arc::clone(&self.last), Arc::clone(&self.stops));
            self.writers.spawn(async move {
                while !stops.load(Ordering::Relaxed) {
                    let statement = statement(last.fetch_add(1, Ordering::Relaxed) + 1, &format!("g{aggregate}"));
                    client.batch_execute(&statement).await.with_context(|| statement)?;
                    tokio::time::sleep(PAUSE).await;
                }
                Ok(())
            });
        }
        Ok(())
    }

    /// Waits until so many more rows are written.
    pub(super) async fn goes_on(&self, rows: i64) -> Result<()> {
        let from = self.last.load(Ordering::Relaxed);
        let wrote = || async { Ok(self.last.load(Ordering::Relaxed) >= from + rows) };
        eventually("the application writes", wrote).await
    }

    /// Stops writing; returns how many rows were written in all. Fails if the application had an error.
    pub(super) async fn stop(&mut self) -> Result<i64> {
        self.stops.store(true, Ordering::Relaxed);
        while let Some(ended) = self.writers.join_next().await {
            ended??;
        }
        Ok(self.last.load(Ordering::Relaxed))
    }
}

/// What sends the rows before outbox-relay does, in steps.
pub(super) struct OldWay {
    stops: Arc<AtomicBool>,
    work: JoinSet<Result<()>>,
}

impl OldWay {
    /// Repeats a step until it is stopped.
    pub(super) fn start<F>(mut step: impl FnMut() -> F + Send + 'static) -> OldWay
    where
        F: Future<Output = Result<()>> + Send + 'static,
    {
        let stops = Arc::new(AtomicBool::new(false));
        let (stop, mut work) = (Arc::clone(&stops), JoinSet::new());
        work.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                step().await?;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            Ok(())
        });
        OldWay { stops, work }
    }

    /// Ends after the step that it is in, as a program does that shuts down in order.
    pub(super) async fn stop(mut self) -> Result<()> {
        self.stops.store(true, Ordering::Relaxed);
        self.work.join_next().await.context("it never ran")??
    }
}

/// Sends a message as the old way does: the same group as outbox-relay, with a deduplication id of its own.
pub(super) async fn send(queues: &Queues, queue: &str, id: &str, group: &str, body: &str) -> Result<()> {
    let message = queues.client().send_message().queue_url(queue).message_body(body);
    message.message_group_id(group).message_deduplication_id(id).send().await?;
    Ok(())
}
