//! From the database through the relay into the queues.

use std::os::unix::fs::PermissionsExt as _;

use anyhow::{Context as _, Result, ensure};
use md5::{Digest as _, Md5};
use support::emulator::Depth;
use support::eventually;
use support::relay::Command;
use support::test_bed::{enqueue, enqueue_range, ensure_each_once, ensure_order_in_groups, numbers};
use tokio_postgres::Client;

use super::ground::{Dev, kill};

#[tokio::test]
async fn a_message_is_shown_when_it_arrives_and_stays_for_a_consumer() -> Result<()> {
    let dev = Dev::start(&[]).await?;
    let database = dev.database().await?;
    let body = r#"{"player": "größe"}"#;
    enqueue(&database, "tickets", body, Some("draw-7")).await?;
    let line = dev.line("tickets.fifo  group=draw-7").await?;
    ensure!(line.contains("s after its commit  {\"player\": \"größe\"}  event_id="), "{line}");
    let (queue, queues) = (dev.queue("tickets")?, dev.queues()?);
    let request =
        queues.client().receive_message().queue_url(&queue).message_attribute_names("All").wait_time_seconds(5);
    let message = request.send().await?.messages.unwrap_or_default().remove(0);
    ensure!(message.body() == Some(body), "{message:?}");
    let digest: [u8; 16] = Md5::digest(body).into();
    ensure!(message.md5_of_body() == Some(&format!("{:032x}", u128::from_be_bytes(digest))), "{message:?}");
    let attributes = message.message_attributes.unwrap_or_default();
    let id = attributes.get("event_id").and_then(|one| one.string_value()).unwrap_or_default();
    ensure!(line.contains(&format!("event_id={id}")) && !id.is_empty(), "{id} is not in {line}");
    let handle = message.receipt_handle.unwrap_or_default();
    queues.delete_messages(&queue, &[handle]).await?;
    ensure!(queues.depth(&queue).await? == Depth { visible: 0, in_flight: 0 });
    let said = dev.end("TERM").await?;
    ensure!(said.contains("tickets.fifo: 1 message\n"), "{said}");
    Ok(())
}

#[tokio::test]
async fn a_relay_that_is_killed_is_replaced_and_every_message_arrives_once_and_in_order() -> Result<()> {
    const COUNT: i64 = 3000;
    let dev = Dev::start(&[]).await?;
    let relay = dev.relay(0).await?;
    let database = dev.database().await?;
    enqueue_range(&database, "tickets", 1..=COUNT, 50).await?;
    dev.line("tickets.fifo  group=").await?;
    kill("KILL", relay).await?;
    dev.line("the relay has ended (signal: 9 (SIGKILL)); another one starts").await?;
    ensure!(dev.relay(1).await? != relay);
    nothing_is_pending(&database).await?;
    let (queue, queues) = (dev.queue("tickets")?, dev.queues()?);
    let received = queues.drain(&queue).await?;
    ensure_order_in_groups(&received)?;
    ensure_each_once(numbers(&received)?, COUNT)?;
    let said = dev.end("TERM").await?;
    ensure!(said.contains("tickets.fifo: 3000 messages"), "{said}");
    Ok(())
}

#[tokio::test]
async fn it_ends_by_itself_after_as_many_messages_as_it_was_told() -> Result<()> {
    let dev = Dev::start(&["--until-messages", "20", "--queues", "orders,mails.fifo"]).await?;
    let database = dev.database().await?;
    enqueue_range(&database, "orders", 1..=10, 0).await?;
    enqueue_range(&database, "mails", 1..=10, 2).await?;
    let (status, said) = dev.wait().await?;
    ensure!(status.code() == Some(0), "{status}\n{said}");
    ensure!(said.contains("mails.fifo: 10 messages\norders: 10 messages\n"), "{said}");
    Ok(())
}

#[tokio::test]
async fn a_kept_database_is_used_again_and_a_relay_of_the_user_delivers_what_is_in_it() -> Result<()> {
    let place = tempfile::Builder::new().prefix("outbox-relay-dev-test").tempdir_in("/tmp")?;
    // The account that runs PostgreSQL instead of root must be able to enter it.
    std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(0o755))?;
    let data = place.path().join("kept");
    let data = data.to_str().context("a folder that is not text")?;
    let dev = Dev::start(&["--data", data, "--no-relay"]).await?;
    enqueue(&dev.database().await?, "audit", "{\"n\": 1}", None).await?;
    dev.end("INT").await?;
    let dev = Dev::start(&["--data", data, "--no-relay"]).await?;
    let relay = dev.exports().into_iter().fold(Command::new(), |relay, (name, value)| relay.env(&name, value));
    let relay = relay.start().await?;
    let line = dev.line("audit  ").await?;
    ensure!(line.contains("{\"n\": 1}"), "{line}");
    relay.stop().await?;
    let said = dev.end("INT").await?;
    ensure!(said.contains("audit: 1 message\n"), "{said}");
    Ok(())
}

async fn nothing_is_pending(database: &Client) -> Result<()> {
    eventually("nothing is pending", || async {
        let row = database.query_one("SELECT NOT EXISTS (SELECT FROM outbox.messages_pending)", &[]).await?;
        Ok(row.try_get(0)?)
    })
    .await
}
