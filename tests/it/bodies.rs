//! What consumers receive: the payload byte for byte, and the attributes.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use support::emulator::Received;
use support::test_bed::TestBed;

/// The largest message in SQS: body, and names, types and values of attributes.
const MAX_BYTES: usize = 1_048_576;

async fn only_message(bed: &TestBed, queue: &str) -> Result<Received> {
    let mut messages = bed.queues.contents(queue).await?;
    ensure!(messages.len() == 1, "{} messages", messages.len());
    messages.pop().context("no message")
}

#[tokio::test]
async fn bodies_arrive_byte_for_byte() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.standard("audit").await?;
    let payloads = [
        r#"{}"#,
        r#"[]"#,
        r#""text""#,
        r#"null"#,
        r#"{"b": 1, "a": 2, "": 3}"#,
        r#"{"name": "Grüße 漢字 🎲 e\u0301 \u200f", "astral": "𝄞 \ud83c\udfb2"}"#,
        r#"{"quote": "\" \\ \/ \b \f \n \r \t \u0001 \u001f", "del": "\u007f"}"#,
        r#"{"n": 9007199254740993, "m": -9223372036854775809, "f": 0.10000000000000000000001}"#,
        r#"{"n": 1e400, "small": 1e-400, "zero": -0.0, "places": 1.500}"#,
        r#"{"last": "\ud7ff\ue000\ufffd\udbff\udfff"}"#,
    ];
    let mut expected = Vec::new();
    for payload in payloads {
        bed.enqueue("audit", payload, None).await?;
        let row = bed.client.query_one("SELECT $1::text::jsonb::text", &[&payload]).await?;
        expected.push(row.get::<_, String>(0));
    }
    bed.relay().deliver_all().await?;
    let mut arrived: Vec<_> = bed.queues.contents(&queue).await?.into_iter().map(|message| message.body).collect();
    arrived.sort();
    expected.sort();
    ensure!(arrived == expected, "{arrived:#?}\n instead of {expected:#?}");
    ensure!(arrived.iter().any(|body| body.contains("9007199254740993") && body.contains("-9223372036854775809")));
    ensure!(arrived.iter().any(|body| body.contains(&format!("1{}", "0".repeat(400)))));
    Ok(())
}

#[tokio::test]
async fn characters_that_sqs_refuses_arrive_escaped() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.standard("audit").await?;
    bed.enqueue("audit", "{\"a\": \"\u{fffe}x\u{ffff}\"}", None).await?;
    bed.relay().deliver_all().await?;
    let message = only_message(&bed, &queue).await?;
    ensure!(message.body == r#"{"a": "\ufffex\uffff"}"#, "{}", message.body);
    let value: Value = serde_json::from_str(&message.body)?;
    ensure!(value == json!({"a": "\u{fffe}x\u{ffff}"}), "{value}");
    Ok(())
}

/// Commits a message whose body and attributes together are `bytes` bytes; returns its id.
async fn enqueue_of_size(bed: &TestBed, bytes: usize) -> Result<i64> {
    let attributes = "event_id".len() + "String".len() + 36 + "event_type".len() + "String".len() + "T".len();
    let padding = i32::try_from(bytes - attributes - r#"{"pad": ""}"#.len())?;
    let query = "SELECT outbox.enqueue('tickets', 'T', jsonb_build_object('pad', repeat('x', $1)), 'group')";
    Ok(bed.client.query_one(query, &[&padding]).await?.get(0))
}

#[tokio::test]
async fn the_largest_message_that_sqs_takes_arrives() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.fifo("tickets").await?;
    let id = enqueue_of_size(&bed, MAX_BYTES).await?;
    bed.relay().deliver_all().await?;
    let message = only_message(&bed, &queue).await?;
    let attributes: usize = message.attributes.iter().map(|(name, value)| name.len() + value.len() + 6).sum();
    ensure!(message.body.len() + attributes == MAX_BYTES, "{} + {attributes}", message.body.len());
    ensure!(bed.row(id).await?.status == "delivered");
    Ok(())
}

#[tokio::test]
async fn a_message_one_byte_too_large_dies_with_its_size_and_its_neighbours_arrive() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.fifo("tickets").await?;
    bed.enqueue("tickets", r#"{"n": 1}"#, Some("group")).await?;
    let id = enqueue_of_size(&bed, MAX_BYTES + 1).await?;
    bed.enqueue("tickets", r#"{"n": 2}"#, Some("group")).await?;
    let ended = bed.relay().until_empty().await?;
    ensure!(ended.code == Some(1), "{ended:?}");
    let row = bed.row(id).await?;
    let reason = row.last_error.context("no reason")?;
    ensure!(row.status == "dead" && reason.contains("1048577"), "{} {reason}", row.status);
    let bodies: Vec<_> = bed.queues.contents(&queue).await?.into_iter().map(|message| message.body).collect();
    ensure!(bodies == [r#"{"n": 1}"#, r#"{"n": 2}"#], "{bodies:?}");
    Ok(())
}

#[tokio::test]
async fn attributes_carry_the_events_id_type_stream_and_version() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    bed.fifo("tickets").await?;
    let event = "INSERT INTO outbox.events (event_id, event_type, stream_id, stream_version, payload, metadata)
        VALUES ('018f3a5c-0000-7000-8000-000000000001', 'TicketPurchased', 'draw-7', 3, '{}',
            '{\"traceparent\": \"00-1-2-01\", \"correlation_id\": \"c\", \"attempt\": 4, \"nothing\": null,
              \"vip\": true, \"AWSTraceHeader\": \"Root=1-5759e988-bd862e3fe1be46a994272793\", \"bad name\": \"x\", \"AWS.x\": \"x\"}')
        RETURNING position";
    let position: i64 = bed.client.query_one(event, &[]).await?.get(0);
    let message =
        "INSERT INTO outbox.messages (destination, event_position, group_id) VALUES ('tickets', $1, 'draw-7')";
    bed.client.execute(message, &[&position]).await?;
    bed.relay().deliver_all().await?;
    let entry = proxy.requests()[0].entries[0].clone();
    let text = |value: &str| json!({"DataType": "String", "StringValue": value});
    let number = |value: &str| json!({"DataType": "Number", "StringValue": value});
    let expected = json!({
        "event_id": text("018f3a5c-0000-7000-8000-000000000001"),
        "event_type": text("TicketPurchased"),
        "stream_id": text("draw-7"),
        "stream_version": number("3"),
        "traceparent": text("00-1-2-01"),
        "correlation_id": text("c"),
        "attempt": number("4"),
        "vip": text("true"),
    });
    ensure!(entry.attributes == expected, "{:#}", entry.attributes);
    let expected = json!({"AWSTraceHeader": text("Root=1-5759e988-bd862e3fe1be46a994272793")});
    ensure!(entry.system_attributes == expected, "{:#}", entry.system_attributes);
    Ok(())
}

#[tokio::test]
async fn ten_attributes_are_sent_and_those_left_out_are_counted() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.standard("audit").await?;
    let query = "SELECT outbox.enqueue('audit', 'T', '{}', NULL, (SELECT jsonb_object_agg('m' || n, 'v') ||
        '{\"traceparent\": \"t\"}' FROM generate_series(10, 29) AS n))";
    bed.client.execute(query, &[]).await?;
    let relay = bed.relay().start().await?;
    bed.until_nothing_is_pending().await?;
    ensure!(relay.metrics().await?.get(r#"attributes_left_out_total{destination="audit"}"#)? == 13.0);
    relay.stop().await?;
    let message = only_message(&bed, &queue).await?;
    ensure!(message.attributes.len() == 10, "{:?}", message.attributes);
    for name in ["event_id", "event_type", "traceparent", "m10", "m16"] {
        ensure!(message.attributes.contains_key(name), "{name} is not in {:?}", message.attributes);
    }
    Ok(())
}

#[tokio::test]
async fn a_number_too_large_for_an_attribute_takes_nothing_else_with_it() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.standard("audit").await?;
    let query = "SELECT outbox.enqueue('audit', 'T', '{}', NULL, '{\"big\": 1e400, \"traceparent\": \"00-1\", \"price\": 1.50}')";
    bed.client.execute(query, &[]).await?;
    let relay = bed.relay().start().await?;
    bed.until_nothing_is_pending().await?;
    relay.wait_for_metric(r#"attributes_left_out_total{destination="audit"}"#, 1.0).await?;
    relay.stop().await?;
    let message = only_message(&bed, &queue).await?;
    ensure!(message.attributes.len() == 4, "{:?}", message.attributes);
    ensure!(message.attributes["traceparent"] == "00-1" && message.attributes["price"] == "1.50", "{message:?}");
    Ok(())
}

#[tokio::test]
async fn groups_that_sqs_refuses_are_hashed_and_stay_apart() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.fifo("tickets").await?;
    let long = "x".repeat(129);
    let names = ["draw-1", "Ziehung 1", "Ziehung 2", "日", &long];
    for (number, group) in names.iter().enumerate() {
        bed.enqueue("tickets", &number.to_string(), Some(group)).await?;
        bed.enqueue("tickets", &(number + 10).to_string(), Some(group)).await?;
    }
    bed.enqueue("tickets", "20", None).await?;
    bed.relay().deliver_all().await?;
    let messages = bed.queues.contents(&queue).await?;
    let groups: HashMap<_, _> = messages
        .iter()
        .map(|message| (message.body.as_str(), message.group_id.as_deref().unwrap_or_default()))
        .collect();
    ensure!(groups["0"] == "draw-1", "{groups:?}");
    let mut distinct: Vec<_> = ["0", "1", "2", "3", "4", "20"].map(|body| groups[body]).to_vec();
    ensure!(distinct.iter().all(|group| group.len() <= 128 && group.is_ascii() && !group.contains(' ')), "{groups:?}");
    ensure!((1..5).all(|number| groups[number.to_string().as_str()] == groups[(number + 10).to_string().as_str()]));
    distinct.sort_unstable();
    distinct.dedup();
    ensure!(distinct.len() == 6, "{groups:?}");
    Ok(())
}

#[tokio::test]
async fn a_standard_queue_is_sent_no_group() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    bed.standard("audit").await?;
    bed.enqueue("audit", "{}", Some("draw-1")).await?;
    bed.relay().deliver_all().await?;
    let entry = proxy.requests()[0].entries[0].clone();
    ensure!(entry.group_id.is_none() && entry.deduplication_id.is_none(), "{entry:?}");
    Ok(())
}

#[tokio::test]
async fn two_messages_of_one_event_have_different_deduplication_ids() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.fifo("tickets").await?;
    bed.enqueue("tickets", "{}", Some("draw-1")).await?;
    let replay = "INSERT INTO outbox.messages (destination, event_position, group_id)
                  SELECT destination, event_position, group_id FROM outbox.messages";
    bed.client.execute(replay, &[]).await?;
    bed.relay().deliver_all().await?;
    let messages = bed.queues.contents(&queue).await?;
    ensure!(messages.len() == 2 && messages[0].deduplication_id != messages[1].deduplication_id, "{messages:?}");
    ensure!(messages[0].attributes["event_id"] == messages[1].attributes["event_id"], "{messages:?}");
    Ok(())
}

#[tokio::test]
async fn a_message_without_its_event_is_dead_and_not_lost() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.fifo("tickets").await?;
    let query = "INSERT INTO outbox.messages (destination, event_position) VALUES ('tickets', 4711) RETURNING id";
    let id = bed.client.query_one(query, &[]).await?.get(0);
    ensure!(bed.relay().until_empty().await?.code == Some(1));
    let row = bed.row(id).await?;
    ensure!(row.status == "dead" && row.last_error.is_some(), "{row:?}");
    Ok(())
}
