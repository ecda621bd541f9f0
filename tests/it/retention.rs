//! What remains in the tables after a delivery, and for how long.

use anyhow::{Result, ensure};

use support::eventually;
use support::test_bed::{TestBed, ensure_each_once, numbers};

/// A thousand more than the janitor deletes in one statement, all in one lane and delivered an hour ago.
const OLD: &str =
    "INSERT INTO outbox.messages (destination, event_position, group_id, lane, status, enqueued_at, delivered_at)
    SELECT 'audit', n, 'g', outbox.lane('g', n), 'delivered', now() - interval '2 hours', now() - interval '1 hour'
    FROM generate_series(1, 2000) AS n";

const RECENT: &str = "INSERT INTO outbox.messages (destination, event_position, group_id, lane, status, delivered_at)
    SELECT 'audit', n, 'g', outbox.lane('g', n), 'delivered', now() FROM generate_series(1, 500) AS n";

#[tokio::test]
async fn no_retention_deletes_messages_at_delivery_and_keeps_the_events() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.standard("audit").await?;
    bed.enqueue_many("audit", 500, 0).await?;
    bed.relay().env("OUTBOX_RELAY_DELIVERED_RETENTION", "0s").deliver_all().await?;
    ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, 500)?;
    ensure!(bed.count("SELECT count(*) FROM outbox.messages").await? == 0);
    ensure!(bed.count("SELECT count(*) FROM outbox.events").await? == 500);
    // Nothing passed through the delivered partition either: rows were only deleted.
    ensure!(bed.count("SELECT pg_relation_size('outbox.messages_delivered')").await? == 0);
    Ok(())
}

#[tokio::test]
async fn delivered_messages_are_kept_by_default() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.standard("audit").await?;
    bed.enqueue_many("audit", 100, 0).await?;
    let relay = bed.relay().start().await?;
    bed.until_nothing_is_pending().await?;
    relay.stop().await?;
    let query = "SELECT count(*) FROM outbox.messages
        WHERE status = 'delivered' AND delivered_at >= enqueued_at AND sqs_message_id <> '' AND attempts = 0";
    ensure!(bed.count(query).await? == 100);
    Ok(())
}

#[tokio::test]
async fn messages_older_than_the_retention_are_pruned_and_younger_ones_stay() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.standard("audit").await?;
    bed.client.batch_execute(OLD).await?;
    bed.client.batch_execute(RECENT).await?;
    let relay = bed.relay().env("OUTBOX_RELAY_DELIVERED_RETENTION", "10m").start().await?;
    let old = "SELECT count(*) FROM outbox.messages_delivered WHERE delivered_at < now() - interval '10 minutes'";
    eventually("the old ones are gone", || async { Ok(bed.count(old).await? == 0) }).await?;
    relay.stop().await?;
    ensure!(bed.delivered().await? == 500);
    Ok(())
}

#[tokio::test]
async fn failing_pruning_is_reported_once_and_continues_when_possible() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.standard("audit").await?;
    bed.client.batch_execute(OLD).await?;
    let refuse = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN PERFORM nextval('refusals'); RAISE EXCEPTION 'nothing is deleted here'; END $$;
        CREATE SEQUENCE refusals;
        CREATE TRIGGER refuse BEFORE DELETE ON outbox.messages_delivered FOR EACH ROW EXECUTE FUNCTION refuse()";
    bed.client.batch_execute(refuse).await?;
    let relay = bed.relay().env("OUTBOX_RELAY_DELIVERED_RETENTION", "1s").start().await?;
    // A sequence is not rolled back.
    eventually("pruning was refused three times", || async {
        Ok(bed.count("SELECT last_value FROM refusals WHERE is_called").await.is_ok_and(|refused| refused >= 3))
    })
    .await?;
    bed.client.batch_execute("DROP TRIGGER refuse ON outbox.messages_delivered").await?;
    eventually("the old ones are gone", || async { Ok(bed.delivered().await? == 0) }).await?;
    let log = relay.stop().await?;
    let told: Vec<&str> = log.lines().filter(|line| line.contains("delivered messages cannot be pruned")).collect();
    ensure!(told.len() == 1 && told[0].contains("nothing is deleted here"), "{log}");
    Ok(())
}

/// Low ids that were delivered late and so must stay for long: more than a round looks at in one lane.
const LATE: &str =
    "INSERT INTO outbox.messages (destination, event_position, group_id, lane, status, enqueued_at, delivered_at)
    SELECT 'audit', n, 'g', outbox.lane('g', n), 'delivered', now() - interval '2 hours', now() + interval '1 hour' FROM generate_series(1, 25000) AS n";

#[tokio::test]
async fn messages_delivered_late_do_not_keep_others_from_being_pruned() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.standard("audit").await?;
    bed.client.batch_execute(LATE).await?;
    bed.client.batch_execute(OLD).await?;
    let old = "SELECT count(*) FROM outbox.messages_delivered WHERE delivered_at < now()";
    // One round every second.
    let relay = bed.relay().env("OUTBOX_RELAY_DELIVERED_RETENTION", "10s").start().await?;
    eventually("the old ones are gone", || async { Ok(bed.count(old).await? == 0) }).await?;
    relay.stop().await?;
    ensure!(bed.delivered().await? == 25_000);
    Ok(())
}

#[tokio::test]
async fn a_lane_of_young_messages_is_not_walked_again_and_again() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.standard("audit").await?;
    let young = "INSERT INTO outbox.messages (destination, event_position, group_id, lane, status, delivered_at)
        SELECT 'audit', n, 'g', outbox.lane('g', n), 'delivered', now() FROM generate_series(1, 30000) AS n";
    bed.client.batch_execute(young).await?;
    let number =
        |what: &str| format!("SELECT {what} FROM pg_stat_all_indexes WHERE indexrelname = 'messages_delivered_pkey'");
    let (scans, rows) = (bed.count(&number("idx_scan")).await?, bed.count(&number("idx_tup_read")).await?);
    // One round every second.
    let relay = bed.relay().env("OUTBOX_RELAY_DELIVERED_RETENTION", "10s").start().await?;
    eventually("three rounds were made", || async {
        let fresh = bed.connect().await?;
        let now: i64 = fresh.query_one(&number("idx_scan"), &[]).await?.get(0);
        Ok(now - scans >= 48)
    })
    .await?;
    relay.stop().await?;
    let fresh = bed.connect().await?;
    let read: i64 = fresh.query_one(&number("idx_tup_read"), &[]).await?.get(0);
    let scanned: i64 = fresh.query_one(&number("idx_scan"), &[]).await?.get(0);
    // One chunk of the only lane that has any messages; a round has sixteen scans.
    ensure!(read - rows < 200 * (scanned - scans), "{} rows in {} scans", read - rows, scanned - scans);
    Ok(())
}

#[tokio::test]
async fn messages_are_pruned_once_the_retention_is_over() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.standard("audit").await?;
    bed.enqueue_many("audit", 200, 0).await?;
    let relay = bed.relay().env("OUTBOX_RELAY_DELIVERED_RETENTION", "1s").start().await?;
    relay.wait_for_metric(r#"delivered_messages_total{destination="audit"}"#, 200.0).await?;
    eventually("all are pruned", || async { Ok(bed.count("SELECT count(*) FROM outbox.messages").await? == 0) })
        .await?;
    relay.stop().await?;
    ensure!(bed.count("SELECT count(*) FROM outbox.events").await? == 200);
    Ok(())
}

#[tokio::test]
async fn old_events_that_no_message_needs_are_purged_on_request() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.enqueue_many("audit", 6, 0).await?;
    let changes = "UPDATE outbox.messages SET status = 'delivered', delivered_at = now() WHERE id IN (1, 2);
        UPDATE outbox.messages SET status = 'dead', dead_at = now(), last_error = 'too large' WHERE id = 3;
        DELETE FROM outbox.messages WHERE id IN (5, 6);
        SET LOCAL outbox.maintenance = 'on';
        UPDATE outbox.events SET recorded_at = now() - interval '1 year' WHERE position <> 6";
    bed.client.batch_execute(changes).await?;
    for _ in 0..2 {
        bed.client.batch_execute("CALL outbox.purge(now() - interval '90 days')").await?;
        let query = "SELECT position FROM outbox.events ORDER BY position";
        let left: Vec<i64> = bed.client.query(query, &[]).await?.iter().map(|row| row.get(0)).collect();
        // The third waits for an operator, the fourth for the relay; the sixth is young.
        ensure!(left == [3, 4, 6], "{left:?}");
    }
    Ok(())
}

#[tokio::test]
async fn dead_and_pending_messages_are_never_pruned() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.standard("audit").await?;
    bed.client.batch_execute(OLD).await?;
    let query =
        "INSERT INTO outbox.messages (destination, event_position, group_id, lane, status, enqueued_at, dead_at, last_error)
        SELECT 'audit', 1, 'g', 3, 'dead', now() - interval '1 year', now() - interval '1 year', 'too large'";
    bed.client.batch_execute(query).await?;
    let query = "INSERT INTO outbox.messages (destination, event_position, group_id, enqueued_at, available_at)
        SELECT 'audit', 1, 'g', now() - interval '1 year', now() + interval '1 year'";
    bed.client.batch_execute(query).await?;
    let relay = bed.relay().env("OUTBOX_RELAY_DELIVERED_RETENTION", "1ms").start().await?;
    eventually("the delivered ones are gone", || async { Ok(bed.delivered().await? == 0) }).await?;
    relay.stop().await?;
    ensure!(bed.count("SELECT count(*) FROM outbox.messages").await? == 2);
    Ok(())
}
