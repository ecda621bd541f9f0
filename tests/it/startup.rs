//! Starting when something is missing: one clear line from a command, patience from the daemon.

use anyhow::{Result, ensure};

use support::emulator::Queues;
use support::postgres::{PASSWORD, free_port};
use support::relay::{Command, Finished};
use support::test_bed::{TestBed, migrate};
use support::{cluster, emulator};

const SECRETS: [&str; 3] = [PASSWORD, "the-secret-of-aws", "a-wrong-password"];

/// One error line, exit code 1, no panic and no secret.
fn ensure_failed_with(ended: &Finished, text: &str) -> Result<()> {
    ensure!(ended.code == Some(1), "{ended:?}");
    let complaints: Vec<_> = ended.stderr.lines().filter(|line| line.starts_with("outbox-relay: ")).collect();
    ensure!(complaints.len() == 1 && complaints[0].contains(text), "{text:?} is not in {}", ended.stderr);
    for banned in SECRETS.iter().chain(&["panicked", "RUST_BACKTRACE"]) {
        ensure!(!ended.stderr.contains(banned), "{banned} is in {}", ended.stderr);
    }
    Ok(())
}

/// Both commands that end by themselves.
async fn ensure_both_fail_with(command: &Command, text: &str) -> Result<()> {
    ensure_failed_with(&command.output(&["migrate"]).await?, text)?;
    ensure_failed_with(&command.until_empty().await?, text)
}

#[tokio::test]
async fn a_wrong_password_is_one_clear_line() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.fifo("tickets").await?;
    let command = bed.relay().env("DATABASE_URL", bed.url().replace(PASSWORD, "a-wrong-password"));
    ensure_both_fail_with(&command, "password authentication failed").await
}

#[tokio::test]
async fn a_missing_database_is_one_clear_line() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.fifo("tickets").await?;
    let command = bed.relay().env("DATABASE_URL", cluster()?.url("no_such_database"));
    ensure_both_fail_with(&command, "no_such_database").await
}

#[tokio::test]
async fn an_unreachable_database_is_one_clear_line_from_migrate() -> Result<()> {
    let url = format!("postgres://app:a-wrong-password@127.0.0.1:{}/lottery", free_port()?);
    let ended = Command::new().env("DATABASE_URL", url).output(&["migrate"]).await?;
    ensure_failed_with(&ended, "cannot connect to PostgreSQL")
}

#[tokio::test]
async fn a_database_that_is_not_migrated_is_one_clear_line() -> Result<()> {
    let bed = TestBed::empty().await?;
    bed.fifo("tickets").await?;
    ensure_failed_with(&bed.relay().until_empty().await?, "run `outbox-relay migrate`")
}

#[tokio::test]
async fn an_address_in_use_is_one_clear_line() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.fifo("tickets").await?;
    let relay = bed.relay().start().await?;
    let second = bed.relay().env("OUTBOX_RELAY_HTTP_LISTEN", relay.address());
    ensure_failed_with(&second.until_empty().await?, "OUTBOX_RELAY_HTTP_LISTEN")
}

#[tokio::test]
async fn a_relay_waits_for_a_database_that_appears_later() -> Result<()> {
    let name = "appears_later";
    let url = cluster()?.url(name);
    let queues = Queues::new(emulator()?.endpoint());
    let queue = queues.create_fifo("tickets").await?;
    let command = TestBed::new().await?.relay().env("OUTBOX_RELAY_DESTINATIONS", format!("tickets={queue}"));
    let relay = command.env("DATABASE_URL", &url).start().await?;
    relay.wait_for_log("does not exist").await?;
    ensure!(relay.get("/livez").await?.0 == 200 && relay.get("/readyz").await?.0 == 503);
    cluster()?.create_database(name).await?;
    relay.wait_for_log("not migrated").await?;
    ensure!(relay.get("/livez").await?.0 == 200 && relay.get("/readyz").await?.0 == 503);
    migrate(&url).await?;
    let client = support::test_bed::connect(&url).await?;
    support::test_bed::enqueue(&client, "tickets", "{}", None).await?;
    relay.wait_for_metric(r#"delivered_messages_total{destination="tickets"}"#, 1.0).await?;
    relay.wait_for_status("/readyz", 200).await?;
    let log = relay.stop().await?;
    for banned in SECRETS.iter().chain(&["panicked"]) {
        ensure!(!log.contains(banned), "{banned} is in {log}");
    }
    ensure!(queues.depth(&queue).await?.visible == 1);
    Ok(())
}

#[tokio::test]
async fn a_relay_waits_for_the_right_password() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.fifo("tickets").await?;
    let role = "late_password";
    let create = format!("CREATE ROLE {role} LOGIN SUPERUSER PASSWORD 'another'");
    bed.client.batch_execute(&create).await?;
    let url = bed.url().replace("postgres:the-secret", &format!("{role}:the-secret"));
    let relay = bed.relay().env("DATABASE_URL", url).start().await?;
    relay.wait_for_log("password authentication failed").await?;
    bed.client.batch_execute(&format!("ALTER ROLE {role} PASSWORD '{PASSWORD}'")).await?;
    bed.enqueue("tickets", "{}", None).await?;
    bed.until_nothing_is_pending().await?;
    let log = relay.stop().await?;
    ensure!(!log.contains(PASSWORD), "{log}");
    Ok(())
}
