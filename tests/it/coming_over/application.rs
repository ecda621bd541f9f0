//! An application that writes whatever happens to its table, and an old way that sends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use support::emulator::Queues;
use support::eventually;

use super::Ground;

/// Aggregates, each of which has one writer.
const AGGREGATES: usize = 4;

/// Between two rows of a writer, so that a switch comes between them.
const PAUSE: Duration = Duration::from_millis(5);

/// Writes numbers from 1, each in a transaction of its own, those of an aggregate in their order.
pub(super) struct Application {
    /// Rows that may be written.
    orders: Arc<Semaphore>,
    ordered: i64,
    written: Arc<AtomicI64>,
    writers: JoinSet<Result<()>>,
}

impl Application {
    /// Starts the writers; the statement writes a number for an aggregate.
    pub(super) async fn start(ground: &Ground, statement: fn(i64, &str) -> String) -> Result<Application> {
        let (orders, written, last) = (Arc::new(Semaphore::new(0)), Arc::default(), Arc::new(AtomicI64::new(0)));
        let mut application = Application { orders, ordered: 0, written, writers: JoinSet::new() };
        for aggregate in 0..AGGREGATES {
            let (client, last) = (ground.shop().await?, Arc::clone(&last));
            let (orders, written) = (Arc::clone(&application.orders), Arc::clone(&application.written));
            application.writers.spawn(async move {
                while let Ok(order) = orders.acquire().await {
                    order.forget();
                    let statement = statement(last.fetch_add(1, Ordering::Relaxed) + 1, &format!("g{aggregate}"));
                    client.batch_execute(&statement).await.with_context(|| statement)?;
                    written.fetch_add(1, Ordering::Relaxed);
                    // Time is the subject: it writes at a pace, while the switch is made.
                    tokio::time::sleep(PAUSE).await;
                }
                Ok(())
            });
        }
        Ok(application)
    }

    /// Has so many more rows written, meanwhile.
    pub(super) fn begin(&mut self, rows: u16) {
        self.ordered += i64::from(rows);
        self.orders.add_permits(rows.into());
    }

    /// Waits until all are written, and so many more.
    pub(super) async fn write(&mut self, rows: u16) -> Result<()> {
        self.begin(rows);
        let all = || async { Ok(self.written.load(Ordering::Relaxed) == self.ordered) };
        eventually("the application has written", all).await
    }

    /// Writes what is left and ends; returns how many rows were written in all. Fails if the application had an error.
    pub(super) async fn stop(mut self) -> Result<i64> {
        let written = self.write(0).await;
        self.orders.close();
        while let Some(ended) = self.writers.join_next().await {
            ended??;
        }
        written?;
        Ok(self.ordered)
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
                // Time is the subject: this is the pace of the old way.
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
