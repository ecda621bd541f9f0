//! CloudEvents: what `docs/patterns.md` writes is decoded by the SDK of CloudEvents for Python, in the example consumer.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use support::emulator;
use support::test_bed::TestBed;

use crate::example_consumers::{finish, python};

/// The statements of the section, as it has them.
fn statements() -> Result<String> {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/patterns.md"))?;
    let section = page.split("\n## CloudEvents\n").nth(1).context("the page has no such section")?;
    let section = section.split("\n## ").next().unwrap_or_default();
    let blocks = section.split("```sql\n").skip(1).filter_map(|text| text.split("```").next());
    Ok(blocks.collect::<Vec<_>>().concat())
}

/// A time as Python writes it: in UTC, and with a fraction of six digits or none.
fn shortest(time: &str) -> String {
    let time = time.replace("+00:00", "Z").replace('Z', "");
    let (seconds, fraction) = time.split_once('.').unwrap_or((&time, "0"));
    if fraction.bytes().all(|digit| digit == b'0') {
        format!("{seconds}Z")
    } else {
        format!("{seconds}.{fraction:0<6}Z")
    }
}

/// What the example prints of a queue: one event a line.
async fn printed(queue: &str) -> Result<Vec<Value>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/consumers");
    let mut command = tokio::process::Command::new(python(&folder).await?);
    command.arg(folder.join("cloud_events.py")).arg("--until-empty").env_clear().env("QUEUE_URL", queue);
    command.env("AWS_ENDPOINT_URL_SQS", emulator()?.endpoint()).env("AWS_DEFAULT_REGION", "us-east-1");
    command.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "the-secret-of-aws");
    let said = finish(command).await?;
    said.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

#[tokio::test]
async fn the_sdk_of_cloud_events_decodes_both_modes_with_text_bytes_and_json() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.fifo("invoices").await?;
    bed.client.batch_execute("SET timezone = 'UTC'").await?;
    bed.client.batch_execute(&statements()?).await?;
    bed.relay().deliver_all().await?;
    let sent = bed.queues.contents(&queue).await?;
    let ids: Vec<&str> = sent.iter().map(|message| message.attributes["event_id"].as_str()).collect();
    ensure!(ids.len() == 3, "{sent:?}");
    let issued = |id: &str, content_type: &str, time: &str| {
        json!({
            "specversion": "1.0", "type": "com.example.invoice.issued", "source": "/billing", "id": id,
            "datacontenttype": content_type, "time": shortest(time)
        })
    };
    let time = |index: usize| sent[index].attributes["ce-time"].as_str();
    let envelope: Value = serde_json::from_str(&sent[2].body)?;
    let with = |mut event: Value, name: &str, data: Value| {
        event[name] = data;
        event
    };
    let expected = [
        with(issued(ids[0], "application/xml", time(0)), "data", json!("<invoice id=\"c-7\">Grüße</invoice>")),
        with(issued(ids[1], "application/x-protobuf", time(1)), "data_base64", json!("CJYB")),
        with(
            issued("c-8", "application/json", envelope["time"].as_str().context("no time")?),
            "data",
            json!({"invoice": "c-8", "cents": 1250}),
        ),
    ];
    let events = printed(&queue).await?;
    ensure!(events == expected, "{events:#?}");
    Ok(())
}

/// The rule of the HTTP binding is the SDK's; that SQS takes ten attributes is what the page warns of.
#[tokio::test]
async fn a_binary_event_with_a_stream_and_a_trace_fills_all_ten_attributes() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.fifo("invoices").await?;
    let append = "SELECT outbox.append('invoice-7', 0, '[{\"event_type\": \"com.example.invoice.issued\", \"body\": \"<invoice/>\",
        \"event_id\": \"01a21f74-e8a9-7c7b-bd32-a314be89ec65\", \"metadata\": {\"ce-specversion\": \"1.0\", \"ce-source\": \"/billing\",
            \"ce-id\": \"01a21f74-e8a9-7c7b-bd32-a314be89ec65\", \"ce-type\": \"com.example.invoice.issued\",
            \"content-type\": \"application/xml\", \"traceparent\": \"00-1-2-01\"}}]', '{invoices}')";
    bed.client.batch_execute(append).await?;
    bed.relay().deliver_all().await?;
    let sent = bed.queues.contents(&queue).await?;
    ensure!(sent.len() == 1 && sent[0].attributes.len() == 10, "{sent:?}");
    let events = printed(&queue).await?;
    ensure!(events.len() == 1 && events[0]["id"] == sent[0].attributes["event_id"], "{events:?}");
    ensure!(events[0]["datacontenttype"] == "application/xml" && events[0]["data"] == "<invoice/>", "{events:?}");
    Ok(())
}
