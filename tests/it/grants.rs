//! The privileges of `deploy/roles.sql`: enough for everything the relay and an application do, and no more.

use anyhow::{Context, Result, ensure};
use tokio_postgres::Client;

use support::eventually;
use support::proxy::{Choice, Fault};
use support::relay::Command;
use support::roles::Roles;
use support::test_bed::{TestBed, connect, enqueue, ensure_each_once, numbers};

async fn ensure_denied(client: &Client, statement: &str) -> Result<()> {
    let error = client.batch_execute(statement).await.err().with_context(|| format!("{statement} went well"))?;
    let code = error.code().map(|code| code.code().to_owned());
    ensure!(code.as_deref() == Some("42501"), "{statement}: {error}");
    Ok(())
}

/// Writes fifty messages with the function that applications call.
async fn append(application: &Client, destination: &str) -> Result<()> {
    let call = "SELECT outbox.enqueue($1, 'TicketPurchased', jsonb_build_object('n', n), 'g' || n % 5)
        FROM generate_series(1, 50) AS n";
    application.query(call, &[&destination]).await?;
    Ok(())
}

/// The same in one call.
async fn append_many(application: &Client, destination: &str) -> Result<()> {
    let call = "SELECT outbox.enqueue_many($1, jsonb_agg(jsonb_build_object(
            'event_type', 'TicketPurchased', 'payload', jsonb_build_object('n', n), 'group_id', 'g' || n % 5
        ) ORDER BY n)) FROM generate_series(1, 50) AS n";
    application.query(call, &[&destination]).await?;
    Ok(())
}

#[tokio::test]
async fn a_relay_with_the_rights_of_the_template_delivers_prunes_and_measures() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let roles = Roles::create(&bed).await?;
    let (tickets, audit) = (bed.fifo("tickets").await?, bed.standard("audit").await?);
    let application = connect(&roles.application_url).await?;
    append_many(&application, "tickets").await?;
    let doomed = enqueue(&application, "audit", "{\"n\": 0}", None).await?;
    append(&application, "audit").await?;
    // This reads, defers and dead-letters as well as delivers.
    let which = Choice::by(|_, entry| entry.body == "{\"n\": 0}");
    proxy.set(Fault::FailEntries { which, code: "InternalError", sender_fault: false });
    let relay = bed.relay().env("DATABASE_URL", &roles.relay_url).env("OUTBOX_RELAY_DELIVERED_RETENTION", "1s");
    let relay = relay.env("OUTBOX_RELAY_MAX_ATTEMPTS", "2").start().await?;
    let others = bed.trickle("audit").await?;
    eventually("one is dead", || async { Ok(bed.row(doomed).await?.status == "dead") }).await?;
    drop(others);
    bed.until_nothing_is_pending().await?;
    eventually("delivered messages are pruned", || async { Ok(bed.delivered().await? == 0) }).await?;
    relay.wait_for_metric(r#"dead_messages{destination="audit"}"#, 1.0).await?;
    let log = relay.stop().await?;
    ensure!(!log.contains("42501"), "{log}");
    ensure_each_once(numbers(&bed.queues.contents(&tickets).await?)?, 50)?;
    let mut arrived = bed.queues.contents(&audit).await?;
    arrived.retain(|message| !message.body.contains("trickle"));
    ensure_each_once(numbers(&arrived)?, 50)
}

#[tokio::test]
async fn a_relay_that_may_not_see_other_sessions_shows_no_age_of_the_horizon_instead_of_none() -> Result<()> {
    let bed = TestBed::new().await?;
    let roles = Roles::create(&bed).await?;
    bed.standard("audit").await?;
    let relay = bed.relay().env("DATABASE_URL", &roles.relay_url).start().await?;
    relay.wait_for_metric(r#"horizon_age_seconds{kind="prepared_transaction"}"#, 0.0).await?;
    let shows =
        async |kind: &str| Ok(relay.metrics().await?.get(&format!("horizon_age_seconds{{kind=\"{kind}\"}}")).is_ok());
    ensure!(!shows("transaction").await? && !shows("standby").await?);
    let database: String = bed.client.query_one("SELECT current_database()", &[]).await?.get(0);
    bed.client.batch_execute(&format!("GRANT pg_read_all_stats TO rights_of_relay_{database}")).await?;
    eventually("other sessions are seen", || shows("transaction")).await?;
    ensure!(shows("standby").await?);
    relay.stop().await?;
    Ok(())
}

#[tokio::test]
async fn an_application_writes_bodies_of_every_kind_where_nobody_may_call_functions_by_default() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.client.batch_execute("REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA outbox FROM PUBLIC").await?;
    let roles = Roles::create(&bed).await?;
    let queue = bed.standard("audit").await?;
    let application = connect(&roles.application_url).await?;
    for statement in [
        "SELECT outbox.enqueue('audit', 'T', body => '<a/>'), outbox.enqueue('audit', 'T', body_bytes => '\\x00')",
        "SELECT outbox.enqueue_many('audit', '[{\"event_type\": \"T\", \"body\": \"<a/>\"}, {\"event_type\": \"T\", \"body_base64\": \"AA==\"}]')",
        "SELECT outbox.append('s', 0, '[{\"event_type\": \"T\", \"body\": \"<a/>\"}, {\"event_type\": \"T\", \"body_base64\": \"AA==\"}]', '{audit}')",
        "WITH event AS (INSERT INTO outbox.events (event_type, body) VALUES ('T', '<a/>') RETURNING position)
            INSERT INTO outbox.messages (destination, event_position) SELECT 'audit', position FROM event",
    ] {
        application.batch_execute(statement).await.with_context(|| statement.to_owned())?;
    }
    ensure_denied(&application, "SELECT body FROM outbox.events").await?;
    ensure_denied(&application, "SELECT body_bytes FROM outbox.events").await?;
    bed.relay().env("DATABASE_URL", &roles.relay_url).deliver_all().await?;
    let arrived = bed.queues.contents(&queue).await?;
    let texts = arrived.iter().filter(|message| message.body == "<a/>").count();
    let bytes = arrived.iter().filter(|message| message.body == "AA==").count();
    ensure!((texts, bytes) == (4, 3), "{texts} and {bytes}");
    Ok(())
}

#[tokio::test]
async fn a_relay_without_retention_has_enough_privileges_too() -> Result<()> {
    let bed = TestBed::new().await?;
    let roles = Roles::create(&bed).await?;
    let queue = bed.standard("audit").await?;
    bed.enqueue_many("audit", 100, 0).await?;
    let relay = bed.relay().env("DATABASE_URL", &roles.relay_url).env("OUTBOX_RELAY_DELIVERED_RETENTION", "0s");
    relay.deliver_all().await?;
    ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, 100)
}

#[tokio::test]
async fn an_operator_decides_about_dead_messages_and_nothing_else() -> Result<()> {
    let bed = TestBed::new().await?;
    let roles = Roles::create(&bed).await?;
    bed.enqueue_many("audit", 10, 0).await?;
    bed.client.batch_execute("INSERT INTO outbox.lanes SELECT 'audit', generate_series(0, 15)").await?;
    let bury =
        "UPDATE outbox.messages SET status = 'dead', dead_at = now(), last_error = 'InternalError' WHERE id <= 6";
    bed.client.batch_execute(bury).await?;
    let operator = Command::new().env("DATABASE_URL", &roles.operator_url);
    for arguments in [
        ["dead", "list", "--json", "--limit", "5"],
        ["dead", "redrive", "1", "2", "--yes"],
        ["dead", "discard", "3", "--actor=ada", "--yes"],
    ] {
        operator.output(&arguments).await?.ensure_success()?;
    }
    ensure!(bed.pending().await? == 6 && bed.count("SELECT count(*) FROM outbox.messages_dead").await? == 3);
    ensure!(bed.count("SELECT count(*) FROM outbox.audit_log WHERE role LIKE 'operator%'").await? == 2);
    let operator = connect(&roles.operator_url).await?;
    for statement in [
        "UPDATE outbox.events SET payload = '{}'",
        "DELETE FROM outbox.messages",
        "DELETE FROM outbox.audit_log",
        "UPDATE outbox.audit_log SET actor = 'nobody'",
        "INSERT INTO outbox.events (event_type, payload) VALUES ('Forged', '{}')",
        "INSERT INTO outbox.messages (destination, event_position, attempts) VALUES ('audit', 1, 1)",
    ] {
        ensure_denied(&operator, statement).await?;
    }
    let operator = Command::new().env("DATABASE_URL", &roles.operator_url);
    for arguments in [["pause", "audit"], ["resume", "audit"], ["set", "batch-size=500"]] {
        operator.output(&arguments).await?.ensure_success()?;
    }
    Ok(())
}

#[tokio::test]
async fn a_reader_sees_everything_and_changes_nothing() -> Result<()> {
    let bed = TestBed::new().await?;
    let roles = Roles::create(&bed).await?;
    bed.enqueue("audit", "{}", None).await?;
    let reader = connect(&roles.reader_url).await?;
    for table in [
        "events",
        "messages",
        "lanes",
        "audit_log",
        "migrations",
        "pauses",
        "settings",
        "destinations",
        "served",
        "replays",
    ] {
        reader
            .batch_execute(&format!("SELECT count(*) FROM outbox.{table}"))
            .await
            .with_context(|| table.to_owned())?;
    }
    for statement in [
        "UPDATE outbox.messages SET attempts = 0",
        "DELETE FROM outbox.events",
        "SELECT outbox.pause()",
        "SELECT FROM outbox.lanes FOR UPDATE",
        "INSERT INTO outbox.events (event_type, payload) VALUES ('Forged', '{}')",
    ] {
        ensure_denied(&reader, statement).await?;
    }
    Ok(())
}

#[tokio::test]
async fn no_role_may_do_more_than_its_task() -> Result<()> {
    let bed = TestBed::new().await?;
    let roles = Roles::create(&bed).await?;
    bed.enqueue("audit", "{}", None).await?;
    let application = connect(&roles.application_url).await?;
    for statement in [
        "UPDATE outbox.events SET payload = '{}'",
        "DELETE FROM outbox.events",
        "UPDATE outbox.messages SET attempts = 0",
        "DELETE FROM outbox.messages",
        "INSERT INTO outbox.messages (destination, event_position, status, delivered_at) VALUES ('audit', 1, 'delivered', now())",
        "SELECT FROM outbox.lanes FOR UPDATE",
        "SELECT payload FROM outbox.events",
        "SELECT outbox.pause()",
        "SELECT outbox.resume()",
        "CREATE TABLE outbox.own ()",
    ] {
        ensure_denied(&application, statement).await?;
    }
    let relay = connect(&roles.relay_url).await?;
    for statement in [
        "UPDATE outbox.events SET payload = '{}'",
        "DELETE FROM outbox.events",
        "INSERT INTO outbox.events (event_type, payload) VALUES ('Forged', '{}')",
        "INSERT INTO outbox.messages (destination, event_position) VALUES ('audit', 1)",
        "DELETE FROM outbox.lanes",
        "UPDATE outbox.messages SET destination = 'elsewhere'",
        "UPDATE outbox.messages SET event_position = 1",
        "SELECT outbox.pause()",
        "SELECT FROM outbox.audit_log",
        "DELETE FROM outbox.destinations",
        "DELETE FROM outbox.served",
        "DROP TABLE outbox.messages",
    ] {
        ensure_denied(&relay, statement).await?;
    }
    Ok(())
}
