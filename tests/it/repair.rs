//! The order that the queue reports, and the copies that restore it: in batched mode an entry may fail although later
//! ones of its group are accepted.

use std::collections::HashSet;

use anyhow::{Context, Result, ensure};

use support::eventually;
use support::proxy::{Choice, Fault, Rule};
use support::relay::Command;
use support::test_bed::{TestBed, ensure_each, ensure_each_once, last_copies, numbers};

/// Messages whose number, as recorded, is not above the one of the message before it in the group.
const OUT_OF_ORDER: &str = "SELECT count(*) FROM (
        SELECT sqs_sequence_number > lag(sqs_sequence_number) OVER (PARTITION BY group_id ORDER BY id) AS rises
        FROM outbox.messages_delivered WHERE group_id IS NOT NULL
    ) AS m WHERE NOT rises";

fn batched(bed: &TestBed) -> Command {
    let relay = bed.relay().env("OUTBOX_RELAY_FIFO_MODE", "batched").env("OUTBOX_RELAY_MAX_ATTEMPTS", "1000");
    relay.env("OUTBOX_RELAY_RETRY_INITIAL", "20ms").env("OUTBOX_RELAY_RETRY_MAX", "200ms")
}

fn fail(which: Choice) -> Fault {
    Fault::FailEntries { which, code: "InternalError", sender_fault: false }
}

/// Everything has arrived, the last copies are in order, and their numbers are recorded.
async fn ensure_repaired(bed: &TestBed, queue: &str, count: i64) -> Result<()> {
    let messages = bed.queues.contents(queue).await?;
    let groups: HashSet<_> = messages.iter().map(|message| message.group_id.clone()).collect();
    for group in groups {
        let of_group = messages.iter().filter(|message| message.group_id == group).cloned();
        let arrived = numbers(&of_group.collect::<Vec<_>>())?;
        ensure!(last_copies(&arrived).is_sorted(), "{group:?} arrived as {arrived:?}");
    }
    ensure_each(numbers(&messages)?, count)?;
    let recorded = bed.count("SELECT count(sqs_sequence_number) FROM outbox.messages_delivered").await?;
    ensure!(recorded == count && bed.count(OUT_OF_ORDER).await? == 0, "{recorded} numbers are recorded");
    Ok(())
}

#[tokio::test]
async fn in_batched_mode_the_last_copies_are_in_order_whichever_entries_fail() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let queue = bed.fifo("tickets").await?;
    bed.enqueue_many("tickets", 300, 3).await?;
    proxy.add(Rule::new(fail(Choice::chance(0.2, 7))).times(60));
    let relay = batched(&bed).start().await?;
    bed.until_nothing_is_pending().await?;
    let metrics = relay.metrics().await?;
    let repaired = metrics.get("repaired_messages_total{destination=\"tickets\"}")?;
    let arrived = bed.queues.contents(&queue).await?.len();
    // One that is read again before its first copy is recorded as superseded counts twice.
    ensure!(arrived > 300 && repaired >= arrived as f64 - 300.0, "{repaired} repaired, {arrived} arrived");
    ensure!(metrics.get("order_breaks_total{destination=\"tickets\"}")? == 0.0);
    let log = relay.stop().await?;
    let lines = log.lines().filter(|line| line.contains("are sent again behind it")).count();
    ensure!(lines == 1, "{lines} lines for {repaired} messages");
    ensure_repaired(&bed, &queue, 300).await
}

#[tokio::test]
async fn a_failed_entry_in_a_lost_answer_is_known_by_the_sequence_numbers() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let queue = bed.fifo("tickets").await?;
    bed.enqueue_many("tickets", 10, 1).await?;
    proxy.add(Rule::new(fail(Choice::at([3]))).times(1).and_more());
    proxy.add(Rule::new(Fault::CutAfterForward).times(1));
    batched(&bed).deliver_all().await?;
    let arrived = numbers(&bed.queues.contents(&queue).await?)?;
    ensure!(arrived == [1, 2, 3, 5, 6, 7, 8, 9, 10, 4, 5, 6, 7, 8, 9, 10], "{arrived:?}");
    ensure_repaired(&bed, &queue, 10).await
}

#[tokio::test]
async fn another_relay_goes_on_with_a_repair() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let queue = bed.fifo("tickets").await?;
    bed.enqueue_many("tickets", 10, 1).await?;
    proxy.set(fail(Choice::body_contains("{\"n\": 4}")));
    let relay = batched(&bed).start().await?;
    eventually("the copies that came too early are recorded", || async {
        let marked = "SELECT count(*) FROM outbox.messages_pending WHERE sqs_sequence_number IS NOT NULL";
        Ok(bed.count(marked).await? == 6)
    })
    .await?;
    relay.kill().await?;
    proxy.clear();
    batched(&bed).deliver_all().await?;
    ensure_repaired(&bed, &queue, 10).await?;
    let requests = proxy.requests();
    let last = requests.last().context("nothing was sent")?;
    let ids: HashSet<_> = last.entries.iter().map(|entry| entry.deduplication_id.clone()).collect();
    let first: HashSet<_> = requests[0].entries.iter().map(|entry| entry.deduplication_id.clone()).collect();
    let known = ids.intersection(&first).count();
    ensure!(ids.len() == 7 && known == 1, "SQS drops copies with ids that it knows; {known} of {ids:?}");
    Ok(())
}

#[tokio::test]
async fn sequence_numbers_are_recorded_and_lost_answers_break_no_order() -> Result<()> {
    for mode in ["strict", "batched"] {
        let bed = TestBed::new().await?;
        let proxy = bed.proxy().await?;
        let queue = bed.fifo("tickets").await?;
        bed.enqueue_many("tickets", 200, 5).await?;
        proxy.add(Rule::new(Fault::CutAfterForward).chance(0.3, 3).times(15));
        let relay = bed.relay().env("OUTBOX_RELAY_FIFO_MODE", mode).start().await?;
        bed.until_nothing_is_pending().await?;
        let metrics = relay.metrics().await?;
        ensure!(metrics.sum("possible_duplicates_total") > 0.0, "{mode}: no answer was lost");
        for metric in ["order_breaks_total", "repaired_messages_total"] {
            ensure!(metrics.sum(metric) == 0.0, "{mode}: {metric} is {}", metrics.sum(metric));
        }
        relay.stop().await?;
        ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, 200)?;
        ensure_repaired(&bed, &queue, 200).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_queue_whose_sequence_numbers_fall_is_reported() -> Result<()> {
    for mode in ["strict", "batched"] {
        let bed = TestBed::new().await?;
        let proxy = bed.proxy().await?;
        let queue = bed.fifo("tickets").await?;
        bed.enqueue_many("tickets", 20, 1).await?;
        proxy.set(Fault::FallingNumbers);
        let relay = bed.relay().env("OUTBOX_RELAY_FIFO_MODE", mode).start().await?;
        bed.until_nothing_is_pending().await?;
        let breaks = relay.metrics().await?.sum("order_breaks_total");
        ensure!(breaks > 0.0 && breaks < 20.0, "{mode}: {breaks}");
        let log = relay.stop().await?;
        let lines = log.lines().filter(|line| line.contains("their sequence numbers do not rise")).count();
        ensure!(lines == 1, "{mode}: {lines} lines:\n{log}");
        ensure_each(numbers(&bed.queues.contents(&queue).await?)?, 20)?;
    }
    Ok(())
}
