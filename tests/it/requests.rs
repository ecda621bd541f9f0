//! How messages become requests: full ones, none too large, and never two of a group where order could break.

use std::collections::{BTreeMap, HashSet};

use anyhow::{Context, Result, ensure};

use support::emulator::Product;
use support::proxy::{Entry, Fault, Proxy, Request};
use support::test_bed::{TestBed, ensure_each_once, numbers};

const MAX_BYTES: usize = 1_048_576;

fn groups(entries: &[Entry]) -> Vec<&str> {
    entries.iter().filter_map(|entry| entry.group_id.as_deref()).collect()
}

fn number(entry: &Entry) -> Result<i64> {
    let body: serde_json::Value = serde_json::from_str(&entry.body)?;
    body["n"].as_i64().with_context(|| entry.body.clone())
}

/// The messages sent of each group, in the order of requests and of their entries.
fn sent_by_group(requests: &[Request]) -> Result<BTreeMap<String, Vec<i64>>> {
    let mut sent = BTreeMap::<_, Vec<i64>>::new();
    for entry in requests.iter().flat_map(|request| request.entries.iter()) {
        let group = entry.group_id.clone().context("an entry without group")?;
        sent.entry(group).or_default().push(number(entry)?);
    }
    Ok(sent)
}

fn ensure_ascending(sent: &BTreeMap<String, Vec<i64>>) -> Result<()> {
    for (group, numbers) in sent {
        ensure!(numbers.is_sorted(), "{group} was sent as {numbers:?}");
    }
    Ok(())
}

/// Bytes of a request as SQS counts them.
fn bytes(request: &Request) -> Result<usize> {
    let mut bytes = 0;
    for entry in request.entries.iter() {
        bytes += entry.body.len();
        for (name, attribute) in entry.attributes.as_object().context("no attributes")? {
            let text = |member: &str| attribute[member].as_str().map(str::len).context("no text");
            bytes += name.len() + text("DataType")? + text("StringValue")?;
        }
    }
    Ok(bytes)
}

#[tokio::test]
async fn requests_to_a_standard_queue_are_filled_to_ten() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let queue = bed.standard("audit").await?;
    bed.enqueue_many("audit", 1000, 0).await?;
    bed.relay().deliver_all().await?;
    ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, 1000)?;
    ensure_is_filled(&proxy, 1000)
}

#[tokio::test]
async fn requests_to_a_fifo_queue_with_many_groups_are_filled_to_ten() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let queue = bed.fifo("tickets").await?;
    bed.enqueue_many("tickets", 1000, 500).await?;
    bed.relay().deliver_all().await?;
    ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, 1000)?;
    ensure_is_filled(&proxy, 1000)
}

#[tokio::test]
async fn a_fair_queue_is_told_the_groups_in_full_requests_and_another_standard_queue_is_not() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let fair = bed.queues.create_standard("fair").await?;
    bed.add_destination("fair", &format!("{fair};fair=true"));
    let plain = bed.standard("plain").await?;
    for destination in ["fair", "plain"] {
        bed.enqueue_many(destination, 100, 3).await?;
    }
    bed.enqueue_many("fair", 1, 0).await?;
    bed.relay().deliver_all().await?;
    let entries_to = |url: &str| {
        let requests = proxy.requests().into_iter().filter(|request| request.queue_url == url);
        requests.flat_map(|request| request.entries.to_vec()).collect::<Vec<_>>()
    };
    let told = entries_to(&fair);
    ensure!(told.len() == 101 && proxy.entries_per_request().contains(&10), "{:?}", proxy.entries_per_request());
    ensure!(told.iter().all(|entry| entry.deduplication_id.is_none()), "{told:?}");
    let (alone, grouped): (Vec<&Entry>, Vec<&Entry>) = told.iter().partition(|entry| entry.group_id.is_none());
    ensure!(alone.len() == 1 && number(alone[0])? == 1, "{alone:?}");
    for entry in grouped {
        ensure!(entry.group_id == Some(format!("g{}", number(entry)? % 3)), "{entry:?}");
    }
    ensure!(entries_to(&plain).iter().all(|entry| entry.group_id.is_none()), "{:?}", entries_to(&plain));
    ensure_each_once(numbers(&bed.queues.contents(&plain).await?)?, 100)?;
    let arrived = bed.queues.contents(&fair).await?;
    ensure!(arrived.len() == 101, "{} messages arrived", arrived.len());
    if Product::chosen()?.keeps_groups_of_standard_queues() {
        let kept = arrived.iter().filter(|message| message.group_id.is_some()).count();
        ensure!(kept == 100, "{kept} messages have a group");
    }
    Ok(())
}

fn ensure_is_filled(proxy: &Proxy, messages: usize) -> Result<()> {
    let sizes = proxy.entries_per_request();
    ensure!(sizes.iter().sum::<usize>() == messages, "{sizes:?}");
    let mean = messages as f64 / sizes.len() as f64;
    ensure!(mean >= 9.5, "{mean} entries per request: {sizes:?}");
    Ok(())
}

#[tokio::test]
async fn requests_are_no_larger_than_the_request_size() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    bed.standard("audit").await?;
    bed.enqueue_many("audit", 30, 0).await?;
    bed.relay().env("OUTBOX_RELAY_REQUEST_SIZE", "3").deliver_all().await?;
    ensure!(proxy.entries_per_request() == [3; 10], "{:?}", proxy.entries_per_request());
    Ok(())
}

#[tokio::test]
async fn no_more_requests_are_in_flight_than_allowed() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    bed.standard("audit").await?;
    bed.enqueue_many("audit", 300, 0).await?;
    proxy.set(Fault::Hold);
    let relay = bed.relay().env("OUTBOX_RELAY_MAX_IN_FLIGHT", "4").start().await?;
    proxy.wait_for_held(4).await?;
    proxy.release();
    bed.until_nothing_is_pending().await?;
    relay.stop().await?;
    ensure!(proxy.most_in_flight() == 4, "{}", proxy.most_in_flight());
    Ok(())
}

#[tokio::test]
async fn requests_are_split_by_bytes() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let queue = bed.standard("audit").await?;
    let query =
        "SELECT outbox.enqueue('audit', 'TicketPurchased', jsonb_build_object('n', n, 'pad', repeat('x', 300000)))
                 FROM generate_series(1, 20) AS n";
    bed.client.execute(query, &[]).await?;
    bed.relay().deliver_all().await?;
    ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, 20)?;
    for request in proxy.requests() {
        ensure!(request.answered == Some(200), "{:?} {} bytes", request.answered, bytes(&request)?);
        ensure!(bytes(&request)? <= MAX_BYTES, "{} bytes", bytes(&request)?);
    }
    // Three fit into a request, so at least seven requests are needed.
    ensure!(proxy.requests_seen() <= 8, "{:?}", proxy.entries_per_request());
    Ok(())
}

#[tokio::test]
async fn strict_mode_never_sends_two_entries_of_a_group_at_a_time() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let queue = bed.fifo("tickets").await?;
    bed.enqueue_many("tickets", 60, 3).await?;
    proxy.set(Fault::HoldAnswer);
    let relay = bed.relay().start().await?;
    proxy.wait_for_held(1).await?;
    // The last message, in a group of its own: by the time it comes, the relay has sent everything it would send along
    // with the first three.
    bed.enqueue("tickets", r#"{"n": 61}"#, Some("last")).await?;
    proxy.wait_for_held(2).await?;
    let in_flight = proxy.requests();
    let in_flight: Vec<_> = in_flight.iter().flat_map(|request| groups(&request.entries)).collect();
    let distinct: HashSet<_> = in_flight.iter().collect();
    ensure!(in_flight.len() == 4 && distinct.len() == 4, "{in_flight:?}");
    proxy.release();
    bed.until_nothing_is_pending().await?;
    relay.stop().await?;
    for request in proxy.requests() {
        let groups = groups(&request.entries);
        ensure!(groups.iter().collect::<HashSet<_>>().len() == groups.len(), "{groups:?} in one request");
    }
    ensure_ascending(&sent_by_group(&proxy.requests())?)?;
    ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, 61)
}

#[tokio::test]
async fn batched_mode_sends_up_to_ten_of_a_group_in_order() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let queue = bed.fifo("tickets").await?;
    bed.enqueue_many("tickets", 100, 1).await?;
    bed.relay().env("OUTBOX_RELAY_FIFO_MODE", "batched").deliver_all().await?;
    ensure!(proxy.entries_per_request() == [10; 10], "{:?}", proxy.entries_per_request());
    ensure!(proxy.most_in_flight() == 1, "{} requests of the group in flight", proxy.most_in_flight());
    let arrived = numbers(&bed.queues.contents(&queue).await?)?;
    ensure!(arrived == (1..=100).collect::<Vec<_>>(), "{arrived:?}");
    Ok(())
}

#[tokio::test]
async fn messages_of_a_group_arrive_in_the_order_of_their_ids() -> Result<()> {
    for mode in ["strict", "batched"] {
        let bed = TestBed::new().await?;
        let queue = bed.fifo("tickets").await?;
        bed.enqueue_many("tickets", 1500, 40).await?;
        bed.relay().env("OUTBOX_RELAY_FIFO_MODE", mode).deliver_all().await?;
        let messages = bed.queues.contents(&queue).await?;
        ensure_each_once(numbers(&messages)?, 1500)?;
        for group in 0..40 {
            let group = format!("g{group}");
            let of_group = messages.iter().filter(|message| message.group_id.as_ref() == Some(&group));
            let arrived = numbers(&of_group.cloned().collect::<Vec<_>>())?;
            ensure!(arrived.is_sorted() && arrived.len() >= 37, "{mode}: {group} arrived as {arrived:?}");
        }
    }
    Ok(())
}
