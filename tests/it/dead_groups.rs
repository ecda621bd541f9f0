//! What happens to the group of a dead message: with `skip` the next message goes, with `block` nothing goes until an
//! operator decides.

use std::time::Instant;

use anyhow::{Context, Result, ensure};

use support::postgres::{Cluster, Options};
use support::proxy::{Choice, Fault, Proxy};
use support::relay::Command;
use support::test_bed::{TestBed, enqueue_range, last_copies, numbers};
use support::{chosen_major, eventually, eventually_within_minutes};

/// Lets SQS refuse the messages with these numbers for good.
fn refuse(proxy: &Proxy, refused: &'static [i64]) {
    let bodies: Vec<_> = refused.iter().map(|n| format!("{{\"n\": {n}}}")).collect();
    let which = Choice::by(move |_, entry| bodies.contains(&entry.body));
    proxy.set(Fault::FailEntries { which, code: "InvalidMessageContents", sender_fault: true });
}

fn blocking(bed: &TestBed) -> Command {
    bed.relay().env("OUTBOX_RELAY_ON_DEAD", "block")
}

async fn dead_id(bed: &TestBed) -> Result<i64> {
    bed.count("SELECT id FROM outbox.messages_dead").await
}

async fn arrived_of_group(bed: &TestBed, queue: &str, group: &str) -> Result<Vec<i64>> {
    let messages = bed.queues.contents(queue).await?;
    let of_group = messages.into_iter().filter(|message| message.group_id.as_deref() == Some(group));
    numbers(&of_group.collect::<Vec<_>>())
}

#[tokio::test]
async fn a_group_goes_on_after_a_dead_message_by_default() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let queue = bed.fifo("tickets").await?;
    bed.enqueue_many("tickets", 40, 4).await?;
    refuse(&proxy, &[5]);
    ensure!(bed.relay().until_empty().await?.code == Some(1), "a message died");
    ensure!(arrived_of_group(&bed, &queue, "g1").await? == [1, 9, 13, 17, 21, 25, 29, 33, 37]);
    Ok(())
}

#[tokio::test]
async fn a_blocked_group_waits_for_a_redrive_and_others_go_on() -> Result<()> {
    for mode in ["strict", "batched"] {
        let bed = TestBed::new().await?;
        let proxy = bed.proxy().await?;
        let queue = bed.fifo("tickets").await?;
        bed.enqueue_many("tickets", 400, 4).await?;
        refuse(&proxy, &[5]);
        let relay = blocking(&bed).env("OUTBOX_RELAY_FIFO_MODE", mode).start().await?;
        // In batched mode the others of the same request are in the queue already, but they come again after it.
        let expected = 98;
        eventually("all other groups are delivered", || async {
            Ok(bed.count("SELECT count(*) FROM outbox.messages_pending WHERE group_id <> 'g1'").await? == 0)
        })
        .await?;
        ensure!(bed.pending().await? == expected, "{mode}: {}", bed.pending().await?);
        enqueue_range(&bed.client, "tickets", 401..=404, 4).await?;
        eventually("the others' new ones are delivered", || async { Ok(bed.pending().await? == expected + 1) }).await?;
        proxy.clear();
        ensure!(bed.count(&format!("SELECT outbox.dead_redrive(ids => '{{{}}}')", dead_id(&bed).await?)).await? == 1);
        bed.until_nothing_is_pending().await?;
        relay.stop().await?;
        let arrived = arrived_of_group(&bed, &queue, "g1").await?;
        ensure!(arrived.len() == if mode == "strict" { 101 } else { 109 }, "{mode}: {arrived:?}");
        ensure!(last_copies(&arrived).is_sorted(), "{mode}: {arrived:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_blocked_group_goes_on_without_a_discarded_message() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let queue = bed.fifo("tickets").await?;
    bed.enqueue_many("tickets", 10, 1).await?;
    refuse(&proxy, &[4]);
    let relay = blocking(&bed).start().await?;
    eventually("4 is dead", || async { Ok(bed.pending().await? == 6) }).await?;
    ensure!(bed.count("SELECT outbox.dead_discard(destination => 'tickets')").await? == 1);
    bed.until_nothing_is_pending().await?;
    relay.stop().await?;
    ensure!(arrived_of_group(&bed, &queue, "g0").await? == [1, 2, 3, 5, 6, 7, 8, 9, 10]);
    Ok(())
}

#[tokio::test]
async fn a_group_stays_blocked_over_restarts_and_for_other_relays() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let queue = bed.fifo("tickets").await?;
    bed.enqueue_many("tickets", 20, 2).await?;
    refuse(&proxy, &[6]);
    let ended = blocking(&bed).until_empty().await?;
    ensure!(ended.code == Some(1) && ended.stderr.contains("wait behind dead messages"), "{ended:?}");
    ensure!(bed.pending().await? == 7, "{}", bed.pending().await?);
    proxy.clear();
    proxy.forget();
    let ended = blocking(&bed).until_empty().await?;
    ensure!(ended.code == Some(1) && ended.stderr.contains("wait behind dead messages"), "{ended:?}");
    ensure!(proxy.requests_seen() == 0, "something of the group was sent");
    let relays = [blocking(&bed).start().await?, blocking(&bed).start().await?];
    bed.enqueue("tickets", r#"{"n": 22}"#, Some("g0")).await?;
    bed.enqueue("tickets", r#"{"n": 21}"#, Some("g1")).await?;
    eventually("the other group's is delivered", || async { Ok(bed.pending().await? == 8) }).await?;
    ensure!(bed.count("SELECT outbox.dead_redrive(group_id => 'g0')").await? == 1);
    bed.until_nothing_is_pending().await?;
    for relay in relays {
        relay.stop().await?;
    }
    ensure!(arrived_of_group(&bed, &queue, "g0").await? == [2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22]);
    Ok(())
}

#[tokio::test]
async fn a_blocked_group_with_a_hundred_thousand_messages_is_not_walked_at_each_read() -> Result<()> {
    const BEHIND: i64 = 100_000;
    // When a long writing transaction ends, in any database of the cluster, the lanes are rescanned from the bottom.
    // Other tests have many such transactions, hence a separate cluster.
    let cluster = Cluster::start(&Options { major: chosen_major(), ..Options::default() })?;
    let bed = TestBed::on(&cluster).await?;
    let proxy = bed.proxy().await?;
    let queue = bed.fifo("tickets").await?;
    bed.enqueue("tickets", r#"{"n": 1}"#, Some("g0")).await?;
    enqueue_range(&bed.client, "tickets", 2..=BEHIND, 1).await?;
    bed.client.batch_execute("ANALYZE outbox.messages_pending").await?;
    refuse(&proxy, &[1]);
    let relay = blocking(&bed).start().await?;
    eventually("the head is dead", || async { Ok(bed.pending().await? == BEHIND - 1) }).await?;
    // One message of another group in the same lane at a time: each needs a separate read.
    let other = "SELECT name FROM (SELECT 'x' || n AS name FROM generate_series(1, 1000) AS n) AS names
                 WHERE hashtext(name) & 15 = hashtext('g0') & 15 LIMIT 1";
    let other: String = bed.client.query_one(other, &[]).await?.get(0);
    let send = async |n: i64| {
        bed.enqueue("tickets", &format!("{{\"n\": {n}}}"), Some(&other)).await?;
        eventually("the other group's message is delivered", || async { Ok(bed.delivered().await? == n - BEHIND) })
            .await
    };
    // The relay reads past the blocked ones once, which may take longer than other waits allow.
    enqueue_range(&bed.client, "tickets", BEHIND..=BEHIND, 1).await?;
    for _ in 0..4 {
        if send(BEHIND + 1).await.is_ok() {
            break;
        }
    }
    let read = async || {
        let client = bed.connect().await?;
        let query = "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = 'messages_pending_pkey'";
        anyhow::Ok(client.query_one(query, &[]).await?.get::<_, i64>(0))
    };
    let (before, started) = (read().await?, Instant::now());
    for n in 2..=100 {
        send(BEHIND + n).await?;
    }
    let walked = read().await? - before;
    // A hundred reads that walked them would have read ten million entries. The rescan does so, once a second.
    let allowed = BEHIND * (20 + i64::try_from(started.elapsed().as_secs())? * 5 / 2);
    println!("{walked} index entries for 99 messages beside a blocked group of {BEHIND}");
    ensure!(walked < allowed, "{walked} index entries were read, {allowed} are allowed");
    let status = std::fs::read_to_string(format!("/proc/{}/status", relay.process_id()?))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no peak of memory")?;
    let peak: i64 = peak.trim().trim_end_matches(" kB").parse()?;
    println!("{peak} kB at the peak");
    ensure!(peak < 80_000, "{peak} kB at the peak");
    proxy.clear();
    ensure!(bed.count("SELECT outbox.dead_redrive(group_id => 'g0')").await? == 1);
    eventually("its head is delivered", || async { Ok(bed.pending().await? < BEHIND - 100) }).await?;
    relay.stop().await?;
    let first: Vec<i64> = arrived_of_group(&bed, &queue, "g0").await?;
    ensure!(first.first() == Some(&1) && first.is_sorted(), "{:?}", first.iter().take(20).collect::<Vec<_>>());
    Ok(())
}

#[tokio::test]
async fn a_message_that_cannot_be_composed_blocks_its_group_too() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.fifo("tickets").await?;
    bed.enqueue("tickets", r#"{"n": 1}"#, Some("g")).await?;
    let large = bed.enqueue("tickets", &format!("{{\"pad\": \"{}\"}}", "x".repeat(1_100_000)), Some("g")).await?;
    bed.enqueue("tickets", r#"{"n": 3}"#, Some("g")).await?;
    bed.enqueue("tickets", r#"{"n": 4}"#, Some("h")).await?;
    let ended = blocking(&bed).until_empty().await?;
    ensure!(ended.code == Some(1), "{ended:?}");
    let row = bed.row(large).await?;
    ensure!(row.status == "dead" && row.last_error.context("no reason")?.contains("MessageTooLong"));
    ensure!(numbers(&bed.queues.contents(&queue).await?)?.contains(&4));
    ensure!(bed.count(&format!("SELECT outbox.dead_discard(ids => '{{{large}}}')")).await? == 1);
    blocking(&bed).deliver_all().await?;
    ensure!(bed.pending().await? == 0 && arrived_of_group(&bed, &queue, "g").await? == [1, 3]);
    Ok(())
}

#[tokio::test]
async fn a_redriven_message_waits_for_those_of_its_group_before_it() -> Result<()> {
    for mode in ["block", "skip"] {
        let bed = TestBed::new().await?;
        let proxy = bed.proxy().await?;
        let queue = bed.fifo("tickets").await?;
        if mode == "skip" {
            // Nothing is delivered before one of them was read and has died.
            proxy.set(Fault::queue_missing());
        }
        enqueue_range(&bed.client, "tickets", 0..=11, 1).await?;
        let large = format!("{{\"pad\": \"{}\"}}", "x".repeat(1_100_000));
        let id = bed.enqueue("tickets", &large, Some("g0")).await?;
        enqueue_range(&bed.client, "tickets", 13..=20, 1).await?;
        let relay = bed.relay().env("OUTBOX_RELAY_ON_DEAD", mode).start().await?;
        eventually("it is dead", || async { Ok(bed.row(id).await?.status == "dead") }).await?;
        if mode == "block" {
            let claims =
                "SELECT count(*) FROM pg_locks WHERE relation = 'outbox.lanes'::regclass AND pid <> pg_backend_pid()";
            eventually("the claim has ended", || async { Ok(bed.count(claims).await? == 0) }).await?;
        }
        let repaired = "SET outbox.maintenance = 'on'; UPDATE outbox.events SET payload = '{\"n\": 12}' WHERE length(payload::text) > 1000";
        bed.client.batch_execute(repaired).await?;
        ensure!(bed.count(&format!("SELECT outbox.dead_redrive(ids => '{{{id}}}')")).await? == 1);
        proxy.clear();
        bed.until_nothing_is_pending().await?;
        relay.stop().await?;
        let arrived = arrived_of_group(&bed, &queue, "g0").await?;
        ensure!(arrived.is_sorted() && arrived.len() == 21, "{mode}: {arrived:?}");
    }
    Ok(())
}

/// Makes messages dead without a relay.
async fn bury(bed: &TestBed, condition: &str) -> Result<u64> {
    let statement = format!(
        "UPDATE outbox.messages SET status = 'dead', dead_at = now(), last_error = 'refused' WHERE status = 'pending' AND {condition}"
    );
    Ok(bed.client.execute(&statement, &[]).await?)
}

#[tokio::test]
async fn run_until_empty_ends_when_a_redriven_message_waits_behind_a_dead_one() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.fifo("tickets").await?;
    enqueue_range(&bed.client, "tickets", 1..=2, 1).await?;
    ensure!(bury(&bed, "true").await? == 2);
    ensure!(
        bed.count("SELECT outbox.dead_redrive(ids => (SELECT array[max(id)] FROM outbox.messages_dead))").await? == 1
    );
    ensure!(blocking(&bed).until_empty().await?.code == Some(1), "something is left");
    ensure!(bed.pending().await? == 1 && arrived_of_group(&bed, &queue, "g0").await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn many_redriven_messages_of_a_blocked_group_keep_no_retry_of_another_waiting() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.fifo("tickets").await?;
    enqueue_range(&bed.client, "tickets", 1..=2000, 1).await?;
    ensure!(bury(&bed, "true").await? == 2000);
    let all_but_the_first =
        "SELECT outbox.dead_redrive(ids => (SELECT array_agg(id) FROM outbox.messages_dead WHERE id > 1))";
    ensure!(bed.count(all_but_the_first).await? == 1999);
    let id = bed.enqueue("tickets", "{\"n\": 1}", Some("other")).await?;
    let recorded =
        "UPDATE outbox.messages SET attempts = 1, last_error = 'InternalError', available_at = now() WHERE id = $1";
    bed.client.execute(recorded, &[&id]).await?;
    let relay = blocking(&bed).start().await?;
    eventually("the retry is delivered", || async { Ok(bed.row(id).await?.status == "delivered") }).await?;
    relay.stop().await?;
    ensure!(bed.pending().await? == 1999 && bed.queues.contents(&queue).await?.len() == 1);
    Ok(())
}

#[tokio::test]
async fn a_group_stays_blocked_while_its_dead_message_cannot_be_recorded() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let queue = bed.fifo("tickets").await?;
    enqueue_range(&bed.client, "tickets", 1..=10, 1).await?;
    refuse(&proxy, &[1]);
    let other = bed.connect().await?;
    other.batch_execute("BEGIN; SELECT FROM outbox.messages_pending ORDER BY id LIMIT 1 FOR UPDATE").await?;
    let relay = blocking(&bed).start().await?;
    // By then the relay has asked several times which groups have dead messages.
    relay.wait_for_log("lock timeout").await?;
    ensure!(arrived_of_group(&bed, &queue, "g0").await?.is_empty(), "something overtook the dead message");
    other.batch_execute("COMMIT").await?;
    eventually("it is dead", || async { Ok(bed.count("SELECT count(*) FROM outbox.messages_dead").await? == 1) })
        .await?;
    relay.stop().await?;
    ensure!(bed.pending().await? == 9 && arrived_of_group(&bed, &queue, "g0").await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn many_redriven_messages_behind_one_that_failed_again_are_delivered_in_order() -> Result<()> {
    const COUNT: i64 = 1500;
    let bed = TestBed::new().await?;
    let queue = bed.fifo("tickets").await?;
    enqueue_range(&bed.client, "tickets", 1..=COUNT, 1).await?;
    ensure!(bury(&bed, "true").await? == 1500);
    ensure!(bed.count("SELECT outbox.dead_redrive(since => '-infinity')").await? == COUNT);
    // As a stopped relay has recorded it: due later than all messages after it.
    let failed = "UPDATE outbox.messages SET attempts = 1, last_error = 'InternalError', available_at = now() + interval '1 second'
         WHERE id = (SELECT min(id) FROM outbox.messages_pending)";
    ensure!(bed.client.execute(failed, &[]).await? == 1);
    let relay = bed.relay().env("OUTBOX_RELAY_FIFO_MODE", "batched").start().await?;
    bed.until_drained().await?;
    relay.stop().await?;
    bed.ensure_arrived_in_order(&queue, COUNT).await
}

/// More groups than are remembered one by one, with more messages behind them than one claim can read.
#[tokio::test]
async fn any_number_of_blocked_groups_holds_up_no_others_and_released_groups_go_on() -> Result<()> {
    const GROUPS: i64 = 12_000;
    const BEHIND: i64 = 20 * GROUPS;
    let bed = TestBed::new().await?;
    let queue = bed.fifo("tickets").await?;
    bed.enqueue_many("tickets", GROUPS, GROUPS).await?;
    let die = "UPDATE outbox.messages SET status = 'dead', dead_at = now(), last_error = 'a bad release'";
    bed.client.batch_execute(die).await?;
    enqueue_range(&bed.client, "tickets", GROUPS + 1..=GROUPS + BEHIND, GROUPS).await?;
    bed.enqueue("tickets", "{\"n\": 0}", Some("healthy")).await?;
    let relay = blocking(&bed).start().await?;
    eventually_within_minutes("the healthy group is delivered", || async { Ok(bed.pending().await? == BEHIND) })
        .await?;
    // The groups that were read last are not among the first ones that are remembered.
    let discard =
        "SELECT outbox.dead_discard(ids => ARRAY(SELECT id FROM outbox.messages_dead ORDER BY id DESC LIMIT 100))";
    ensure!(bed.count(discard).await? == 100);
    let rest = BEHIND - 100 * (BEHIND / GROUPS);
    eventually_within_minutes("those that were let go are delivered", || async { Ok(bed.pending().await? == rest) })
        .await?;
    relay.stop().await?;
    let arrived = arrived_of_group(&bed, &queue, &format!("g{}", GROUPS - 1)).await?;
    ensure!(arrived.is_sorted() && arrived.len() as i64 == BEHIND / GROUPS, "{arrived:?}");
    Ok(())
}
