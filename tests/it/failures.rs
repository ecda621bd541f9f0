//! Failing messages are retried or become dead with their reason; the others go on meanwhile.

use anyhow::{Context, Result, ensure};

use support::eventually;
use support::proxy::{Choice, Fault, Request, Rule};
use support::relay::Command;
use support::test_bed::{TestBed, ensure_each_once, numbers};

/// SQS's own failure of single entries, for the entries with these numbers.
fn fail(numbers: &'static [i64]) -> Fault {
    let bodies: Vec<_> = numbers.iter().map(|n| format!("{{\"n\": {n}}}")).collect();
    let which = Choice::by(move |_, entry| bodies.contains(&entry.body));
    Fault::FailEntries { which, code: "InternalError", sender_fault: false }
}

/// A relay that makes no message dead and never waits long.
fn patient(bed: &TestBed) -> Command {
    let relay = bed.relay().env("OUTBOX_RELAY_MAX_ATTEMPTS", "1000");
    relay.env("OUTBOX_RELAY_RETRY_INITIAL", "20ms").env("OUTBOX_RELAY_RETRY_MAX", "200ms")
}

async fn ids(bed: &TestBed) -> Result<Vec<i64>> {
    let rows = bed.client.query("SELECT id FROM outbox.messages ORDER BY id", &[]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

#[tokio::test]
async fn messages_that_die_together_are_one_line_of_the_log() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    bed.standard("audit").await?;
    bed.enqueue_many("audit", 500, 0).await?;
    proxy.set(Fault::FailEntries { which: Choice::every(), code: "InvalidMessageContents", sender_fault: true });
    let ended = bed.relay().until_empty().await?;
    ensure!(ended.code == Some(1) && bed.count("SELECT count(*) FROM outbox.messages_dead").await? == 500);
    let counts: Vec<u64> = ended
        .stderr
        .lines()
        .filter(|line| line.contains("messages are dead"))
        .map(|line| {
            let count = line.split_once(" messages=").and_then(|(_, rest)| rest.split(' ').next());
            count.and_then(|count| count.parse().ok()).context(line.to_owned())
        })
        .collect::<Result<_>>()?;
    ensure!(counts.iter().sum::<u64>() == 500 && counts.len() <= 50, "{counts:?} in {}", ended.stderr);
    Ok(())
}

#[tokio::test]
async fn a_partial_failure_settles_each_entry_separately() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let queue = bed.standard("audit").await?;
    bed.enqueue_many("audit", 10, 0).await?;
    let ids = ids(&bed).await?;
    proxy.set(fail(&[3, 7]));
    let relay = patient(&bed).start().await?;
    eventually("the others are delivered", || async { Ok(bed.delivered().await? == 8) }).await?;
    // Each request meets the fault again; only two messages are left for it.
    let seen = proxy.requests_seen();
    proxy.wait_for_requests(seen + 2).await?;
    relay.stop().await?;
    for (number, id) in (1..).zip(&ids) {
        let row = bed.row(*id).await?;
        if number == 3 || number == 7 {
            ensure!(row.status == "pending" && row.attempts >= 1, "{number}: {row:?}");
            ensure!(row.last_error.context("no reason")?.contains("InternalError"));
        } else {
            ensure!(row.status == "delivered" && row.attempts == 0, "{number}: {row:?}");
        }
    }
    proxy.clear();
    patient(&bed).deliver_all().await?;
    ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, 10)
}

#[tokio::test]
async fn a_message_that_keeps_failing_is_dead_with_its_reason() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let queue = bed.fifo("tickets").await?;
    bed.enqueue_many("tickets", 5, 5).await?;
    let ids = ids(&bed).await?;
    proxy.set(fail(&[4]));
    let relay = patient(&bed).env("OUTBOX_RELAY_MAX_ATTEMPTS", "3").start().await?;
    let others = bed.trickle("tickets").await?;
    eventually("it is dead", || async { Ok(bed.row(ids[3]).await?.status == "dead") }).await?;
    drop(others);
    let row = bed.row(ids[3]).await?;
    ensure!(row.attempts == 3 && row.last_error.context("no reason")?.contains("InternalError"));
    relay.stop().await?;
    let arrived = bed.queues.contents(&queue).await?;
    ensure!(!arrived.iter().any(|message| message.body == "{\"n\": 4}"), "it was sent after it was given up");
    Ok(())
}

/// While SQS accepts nothing at all, the cause is unknown, and no message is charged.
#[tokio::test]
async fn a_message_that_fails_alone_is_charged_only_once_others_get_through() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    bed.standard("audit").await?;
    let id = bed.enqueue("audit", "{\"n\": 1}", None).await?;
    proxy.set(fail(&[1]));
    let relay = patient(&bed).env("OUTBOX_RELAY_MAX_ATTEMPTS", "3").start().await?;
    proxy.wait_for_requests(10).await?;
    let row = bed.row(id).await?;
    ensure!(row.status == "pending" && row.attempts == 0, "{row:?}");
    relay.wait_for_metric(r#"destination_up{destination="audit"}"#, 0.0).await?;
    let others = bed.trickle("audit").await?;
    eventually("it is dead", || async { Ok(bed.row(id).await?.status == "dead") }).await?;
    drop(others);
    relay.stop().await?;
    Ok(())
}

#[tokio::test]
async fn attempts_are_counted_over_restarts() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    bed.standard("audit").await?;
    let id = bed.enqueue("audit", "{\"n\": 1}", None).await?;
    proxy.set(fail(&[1]));
    let _others = bed.trickle("audit").await?;
    let mut before = 0;
    for _ in 0..2 {
        let relay = patient(&bed).start().await?;
        let seen = proxy.requests_seen();
        let tries = || {
            let tries = |request: &Request| request.entries.iter().filter(|entry| entry.body == "{\"n\": 1}").count();
            proxy.requests().iter().map(tries).sum::<usize>()
        };
        let tried = tries();
        // The first failures may come so soon after each other that no others succeed in between; then they are not
        // charged.
        eventually("it is tried again and again", || async { Ok(tries() >= tried + 15) }).await?;
        relay.stop().await?;
        let attempts = bed.row(id).await?.attempts;
        ensure!(attempts >= before + 3, "{attempts} after {before}, {seen} requests");
        before = attempts;
    }
    Ok(())
}

#[tokio::test]
async fn messages_that_sqs_refuses_for_good_are_dead_at_once() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let queue = bed.standard("audit").await?;
    bed.enqueue_many("audit", 10, 0).await?;
    let which = Choice::body_contains("\"n\": 6}");
    proxy.set(Fault::FailEntries { which, code: "InvalidMessageContents", sender_fault: true });
    ensure!(bed.relay().until_empty().await?.code == Some(1));
    let row = bed.row(ids(&bed).await?[5]).await?;
    ensure!(row.status == "dead" && row.attempts == 1, "{row:?}");
    ensure!(row.last_error.context("no reason")?.contains("InvalidMessageContents"));
    ensure!(proxy.requests_seen() == 1 && bed.queues.depth(&queue).await?.visible == 9);
    Ok(())
}

#[tokio::test]
async fn an_unconfirmed_entry_stays_pending_and_is_sent_again_as_the_same() -> Result<()> {
    for fault in [Fault::DropFromAnswer(Choice::body_contains("\"n\": 2}")), Fault::EmptyAnswer] {
        let name = format!("{fault:?}");
        let bed = TestBed::new().await?;
        let proxy = bed.proxy().await?;
        let queue = bed.fifo("tickets").await?;
        bed.enqueue_many("tickets", 3, 3).await?;
        let id = ids(&bed).await?[1];
        proxy.script([Rule::new(fault).times(1), Rule::new(Fault::Hold)]);
        let relay = patient(&bed).start().await?;
        proxy.wait_for_held(1).await?;
        ensure!(bed.row(id).await?.status == "pending", "{name}");
        ensure!(bed.row(id).await?.attempts == 0, "{name}");
        proxy.release();
        bed.until_nothing_is_pending().await?;
        let duplicates = relay.metrics().await?.get(r#"possible_duplicates_total{destination="tickets"}"#)?;
        ensure!(duplicates >= 1.0, "{name}: {duplicates}");
        relay.stop().await?;
        let requests = proxy.requests();
        let sent =
            requests.iter().flat_map(|request| request.entries.iter()).filter(|entry| entry.body == "{\"n\": 2}");
        let sent: Vec<_> = sent.map(|entry| entry.deduplication_id.clone()).collect();
        ensure!(sent.len() == 2 && sent[0] == sent[1] && sent[0].is_some(), "{name}: {sent:?}");
        ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, 3).context(name)?;
    }
    Ok(())
}

#[tokio::test]
async fn connections_cut_after_sending_leave_each_message_once_in_a_fifo_queue() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let queue = bed.fifo("tickets").await?;
    bed.enqueue_many("tickets", 300, 30).await?;
    proxy.script([Rule::new(Fault::CutAfterForward).chance(0.3, 7).times(12)]);
    patient(&bed).deliver_all().await?;
    let cut = proxy.requests().iter().filter(|request| request.forwarded && request.answered.is_none()).count();
    ensure!(cut == 12, "{cut} connections were cut");
    let messages = bed.queues.contents(&queue).await?;
    ensure_each_once(numbers(&messages)?, 300)?;
    for group in 0..30 {
        let group = format!("g{group}");
        let of_group = messages.iter().filter(|message| message.group_id.as_ref() == Some(&group)).cloned();
        let arrived = numbers(&of_group.collect::<Vec<_>>())?;
        ensure!(arrived.is_sorted(), "{group} arrived as {arrived:?}");
    }
    Ok(())
}

#[tokio::test]
async fn unreadable_answers_lose_nothing() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let queue = bed.fifo("tickets").await?;
    bed.enqueue_many("tickets", 50, 5).await?;
    proxy.script([
        Rule::new(Fault::Garble(200, "<html>")).times(1),
        Rule::new(Fault::Garble(500, "")).times(1),
        Rule::new(Fault::CutBeforeForward).times(2),
    ]);
    patient(&bed).deliver_all().await?;
    ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, 50)
}

#[tokio::test]
async fn a_failing_message_holds_up_its_group_and_nobody_else() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let queue = bed.fifo("tickets").await?;
    // Group g5 has the numbers 5, 55, 105, …, and 50 groups share 16 lanes.
    bed.enqueue_many("tickets", 1000, 50).await?;
    proxy.set(fail(&[105]));
    let relay = patient(&bed).start().await?;
    eventually("all but the group's rest is delivered", || async { Ok(bed.pending().await? == 18) }).await?;
    let arrived = numbers(&bed.queues.contents(&queue).await?)?;
    let of_group: Vec<_> = arrived.into_iter().filter(|n| n % 50 == 5).collect();
    ensure!(of_group == [5, 55], "{of_group:?} went past the message that failed");
    proxy.clear();
    bed.until_nothing_is_pending().await?;
    relay.stop().await?;
    let arrived = numbers(&bed.queues.contents(&queue).await?)?;
    let of_group: Vec<_> = arrived.iter().copied().filter(|n| n % 50 == 5).collect();
    ensure!(of_group.len() == 20 && of_group.is_sorted(), "{of_group:?}");
    ensure_each_once(arrived, 1000)
}
