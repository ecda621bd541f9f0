//! Another server takes over, or the same one stops accepting writes: the relay recovers without help.

use std::fs;

use anyhow::{Result, ensure};

use support::postgres::{Cluster, Options, StopMode};
use support::proxy::Fault;
use support::relay::{Relay, ensure_reported_at_most_once_a_second};
use support::test_bed::{TestBed, connect, enqueue_range, ensure_each_once, numbers};
use support::wire_cut::WireCut;
use support::{chosen_major, cluster, eventually};

const SESSIONS: &str =
    "FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'outbox-relay%'";

/// Ends the relay's sessions, as a failover does.
async fn terminate_sessions(bed: &TestBed) -> Result<()> {
    let ended = bed.count(&format!("SELECT count(pg_terminate_backend(pid)) {SESSIONS}")).await?;
    ensure!(ended > 0, "the relay had no session");
    Ok(())
}

async fn delivered(relay: &Relay, count: i64) -> Result<()> {
    relay.wait_for_metric(r#"delivered_messages_total{destination="audit"}"#, count as f64).await
}

#[tokio::test]
async fn a_database_that_takes_no_writes_for_a_while_is_waited_for() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.standard("audit").await?;
    let relay = bed.relay().start().await?;
    bed.enqueue_many("audit", 50, 0).await?;
    delivered(&relay, 50).await?;
    let database: String = bed.client.query_one("SELECT current_database()", &[]).await?.get(0);
    // Connected sessions keep their setting, so this test can still write.
    bed.client.batch_execute(&format!("ALTER DATABASE {database} SET default_transaction_read_only = on")).await?;
    terminate_sessions(&bed).await?;
    enqueue_range(&bed.client, "audit", 51..=100, 0).await?;
    relay.wait_for_log("does not allow writes").await?;
    relay.wait_for_status("/readyz", 503).await?;
    ensure!(bed.pending().await? == 50, "something was settled in a database that only reads");
    bed.client.batch_execute(&format!("ALTER DATABASE {database} RESET default_transaction_read_only")).await?;
    bed.until_nothing_is_pending().await?;
    relay.wait_for_status("/readyz", 200).await?;
    ensure_reported_at_most_once_a_second(&relay.stop().await?)?;
    ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, 100)
}

/// All existing sessions become read-only; new ones, and this test's own, can write.
async fn demote(bed: &TestBed) -> Result<()> {
    for statement in [
        "SET default_transaction_read_only = off",
        "ALTER DATABASE postgres SET default_transaction_read_only = off",
        "ALTER SYSTEM SET default_transaction_read_only = on",
        "SELECT pg_reload_conf()",
    ] {
        bed.client.batch_execute(statement).await?;
    }
    Ok(())
}

#[tokio::test]
async fn sessions_left_on_a_read_only_server_by_a_failover_are_discarded_at_once() -> Result<()> {
    let cluster = Cluster::start(&Options { major: chosen_major(), ..Options::default() })?;
    let bed = TestBed::on(&cluster).await?;
    let proxy = bed.proxy().await?;
    let queue = bed.standard("audit").await?;
    // One session for the claim of each destination, all at the same time.
    proxy.set(Fault::HoldAnswer);
    bed.enqueue_many("audit", 10, 0).await?;
    for number in 1..=11 {
        let other = format!("other-{number}");
        bed.standard(&other).await?;
        bed.enqueue(&other, "{}", None).await?;
    }
    let relay = bed.relay().start().await?;
    proxy.wait_for_held(12).await?;
    proxy.release();
    bed.until_nothing_is_pending().await?;
    let rows = bed.client.query(&format!("SELECT pid {SESSIONS}"), &[]).await?;
    let old: Vec<i32> = rows.iter().map(|row| row.get(0)).collect();
    ensure!(old.len() >= 12, "only {} sessions", old.len());
    demote(&bed).await?;
    let mut count = 10;
    // The sessions notice it one after the other.
    while !relay.log().contains("25006") {
        ensure!(count < 10_000, "the relay never met a session that only reads:\n{}", relay.log());
        enqueue_range(&bed.client, "audit", count + 1..=count + 10, 0).await?;
        count += 10;
        bed.until_nothing_is_pending().await?;
    }
    let query = format!("SELECT count(*) {SESSIONS} AND pid = ANY ($1)");
    let left = || async { Ok(bed.client.query_one(&query, &[&old]).await?.get::<_, i64>(0) == 0) };
    eventually("the old sessions are gone", left).await?;
    ensure_reported_at_most_once_a_second(&relay.stop().await?)?;
    // One refusal was enough to notice it; sessions in use at that moment may have met one as well.
    let refused = fs::read_to_string(cluster.log_path())?.matches("in a read-only transaction").count();
    ensure!((1..=4).contains(&refused), "{refused} sessions were tried one after the other");
    ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, count)
}

/// Another database takes this one's name and all sessions are gone, as after a failover to a standby that was behind.
async fn replace(database: &str, by: &str) -> Result<()> {
    let maintenance = connect(&cluster()?.url("postgres")).await?;
    maintenance.batch_execute(&format!("ALTER DATABASE {database} ALLOW_CONNECTIONS false")).await?;
    let ended = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname IN ($1, $2)";
    maintenance.query_one(ended, &[&database, &by]).await?;
    // Renaming waits up to five seconds for sessions that are ending.
    maintenance.batch_execute(&format!("ALTER DATABASE {database} RENAME TO {database}_lost")).await?;
    maintenance.batch_execute(&format!("ALTER DATABASE {by} RENAME TO {database}")).await?;
    Ok(())
}

async fn name_of_database(bed: &TestBed) -> Result<String> {
    Ok(bed.client.query_one("SELECT current_database()::text", &[]).await?.try_get(0)?)
}

#[tokio::test]
async fn ids_that_start_lower_after_a_failover_are_not_skipped() -> Result<()> {
    let mut bed = TestBed::new().await?;
    let queue = bed.fifo("tickets").await?;
    let relay = bed.relay().start().await?;
    bed.enqueue_many("tickets", 500, 20).await?;
    bed.until_nothing_is_pending().await?;
    // The relay's watermarks are at 500 now; on the server that takes over, ids begin at 1.
    let standby = TestBed::new().await?;
    enqueue_range(&standby.client, "tickets", 501..=600, 20).await?;
    ensure!(standby.count("SELECT max(id) FROM outbox.messages").await? == 100);
    replace(&name_of_database(&bed).await?, &name_of_database(&standby).await?).await?;
    bed.client = bed.connect().await?;
    bed.until_nothing_is_pending().await?;
    ensure!(bed.delivered().await? == 100, "this is not the server that took over");
    ensure_reported_at_most_once_a_second(&relay.stop().await?)?;
    bed.ensure_arrived_in_order(&queue, 600).await
}

/// A relay has delivered messages that the database then loses, and their ids are assigned again.
async fn lose_what_was_delivered(bed: &mut TestBed, cluster: &Cluster, queue: &str, is_promotion: bool) -> Result<()> {
    bed.enqueue_many("tickets", 100, 20).await?;
    bed.relay().deliver_all().await?;
    cluster.stop(StopMode::Fast)?;
    cluster.keep_data()?;
    cluster.start_again()?;
    bed.client = bed.connect().await?;
    let relay = bed.relay().start().await?;
    enqueue_range(&bed.client, "tickets", 101..=300, 20).await?;
    bed.until_nothing_is_pending().await?;
    cluster.stop(StopMode::Immediate)?;
    cluster.go_back_to_kept_data()?;
    if is_promotion {
        cluster.become_standby()?;
    }
    cluster.start_again()?;
    if is_promotion {
        bed.client = bed.connect().await?;
        relay.wait_for_log("the database cannot be used").await?;
        bed.client.query_one("SELECT pg_promote()", &[]).await?;
    }
    bed.client = bed.connect().await?;
    enqueue_range(&bed.client, "tickets", 301..=400, 20).await?;
    let lowest =
        "SELECT min(id) FROM outbox.messages WHERE enqueued_at > now() - interval '1 minute' AND status = 'pending'";
    let lowest = bed.count(&format!("SELECT coalesce(({lowest}), 101)")).await?;
    ensure!((101..=200).contains(&lowest), "ids were not assigned again: {lowest}");
    bed.until_nothing_is_pending().await?;
    ensure!(bed.delivered().await? == 200, "this is not the database that lost its transactions");
    relay.stop().await?;
    // 101 to 300 are in the queue, although the database no longer knows them.
    bed.ensure_arrived_in_order(queue, 400).await
}

#[tokio::test]
async fn ids_that_a_restored_database_assigns_again_are_delivered() -> Result<()> {
    let cluster = Cluster::start(&Options { major: chosen_major(), ..Options::default() })?;
    let mut bed = TestBed::on(&cluster).await?;
    let queue = bed.fifo("tickets").await?;
    lose_what_was_delivered(&mut bed, &cluster, &queue, false).await
}

#[tokio::test]
async fn ids_that_a_promoted_standby_assigns_again_are_delivered() -> Result<()> {
    let cluster = Cluster::start(&Options { major: chosen_major(), ..Options::default() })?;
    let mut bed = TestBed::on(&cluster).await?;
    let queue = bed.fifo("tickets").await?;
    lose_what_was_delivered(&mut bed, &cluster, &queue, true).await
}

#[tokio::test]
async fn a_promoted_standby_that_lacks_transactions_does_not_confuse_the_relay() -> Result<()> {
    let options = Options { major: chosen_major(), ..Options::default() };
    let primary = Cluster::start(&options)?;
    let wire = WireCut::start(primary.port()).await?;
    let mut bed = TestBed::on(&primary).await?;
    let queue = bed.fifo("tickets").await?;
    let standby = primary.start_standby(&options)?;
    bed.client = bed.connect().await?;
    let relay = bed.relay().env("DATABASE_URL", wire.url(bed.url())).start().await?;
    enqueue_range(&bed.client, "tickets", 1..=100, 20).await?;
    bed.until_nothing_is_pending().await?;
    let is_even = "SELECT count(*) FROM pg_stat_replication WHERE replay_lsn = pg_current_wal_lsn()";
    eventually("the standby has all", || async { Ok(bed.count(is_even).await? == 1) }).await?;
    standby.stop(StopMode::Fast)?;
    enqueue_range(&bed.client, "tickets", 101..=300, 20).await?;
    bed.until_nothing_is_pending().await?;
    primary.stop(StopMode::Immediate)?;
    standby.start_again()?;
    wire.lead_to(standby.port());
    bed.client = connect(&standby.url("postgres")).await?;
    bed.client.query_one("SELECT pg_promote()", &[]).await?;
    enqueue_range(&bed.client, "tickets", 301..=400, 20).await?;
    bed.until_nothing_is_pending().await?;
    ensure!(bed.delivered().await? == 200, "this is not the server that was behind");
    let lowest = bed.count("SELECT min(id) FROM outbox.messages WHERE event_position IN (SELECT position FROM outbox.events WHERE payload @> '{\"n\": 301}')").await?;
    ensure!((101..=200).contains(&lowest), "ids were not assigned again: {lowest}");
    relay.stop().await?;
    bed.ensure_arrived_in_order(&queue, 400).await
}

#[tokio::test]
async fn ids_assigned_again_by_a_reset_sequence_replace_the_earlier_records() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.fifo("tickets").await?;
    enqueue_range(&bed.client, "tickets", 1..=10, 1).await?;
    bed.relay().deliver_all().await?;
    bed.client.batch_execute("SELECT setval('outbox.messages_id_seq', 5)").await?;
    enqueue_range(&bed.client, "tickets", 11..=15, 1).await?;
    ensure!(bed.count("SELECT max(id) FROM outbox.messages").await? == 10, "no id was assigned again");
    let ended = bed.relay().until_empty().await?;
    ended.ensure_success()?;
    ensure!(ended.stderr.contains("were assigned again and their records replaced"), "{ended:?}");
    ensure!(bed.delivered().await? == 10);
    bed.ensure_arrived_in_order(&queue, 15).await
}
