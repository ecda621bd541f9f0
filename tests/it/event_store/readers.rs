//! Readers of all events: they skip nothing, whatever writers do meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::task::JoinSet;
use tokio_postgres::Client;

use support::test_bed::TestBed;

use super::{append, refused};

/// Writes events in short and long transactions, some of which are rolled back, with INSERTs and with the function.
async fn write_at_random(client: Client, seed: u64) -> Result<()> {
    let mut dice = fastrand::Rng::with_seed(seed);
    for n in 0..60_i64 {
        client.batch_execute("BEGIN").await?;
        for _ in 0..dice.u8(1..=3) {
            if dice.bool() {
                append(&client, &format!("s-{seed}"), None, n).await??;
            } else {
                client.batch_execute("INSERT INTO outbox.events (event_type, payload) VALUES ('T', '1')").await?;
            }
            if dice.u8(0..4) == 0 {
                client
                    .batch_execute(
                        "SAVEPOINT a; INSERT INTO outbox.events (event_type, payload) VALUES ('T', '2'); ROLLBACK TO a",
                    )
                    .await?;
            }
            // Time is the subject: writers that are slow, each in another way.
            tokio::time::sleep(Duration::from_millis(dice.u64(0..4))).await;
        }
        client.batch_execute(if dice.u8(0..5) == 0 { "ROLLBACK" } else { "COMMIT" }).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_reader_that_continues_from_a_checkpoint_sees_every_event_once_and_in_order() -> Result<()> {
    let bed = TestBed::new().await?;
    let reader = bed.connect().await?;
    let is_over = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&is_over);
    let reading = tokio::spawn(async move {
        let (mut after, mut seen) = (0_i64, Vec::<i64>::new());
        loop {
            let was_over = told.load(Ordering::SeqCst);
            let rows = reader.query("SELECT event_position FROM outbox.read_all($1, 50)", &[&after]).await?;
            seen.extend(rows.iter().map(|row| row.get::<_, i64>(0)));
            after = seen.last().copied().unwrap_or(0);
            if was_over && rows.is_empty() {
                return anyhow::Ok(seen);
            }
        }
    });
    let mut writers = JoinSet::new();
    for writer in 0..8 {
        writers.spawn(write_at_random(bed.connect().await?, writer));
    }
    while let Some(ended) = writers.join_next().await {
        ended??;
    }
    is_over.store(true, Ordering::SeqCst);
    let seen = reading.await??;
    let rows = bed.client.query("SELECT position FROM outbox.events ORDER BY position", &[]).await?;
    let written: Vec<i64> = rows.iter().map(|row| row.get(0)).collect();
    ensure!(written.len() > 400, "only {} events", written.len());
    let missing = written.iter().filter(|position| !seen.contains(position)).count();
    ensure!(seen == written, "{missing} of {} were skipped", written.len());
    Ok(())
}

#[tokio::test]
async fn readers_wait_for_writers_of_events_and_for_no_others() -> Result<()> {
    let bed = TestBed::new().await?;
    let read = async || anyhow::Ok(bed.client.query("SELECT FROM outbox.read_all()", &[]).await?.len());
    bed.client.batch_execute("CREATE TABLE business (n bigint)").await?;
    let (unrelated, writer) = (bed.connect().await?, bed.connect().await?);
    unrelated.batch_execute("BEGIN; INSERT INTO business VALUES (1)").await?;
    append(&bed.client, "s", None, 1).await??;
    ensure!(read().await? == 1, "a transaction that writes no events held it up");
    writer.batch_execute("BEGIN").await?;
    append(&writer, "t", None, 2).await??;
    append(&bed.client, "s", None, 3).await??;
    ensure!(read().await? == 1, "an event was read beyond one that is not committed");
    writer.batch_execute("COMMIT").await?;
    ensure!(read().await? == 3);
    for level in ["REPEATABLE READ", "SERIALIZABLE"] {
        let error = refused(&bed.client, &format!("BEGIN ISOLATION LEVEL {level}; SELECT outbox.read_all()")).await?;
        ensure!(error.hint().is_some_and(|hint| hint.contains("READ COMMITTED")), "{error:?}");
        bed.client.batch_execute("ROLLBACK").await?;
    }
    Ok(())
}
