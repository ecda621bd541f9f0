//! What an operator or AWS fixes later: the relay notices by itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use support::eventually;
use support::proxy::{Fault, Rule};
use support::test_bed::{TestBed, ensure_each_once, numbers};

const UP: &str = r#"destination_up{destination="tickets"}"#;
const LIMIT: &str = r#"in_flight_limit{destination="tickets"}"#;

/// Answers as the credentials service of a container does: with a refusal until it may answer.
async fn credentials_service(may: Arc<AtomicBool>) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4096];
            if stream.read(&mut request).await.is_err() {
                continue;
            }
            let (status, body) = if may.load(Ordering::Relaxed) {
                let keys =
                    r#"{"AccessKeyId":"A","SecretAccessKey":"S","Token":"T","Expiration":"2099-01-01T00:00:00Z"}"#;
                ("200 OK", keys)
            } else {
                ("403 Forbidden", r#"{"code":"NoRole","message":"no role yet"}"#)
            };
            let length = body.len();
            let answer = format!(
                "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
            );
            stream.write_all(answer.as_bytes()).await.ok();
        }
    });
    Ok(format!("http://{address}/credentials"))
}

#[tokio::test]
async fn credentials_that_come_later_are_used_without_a_restart() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.fifo("tickets").await?;
    bed.enqueue_many("tickets", 30, 5).await?;
    let may = Arc::new(AtomicBool::new(false));
    let service = credentials_service(Arc::clone(&may)).await?;
    let relay = bed.relay().without("AWS_ACCESS_KEY_ID").without("AWS_SECRET_ACCESS_KEY");
    let relay = relay.env("AWS_CONTAINER_CREDENTIALS_FULL_URI", service).env("OUTBOX_RELAY_RETRY_MAX", "200ms");
    let relay = relay.start().await?;
    relay.wait_for_metric(UP, 0.0).await?;
    relay.wait_for_log("CredentialsNotAvailable").await?;
    may.store(true, Ordering::Relaxed);
    bed.until_nothing_is_pending().await?;
    relay.wait_for_metric(UP, 1.0).await?;
    relay.stop().await?;
    ensure!(bed.count("SELECT max(attempts)::bigint FROM outbox.messages").await? == 0);
    ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, 30)
}

#[tokio::test]
async fn a_throttled_destination_comes_back_with_fewer_requests_and_works_its_way_up() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let queue = bed.standard("tickets").await?;
    proxy.script([Rule::new(Fault::throttle())]);
    let relay = bed.relay().env("OUTBOX_RELAY_MAX_IN_FLIGHT", "16");
    let relay = relay.env("OUTBOX_RELAY_RETRY_INITIAL", "5ms").env("OUTBOX_RELAY_RETRY_MAX", "20ms").start().await?;
    ensure!(relay.metrics().await?.get(LIMIT)? == 16.0);
    bed.enqueue_many("tickets", 200, 0).await?;
    relay.wait_for_metric(LIMIT, 1.0).await?;
    // Requests that are let through are held, so that those in flight can be seen.
    proxy.script([Rule::new(Fault::Pass).times(1), Rule::new(Fault::Hold)]);
    eventually("the first request was let through", || async { Ok(bed.delivered().await? > 0) }).await?;
    proxy.wait_for_held(1).await?;
    ensure!(proxy.held() <= 2, "{} requests at once right after the throttle", proxy.held());
    proxy.clear();
    proxy.release();
    bed.until_nothing_is_pending().await?;
    for wave in 0..20 {
        if relay.metrics().await?.get(LIMIT)? >= 16.0 {
            break;
        }
        ensure!(wave < 19, "the limit is still {}", relay.metrics().await?.get(LIMIT)?);
        support::test_bed::enqueue_range(&bed.client, "tickets", wave * 200 + 201..=wave * 200 + 400, 0).await?;
        bed.until_nothing_is_pending().await?;
    }
    relay.stop().await?;
    let delivered = bed.delivered().await?;
    ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, delivered)
}

#[tokio::test]
async fn a_message_to_an_unserved_destination_waits_and_holds_up_no_other() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.standard("tickets").await?;
    let stray = bed.enqueue("nowhere", "{}", Some("g")).await?;
    bed.enqueue_many("tickets", 20, 0).await?;
    bed.relay().deliver_all().await?;
    let row = bed.row(stray).await?;
    ensure!(row.status == "pending" && row.attempts == 0, "{row:?}");
    ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, 20)
}
