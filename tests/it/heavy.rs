//! Many messages under lasting faults: entries that fail at random, a queue that is missing, a relay that keeps being
//! killed.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use support::eventually;
use support::proxy::{Choice, Fault, Proxy, Request, Rule};
use support::relay::{Command, Relay};
use support::test_bed::{TestBed, enqueue_range, ensure_each_once, ensure_order_in_groups, numbers};

/// Checks that the numbers 1 to `count` are in the queue or still pending, each once, when nothing is under way.
async fn ensure_arrived_or_waiting(bed: &TestBed, queue: &str, count: i64) -> Result<()> {
    let messages = bed.queues.contents(queue).await?;
    let query =
        "SELECT (payload ->> 'n')::bigint FROM outbox.messages_pending JOIN outbox.events ON position = event_position";
    let waiting = bed.client.query(query, &[]).await?;
    ensure_order_in_groups(&messages)?;
    ensure_each_once(numbers(&messages)?.into_iter().chain(waiting.iter().map(|row| row.get(0))).collect(), count)
}

/// A relay that retries soon and often.
fn quick(bed: &TestBed) -> Command {
    bed.relay().env("OUTBOX_RELAY_RETRY_INITIAL", "5ms").env("OUTBOX_RELAY_RETRY_MAX", "200ms")
}

/// A writer that commits hundreds of messages a second, at an even pace, until it is told to stop.
struct Writer {
    stop: CancellationToken,
    task: JoinHandle<Result<i64>>,
}

impl Writer {
    /// Writes numbers from `first` on; number n belongs to group `g(n mod groups)`.
    async fn start(bed: &TestBed, first: i64, a_second: i64, groups: i64) -> Result<Writer> {
        let (client, stop) = (bed.connect().await?, CancellationToken::new());
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(Duration::from_millis(20));
            let mut next = first;
            while !stopped.is_cancelled() {
                ticks.tick().await;
                let last = next + a_second / 50 - 1;
                enqueue_range(&client, "tickets", next..=last, groups).await?;
                next = last + 1;
            }
            Ok(next - 1)
        });
        Ok(Writer { stop, task })
    }

    /// Stops the writer; returns the last number.
    async fn stop(self) -> Result<i64> {
        self.stop.cancel();
        self.task.await?
    }
}

#[tokio::test]
async fn five_entries_of_a_hundred_failing_lose_nothing_and_keep_the_order() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let queue = bed.fifo("tickets").await?;
    bed.enqueue_many("tickets", 20_000, 200).await?;
    let which = Choice::chance(0.05, 7);
    proxy.set(Fault::FailEntries { which, code: "InternalError", sender_fault: false });
    let relay = quick(&bed).env("OUTBOX_RELAY_MAX_ATTEMPTS", "100").start().await?;
    bed.until_drained().await?;
    let failed = relay.metrics().await?.sum("retries_total");
    relay.stop().await?;
    // On a slow machine requests that take too long come on top.
    ensure!(failed >= 700.0, "{failed} entries failed");
    bed.ensure_arrived_in_order(&queue, 20_000).await
}

/// Rows updated and deleted so far in the outbox's tables, as counted by PostgreSQL.
async fn changes(bed: &TestBed) -> Result<i64> {
    // A session holds its statistics back for up to a second; a new one has none to hold back.
    let query = "SELECT coalesce(sum(n_tup_upd + n_tup_del), 0)::bigint
        FROM pg_stat_user_tables WHERE schemaname = 'outbox'";
    Ok(bed.connect().await?.query_one(query, &[]).await?.try_get(0)?)
}

/// The resident memory of a process in megabytes.
fn resident(relay: &Relay) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", relay.process_id()?))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse::<f64>()? / 1000.0)
}

/// Waits until four requests of ten entries each are under way at the same time, which is all that a relay with four
/// requests may do. How many messages a second that is depends on the machine.
async fn wait_for_full_speed(proxy: &Proxy) -> Result<()> {
    eventually("four full requests are under way", || async {
        let requests = proxy.requests();
        let full = |request: &&Request| request.ended_at.is_none() && request.entries.len() == 10;
        Ok(requests.iter().filter(full).count() == 4)
    })
    .await
}

#[tokio::test]
async fn half_a_minute_without_the_queue_writes_nothing_needs_no_memory_and_ends_with_full_requests() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let queue = bed.fifo("tickets").await?;
    // Longer than the relay needs to prepare the next request.
    let slow = || proxy.set(Fault::Delay(Duration::from_millis(500)));
    bed.enqueue_many("tickets", 3000, 400).await?;
    slow();
    let relay = quick(&bed).env("OUTBOX_RELAY_MAX_IN_FLIGHT", "4").start().await?;
    wait_for_full_speed(&proxy).await?;
    proxy.clear();
    bed.until_drained().await?;

    // The relay is stopped: before version 15 an idle session holds its statistics back.
    relay.stop().await?;
    proxy.refuse_connections().await?;
    let relay = quick(&bed).env("OUTBOX_RELAY_MAX_IN_FLIGHT", "4").start().await?;
    let writer = Writer::start(&bed, 3001, 1000, 400).await?;
    relay.wait_for_metric(r#"destination_up{destination="tickets"}"#, 0.0).await?;
    // Time is the subject: in the first seconds the statistics of the drain arrive.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let (changes_before, memory_before) = (changes(&bed).await?, resident(&relay)?);
    // Time is the subject: the outage lasts half a minute in total.
    tokio::time::sleep(Duration::from_secs(25)).await;
    let (changes_after, memory_after) = (changes(&bed).await?, resident(&relay)?);
    let last = writer.stop().await?;
    ensure!(last > 13_000, "only {last} were written");
    ensure!(changes_before >= 3000, "statistics are not there");
    ensure!(changes_after == changes_before, "the outage changed {} rows", changes_after - changes_before);
    println!("{memory_before:.1} MB became {memory_after:.1} MB while {last} messages came");
    // Read-ahead may come late on a busy machine; everything that was written would take 50 MB.
    ensure!(memory_after < memory_before + 16.0, "{memory_before} MB became {memory_after} MB");

    slow();
    proxy.accept_connections().await?;
    wait_for_full_speed(&proxy).await?;
    ensure!(bed.pending().await? > 500, "the backlog is gone before the relay is fast");
    relay.stop().await?;
    ensure!(bed.count("SELECT max(attempts)::bigint FROM outbox.messages").await? == 0, "the outage cost attempts");
    ensure_arrived_or_waiting(&bed, &queue, last).await
}

#[tokio::test]
async fn a_relay_killed_every_second_under_load_loses_nothing_and_keeps_the_order() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let queue = bed.fifo("tickets").await?;
    let writer = Writer::start(&bed, 1, 400, 100).await?;
    let started = Instant::now();
    let mut kills = 0;
    while started.elapsed() < Duration::from_secs(30) {
        let relay = bed.relay().start().await?;
        // Time is the subject: each relay gets a second.
        tokio::time::sleep(Duration::from_secs(1)).await;
        relay.kill().await?;
        kills += 1;
    }
    let last = writer.stop().await?;
    ensure!(kills >= 5 && last > 3000, "{kills} kills among {last} messages");
    bed.relay().deliver_all().await?;
    proxy.wait_until_quiet().await?;
    println!("{kills} kills among {last} messages, {} entries sent", proxy.entries_seen());
    bed.ensure_arrived_in_order(&queue, last).await
}

#[tokio::test]
async fn poison_among_ten_thousand_is_dead_with_its_reason_and_the_others_arrive() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let queue = bed.fifo("tickets").await?;
    // Number n belongs to group g(n mod 500), so each of the two poisonous messages has a group behind it.
    bed.enqueue_many("tickets", 10_002, 500).await?;
    let fail = |n: i64, code, sender_fault| {
        let which = Choice::body_contains(format!("\"n\": {n}}}"));
        Rule::new(Fault::FailEntries { which, code, sender_fault }).and_more()
    };
    proxy.script([fail(1001, "InvalidMessageContents", true), fail(2002, "InternalError", false)]);
    let ended = quick(&bed).env("OUTBOX_RELAY_MAX_ATTEMPTS", "5").until_empty().await?;
    ensure!(ended.code == Some(1), "{ended:?}");
    let query = "SELECT (payload ->> 'n')::bigint, attempts, last_error
        FROM outbox.messages JOIN outbox.events ON position = event_position WHERE status = 'dead' ORDER BY 1";
    let dead = bed.client.query(query, &[]).await?;
    let dead: Vec<(i64, i16, String)> = dead.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect();
    ensure!(dead.len() == 2, "{dead:?}");
    ensure!(dead[0].0 == 1001 && dead[0].1 == 1 && dead[0].2.contains("InvalidMessageContents"), "{dead:?}");
    ensure!(dead[1].0 == 2002 && dead[1].1 == 5 && dead[1].2.contains("InternalError"), "{dead:?}");
    let messages = bed.queues.contents(&queue).await?;
    ensure_order_in_groups(&messages)?;
    let mut arrived = numbers(&messages)?;
    ensure!(!arrived.contains(&1001) && !arrived.contains(&2002), "a dead message arrived");
    arrived.extend([1001, 2002]);
    ensure_each_once(arrived, 10_002)
}

#[tokio::test]
async fn a_hot_group_delays_no_other_and_is_not_held_in_memory() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let queue = bed.fifo("tickets").await?;
    enqueue_range(&bed.client, "tickets", 1..=5000, 1).await?;
    enqueue_range(&bed.client, "tickets", 5001..=7000, 50).await?;
    // Numbers divisible by 50 are also in g0, which makes it the hot group.
    let relay = quick(&bed).start().await?;
    proxy.wait_for_requests(50).await?;
    let memory_before = resident(&relay)?;
    let others = "SELECT count(*) FROM outbox.messages_pending WHERE group_id <> 'g0'";
    eventually("the others are delivered", || async { Ok(bed.count(others).await? == 0) }).await?;
    let memory_after = resident(&relay)?;
    // The hot group needs one request per message.
    proxy.wait_for_requests(400).await?;
    relay.stop().await?;
    let sent = sent(&proxy.requests())?;
    let last_of_others = sent.iter().rposition(|n| *n > 5000 && n % 50 != 0).context("no others were sent")?;
    let hot_before = sent[..last_of_others].iter().filter(|n| **n <= 5000).count();
    println!("{hot_before} of the hot group went before the last of the others; {memory_before} to {memory_after} MB");
    ensure!(hot_before < 2000, "{hot_before} messages of the hot group went before the last of the others");
    ensure!(memory_after < memory_before + 8.0, "{memory_before} MB became {memory_after} MB");
    ensure_arrived_or_waiting(&bed, &queue, 7000).await
}

/// The numbers in the order in which they went through the proxy.
fn sent(requests: &[Request]) -> Result<Vec<i64>> {
    let entries = requests.iter().flat_map(|request| request.entries.iter());
    let number = |body: &str| {
        let body: serde_json::Value = serde_json::from_str(body)?;
        body["n"].as_i64().context("no number")
    };
    entries.map(|entry| number(&entry.body)).collect()
}

#[tokio::test]
async fn a_relay_frozen_for_fifteen_seconds_stalls_no_group_for_long_and_does_no_harm() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.fifo("tickets").await?;
    let writer = Writer::start(&bed, 1, 100, 20).await?;
    let proxies = [bed.proxy().await?, bed.proxy().await?];
    let relay_of = async |proxy: &Proxy| bed.relay().env("AWS_ENDPOINT_URL_SQS", proxy.endpoint()).start().await;
    let relays = [relay_of(&proxies[0]).await?, relay_of(&proxies[1]).await?];
    let busy = busiest(&proxies).await?;
    relays[busy].signal("STOP").await?;
    // Time is the subject: longer than a frozen relay keeps its claim, which the other relay waits for.
    tokio::time::sleep(Duration::from_secs(15)).await;
    relays[busy].signal("CONT").await?;
    let seen_by_all = || proxies.iter().map(Proxy::requests_seen).sum::<usize>();
    let seen = seen_by_all();
    eventually("messages flow on", || async { Ok(seen_by_all() >= seen + 50) }).await?;
    let last = writer.stop().await?;
    bed.until_drained().await?;
    for relay in relays {
        relay.stop().await?;
    }
    let mut requests = [proxies[0].requests(), proxies[1].requests()].concat();
    requests.sort_by_key(|request| request.arrived_at);
    let (group, gap) = longest_gap(&requests).context("nothing was sent")?;
    println!("the longest gap of a group is {gap:?}, of {group}");
    ensure!(gap < Duration::from_secs(10), "{group} got nothing for {gap:?}");
    bed.ensure_arrived_in_order(&queue, last).await
}

/// The relay that is sending now, by its proxy.
async fn busiest(proxies: &[Proxy; 2]) -> Result<usize> {
    let before: Vec<_> = proxies.iter().map(Proxy::requests_seen).collect();
    let has_sent = |number: usize| proxies[number].requests_seen() > before[number] + 20;
    eventually("one of them sends", || async { Ok(has_sent(0) || has_sent(1)) }).await?;
    Ok(usize::from(has_sent(1)))
}

/// The longest time between two requests with messages of one group.
fn longest_gap(requests: &[Request]) -> Option<(String, Duration)> {
    let mut latest: HashMap<&str, Instant> = HashMap::new();
    let mut gaps = Vec::new();
    for request in requests {
        for group in request.entries.iter().filter_map(|entry| entry.group_id.as_deref()) {
            if let Some(before) = latest.insert(group, request.arrived_at) {
                gaps.push((request.arrived_at - before, group));
            }
        }
    }
    gaps.into_iter().max().map(|(gap, group)| (group.to_owned(), gap))
}
