//! Recorded retries: however many there are, they hold up their groups, they are found when due, and an idle relay
//! stays as cheap as before.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};

use support::proxy::{Choice, Fault, Request, Rule};
use support::test_bed::{TestBed, enqueue_range, numbers};
use support::{eventually, eventually_within_minutes};

#[tokio::test]
async fn more_retries_than_a_read_holds_still_hold_up_their_groups() -> Result<()> {
    const GROUPS: i64 = 2500;
    let bed = TestBed::new().await?;
    let queue = bed.fifo("tickets").await?;
    bed.enqueue_many("tickets", 2 * GROUPS, GROUPS).await?;
    // The first message of each group failed, as recorded by a relay that was stopped.
    let deferred = "UPDATE outbox.messages AS m
         SET attempts = 1, last_error = 'InternalError', available_at = now() + interval '1 second' * random()
         FROM outbox.events AS e WHERE e.position = m.event_position AND (e.payload ->> 'n')::int <= $1::bigint";
    ensure!(i64::try_from(bed.client.execute(deferred, &[&GROUPS]).await?)? == GROUPS);
    bed.relay().deliver_all().await?;
    let mut groups = HashMap::<_, Vec<_>>::new();
    for message in bed.queues.contents(&queue).await? {
        groups.entry(message.group_id.clone().context("no group")?).or_default().push(message);
    }
    ensure!(groups.len() as i64 == GROUPS);
    for (group, messages) in groups {
        let arrived = numbers(&messages)?;
        ensure!(arrived.len() == 2 && arrived.is_sorted(), "{group} arrived as {arrived:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_retry_costs_an_idle_relay_no_more_than_it_takes() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    bed.fifo("tickets").await?;
    // The other message of the request succeeds, so this one is charged.
    let which = Choice::body_contains("\"n\": 1");
    proxy.set(Fault::FailEntries { which, code: "InternalError", sender_fault: false });
    // Longer than a claim lasts, so that the retry is recorded and found by an idle relay; a retry with a shorter
    // random delay fails again.
    let relay = bed.relay().env("OUTBOX_RELAY_RETRY_INITIAL", "1m").env("OUTBOX_RELAY_RETRY_MAX", "1m");
    let relay = relay.start().await?;
    enqueue_range(&bed.client, "tickets", 1..=2, 2).await?;
    let recorded = "SELECT count(*) FROM outbox.messages_pending WHERE available_at IS NOT NULL";
    eventually("the failure is recorded", || async { Ok(bed.count(recorded).await? == 1) }).await?;
    proxy.clear();
    bed.client.execute("UPDATE outbox.messages SET available_at = now() WHERE status = 'pending'", &[]).await?;
    bed.until_nothing_is_pending().await?;
    // The poller's cheap query does not touch this index; a look probes it once per lane.
    let probes = async || {
        let query = "SELECT coalesce(sum(idx_scan), 0)::bigint FROM pg_stat_user_indexes
                     WHERE indexrelname = 'messages_pending_pkey'";
        anyhow::Ok(bed.connect().await?.query_one(query, &[]).await?.get::<_, i64>(0))
    };
    let commits = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()";
    // A session reports its scans late, so that those of the delivery may be counted here; a relay that looked each time
    // would do so in every window.
    eventually_within_minutes("two hundred statements with few probes", || async {
        let (first, before) = (bed.count(commits).await?, probes().await?);
        eventually("two hundred statements", || async { Ok(bed.count(commits).await? > first + 200) }).await?;
        Ok(probes().await? - before < 200 * 16 / 4)
    })
    .await?;
    relay.stop().await?;
    Ok(())
}

#[tokio::test]
async fn attempts_move_with_a_message_from_relay_to_relay() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    bed.fifo("tickets").await?;
    let id = bed.enqueue("tickets", "{\"n\": 1}", Some("g")).await?;
    let which = Choice::body_contains("\"n\": 1");
    proxy.set(Fault::FailEntries { which, code: "InternalError", sender_fault: false });
    let _others = bed.trickle("tickets").await?;
    let relay = bed.relay().env("OUTBOX_RELAY_RETRY_INITIAL", "50ms").env("OUTBOX_RELAY_RETRY_MAX", "100ms");
    let relay = relay.env("OUTBOX_RELAY_MAX_ATTEMPTS", "60");
    let tries = || {
        let tries = |request: &Request| request.entries.iter().filter(|entry| entry.body == "{\"n\": 1}").count();
        proxy.requests().iter().map(tries).sum::<usize>()
    };
    for _ in 0..3 {
        let before = tries();
        let running = relay.start().await?;
        eventually("it is tried again and again", || async { Ok(tries() >= before + 5) }).await?;
        running.stop().await?;
    }
    // At least three of five attempts were charged each time: in the first request the message may have been alone.
    let row = bed.row(id).await?;
    ensure!(row.status == "pending" && (9..60).contains(&row.attempts), "{row:?}");
    let running = relay.start().await?;
    eventually("it is dead", || async { Ok(bed.row(id).await?.status == "dead") }).await?;
    ensure!(bed.row(id).await?.attempts == 60, "{:?}", bed.row(id).await?);
    running.stop().await?;
    Ok(())
}

#[tokio::test]
async fn an_attempt_is_recorded_at_once_when_its_retry_comes_after_the_claim() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    bed.fifo("tickets").await?;
    // One request under way keeps the claim open.
    proxy.script([
        Rule::new(Fault::HoldAnswer).times(1),
        Rule::new(Fault::FailEntries {
            which: Choice::body_contains("failing"),
            code: "InternalError",
            sender_fault: false,
        })
        .times(1),
    ]);
    let relay = bed.relay().env("OUTBOX_RELAY_RETRY_INITIAL", "1h").env("OUTBOX_RELAY_RETRY_MAX", "1h");
    let relay = relay.env("OUTBOX_RELAY_REQUEST_TIMEOUT", "60s").start().await?;
    bed.enqueue("tickets", "{}", Some("held")).await?;
    proxy.wait_for_held(1).await?;
    let both = "SELECT outbox.enqueue('tickets', 'T', jsonb_build_object('is', name), name)
                FROM unnest('{failing,good}'::text[]) AS name";
    let id: i64 = bed.client.query(both, &[]).await?.first().context("no message")?.get(0);
    eventually("the attempt is recorded", || async { Ok(bed.row(id).await?.attempts == 1) }).await?;
    ensure!(
        proxy.requests_seen() == 2 && bed.pending().await? == 2,
        "{} requests, the claim was over",
        proxy.requests_seen()
    );
    relay.kill().await?;
    ensure!(bed.row(id).await?.last_error.is_some_and(|error| error.contains("InternalError")));
    Ok(())
}

#[tokio::test]
async fn retries_of_ungrouped_messages_are_found_when_they_are_due() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.standard("audit").await?;
    let relay = bed.relay().start().await?;
    enqueue_range(&bed.client, "audit", 1..=1, 0).await?;
    bed.until_nothing_is_pending().await?;
    let insert = "WITH event AS (
            INSERT INTO outbox.events (event_type, payload) SELECT 'T', jsonb_build_object('n', n)
            FROM generate_series(2, 3000) AS n RETURNING position
        )
        INSERT INTO outbox.messages (destination, event_position, attempts, last_error, available_at)
        SELECT 'audit', position, 1, 'InternalError', now() + interval '200 milliseconds' FROM event";
    bed.client.execute(insert, &[]).await?;
    bed.until_nothing_is_pending().await?;
    relay.stop().await?;
    ensure!(bed.queues.contents(&queue).await?.len() == 3000);
    Ok(())
}
