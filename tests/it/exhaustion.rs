//! PostgreSQL answers, but its disk is full, it has no free connection, or it is still starting.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};

use support::postgres::{Cluster, Options, StopMode};
use support::proxy::Fault;
use support::relay::ensure_reported_at_most_once_a_second;
use support::roles::Roles;
use support::test_bed::{TestBed, ensure_each_once, numbers};
use support::{chosen_major, eventually};

/// While a table of this name exists, the disk is full; a transaction that delivered something finds out when it
/// commits. The sequence counts the refusals, because a ROLLBACK does not undo it.
const DISK: &str = "
    CREATE TABLE disk_is_full ();
    CREATE SEQUENCE refusals;
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF to_regclass('disk_is_full') IS NOT NULL THEN
            PERFORM nextval('refusals');
            RAISE EXCEPTION 'could not write: No space left on device' USING ERRCODE = 'disk_full';
        END IF;
        RETURN NULL;
    END $$;
    CREATE CONSTRAINT TRIGGER full_disk AFTER INSERT ON outbox.messages_delivered
        DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse()";

#[tokio::test]
async fn messages_accepted_while_the_disk_was_full_are_settled_and_not_sent_again() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let queue = bed.standard("audit").await?;
    bed.client.batch_execute(DISK).await?;
    bed.enqueue_many("audit", 1000, 0).await?;
    let relay = bed.relay().start().await?;
    relay.wait_for_log("53100").await?;
    eventually("six commits were refused", || async {
        Ok(bed.count("SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM refusals").await? >= 6)
    })
    .await?;
    let sent = proxy.entries_seen();
    ensure!(sent > 0 && bed.pending().await? == 1000);
    ensure!(relay.metrics().await?.get("database_up")? == 0.0);
    bed.client.batch_execute("DROP TABLE disk_is_full").await?;
    bed.until_nothing_is_pending().await?;
    relay.wait_for_metric(r#"delivered_messages_total{destination="audit"}"#, 1000.0).await?;
    ensure!(relay.metrics().await?.sum("possible_duplicates_total") == 0.0);
    ensure_reported_at_most_once_a_second(&relay.stop().await?)?;
    ensure!(proxy.entries_seen() == 1000, "{} entries were sent", proxy.entries_seen());
    let received = bed.queues.contents(&queue).await?;
    ensure_each_once(numbers(&received)?, 1000)?;
    // Each row has the id that SQS assigned, including the first ones.
    let query = "SELECT m.sqs_message_id, e.payload::text FROM outbox.messages AS m
        JOIN outbox.events AS e ON e.position = m.event_position";
    let rows = bed.client.query(query, &[]).await?;
    let recorded: HashMap<String, String> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    let arrived = received.into_iter().map(|message| (message.message_id, message.body)).collect();
    ensure!(recorded == arrived, "the ids of SQS are not those that were recorded");
    Ok(())
}

#[tokio::test]
async fn too_few_connections_are_waited_for() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.standard("audit").await?;
    let Roles { relay: role, relay_url, .. } = Roles::create(&bed).await?;
    // Enough for a claim, but not for the statements under it.
    bed.client.batch_execute(&format!("ALTER ROLE {role} CONNECTION LIMIT 1")).await?;
    bed.enqueue_many("audit", 100, 0).await?;
    let relay = bed.relay().env("DATABASE_URL", relay_url).start().await?;
    relay.wait_for_log("53300").await?;
    // The relay claims and gives up repeatedly, and not only during the first second.
    let told = || relay.log().matches("the database cannot be used").count();
    eventually("it was logged twice", || async { Ok(told() >= 2) }).await?;
    ensure!(bed.pending().await? == 100);
    bed.client.batch_execute(&format!("ALTER ROLE {role} CONNECTION LIMIT -1")).await?;
    bed.until_nothing_is_pending().await?;
    relay.wait_for_metric("database_up", 1.0).await?;
    ensure_reported_at_most_once_a_second(&relay.stop().await?)?;
    ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, 100)
}

#[tokio::test]
async fn a_database_that_is_still_starting_is_waited_for() -> Result<()> {
    // Recovery asks the archive for a file and gets no answer while a file named hold exists.
    let archive = "while test -e ../hold; do sleep 0.05; done; exit 1";
    let settings = vec![("restore_command".to_owned(), archive.to_owned())];
    let options = Options { major: chosen_major(), settings, ..Options::default() };
    let cluster = Arc::new(Cluster::start(&options)?);
    let bed = TestBed::on(&cluster).await?;
    let queue = bed.standard("audit").await?;
    bed.enqueue_many("audit", 100, 0).await?;
    let relay = bed.relay().env("OUTBOX_RELAY_DELIVERED_RETENTION", "1h").start().await?;
    bed.until_nothing_is_pending().await?;
    relay.stop().await?;
    cluster.stop(StopMode::Immediate)?;
    let home = cluster.socket_folder();
    fs::write(home.join("hold"), "")?;
    let signal = home.join("data/recovery.signal");
    fs::write(&signal, "")?;
    fs::set_permissions(&signal, fs::Permissions::from_mode(0o666))?;
    let starting = Arc::clone(&cluster);
    let starting = tokio::task::spawn_blocking(move || starting.start_again());
    let relay = bed.relay().start().await?;
    relay.wait_for_log("57P03").await?;
    relay.wait_for_status("/readyz", 503).await?;
    fs::remove_file(home.join("hold"))?;
    starting.await??;
    relay.wait_for_status("/readyz", 200).await?;
    let client = bed.connect().await?;
    support::test_bed::enqueue(&client, "audit", "{\"n\": 101}", None).await?;
    relay.wait_for_metric(r#"delivered_messages_total{destination="audit"}"#, 1.0).await?;
    ensure_reported_at_most_once_a_second(&relay.stop().await?)?;
    ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, 101)
}

#[tokio::test]
async fn too_few_file_descriptors_are_reported_once_and_cost_no_message() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let queue = bed.fifo("tickets").await?;
    proxy.set(Fault::Delay(Duration::from_millis(200)));
    let relay = bed.relay().after("ulimit -n 40").start().await?;
    bed.enqueue_many("tickets", 2000, 500).await?;
    bed.until_nothing_is_pending().await?;
    proxy.clear();
    let log = relay.stop().await?;
    let told = log.lines().filter(|line| line.contains("too few files may be open")).count();
    ensure!(told == 1 && log.contains("LimitNOFILE") && log.contains("may_open=40"), "{log}");
    ensure!(log.contains("code=TooManyOpenFiles"), "{log}");
    ensure!(!log.contains("the database cannot be used"), "{log}");
    ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, 2000)
}
