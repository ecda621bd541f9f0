//! Changes that operators make directly in the tables, with the statements of the runbook.

use anyhow::{Context, Result, ensure};

use support::eventually;
use support::roles::Roles;
use support::test_bed::{TestBed, connect, numbers};

const RUNBOOK: &str = include_str!("../../docs/operations.md");

/// The statements under the heading, in their order, for a message with this id.
fn statements(id: i64) -> Result<Vec<String>> {
    let part = RUNBOOK.split("## Changing messages by hand").nth(1).context("no such heading")?;
    let part = part.split("\n## ").next().unwrap_or_default();
    let blocks = part.split("```sql").skip(1).map(|rest| rest.split("```").next().unwrap_or_default());
    Ok(blocks.map(|sql| sql.replace("4711", &id.to_string())).collect())
}

#[tokio::test]
async fn messages_can_be_changed_by_hand_as_the_runbook_says() -> Result<()> {
    let bed = TestBed::new().await?;
    let tickets = bed.fifo("tickets").await?;
    let audit = bed.standard("audit").await?;
    let first = bed.enqueue("tickets", "{\"n\": 1}", Some("g")).await?;
    let [hold, go, _, again, _] = <[String; 5]>::try_from(statements(first)?).ok().context("five statements")?;
    let roles = Roles::create(&bed).await?;
    let operator = connect(&roles.operator_url).await?;
    operator.batch_execute(&hold).await?;
    let second = bed.enqueue("tickets", "{\"n\": 2}", Some("g")).await?;
    bed.enqueue("tickets", "{\"n\": 3}", Some("other")).await?;
    let relay = bed.relay().start().await?;
    relay.wait_for_metric(r#"delivered_messages_total{destination="tickets"}"#, 1.0).await?;
    ensure!(bed.row(second).await?.status == "pending", "what follows a message that is held back was sent");
    operator.batch_execute(&go).await?;
    bed.until_nothing_is_pending().await?;
    operator.batch_execute(&again).await?;
    bed.until_nothing_is_pending().await?;
    let arrived = numbers(&bed.queues.contents(&tickets).await?)?;
    let of_group: Vec<i64> = arrived.into_iter().filter(|n| *n != 3).collect();
    ensure!(of_group == [1, 2, 1], "{of_group:?}");
    let fourth = bed.enqueue("tickets", "{\"n\": 4}", Some("g")).await?;
    let sent = || async { Ok(bed.row(fourth).await?.status == "delivered") };
    eventually("it is sent", sent).await?;
    relay.stop().await?;
    let fifth = bed.enqueue("tickets", "{\"n\": 5}", Some("g")).await?;
    operator.batch_execute(&statements(fifth)?[2]).await?;
    ensure!(bed.row(fifth).await?.status == "dead");
    bed.client.batch_execute(&statements(fifth)?[4]).await?;
    bed.relay().deliver_all().await?;
    ensure!(numbers(&bed.queues.contents(&audit).await?)? == [5]);
    Ok(())
}

#[tokio::test]
async fn a_message_held_back_by_hand_does_not_keep_until_empty_waiting() -> Result<()> {
    for is_fifo in [true, false] {
        let bed = TestBed::new().await?;
        let queue = if is_fifo { bed.fifo("tickets").await? } else { bed.standard("tickets").await? };
        let held = bed.enqueue("tickets", "{\"n\": 1}", Some("g")).await?;
        bed.enqueue("tickets", "{\"n\": 2}", Some("g")).await?;
        bed.enqueue("tickets", "{\"n\": 3}", Some("other")).await?;
        bed.client.batch_execute(&statements(held)?[0]).await?;
        let ended = bed.relay().until_empty().await?;
        ensure!(ended.code == Some(1) && ended.stderr.contains("held back by hand"), "{ended:?}");
        let mut arrived = numbers(&bed.queues.contents(&queue).await?)?;
        arrived.sort_unstable();
        ensure!(arrived == if is_fifo { vec![3] } else { vec![2, 3] }, "{arrived:?}");
    }
    Ok(())
}
