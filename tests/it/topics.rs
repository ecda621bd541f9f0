//! Destinations that are SNS topics: fan-out, order, limits and faults, on the emulator's SNS with queues subscribed.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use support::emulator::{Received, Subscription};
use support::eventually;
use support::proxy::{Choice, ErrorAnswer, Fault, Rule};
use support::test_bed::{TestBed, ensure_each_once, ensure_order_in_groups, numbers};

/// SNS's limit of a message and of a request.
const MAX_BYTES: usize = 262_144;

const RAW: Subscription<'_> = Subscription { is_raw: true, filter_policy: "" };

/// An answer that refuses a whole request for its parameters.
fn refusal(code: &'static str) -> ErrorAnswer {
    ErrorAnswer { status: 400, kind: code, query_error: "", message: "Invalid parameter: Message" }
}

/// A FIFO topic `tickets` with one FIFO queue; returns the queue's URL.
async fn fifo_behind_topic(bed: &TestBed) -> Result<String> {
    let topic = bed.fifo_topic("tickets").await?;
    let queue = bed.queues.create_fifo("sales").await?;
    bed.topics.subscribe(&topic, &bed.queues, &queue, RAW).await?;
    Ok(queue)
}

#[tokio::test]
async fn a_message_reaches_every_queue_that_is_subscribed_and_wants_it() -> Result<()> {
    let bed = TestBed::new().await?;
    let topic = bed.topic("tickets").await?;
    let wants = |filter_policy| Subscription { is_raw: true, filter_policy };
    let mut queues = Vec::new();
    let subscriptions = [
        Subscription::default(),
        wants(""),
        wants(r#"{"event_type": ["TicketPurchased"], "tenant": ["a"]}"#),
        wants(r#"{"event_type": ["DrawClosed"]}"#),
    ];
    for subscription in subscriptions {
        let queue = bed.queues.create_standard("subscriber").await?;
        bed.topics.subscribe(&topic, &bed.queues, &queue, subscription).await?;
        queues.push(queue);
    }
    let written = bed
        .client
        .query_one(
            "SELECT outbox.enqueue('tickets', 'TicketPurchased', '{\"n\": 7}', group_id => 'draw-1',
                metadata => '{\"tenant\": \"a\", \"AWSTraceHeader\": \"Root=1-5759e988-bd862e3fe1be46a994272793\"}')",
            &[],
        )
        .await?;
    bed.relay().deliver_all().await?;
    let row = bed.row(written.get(0)).await?;
    ensure!(row.status == "delivered" && row.sqs_message_id.is_some(), "{row:?}");
    let mut contents = Vec::new();
    for queue in &queues {
        contents.push(bed.queues.contents(queue).await?);
    }
    let [wrapped, raw, filtered, other] = &contents[..] else { anyhow::bail!("four queues") };
    ensure!(other.is_empty(), "its filter policy wants another type: {other:?}");
    for [message] in [raw, filtered].map(|found| <&[Received; 1]>::try_from(&found[..])).into_iter().flatten() {
        ensure!(message.body == "{\"n\": 7}", "{message:?}");
        let names = ["event_type", "tenant"].map(|name| message.attributes.get(name).map(String::as_str));
        ensure!(names == [Some("TicketPurchased"), Some("a")], "{message:?}");
        ensure!(message.attributes.contains_key("event_id") && message.attributes.len() == 3, "{message:?}");
    }
    ensure!(raw.len() == 1 && filtered.len() == 1);
    let [envelope] = &wrapped[..] else { anyhow::bail!("{wrapped:?}") };
    let envelope: Value = serde_json::from_str(&envelope.body)?;
    ensure!(envelope["Message"] == "{\"n\": 7}", "{envelope}");
    ensure!(envelope["MessageAttributes"]["event_type"]["Value"] == "TicketPurchased", "{envelope}");
    ensure!(envelope["MessageId"].as_str() == row.sqs_message_id.as_deref(), "{envelope}");
    Ok(())
}

#[tokio::test]
async fn a_fifo_topic_keeps_the_order_of_each_group_and_drops_what_comes_twice() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let queue = fifo_behind_topic(&bed).await?;
    proxy.script([Rule::new(Fault::CutAfterForward).chance(0.2, 7)]);
    bed.enqueue_many("tickets", 500, 20).await?;
    let relay = bed.relay().env("OUTBOX_RELAY_RETRY_MAX", "200ms").start().await?;
    bed.until_drained().await?;
    relay.stop().await?;
    ensure!(proxy.requests().iter().any(|request| request.forwarded && request.answered.is_none()), "nothing was cut");
    let messages = bed.queues.contents(&queue).await?;
    ensure_each_once(numbers(&messages)?, 500)?;
    ensure_order_in_groups(&messages)?;
    Ok(())
}

#[tokio::test]
async fn a_failing_entry_of_a_topic_holds_up_its_group_and_nobody_else() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let queue = fifo_behind_topic(&bed).await?;
    let fails =
        || Fault::FailEntries { which: Choice::body_contains("\"n\": 3}"), code: "InternalError", sender_fault: false };
    proxy.set(fails());
    bed.enqueue_many("tickets", 20, 5).await?;
    let relay =
        bed.relay().env("OUTBOX_RELAY_MAX_ATTEMPTS", "3").env("OUTBOX_RELAY_RETRY_MAX", "300ms").start().await?;
    let trickle = bed.trickle("tickets").await?;
    eventually("it is dead", || async { Ok(bed.count("SELECT count(*) FROM outbox.messages_dead").await? == 1) })
        .await?;
    drop(trickle);
    bed.until_nothing_is_pending().await?;
    relay.stop().await?;
    let dead = bed.client.query_one("SELECT attempts, last_error FROM outbox.messages_dead", &[]).await?;
    let (attempts, error): (i16, String) = (dead.get(0), dead.get(1));
    ensure!(attempts == 3 && error.contains("InternalError"), "{attempts}: {error}");
    let all = bed.queues.contents(&queue).await?;
    let numbered: Vec<Received> = all.into_iter().filter(|message| message.body.contains("\"n\"")).collect();
    let mut seen = numbers(&numbered)?;
    seen.sort_unstable();
    ensure!(seen == (1..=20).filter(|n| *n != 3).collect::<Vec<_>>(), "{seen:?}");
    ensure_order_in_groups(&numbered)
}

#[tokio::test]
async fn requests_to_a_topic_stay_within_256_kib_and_larger_messages_are_dead() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let topic = bed.topic("audit").await?;
    let queue = bed.queues.create_standard("auditor").await?;
    bed.topics.subscribe(&topic, &bed.queues, &queue, RAW).await?;
    let write = "SELECT outbox.enqueue('audit', 'E', jsonb_build_object('n', $1::bigint, 't', repeat('x', $2)))";
    for (number, size) in [(1_i64, 100_000), (2, 100_000), (3, 100_000), (4, 300_000), (5, 250_000), (6, 10)] {
        bed.client.query_one(write, &[&number, &size]).await?;
    }
    let ended = bed.relay().until_empty().await?;
    ensure!(ended.code == Some(1) && ended.stderr.contains("messages are dead"), "{}", ended.stderr);
    let mut seen = numbers(&bed.queues.contents(&queue).await?)?;
    seen.sort_unstable();
    ensure!(seen == [1, 2, 3, 5, 6], "{seen:?}");
    let error: String = bed.client.query_one("SELECT last_error FROM outbox.messages_dead", &[]).await?.get(0);
    ensure!(error.contains("MessageTooLong") && error.contains("SNS takes 262144"), "{error}");
    for request in proxy.requests() {
        let bytes: usize = request.entries.iter().map(|entry| entry.body.len()).sum();
        ensure!(bytes <= MAX_BYTES, "{bytes}");
        ensure!(request.answered == Some(200), "{request:?}");
    }
    Ok(())
}

#[tokio::test]
async fn metadata_that_is_left_out_does_not_count_towards_the_size_of_a_message() -> Result<()> {
    let bed = TestBed::new().await?;
    let topic = bed.topic("audit").await?;
    let queue = bed.queues.create_standard("auditor").await?;
    bed.topics.subscribe(&topic, &bed.queues, &queue, RAW).await?;
    let write = "SELECT outbox.enqueue('audit', 'E', jsonb_build_object('n', $1::bigint, 't', repeat('x', 245000)),
        metadata => (SELECT jsonb_object_agg('m' || k, repeat('v', $2)) FROM generate_series(10, 39) AS k))";
    for (number, length) in [(1_i64, 1000), (2, 40_000)] {
        bed.client.query_one(write, &[&number, &length]).await?;
    }
    bed.relay().until_empty().await?;
    ensure!(numbers(&bed.queues.contents(&queue).await?)? == [1], "eight members of 1,000 bytes fit beside the body");
    let error: String = bed.client.query_one("SELECT last_error FROM outbox.messages_dead", &[]).await?.get(0);
    ensure!(error.contains("MessageTooLong"), "eight members of 40,000 bytes do not: {error}");
    Ok(())
}

#[tokio::test]
async fn a_missing_topic_halts_its_destination_and_costs_no_attempt_until_it_is_there() -> Result<()> {
    let bed = TestBed::new().await?;
    let name = support::emulator::Topics::name("late", false);
    let arn = format!("arn:aws:sns:us-east-1:000000000000:{name}");
    bed.add_destination("audit", &arn);
    let id = bed.enqueue("audit", "{\"n\": 1}", None).await?;
    let relay = bed.relay().env("OUTBOX_RELAY_RETRY_MAX", "300ms").start().await?;
    relay.wait_for_log("destination halted").await?;
    ensure!(relay.log().contains("NotFound"), "{}", relay.log());
    let (_, page) = relay.get("/").await?;
    ensure!(page.contains(&arn), "the status page shows the topic");
    ensure!(bed.topics.create(&name).await? == arn);
    let queue = bed.queues.create_standard("auditor").await?;
    bed.topics.subscribe(&arn, &bed.queues, &queue, RAW).await?;
    bed.until_nothing_is_pending().await?;
    ensure!(bed.row(id).await?.attempts == 0);
    relay.stop().await?;
    // What was published before the queue had subscribed is gone: topics keep nothing.
    ensure!(bed.queues.contents(&queue).await?.len() <= 1);
    Ok(())
}

#[tokio::test]
async fn a_topic_that_may_not_be_used_halts_only_its_own_destination() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let topic = bed.topic("tickets").await?;
    let queue = bed.standard("audit").await?;
    let denied = Fault::error(403, "AuthorizationError", "");
    proxy.add(Rule::new(denied).queue(&topic));
    bed.enqueue_many("tickets", 10, 0).await?;
    bed.enqueue_many("audit", 10, 0).await?;
    let relay = bed.relay().start().await?;
    relay.wait_for_log("AuthorizationError").await?;
    eventually("audit is delivered", || async { Ok(bed.delivered().await? == 10) }).await?;
    ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, 10)?;
    ensure!(bed.count("SELECT count(*) FROM outbox.messages_pending WHERE attempts > 0").await? == 0);
    proxy.clear();
    bed.until_nothing_is_pending().await?;
    relay.stop().await?;
    Ok(())
}

#[tokio::test]
async fn a_message_for_which_sns_refuses_the_whole_request_is_found_and_stops_no_other() -> Result<()> {
    for code in ["InvalidParameter", "ValidationException"] {
        let bed = TestBed::new().await?;
        let proxy = bed.proxy().await?;
        let topic = bed.topic("audit").await?;
        let queue = bed.queues.create_standard("auditor").await?;
        bed.topics.subscribe(&topic, &bed.queues, &queue, RAW).await?;
        proxy.set(Fault::Refuse { which: Choice::body_contains("\"n\": 7}"), answer: refusal(code) });
        bed.enqueue_many("audit", 30, 0).await?;
        let relay =
            bed.relay().env("OUTBOX_RELAY_MAX_ATTEMPTS", "3").env("OUTBOX_RELAY_RETRY_MAX", "300ms").start().await?;
        let trickle = bed.trickle("audit").await?;
        eventually("it is dead", || async { Ok(bed.count("SELECT count(*) FROM outbox.messages_dead").await? == 1) })
            .await?;
        drop(trickle);
        bed.until_nothing_is_pending().await?;
        relay.stop().await?;
        let error: String = bed.client.query_one("SELECT last_error FROM outbox.messages_dead", &[]).await?.get(0);
        ensure!(error.contains(code), "{error}");
        let all = bed.queues.contents(&queue).await?;
        let numbered: Vec<Received> = all.into_iter().filter(|message| message.body.contains("\"n\"")).collect();
        ensure_each_once(numbers(&numbered)?.into_iter().map(|n| if n > 7 { n - 1 } else { n }).collect(), 29)?;
    }
    Ok(())
}

#[tokio::test]
async fn a_topic_that_refuses_every_message_halts_and_kills_nothing() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let topic = bed.topic("audit").await?;
    let queue = bed.queues.create_standard("auditor").await?;
    bed.topics.subscribe(&topic, &bed.queues, &queue, RAW).await?;
    proxy.set(Fault::Answer(refusal("InvalidParameter")));
    bed.enqueue_many("audit", 30, 0).await?;
    let relay =
        bed.relay().env("OUTBOX_RELAY_MAX_ATTEMPTS", "2").env("OUTBOX_RELAY_RETRY_MAX", "300ms").start().await?;
    relay.wait_for_log("destination halted").await?;
    ensure!(bed.count("SELECT count(*) FROM outbox.messages_dead").await? == 0);
    ensure!(bed.count("SELECT count(*) FROM outbox.messages_pending WHERE attempts > 0").await? == 0);
    proxy.clear();
    bed.until_nothing_is_pending().await?;
    relay.stop().await?;
    ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, 30)
}

#[tokio::test]
async fn check_says_what_is_wrong_with_a_topic_and_publishes_nothing() -> Result<()> {
    let bed = TestBed::new().await?;
    let topic = bed.fifo_topic("tickets").await?;
    bed.topic("lonely").await?;
    bed.add_destination("gone", "arn:aws:sns:us-east-1:000000000000:no-such-topic");
    let queue = bed.queues.create_fifo("sales").await?;
    bed.topics.subscribe(&topic, &bed.queues, &queue, RAW).await?;
    let checked = bed.relay().output(&["check"]).await?;
    for sentence in [
        "✓ topic of tickets: a FIFO topic, takes 262144 bytes, encryption: none",
        "✓ topic of tickets: 1 confirmed subscription(s)",
        "✓ topic of tickets: this relay may send",
        "! topic of lonely: has no subscription: SNS drops what it is sent",
        "✗ topic of gone: it does not exist (NotFound)",
        "create the topic, or correct its ARN in OUTBOX_RELAY_DESTINATIONS",
    ] {
        ensure!(checked.stdout.contains(sentence), "{sentence:?} is not in:\n{}", checked.stdout);
    }
    ensure!(checked.code == Some(1), "{:?}", checked.code);
    ensure!(bed.queues.contents(&queue).await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_group_is_sent_to_a_standard_topic_only_if_it_is_fair() -> Result<()> {
    for (options, expected) in [("", None), (";fair=true", Some("draw-1"))] {
        let bed = TestBed::new().await?;
        let proxy = bed.proxy().await?;
        let arn = bed.topics.create(&support::emulator::Topics::name("tickets", false)).await?;
        bed.add_destination("tickets", &format!("{arn}{options}"));
        bed.enqueue("tickets", "{}", Some("draw-1")).await?;
        bed.relay().deliver_all().await?;
        let requests = proxy.requests();
        let entry = requests[0].entries.first().context("no entry")?;
        ensure!(entry.group_id.as_deref() == expected && entry.deduplication_id.is_none(), "{entry:?}");
    }
    Ok(())
}
