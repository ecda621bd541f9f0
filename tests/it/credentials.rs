//! Credentials that change while the relay runs: their provider is asked again, without a restart.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use support::emulator;
use support::eventually;
use support::postgres::PASSWORD;
use support::proxy::{Fault, Proxy, Rule};
use support::relay::Command;
use support::roles::Roles;
use support::test_bed::{TestBed, enqueue_range, ensure_each_once, numbers};

const OLD: &str = "AKIAOLDOLDOLDOLDOLD0";
const NEW: &str = "AKIANEWNEWNEWNEWNEW0";

/// Without keys in the environment, because those take precedence.
fn command(bed: &TestBed) -> Command {
    bed.relay().without("AWS_ACCESS_KEY_ID").without("AWS_SECRET_ACCESS_KEY")
}

fn refuse_old(proxy: &Proxy, kind: &'static str, code: &'static str) {
    proxy.script([Rule::new(Fault::error(403, kind, code)).signed_with(OLD)]);
}

fn write_keys(path: &PathBuf, key: &str) -> Result<()> {
    Ok(std::fs::write(
        path,
        format!("[default]\naws_access_key_id = {key}\naws_secret_access_key = the-secret-of-aws\n"),
    )?)
}

#[tokio::test]
async fn new_keys_in_a_mounted_file_are_picked_up() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let queue = bed.fifo("tickets").await?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("credentials");
    write_keys(&path, OLD)?;
    let relay = command(&bed).env("AWS_SHARED_CREDENTIALS_FILE", path.to_string_lossy()).start().await?;
    bed.enqueue_many("tickets", 20, 5).await?;
    bed.until_nothing_is_pending().await?;
    write_keys(&path, NEW)?;
    refuse_old(&proxy, "com.amazon.coral.service#UnrecognizedClientException", "InvalidClientTokenId;Sender");
    enqueue_range(&bed.client, "tickets", 21..=40, 5).await?;
    bed.until_nothing_is_pending().await?;
    let log = relay.stop().await?;
    ensure!(log.contains("asking all providers for new ones"), "{log}");
    ensure!(!log.contains("the-secret-of-aws"), "a secret is shown:\n{log}");
    ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, 40)
}

/// Returns the old keys once and the new ones from then on, each valid for an hour, as the agent of ECS and EKS does.
async fn agent(takes: Duration) -> Result<(String, Arc<AtomicUsize>, AbortOnDropHandle<()>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/credentials", listener.local_addr()?);
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let task = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = [0; 4096];
            if stream.read(&mut head).await.is_err() {
                continue;
            }
            let key = if count.fetch_add(1, Ordering::SeqCst) == 0 { OLD } else { NEW };
            let expires = humantime::format_rfc3339_seconds(std::time::SystemTime::now() + Duration::from_secs(3600));
            let body = format!(
                "{{\"AccessKeyId\": \"{key}\", \"SecretAccessKey\": \"the-secret-of-aws\", \"Token\": \"t\", \"Expiration\": \"{expires}\"}}"
            );
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                body.len()
            );
            // Time is the subject: how long a client waits for its credentials.
            tokio::time::sleep(takes).await;
            stream.write_all(answer.as_bytes()).await.ok();
        }
    });
    Ok((url, asked, AbortOnDropHandle::new(task)))
}

#[tokio::test]
async fn credentials_revoked_before_they_expire_are_fetched_again_but_seldom() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let queue = bed.fifo("tickets").await?;
    let (url, asked, _agent) = agent(Duration::ZERO).await?;
    let relay = command(&bed).env("AWS_CONTAINER_CREDENTIALS_FULL_URI", &url).start().await?;
    bed.enqueue_many("tickets", 20, 5).await?;
    bed.until_nothing_is_pending().await?;
    ensure!(asked.load(Ordering::SeqCst) == 1, "asked {asked:?} times for valid credentials");
    refuse_old(&proxy, "com.amazon.coral.service#ExpiredTokenException", "ExpiredToken;Sender");
    enqueue_range(&bed.client, "tickets", 21..=40, 5).await?;
    bed.until_nothing_is_pending().await?;
    relay.stop().await?;
    ensure!(asked.load(Ordering::SeqCst) == 2, "asked {asked:?} times");
    ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, 40)
}

#[tokio::test]
async fn a_new_password_in_the_file_of_the_database_url_is_picked_up() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.fifo("tickets").await?;
    let roles = Roles::create(&bed).await?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("url");
    std::fs::write(&path, &roles.relay_url)?;
    let relay = bed.relay().without("DATABASE_URL").env("DATABASE_URL_FILE", path.to_string_lossy()).start().await?;
    bed.enqueue_many("tickets", 20, 5).await?;
    bed.until_nothing_is_pending().await?;
    // The server gets it first, and the file some time later.
    let change = format!(
        "ALTER ROLE {0} PASSWORD 'another-secret';
        SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{0}'",
        roles.relay
    );
    bed.client.batch_execute(&change).await?;
    relay.wait_for_log("password authentication failed").await?;
    std::fs::write(&path, roles.relay_url.replace(PASSWORD, "another-secret"))?;
    enqueue_range(&bed.client, "tickets", 21..=40, 5).await?;
    bed.until_nothing_is_pending().await?;
    let log = relay.stop().await?;
    ensure!(!log.contains("another-secret") && !log.contains(PASSWORD), "a secret is shown:\n{log}");
    ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, 40)
}

/// The credentials arrive while the relay is stopped, so it resumes with requests that are not signed yet.
#[tokio::test]
async fn a_relay_that_was_frozen_while_it_fetched_credentials_sends_nothing_of_its_lost_claim() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let queue = bed.standard("audit").await?;
    let (url, asked, _agent) = agent(Duration::from_secs(1)).await?;
    let frozen = command(&bed).env("AWS_CONTAINER_CREDENTIALS_FULL_URI", &url).start().await?;
    bed.enqueue_many("audit", 500, 0).await?;
    eventually("it fetches credentials", || async { Ok(asked.load(Ordering::SeqCst) == 1) }).await?;
    frozen.signal("STOP").await?;
    let other = bed.relay().env("AWS_ENDPOINT_URL_SQS", emulator()?.endpoint()).start().await?;
    bed.until_nothing_is_pending().await?;
    other.stop().await?;
    frozen.signal("CONT").await?;
    enqueue_range(&bed.client, "audit", 501..=510, 0).await?;
    bed.until_nothing_is_pending().await?;
    frozen.stop().await?;
    for entry in proxy.requests().iter().flat_map(|request| request.entries.iter()) {
        let body: serde_json::Value = serde_json::from_str(&entry.body)?;
        ensure!(body["n"].as_i64() > Some(500), "sent of the lost claim: {body}");
    }
    ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, 510)
}
