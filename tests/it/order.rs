//! The order of a group under writers that commit out of the order of their ids.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::support::bed::{Bed, enqueue, numbers};
use crate::support::emulator::Received;
use crate::support::eventually;

/// Two groups of one lane.
async fn neighbours(bed: &Bed) -> Result<(String, String)> {
    let query = "SELECT min(g), max(g) FROM (SELECT 'g' || n AS g FROM generate_series(1, 100) AS n) AS names
        GROUP BY hashtext(g) & 15 HAVING count(*) > 1 LIMIT 1";
    let row = bed.client.query_one(query, &[]).await?;
    Ok((row.get(0), row.get(1)))
}

fn of_group(messages: &[Received], group: &str) -> Result<Vec<i64>> {
    let of_group = messages.iter().filter(|message| message.group_id.as_deref() == Some(group));
    numbers(&of_group.cloned().collect::<Vec<_>>())
}

#[tokio::test]
async fn the_first_messages_of_an_outbox_keep_their_order() -> Result<()> {
    // A sweep that happens to come at the right moment hides what the ordinary way misses, but not every time.
    for _ in 0..3 {
        let bed = Bed::new().await?;
        let queue = bed.fifo("tickets").await?;
        let relay = bed.relay().start().await?;
        relay.wait_for_status("/readyz", 200).await?;
        let commits = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()";
        let before = bed.count(commits).await?;
        eventually("the relay has looked", || async { Ok(bed.count(commits).await? > before + 30) }).await?;
        for number in 1..=5 {
            bed.enqueue("tickets", &format!("{{\"n\": {number}}}"), Some("g1")).await?;
        }
        bed.until_nothing_is_pending().await?;
        relay.stop().await?;
        let arrived = of_group(&bed.queues.contents(&queue).await?, "g1")?;
        ensure!(arrived == [1, 2, 3, 4, 5], "{arrived:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_group_keeps_its_order_when_its_writer_commits_after_higher_ids() -> Result<()> {
    let bed = Bed::new().await?;
    let queue = bed.fifo("tickets").await?;
    let (slow, quick) = neighbours(&bed).await?;
    let relay = bed.relay().start().await?;
    let writer = bed.connect().await?;
    for round in 0..40 {
        writer.batch_execute("BEGIN").await?;
        enqueue(&writer, "tickets", &format!("{{\"n\": {}}}", round * 2), Some(&slow)).await?;
        // A neighbour in the lane with a higher id is read and delivered first.
        let id = bed.enqueue("tickets", "{\"n\": 0}", Some(&quick)).await?;
        eventually("the neighbour is delivered", || async { Ok(bed.row(id).await?.status == "delivered") }).await?;
        let next = format!("COMMIT; SELECT outbox.enqueue('tickets', 'T', '{{\"n\": {}}}', '{slow}')", round * 2 + 1);
        writer.batch_execute(&next).await?;
    }
    bed.until_nothing_is_pending().await?;
    relay.stop().await?;
    let arrived = of_group(&bed.queues.contents(&queue).await?, &slow)?;
    let first_break = arrived.iter().zip(0..).position(|(n, wanted)| *n != wanted);
    ensure!(arrived.len() == 80 && first_break.is_none(), "the order breaks at {first_break:?}: {arrived:?}");
    Ok(())
}

#[tokio::test]
async fn a_group_keeps_its_order_when_its_writer_commits_seconds_after_higher_ids() -> Result<()> {
    let bed = Bed::new().await?;
    let queue = bed.fifo("tickets").await?;
    let (slow, quick) = neighbours(&bed).await?;
    let relay = bed.relay().start().await?;
    let writer = bed.connect().await?;
    writer.batch_execute("BEGIN").await?;
    enqueue(&writer, "tickets", "{\"n\": 0}", Some(&slow)).await?;
    // Time is the subject: longer than the low bound waits for a running transaction.
    let started = std::time::Instant::now();
    while started.elapsed() < Duration::from_millis(2500) {
        bed.enqueue("tickets", "{\"n\": 0}", Some(&quick)).await?;
        let pending = "SELECT count(*) FROM outbox.messages_pending";
        eventually("the neighbour is delivered", || async { Ok(bed.count(pending).await? == 0) }).await?;
    }
    let next = format!("COMMIT; SELECT outbox.enqueue('tickets', 'T', '{{\"n\": 1}}', '{slow}')");
    writer.batch_execute(&next).await?;
    bed.until_nothing_is_pending().await.context("after the late commit")?;
    relay.stop().await?;
    let arrived = of_group(&bed.queues.contents(&queue).await?, &slow)?;
    ensure!(arrived == [0, 1], "{arrived:?}");
    Ok(())
}
