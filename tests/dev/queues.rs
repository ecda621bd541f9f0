//! The queues, through a real client of SQS.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use aws_sdk_sqs::Client;
use aws_sdk_sqs::error::ProvideErrorMetadata as _;
use aws_sdk_sqs::primitives::Blob;
use aws_sdk_sqs::types::{MessageAttributeValue, SendMessageBatchRequestEntry};
use support::emulator::Depth;

use super::ground::Dev;

async fn send(client: &Client, queue: &str, group: &str, id: &str) -> Result<(String, String)> {
    let request = client.send_message().queue_url(queue).message_body(format!("{group} {id}"));
    let sent = request.message_group_id(group).message_deduplication_id(id).send().await?;
    Ok((sent.message_id.unwrap_or_default(), sent.sequence_number.unwrap_or_default()))
}

/// Body and receipt handle of each.
async fn receive(client: &Client, queue: &str, visibility: i32) -> Result<Vec<(String, String)>> {
    let request = client.receive_message().queue_url(queue).max_number_of_messages(10).visibility_timeout(visibility);
    let messages = request.send().await?.messages.unwrap_or_default();
    Ok(messages.into_iter().map(|one| (one.body.unwrap_or_default(), one.receipt_handle.unwrap_or_default())).collect())
}

fn bodies(received: &[(String, String)]) -> Vec<&str> {
    received.iter().map(|(body, _)| body.as_str()).collect()
}

#[tokio::test]
async fn a_fifo_queue_keeps_groups_in_order_blocks_them_in_flight_and_drops_copies() -> Result<()> {
    let dev = Dev::start(&["--no-relay"]).await?;
    let (queue, queues) = (dev.queue("tickets")?, dev.queues()?);
    let client = queues.client();
    let first = send(client, &queue, "a", "1").await?;
    let second = send(client, &queue, "a", "2").await?;
    send(client, &queue, "b", "3").await?;
    ensure!(send(client, &queue, "a", "1").await? == first, "a copy has the ids of the first");
    ensure!(second.1 > first.1 && second.1.len() == 20, "{first:?} {second:?}");
    dev.line("COPY, dropped by the queue").await?;
    let received = receive(client, &queue, 600).await?;
    ensure!(bodies(&received) == ["a 1", "a 2", "b 3"], "{received:?}");
    send(client, &queue, "a", "4").await?;
    ensure!(receive(client, &queue, 600).await?.is_empty(), "group a is in flight");
    client.delete_message().queue_url(&queue).receipt_handle(&received[0].1).send().await?;
    let request = client.change_message_visibility().queue_url(&queue).receipt_handle(&received[1].1);
    request.visibility_timeout(0).send().await?;
    let again = receive(client, &queue, 600).await?;
    ensure!(bodies(&again) == ["a 2", "a 4"], "{again:?}");
    ensure!(queues.depth(&queue).await? == Depth { visible: 0, in_flight: 3 });
    let error = client.delete_message().queue_url(&queue).receipt_handle(&received[1].1).send().await.err();
    let code = error.as_ref().and_then(|error| error.code());
    ensure!(code == Some("InvalidParameterValue"), "an old handle: {error:?}");
    dev.end("TERM").await?;
    Ok(())
}

#[tokio::test]
async fn a_long_poll_ends_with_the_next_message_and_with_the_server() -> Result<()> {
    let dev = Dev::start(&["--no-relay"]).await?;
    let (queue, queues) = (dev.queue("audit")?, dev.queues()?);
    let polled = tokio::spawn({
        let (queue, queues) = (queue.clone(), queues.clone());
        async move { queues.receive(&queue, Duration::from_secs(20)).await }
    });
    queues.client().send_message().queue_url(&queue).message_body("hello").send().await?;
    let received = polled.await??;
    ensure!(received.len() == 1 && received[0].1.body == "hello", "{received:?}");
    let polled = tokio::spawn(async move { queues.receive(&queue, Duration::from_secs(20)).await });
    // Whether the server has seen it or not, it must not hold up the end.
    tokio::task::yield_now().await;
    dev.end("TERM").await?;
    polled.abort();
    Ok(())
}

#[tokio::test]
async fn every_kind_of_attribute_has_the_digest_that_the_client_expects() -> Result<()> {
    let dev = Dev::start(&["--no-relay"]).await?;
    let (queue, queues) = (dev.queue("audit")?, dev.queues()?);
    let value = |kind: &str| MessageAttributeValue::builder().data_type(kind);
    let attributes = HashMap::from([
        ("name".to_owned(), value("String").string_value("größe").build()?),
        ("count".to_owned(), value("Number.int").string_value("42").build()?),
        ("bytes".to_owned(), value("Binary").binary_value(Blob::new([0, 255, 1])).build()?),
    ]);
    let request = queues.client().send_message().queue_url(&queue).message_body("x");
    let sent = request.set_message_attributes(Some(attributes.clone())).send().await?;
    // By Python's hashlib, as the developer guide describes it.
    let digest = Some("ec01ed1fd4510b61049074a68b531aae");
    ensure!(sent.md5_of_message_attributes() == digest, "{sent:?}");
    let request = queues.client().receive_message().queue_url(&queue).message_attribute_names("All");
    let received = request.send().await?.messages.unwrap_or_default().remove(0);
    ensure!(received.md5_of_message_attributes() == digest && received.message_attributes == Some(attributes));
    dev.end("TERM").await?;
    Ok(())
}

#[tokio::test]
async fn errors_are_those_that_the_client_knows() -> Result<()> {
    let dev = Dev::start(&["--no-relay"]).await?;
    let (queue, queues) = (dev.queue("tickets")?, dev.queues()?);
    let client = queues.client();
    let missing = client.get_queue_url().queue_name("nobodys").send().await.err();
    let missing = missing.and_then(|error| error.into_service_error().is_queue_does_not_exist().then_some(()));
    ensure!(missing.is_some());
    let entry = |id: &str, body: &str| {
        let entry = SendMessageBatchRequestEntry::builder().id(id).message_body(body).message_group_id("g");
        entry.message_deduplication_id(id).build()
    };
    let request = client.send_message_batch().queue_url(&queue).entries(entry("a", "x")?).entries(entry("a", "y")?);
    let twice = request.send().await.err().map(|error| error.into_service_error().is_batch_entry_ids_not_distinct());
    ensure!(twice == Some(true));
    let request = client.send_message_batch().queue_url(&queue).entries(entry("a", "x")?).entries(entry("b", "\u{1}")?);
    let sent = request.send().await?;
    ensure!(sent.successful.len() == 1 && sent.failed.len() == 1 && sent.failed[0].code == "InvalidMessageContents");
    dev.end("TERM").await?;
    Ok(())
}
