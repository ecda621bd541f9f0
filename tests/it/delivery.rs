//! The main job: every committed message reaches its queue, once and in order; an uncommitted one never does.

use anyhow::{Result, ensure};

use support::test_bed::{TestBed, enqueue, ensure_each_once, numbers};

#[tokio::test]
async fn a_committed_message_reaches_its_queue() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.fifo("tickets").await?;
    let id = bed.enqueue("tickets", r#"{"ticket": 7}"#, Some("draw-1")).await?;
    bed.relay().deliver_all().await?;
    let [message] = &bed.queues.contents(&queue).await?[..] else { anyhow::bail!("not one message") };
    ensure!(message.body == r#"{"ticket": 7}"#, "{message:?}");
    ensure!(message.group_id.as_deref() == Some("draw-1"), "{message:?}");
    let row = bed.row(id).await?;
    ensure!(row.status == "delivered" && row.attempts == 0, "{row:?}");
    ensure!(row.sqs_message_id.as_deref() == Some(message.message_id.as_str()), "{row:?}");
    Ok(())
}

#[tokio::test]
async fn a_rolled_back_message_is_never_published() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.standard("audit").await?;
    let relay = bed.relay().start().await?;
    let writer = bed.connect().await?;
    for number in 1..=20 {
        writer.batch_execute("BEGIN").await?;
        enqueue(&writer, "audit", &format!(r#"{{"n": {number}}}"#), None).await?;
        let is_kept = number % 2 == 0;
        writer.batch_execute(if is_kept { "COMMIT" } else { "ROLLBACK" }).await?;
    }
    bed.until_nothing_is_pending().await?;
    relay.stop().await?;
    let mut seen = numbers(&bed.queues.contents(&queue).await?)?;
    seen.sort_unstable();
    ensure!(seen == (1..=10).map(|half| half * 2).collect::<Vec<_>>(), "{seen:?}");
    Ok(())
}

#[tokio::test]
async fn one_event_reaches_every_destination_it_is_for() -> Result<()> {
    let bed = TestBed::new().await?;
    let (tickets, audit) = (bed.fifo("tickets").await?, bed.standard("audit").await?);
    bed.enqueue_many("tickets", 500, 7).await?;
    bed.enqueue_many("audit", 500, 7).await?;
    bed.relay().deliver_all().await?;
    for queue in [tickets, audit] {
        ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, 500)?;
    }
    ensure!(bed.pending().await? == 0 && bed.delivered().await? == 1000);
    Ok(())
}
