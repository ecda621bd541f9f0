//! Many messages at once, and none for a while: exact deliveries, full requests, few connections, and little activity
//! when idle.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use support::eventually;
use support::test_bed::{TestBed, ensure_each_once, numbers};

/// Sessions of the relay, as PostgreSQL sees them.
const SESSIONS: &str = "SELECT count(*) FROM pg_stat_activity
    WHERE datname = current_database() AND application_name LIKE 'outbox-relay%'";

/// Commits `count` messages with bodies of 500 bytes and the numbers 1 to `count`, in a thousand groups.
async fn enqueue_half_kilobytes(bed: &TestBed, destination: &str, count: i64) -> Result<()> {
    let query = "WITH event AS (
            INSERT INTO outbox.events (event_type, payload)
            SELECT 'TicketPurchased', jsonb_build_object('n', n, 'pad', repeat('x', 470)) FROM generate_series(1, $2::bigint) AS n
            RETURNING position, (payload ->> 'n')::bigint AS n
        )
        INSERT INTO outbox.messages (destination, event_position, group_id)
        SELECT $1, position, 'g' || n % 1000 FROM event ORDER BY n";
    bed.client.execute(query, &[&destination, &count]).await?;
    Ok(())
}

#[tokio::test]
async fn many_messages_reach_their_queues_in_full_requests() -> Result<()> {
    const EACH: i64 = 15_000;
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let (tickets, audit) = (bed.fifo("tickets").await?, bed.standard("audit").await?);
    enqueue_half_kilobytes(&bed, "tickets", EACH).await?;
    enqueue_half_kilobytes(&bed, "audit", EACH).await?;
    let relay = bed.relay().start_with(&["run", "--until-empty"]).await?;
    let status = format!("/proc/{}/status", relay.process_id()?);
    let (mut sessions, mut memory) = (0, String::new());
    let mut looks = tokio::time::interval(Duration::from_millis(20));
    let ended = relay.wait();
    tokio::pin!(ended);
    let (status, log) = loop {
        // The process is observed repeatedly until it has ended.
        tokio::select! {
            ended = &mut ended => break ended?,
            _ = looks.tick() => {
                sessions = sessions.max(bed.count(SESSIONS).await?);
                if let Ok(text) = std::fs::read_to_string(&status) {
                    memory = text.lines().find(|line| line.starts_with("VmHWM")).unwrap_or_default().to_owned();
                }
            }
        }
    };
    println!("{EACH} messages to each of two queues: {memory}, {sessions} sessions");
    ensure!(status.code() == Some(0), "{status}\n{log}");
    ensure!((1..=5).contains(&sessions), "{sessions} sessions");
    let mean = (2 * EACH) as f64 / proxy.requests_seen() as f64;
    ensure!(mean >= 9.5, "{mean} entries per request");
    ensure_each_once(numbers(&bed.queues.contents(&tickets).await?)?, EACH).context("tickets")?;
    ensure_each_once(numbers(&bed.queues.contents(&audit).await?)?, EACH).context("audit")?;
    ensure!(bed.pending().await? == 0 && bed.delivered().await? == 2 * EACH);
    Ok(())
}

#[tokio::test]
async fn an_idle_relay_writes_nothing() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.fifo("tickets").await?;
    bed.standard("audit").await?;
    bed.enqueue_many("tickets", 100, 10).await?;
    // A relay that ends: before version 15 an idle session holds its statistics back.
    bed.relay().deliver_all().await?;
    let relay = bed.relay().start().await?;
    // By now all sessions have reported their statistics.
    polls(&bed, 100).await?;
    let before = bed.writes().await?;
    ensure!(before >= 200, "{before} writes: statistics are not there");
    polls(&bed, 150).await?;
    ensure!(bed.writes().await? == before, "{before} writes became {}", bed.writes().await?);
    relay.wait_for_metric(r#"lag_seconds{destination="tickets"}"#, 0.0).await?;
    relay.wait_for_metric(r#"backlog_messages{destination="audit"}"#, 0.0).await?;
    let claims = format!("{SESSIONS} AND state = 'idle in transaction'");
    ensure!(bed.count(&claims).await? == 0, "an idle relay holds a transaction open");
    relay.stop().await?;
    Ok(())
}

/// Waits until the relay has committed this many more statements, and longer than PostgreSQL holds statistics back.
async fn polls(bed: &TestBed, count: i64) -> Result<()> {
    let started = Instant::now();
    let commits = "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()";
    let before = bed.count(commits).await?;
    // The queries of this test commit as well, so they are counted and subtracted.
    let mut asked = 0;
    let mut looks = tokio::time::interval(Duration::from_millis(100));
    loop {
        looks.tick().await;
        asked += 1;
        if bed.count(commits).await? - before >= count + asked && started.elapsed() > Duration::from_millis(1500) {
            return Ok(());
        }
        ensure!(started.elapsed() < Duration::from_secs(30), "the relay polls less than {count} times in 30 s");
    }
}

#[tokio::test]
async fn a_relay_catches_up_while_more_is_written() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.standard("audit").await?;
    bed.enqueue_many("audit", 2000, 0).await?;
    let relay = bed.relay().start().await?;
    let writer = bed.connect().await?;
    for wave in 0..20 {
        let first = 2000 + wave * 100;
        support::test_bed::enqueue_range(&writer, "audit", first + 1..=first + 100, 0).await?;
    }
    eventually("all are delivered", || async { Ok(bed.delivered().await? == 4000) }).await?;
    relay.stop().await?;
    ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, 4000)
}
