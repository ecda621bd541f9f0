//! Behind PgBouncer in transaction mode, where consecutive statements of a relay may run in different server sessions.
//!
//! With `THROUGH_PGBOUNCER=1` the relays of all other tests go through it as well.

use anyhow::{Context, Result, ensure};
use tokio_postgres::SimpleQueryMessage;

use support::pgbouncer::{POOL_SIZE, PgBouncer};
use support::postgres::{Cluster, Options};
use support::proxy::{Choice, Fault};
use support::roles::Roles;
use support::test_bed::{TestBed, connect, ensure_each_once, migrate, numbers};
use support::{self, chosen_major, cluster, eventually};

/// A column of PgBouncer's console output about a database.
async fn shown(pgbouncer: &PgBouncer, command: &str, database: &str, column: &str) -> Result<Vec<String>> {
    let console = connect(&pgbouncer.console()).await?;
    let mut values = Vec::new();
    for message in console.simple_query(command).await? {
        if let SimpleQueryMessage::Row(row) = message
            && row.get("database") == Some(database)
        {
            values.push(row.get(column).with_context(|| format!("{command} has no {column}"))?.to_owned());
        }
    }
    Ok(values)
}

#[tokio::test]
async fn relays_migrate_and_deliver_through_pgbouncer() -> Result<()> {
    let pgbouncer = PgBouncer::start(cluster()?)?;
    let bed = TestBed::empty().await?;
    migrate(&pgbouncer.url(bed.url())).await?;
    let database: String = bed.client.query_one("SELECT current_database()", &[]).await?.get(0);
    let (tickets, audit) = (bed.fifo("tickets").await?, bed.standard("audit").await?);
    bed.enqueue_many("tickets", 1000, 50).await?;
    bed.enqueue_many("audit", 1000, 0).await?;
    let relay = bed.relay().env("DATABASE_URL", pgbouncer.url(bed.url())).start().await?;
    bed.until_nothing_is_pending().await?;
    ensure!(shown(&pgbouncer, "SHOW POOLS", &database, "pool_mode").await? == ["transaction"]);
    ensure!(shown(&pgbouncer, "SHOW CLIENTS", &database, "state").await?.len() >= 2, "the relay is not connected");
    ensure!(shown(&pgbouncer, "SHOW SERVERS", &database, "state").await?.len() <= POOL_SIZE);
    relay.stop().await?;
    let transactions = shown(&pgbouncer, "SHOW STATS", &database, "total_xact_count").await?;
    let transactions: u64 = transactions.first().context("no statistics")?.parse()?;
    // Each of the destinations has looked, claimed, read and settled at least once.
    ensure!(transactions >= 8, "only {transactions} transactions went through PgBouncer");
    ensure_each_once(numbers(&bed.queues.contents(&tickets).await?)?, 1000)?;
    ensure_each_once(numbers(&bed.queues.contents(&audit).await?)?, 1000)
}

/// PgBouncer asks the server for the password's secret (auth_query), and gives each client a session of its own.
#[tokio::test]
async fn a_relay_delivers_through_sessions_whose_passwords_pgbouncer_looks_up() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.fifo("tickets").await?;
    let roles = Roles::create(&bed).await?;
    let lines = "pool_mode = session\nauth_user = postgres\nauth_query = SELECT usename, passwd FROM pg_shadow WHERE usename = $1\n";
    let pgbouncer = PgBouncer::start_with(cluster()?, lines)?;
    let relay = bed.relay().env("DATABASE_URL", pgbouncer.url(&roles.relay_url)).start().await?;
    bed.enqueue_many("tickets", 500, 20).await?;
    bed.until_nothing_is_pending().await?;
    let database: String = bed.client.query_one("SELECT current_database()", &[]).await?.get(0);
    ensure!(shown(&pgbouncer, "SHOW POOLS", &database, "pool_mode").await?.contains(&"session".to_owned()));
    relay.stop().await?;
    bed.ensure_arrived_in_order(&queue, 500).await
}

#[tokio::test]
async fn the_relays_of_all_tests_go_through_pgbouncer_on_request() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.standard("audit").await?;
    bed.enqueue_many("audit", 100, 0).await?;
    let relay = bed.relay().start().await?;
    bed.until_nothing_is_pending().await?;
    let asked_for = support::pgbouncer()?;
    let port = asked_for.map_or(cluster()?.port(), PgBouncer::port);
    relay.wait_for_log(&format!("database=127.0.0.1:{port}/")).await?;
    if let Some(pgbouncer) = asked_for {
        let database: String = bed.client.query_one("SELECT current_database()", &[]).await?.get(0);
        ensure!(!shown(pgbouncer, "SHOW CLIENTS", &database, "state").await?.is_empty(), "nobody goes through it");
    }
    relay.stop().await?;
    Ok(())
}

/// The statements that PostgreSQL logged for the relay, without comments and in capitals, each after the way it was
/// sent.
fn statements_of_the_relay(log: &str) -> Vec<String> {
    let mut statements = Vec::<String>::new();
    let mut is_ours = false;
    for line in log.lines() {
        // Continuation lines begin with a tab.
        if let Some((head, statement)) = line.split_once("LOG:  ").filter(|_| !line.starts_with('\t')) {
            is_ours = head.contains(" outbox-relay ") || head.contains(" outbox-relay.");
            if is_ours {
                statements.push(statement.to_owned());
            }
        } else if let Some(statement) = statements.last_mut().filter(|_| is_ours && line.starts_with('\t')) {
            statement.push('\n');
            statement.push_str(line);
        }
    }
    let without_comment = |line: &str| line.split("--").next().unwrap_or_default().trim().to_uppercase();
    statements.iter().map(|one| one.lines().map(without_comment).collect::<Vec<_>>().join(" ")).collect()
}

/// Whether a statement has a meaning only within its session.
fn is_for_a_session(statement: &str) -> bool {
    let words = [
        "LISTEN",
        "PREPARE ",
        "DEALLOCATE",
        "DECLARE ",
        "DISCARD",
        "RESET ",
        "TEMP ",
        "TEMPORARY ",
        "SET_CONFIG",
        "PG_ADVISORY_LOCK",
        "PG_TRY_ADVISORY_LOCK",
        "PG_BACKEND_PID",
    ];
    let mut parts = statement.trim_start_matches("STATEMENT:").split(';').map(str::trim);
    parts.any(|part| part.starts_with("SET ") && !part.starts_with("SET LOCAL "))
        || words.into_iter().any(|word| statement.contains(word))
        || (statement.starts_with("EXECUTE ") && !statement.starts_with("EXECUTE <UNNAMED>:"))
}

/// Delivers, reads on in a group, defers, dead-letters, rescans, measures and prunes.
async fn do_everything(bed: &TestBed) -> Result<()> {
    let proxy = bed.proxy().await?;
    bed.fifo("tickets").await?;
    bed.enqueue_many("tickets", 100, 2).await?;
    let which = Choice::body_contains("\"n\": 7}");
    proxy.set(Fault::FailEntries { which, code: "InternalError", sender_fault: false });
    let relay = bed.relay().env("OUTBOX_RELAY_RETRY_INITIAL", "1h").env("OUTBOX_RELAY_RETRY_MAX", "1h").start().await?;
    eventually("the other group is delivered", || async { Ok(bed.delivered().await? >= 50) }).await?;
    relay.stop().await?;
    ensure!(bed.count("SELECT count(*) FROM outbox.messages_pending WHERE available_at IS NOT NULL").await? == 1);
    bed.client.batch_execute("UPDATE outbox.messages SET available_at = now() WHERE available_at IS NOT NULL").await?;
    let relay = bed.relay().env("OUTBOX_RELAY_MAX_ATTEMPTS", "2").env("OUTBOX_RELAY_DELIVERED_RETENTION", "1s");
    let relay = relay.start().await?;
    // A message that fails alone is charged only while others succeed.
    let others = bed.trickle("tickets").await?;
    let is_dead = || async { Ok(bed.count("SELECT count(*) FROM outbox.messages_dead").await? == 1) };
    eventually("the message that fails is dead", is_dead).await?;
    drop(others);
    bed.until_nothing_is_pending().await?;
    eventually("delivered messages are pruned", || async { Ok(bed.delivered().await? == 0) }).await?;
    relay.stop().await?;
    Ok(())
}

#[tokio::test]
async fn no_statement_of_the_relay_needs_a_session() -> Result<()> {
    let settings = vec![("log_statement".to_owned(), "all".to_owned())];
    let cluster = Cluster::start(&Options { major: chosen_major(), settings, ..Options::default() })?;
    let bed = TestBed::on(&cluster).await?;
    do_everything(&bed).await?;
    let statements = statements_of_the_relay(&std::fs::read_to_string(cluster.log_path())?);
    let pruned = format!("DELETE FROM {}.MESSAGES", bed.schema()?.to_uppercase());
    for part in [
        "FOR UPDATE SKIP LOCKED",
        "PG_CURRENT_SNAPSHOT()",
        "SET STATUS = 'DELIVERED'",
        "SET STATUS = 'DEAD'",
        "CLOCK_TIMESTAMP() + D.WAIT",
        &pruned,
        "SET LOCAL IDLE_IN_TRANSACTION_SESSION_TIMEOUT",
    ] {
        ensure!(statements.iter().any(|statement| statement.contains(part)), "{part} was never said");
    }
    // The bodies of the functions that `migrate` creates are not statements of its session.
    let said = statements.iter().filter(|statement| !statement.contains("CREATE FUNCTION"));
    let wrong: Vec<_> = said.filter(|statement| is_for_a_session(statement)).collect();
    ensure!(wrong.is_empty(), "these need a session: {wrong:#?}");
    Ok(())
}
