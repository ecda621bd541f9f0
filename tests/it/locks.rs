//! Another transaction holds a message locked, or a trigger makes writing one slow: the relay neither loses what SQS
//! accepted, nor sends it twice, nor leaves sessions behind.

use anyhow::{Result, ensure};
use tokio_postgres::Client;

use support::eventually;
use support::test_bed::{TestBed, ensure_each_once, numbers};

const SESSIONS: &str = "SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name LIKE 'outbox-relay%'";

/// The session of a relay that waits for a lock; 0 when there is none.
const WAITING: &str = "SELECT coalesce(max(pid), 0)::bigint FROM pg_stat_activity WHERE datname = current_database()
    AND application_name LIKE 'outbox-relay%' AND wait_event_type = 'Lock'";

/// An operator who has begun to change a message and left the transaction open.
async fn lock_one(bed: &TestBed) -> Result<Client> {
    let client = bed.connect().await?;
    client.batch_execute("BEGIN; SELECT FROM outbox.messages WHERE id = 20 FOR UPDATE").await?;
    Ok(client)
}

#[tokio::test]
async fn a_locked_message_is_settled_when_it_is_free_and_nothing_is_sent_twice() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.standard("audit").await?;
    bed.enqueue_many("audit", 50, 0).await?;
    let operator = lock_one(&bed).await?;
    let relays = [bed.relay().start().await?, bed.relay().start().await?];
    eventually("a relay waits for the lock", || async { Ok(bed.count(WAITING).await? > 0) }).await?;
    let first = bed.count(WAITING).await?;
    // The server gives up after a while, and the relay asks again in another session while it holds the claim.
    eventually("it waits again", || async { Ok(![0, first].contains(&bed.count(WAITING).await?)) }).await?;
    operator.batch_execute("COMMIT").await?;
    bed.until_nothing_is_pending().await?;
    for relay in relays {
        relay.stop().await?;
    }
    ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, 50)
}

#[tokio::test]
async fn a_long_lock_leaves_no_sessions_behind() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.fifo("tickets").await?;
    bed.enqueue_many("tickets", 50, 10).await?;
    let operator = lock_one(&bed).await?;
    let relay = bed.relay().env("OUTBOX_RELAY_REQUEST_TIMEOUT", "1s").start().await?;
    let mut waited = Vec::new();
    while waited.len() < 4 {
        let known = waited.clone();
        let is_new = |pid: i64| pid > 0 && !known.contains(&pid);
        eventually("a session waits", || async { Ok(is_new(bed.count(WAITING).await?)) }).await?;
        waited.push(bed.count(WAITING).await?);
    }
    ensure!(bed.count(SESSIONS).await? <= 3, "{} sessions", bed.count(SESSIONS).await?);
    operator.batch_execute("COMMIT").await?;
    bed.until_nothing_is_pending().await?;
    relay.stop().await?;
    ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, 50)
}

#[tokio::test]
async fn a_message_that_somebody_else_settles_meanwhile_is_no_failure() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.standard("audit").await?;
    bed.enqueue_many("audit", 50, 0).await?;
    let other = bed.connect().await?;
    let settle = "BEGIN; UPDATE outbox.messages SET status = 'delivered', delivered_at = now() WHERE id = 20";
    other.batch_execute(settle).await?;
    let relay = bed.relay().start().await?;
    eventually("the relay waits for the lock", || async { Ok(bed.count(WAITING).await? > 0) }).await?;
    other.batch_execute("COMMIT").await?;
    bed.until_nothing_is_pending().await?;
    let is_counted = || async {
        let duplicates = relay.metrics().await?.get(r#"possible_duplicates_total{destination="audit"}"#)?;
        Ok(duplicates == 1.0)
    };
    eventually("the message counts as sent twice", is_counted).await?;
    let log = relay.stop().await?;
    ensure!(!log.contains("cannot be used"), "{log}");
    ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, 50)
}

#[tokio::test]
async fn messages_that_take_long_to_write_are_settled_a_part_at_a_time_while_their_claim_lives() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.standard("audit").await?;
    bed.enqueue_many("audit", 4_000, 0).await?;
    // As a trigger of the application may do: all of them together take longer than a statement may, and longer than a
    // claim lasts, and so do the first two thousand.
    let slow = "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN PERFORM pg_sleep(0.005); RETURN NEW; END';
        CREATE TRIGGER slow BEFORE UPDATE ON outbox.messages_pending FOR EACH ROW EXECUTE FUNCTION slow()";
    bed.client.batch_execute(slow).await?;
    let relays = (bed.relay(), bed.relay());
    for finished in tokio::try_join!(relays.0.until_empty(), relays.1.until_empty()).map(|(one, other)| [one, other])? {
        finished.ensure_success()?;
        ensure!(!finished.stderr.contains("cannot be used"), "{}", finished.stderr);
    }
    ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, 4_000)
}
