//! `outbox-relay check` finds what is wrong and names the remedy.

use anyhow::{Result, ensure};
use serde_json::Value;

use support::chosen_major;
use support::postgres::{Cluster, Options};
use support::proxy::{Fault, Rule};
use support::relay::Finished;
use support::roles::Roles;
use support::test_bed::TestBed;

fn ensure_says(output: &Finished, code: i32, sentences: &[&str]) -> Result<()> {
    ensure!(output.code == Some(code), "ended with {:?}: {}{}", output.code, output.stdout, output.stderr);
    for sentence in sentences {
        ensure!(output.stdout.contains(sentence), "{sentence:?} is not in:\n{}", output.stdout);
    }
    ensure!(!output.stdout.contains("the-secret"), "{}", output.stdout);
    Ok(())
}

#[tokio::test]
async fn a_healthy_outbox_passes_and_nothing_reaches_the_queues() -> Result<()> {
    let bed = TestBed::new().await?;
    let (tickets, audit) = (bed.fifo("tickets").await?, bed.standard("audit").await?);
    let checked = bed.relay().output(&["check"]).await?;
    let schema = format!("✓ schema: {} is up to date", bed.schema()?);
    let sentences = [
        "✓ configuration: 2 destination(s)",
        "✓ PostgreSQL: ",
        &schema,
        "✓ server: takes writes",
        "✓ clocks: ",
        "✓ rights: ",
        "✓ indexes and partitions: in place",
        "✓ autovacuum: on",
        "✓ queue of tickets: a FIFO queue",
        "✓ queue of audit: a standard queue",
        "✓ queue of audit: this relay may send",
    ];
    ensure_says(&checked, 0, &sentences)?;
    ensure!(bed.queues.contents(&tickets).await?.is_empty() && bed.queues.contents(&audit).await?.is_empty());
    let json = bed.relay().output(&["check", "--json"]).await?;
    let findings: Vec<Value> = serde_json::from_str(&json.stdout)?;
    ensure!(json.code == Some(0) && findings.iter().all(|one| one["verdict"] != "bad"), "{}", json.stdout);
    Ok(())
}

#[tokio::test]
async fn missing_rights_broken_indexes_and_a_table_without_autovacuum_are_named() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.standard("audit").await?;
    let roles = Roles::create(&bed).await?;
    let database: String = bed.client.query_one("SELECT current_database()", &[]).await?.get(0);
    let change = format!(
        "REVOKE DELETE ON outbox.messages FROM rights_of_relay_{database};
         DROP INDEX outbox.messages_pending_deferred;
         ALTER TABLE outbox.messages_pending SET (autovacuum_enabled = off)"
    );
    bed.client.batch_execute(&change).await?;
    let checked = bed.relay().env("DATABASE_URL", &roles.relay_url).output(&["check"]).await?;
    let lacks = match bed.schema()? {
        "outbox" => "lacks DELETE on outbox.messages\n    → run deploy/roles.sql".to_owned(),
        other => format!("lacks DELETE on {other}.messages\n    → run the SQL of `outbox-relay generate roles"),
    };
    let sentences = [
        &*lacks,
        "✗ indexes and partitions: missing or invalid: messages_pending_deferred",
        "! autovacuum: turned off for messages_pending",
        "sees its own sessions only\n    → GRANT pg_read_all_stats",
    ];
    ensure_says(&checked, 1, &sentences)
}

#[tokio::test]
async fn a_missing_or_unmigrated_database_is_reported_and_queues_are_checked_all_the_same() -> Result<()> {
    let bed = TestBed::empty().await?;
    bed.standard("audit").await?;
    let checked = bed.relay().output(&["check"]).await?;
    ensure_says(&checked, 1, &["✗ PostgreSQL: ", "outbox-relay migrate", "✓ queue of audit: this relay may send"])?;
    let elsewhere = bed.relay().env("DATABASE_URL", "postgres://nobody@127.0.0.1:1/none").output(&["check"]).await?;
    ensure_says(
        &elsewhere,
        1,
        &["✗ PostgreSQL, connection to 127.0.0.1:1: not possible: 127.0.0.1: Connection refused"],
    )
}

#[tokio::test]
async fn a_queue_that_cannot_be_used_is_reported() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let audit = bed.standard("audit").await?;
    bed.add_destination("gone", &format!("{audit}-which-was-never-made"));
    let checked = bed.relay().output(&["check"]).await?;
    ensure_says(&checked, 1, &["✓ queue of audit: this relay may send", "✗ queue of gone: this relay cannot send: "])?;
    proxy.set(Fault::access_denied());
    let denied = bed.relay().output(&["check"]).await?;
    ensure_says(&denied, 1, &["✗ queue of audit: this relay cannot send: ", "AccessDenied"])
}

#[tokio::test]
async fn a_queue_of_another_type_a_small_one_and_one_with_a_key_are_reported() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let (tickets, audit) = (bed.fifo("tickets").await?, bed.standard("audit").await?);
    let says = |url: &str, attributes: &'static str| {
        Rule::new(Fault::Garble(200, attributes)).action("GetQueueAttributes").queue(url)
    };
    // SQS leaves FifoQueue out for a standard queue.
    proxy.script([
        says(&tickets, r#"{"Attributes": {"MaximumMessageSize": "1048576", "SqsManagedSseEnabled": "true"}}"#),
        says(&audit, r#"{"Attributes": {"MaximumMessageSize": "262144", "KmsMasterKeyId": "alias/ours"}}"#),
    ]);
    let checked = bed.relay().output(&["check"]).await?;
    let sentences = [
        "✗ queue of tickets: a standard queue, but its URL says otherwise",
        "✓ queue of audit: a standard queue, takes 262144 bytes, encryption: KMS key alias/ours",
        "! queue of audit: takes no message above 262144 bytes",
        "! queue of audit: permissions on its key cannot be tested without sending",
    ];
    ensure_says(&checked, 1, &sentences)
}

#[tokio::test]
async fn a_server_that_may_lose_commits_is_reported() -> Result<()> {
    let cluster = Cluster::start(&Options { major: chosen_major(), durable: true, ..Options::default() })?;
    let bed = TestBed::on(&cluster).await?;
    bed.standard("audit").await?;
    let checked = bed.relay().output(&["check"]).await?;
    ensure_says(&checked, 0, &["✓ durability: committed transactions survive a crash"])?;
    let database: String = bed.client.query_one("SELECT current_database()", &[]).await?.get(0);
    bed.client.batch_execute(&format!("ALTER DATABASE {database} SET synchronous_commit = off")).await?;
    let checked = bed.relay().output(&["check"]).await?;
    ensure_says(&checked, 0, &["! durability: fsync, full_page_writes or synchronous_commit is off"])
}

#[tokio::test]
async fn every_mistake_of_the_configuration_is_reported() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.standard("audit").await?;
    let command = bed.relay().env("OUTBOX_RELAY_BATCH_SIZE", "0").env("OUTBOX_RELAY_MAX_ATTEMPS", "3");
    let checked = command.output(&["check"]).await?;
    ensure_says(
        &checked,
        2,
        &["✗ configuration: OUTBOX_RELAY_BATCH_SIZE=\"0\"", "did you mean OUTBOX_RELAY_MAX_ATTEMPTS"],
    )
}

#[tokio::test]
async fn routes_that_lead_to_no_destination_of_this_relay_are_named_with_their_types() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.standard("audit").await?;
    let roles = Roles::create(&bed).await?;
    let check = bed.relay().env("DATABASE_URL", &roles.relay_url);
    let sentence = "✓ routes: lead to destinations of this relay only";
    ensure_says(&check.output(&["check"]).await?, 0, &[sentence])?;
    let routes =
        "INSERT INTO outbox.routes VALUES ('Order', 'audit'), ('Order', 'mails'), ('*', 'mails'), ('Ticket', 'stock')";
    bed.client.batch_execute(routes).await?;
    let sentences = [
        "! routes: *, Order lead to mails, which this relay does not serve\n    → add mails to the destinations of this relay",
        "! routes: Ticket lead to stock, which this relay does not serve",
    ];
    ensure_says(&check.output(&["check"]).await?, 0, &sentences)?;
    // A relay does not need it.
    let database: String = bed.client.query_one("SELECT current_database()", &[]).await?.get(0);
    bed.client.batch_execute(&format!("REVOKE SELECT ON outbox.routes FROM rights_of_relay_{database}")).await?;
    let denied = check.output(&["check"]).await?;
    ensure_says(&denied, 0, &["! routes: ", "permission denied", "    → run "])
}
