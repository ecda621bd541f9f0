//! The order of a group when writers commit in another order than that of their ids.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use support::emulator::Received;
use support::eventually;
use support::proxy::{Fault, Rule};
use support::test_bed::{TestBed, enqueue, numbers};

/// Two groups of one lane.
async fn neighbours(bed: &TestBed) -> Result<(String, String)> {
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
    // A rescan at the right moment may hide that the ordinary read misses something, but not every time.
    for _ in 0..3 {
        let bed = TestBed::new().await?;
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
    let bed = TestBed::new().await?;
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
    let bed = TestBed::new().await?;
    let queue = bed.fifo("tickets").await?;
    let (slow, quick) = neighbours(&bed).await?;
    let relay = bed.relay().start().await?;
    let writer = bed.connect().await?;
    writer.batch_execute("BEGIN").await?;
    enqueue(&writer, "tickets", "{\"n\": 0}", Some(&slow)).await?;
    // Time is the subject: longer than the low watermark waits for a running transaction.
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

#[tokio::test]
async fn a_group_keeps_its_order_when_its_writer_takes_an_id_long_before_it_writes_its_first_row() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.fifo("tickets").await?;
    let (slow, quick) = neighbours(&bed).await?;
    let relay = bed.relay().start().await?;
    let writer = bed.connect().await?;
    let mut expected = Vec::new();
    for round in 0..20 {
        let event = format!("{{\"n\": {}}}", round * 2);
        let event = "INSERT INTO outbox.events (event_type, payload) VALUES ('T', $1::text::jsonb) RETURNING position"
            .replace("$1", &format!("'{event}'"));
        let position: i64 = bed.client.query_one(&event, &[]).await?.get(0);
        // The id comes before the group in the row: it is taken, and then a fifth of a second passes before the row is written.
        let late = format!(
            "BEGIN; INSERT INTO outbox.messages (destination, event_position, group_id)
             VALUES ('tickets', {position}, '{slow}' || left(pg_sleep(0.2)::text, 0)); COMMIT;
             SELECT outbox.enqueue('tickets', 'T', '{{\"n\": {}}}', '{slow}')",
            round * 2 + 1
        );
        let last_id = bed.count("SELECT last_value FROM outbox.messages_id_seq").await?;
        let neighbour = async {
            eventually("the writer has its id", || async {
                Ok(bed.count("SELECT last_value FROM outbox.messages_id_seq").await? > last_id)
            })
            .await?;
            let id = bed.enqueue("tickets", "{\"n\": 0}", Some(&quick)).await?;
            eventually("the neighbour is delivered", || async { Ok(bed.row(id).await?.status == "delivered") }).await
        };
        let (late, neighbour) = tokio::join!(writer.batch_execute(&late), neighbour);
        late?;
        neighbour?;
        expected.extend([round * 2, round * 2 + 1]);
    }
    bed.until_nothing_is_pending().await?;
    relay.stop().await?;
    let arrived = of_group(&bed.queues.contents(&queue).await?, &slow)?;
    ensure!(arrived == expected, "{arrived:?}");
    Ok(())
}

/// Takes a lane as another relay would, as soon as it is free; the session releases it when it ends.
async fn hold_lane_of(bed: &TestBed, group: &str) -> Result<tokio_postgres::Client> {
    let other = bed.connect().await?;
    other.batch_execute("BEGIN").await?;
    let query =
        "SELECT FROM outbox.lanes WHERE destination = 'tickets' AND lane = (hashtext($1) & 15)::smallint FOR UPDATE";
    other.execute(query, &[&group]).await?;
    Ok(other)
}

#[tokio::test]
async fn a_group_keeps_its_order_when_another_relay_had_its_lane_at_the_late_commit() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.fifo("tickets").await?;
    let (slow, quick) = neighbours(&bed).await?;
    let relay = bed.relay().start().await?;
    let pending = "SELECT count(*) FROM outbox.messages_pending";
    for round in 0..2 {
        let writer = bed.connect().await?;
        writer.batch_execute("BEGIN").await?;
        enqueue(&writer, "tickets", &format!("{{\"n\": {}}}", round * 2), Some(&slow)).await?;
        // Time is the subject: longer than the low watermark waits for a running transaction.
        let started = std::time::Instant::now();
        while started.elapsed() < Duration::from_millis(2500) {
            bed.enqueue("tickets", "{\"n\": 0}", Some(&quick)).await?;
            eventually("the neighbour is delivered", || async { Ok(bed.count(pending).await? == 0) }).await?;
        }
        let other = hold_lane_of(&bed, &slow).await?;
        let query =
            "SELECT min('g' || n) FROM generate_series(1, 100) AS n WHERE hashtext('g' || n) & 15 <> hashtext($1) & 15";
        let elsewhere: String = bed.client.query_one(query, &[&slow]).await?.get(0);
        let next = format!("COMMIT; SELECT outbox.enqueue('tickets', 'T', '{{\"n\": {}}}', '{slow}')", round * 2 + 1);
        let mut next = Some(next);
        let started = std::time::Instant::now();
        // All the time the relay holds a claim on the other lanes and sees under it that the writer has ended.
        while started.elapsed() < Duration::from_millis(1500) {
            // Not more than a busy machine delivers meanwhile.
            if bed.count(pending).await? < 20 {
                bed.enqueue("tickets", "{\"n\": 0}", Some(&elsewhere)).await?;
            }
            if started.elapsed() > Duration::from_millis(200)
                && let Some(next) = next.take()
            {
                writer.batch_execute(&next).await?;
            }
        }
        other.batch_execute("ROLLBACK").await?;
        bed.until_nothing_is_pending().await?;
    }
    relay.stop().await?;
    let arrived = of_group(&bed.queues.contents(&queue).await?, &slow)?;
    ensure!(arrived == [0, 1, 2, 3], "{arrived:?}");
    Ok(())
}

#[tokio::test]
async fn a_late_commit_behind_a_deferred_message_goes_before_later_commits() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.fifo("tickets").await?;
    let (group, neighbour) = neighbours(&bed).await?;
    let first = bed.enqueue("tickets", "{\"n\": 0}", Some(&group)).await?;
    let defer = "UPDATE outbox.messages SET attempts = 1, available_at = now() + interval '4 seconds' WHERE id = $1";
    bed.client.execute(defer, &[&first]).await?;
    let writer = bed.connect().await?;
    writer.batch_execute("BEGIN").await?;
    let late = enqueue(&writer, "tickets", "{\"n\": 1}", Some(&group)).await?;
    let proxy = bed.proxy().await?;
    let relay = bed.relay().start().await?;
    // The relay has started while the writer was open, and has read past its message.
    let above = bed.enqueue("tickets", "{\"n\": 9}", Some(&neighbour)).await?;
    eventually("the neighbour is delivered", || async { Ok(bed.row(above).await?.status == "delivered") }).await?;
    proxy.forget();
    proxy.script([Rule::new(Fault::Hold).times(1)]);
    writer.batch_execute("COMMIT").await?;
    proxy.wait_for_held(1).await?;
    // The first message is in flight; the next one is read and has to wait for both.
    bed.client.batch_execute("BEGIN").await?;
    bed.enqueue("tickets", "{\"n\": 2}", Some(&group)).await?;
    let above = bed.enqueue("tickets", "{\"n\": 9}", Some(&neighbour)).await?;
    bed.client.batch_execute("COMMIT").await?;
    eventually("the neighbour is delivered", || async { Ok(bed.row(above).await?.status == "delivered") }).await?;
    ensure!(bed.row(late).await?.status == "pending");
    proxy.release();
    bed.until_nothing_is_pending().await?;
    relay.stop().await?;
    let arrived = of_group(&bed.queues.contents(&queue).await?, &group)?;
    ensure!(arrived == [0, 1, 2], "{arrived:?}");
    Ok(())
}
