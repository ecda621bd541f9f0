//! Messages for later: when they are sent, where they stand in their group, and how they are cancelled.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};

use support::eventually;
use support::roles::Roles;
use support::test_bed::{TestBed, connect, ensure_each_once, numbers};

/// Writes a message with this number to a group, to be sent so many milliseconds from now; returns its id.
async fn schedule(bed: &TestBed, destination: &str, n: i64, group: Option<&str>, in_ms: i64) -> Result<i64> {
    let statement = "SELECT outbox.enqueue($1, 'T', jsonb_build_object('n', $2::bigint), $3,
        deliver_at => clock_timestamp() + $4::bigint * interval '1 ms')";
    Ok(bed.client.query_one(statement, &[&destination, &n, &group, &in_ms]).await?.get(0))
}

async fn scheduled(bed: &TestBed) -> Result<i64> {
    bed.count("SELECT count(*) FROM outbox.messages WHERE status = 'scheduled'").await
}

#[tokio::test]
async fn a_scheduled_message_is_sent_when_it_falls_due_and_holds_nothing_up_before() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.fifo("tickets").await?;
    // Time enough for a relay to start on a busy machine.
    schedule(&bed, "tickets", 3, Some("g"), 4000).await?;
    schedule(&bed, "tickets", 1, Some("g"), -1000).await?;
    let due: f64 = {
        let due = "SELECT extract(epoch FROM deliver_at)::float8 FROM outbox.messages WHERE status = 'scheduled'";
        bed.client.query_one(due, &[]).await?.get(0)
    };
    let relay = bed.relay().start().await?;
    eventually("the one that is due is sent", || async { Ok(bed.delivered().await? == 1) }).await?;
    schedule(&bed, "tickets", 2, Some("g"), 0).await?;
    bed.until_drained().await?;
    eventually("all are sent", || async { Ok(bed.delivered().await? == 3) }).await?;
    ensure!(scheduled(&bed).await? == 0);
    relay.stop().await?;
    let arrived = bed.queues.contents(&queue).await?;
    ensure!(numbers(&arrived)? == [1, 2, 3], "{:?}", numbers(&arrived)?);
    let late = arrived.last().context("nothing arrived")?.sent_at as f64 / 1000.0 - due;
    println!("{late:.3} s after its time");
    ensure!(late >= -0.001, "it came {late} s before its time");
    let at = "SELECT count(*) FROM outbox.messages WHERE extract(epoch FROM enqueued_at)::float8 = $1";
    ensure!(bed.client.query_one(at, &[&due]).await?.get::<_, i64>(0) == 1, "its age counts from its time");
    Ok(())
}

#[tokio::test]
async fn scheduled_messages_of_a_group_go_in_the_order_of_their_times() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.fifo("tickets").await?;
    // The later the number, the later the time; they are written the other way round, and all fall due before a relay runs.
    let write = "SELECT outbox.enqueue('tickets', 'T', jsonb_build_object('n', n), 'g' || n % 7,
            deliver_at => now() + interval '1 s' + n * interval '1 ms')
        FROM generate_series(1, 3000) AS n ORDER BY n DESC";
    bed.client.query(write, &[]).await?;
    let is_due = "SELECT count(*) FROM outbox.messages WHERE status = 'scheduled' AND deliver_at > clock_timestamp()";
    eventually("all are due", || async { Ok(bed.count(is_due).await? == 0) }).await?;
    let relays = [bed.relay().start().await?, bed.relay().start().await?];
    eventually("all are sent", || async { Ok(bed.delivered().await? == 3000) }).await?;
    for relay in relays {
        relay.stop().await?;
    }
    bed.ensure_arrived_in_order(&queue, 3000).await
}

#[tokio::test]
async fn a_scheduled_message_can_be_cancelled_and_moved_until_it_is_sent() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.standard("audit").await?;
    let hour = 3_600_000;
    let (cancelled, moved) =
        (schedule(&bed, "audit", 1, None, hour).await?, schedule(&bed, "audit", 2, None, hour).await?);
    let relay = bed.relay().start().await?;
    let cancel = "DELETE FROM outbox.messages WHERE status = 'scheduled' AND destination = 'audit' AND id = $1";
    ensure!(bed.client.execute(cancel, &[&cancelled]).await? == 1);
    let hurry = "UPDATE outbox.messages SET deliver_at = now() WHERE status = 'scheduled' AND id = $1";
    ensure!(bed.client.execute(hurry, &[&moved]).await? == 1);
    eventually("the moved one is sent", || async { Ok(bed.delivered().await? == 1) }).await?;
    ensure!(bed.client.execute(cancel, &[&moved]).await? == 0, "it is too late");
    relay.stop().await?;
    ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?.into_iter().map(|n| n - 1).collect(), 1)
}

#[tokio::test]
async fn what_is_scheduled_is_counted_and_is_neither_backlog_nor_lag() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.standard("audit").await?;
    schedule(&bed, "audit", 1, None, 3_600_000).await?;
    schedule(&bed, "audit", 2, None, 7_200_000).await?;
    let relay = bed.relay().start().await?;
    relay.wait_for_metric(r#"scheduled_messages{destination="audit"}"#, 2.0).await?;
    let metrics = relay.metrics().await?;
    let next = metrics.get(r#"next_scheduled_timestamp_seconds{destination="audit"}"#)?;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs_f64();
    ensure!((3500.0..3700.0).contains(&(next - now)), "{next} is not an hour from {now}");
    ensure!(metrics.get(r#"backlog_messages{destination="audit"}"#)? == 0.0);
    ensure!(metrics.get(r#"lag_seconds{destination="audit"}"#)? == 0.0);
    let status = bed.relay().output(&["status"]).await?;
    ensure!(status.stdout.contains("audit: 2 scheduled, the next for "), "{}", status.stdout);
    relay.stop().await?;
    // Their events are needed as well as those of pending messages.
    ensure!(bed.count("SELECT purged FROM outbox.purge_events(now())").await? == 0);
    // Nothing is due, so there is nothing to wait for.
    bed.relay().until_empty().await?.ensure_success()?;
    ensure!(scheduled(&bed).await? == 2);
    Ok(())
}

#[tokio::test]
async fn an_application_schedules_cancels_and_moves_with_the_rights_of_the_template() -> Result<()> {
    let bed = TestBed::new().await?;
    let roles = Roles::create(&bed).await?;
    let queue = bed.fifo("tickets").await?;
    let application = connect(&roles.application_url).await?;
    for statement in [
        "SELECT outbox.enqueue('tickets', 'T', '{\"n\": 1}', 'g', deliver_at => now() + interval '1 hour')",
        "SELECT outbox.enqueue_many('tickets', '[{\"event_type\": \"T\", \"payload\": {\"n\": 2}, \"deliver_at\": \"2100-01-01\"}]')",
        "SELECT outbox.append('s', 0, '[{\"event_type\": \"T\", \"payload\": {\"n\": 3}}]', '{tickets}', now() + interval '1 day')",
        "WITH event AS (INSERT INTO outbox.events (event_type, payload) VALUES ('T', '{\"n\": 4}') RETURNING position)
            INSERT INTO outbox.messages (destination, event_position, status, deliver_at)
            SELECT 'tickets', position, 'scheduled', now() + interval '1 day' FROM event",
    ] {
        application.batch_execute(statement).await.with_context(|| statement.to_owned())?;
    }
    ensure!(scheduled(&bed).await? == 4);
    let cancel = "DELETE FROM outbox.messages_scheduled WHERE destination = 'tickets' AND id = 2";
    ensure!(application.execute(cancel, &[]).await? == 1);
    application
        .batch_execute("UPDATE outbox.messages_scheduled SET deliver_at = now() WHERE deliver_at < '2100-01-01'")
        .await?;
    for refused in [
        "INSERT INTO outbox.messages (destination, event_position, status) VALUES ('tickets', 1, 'delivered')",
        "INSERT INTO outbox.messages (destination, event_position, status) VALUES ('tickets', 1, 'dead')",
        "UPDATE outbox.messages_scheduled SET destination = 'audit'",
    ] {
        ensure!(application.batch_execute(refused).await.is_err(), "{refused} went well");
    }
    let relay = bed.relay().env("DATABASE_URL", &roles.relay_url).start().await?;
    eventually("all are sent", || async { Ok(bed.delivered().await? == 3) }).await?;
    let log = relay.stop().await?;
    ensure!(!log.contains("42501"), "{log}");
    let mut arrived = numbers(&bed.queues.contents(&queue).await?)?;
    arrived.sort_unstable();
    ensure!(arrived == [1, 3, 4], "{arrived:?}");
    Ok(())
}

#[tokio::test]
async fn a_message_that_falls_due_while_no_relay_runs_is_sent_by_the_next_one_with_its_true_age() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.standard("audit").await?;
    schedule(&bed, "audit", 1, None, 100).await?;
    let is_due = "SELECT count(*) FROM outbox.messages WHERE status = 'scheduled' AND deliver_at < clock_timestamp() - interval '2 s'";
    eventually("it has been due for two seconds", || async { Ok(bed.count(is_due).await? == 1) }).await?;
    let relay = bed.relay().start().await?;
    eventually("it is sent", || async { Ok(bed.delivered().await? == 1) }).await?;
    let metrics = relay.metrics().await?;
    ensure!(
        metrics.get(r#"delivery_latency_seconds_sum{destination="audit"}"#)? > Duration::from_secs(2).as_secs_f64()
    );
    relay.stop().await?;
    Ok(())
}

#[tokio::test]
async fn a_scheduled_message_that_postgresql_refuses_stops_no_other_and_goes_once_that_is_mended() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.standard("audit").await?;
    for n in 1..=50 {
        schedule(&bed, "audit", n, None, 300 + n).await?;
    }
    let refuse = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN IF NEW.event_position = 20 THEN RAISE EXCEPTION ''not this one''; END IF; RETURN NEW; END';
        CREATE TRIGGER refuse BEFORE INSERT ON outbox.messages_pending FOR EACH ROW EXECUTE FUNCTION refuse()";
    bed.client.batch_execute(refuse).await?;
    let relay = bed.relay().start().await?;
    eventually("the others are sent", || async { Ok(bed.delivered().await? == 49) }).await?;
    relay.wait_for_log("scheduled messages that are due cannot be enqueued").await?;
    relay.stop().await?;
    ensure!(scheduled(&bed).await? == 1);
    // It is due and cannot be sent, so nothing says that all is done.
    let left = bed.relay().until_empty().await?;
    ensure!(left.code == Some(1) && left.stderr.contains("messages are left"), "{:?} {}", left.code, left.stderr);
    bed.client.batch_execute("DROP TRIGGER refuse ON outbox.messages_pending").await?;
    // It is due, so this does not end without it.
    bed.relay().until_empty().await?.ensure_success()?;
    ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, 50)
}

#[tokio::test]
async fn while_a_refused_message_is_locked_no_other_is_passed_over_in_its_place() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.fifo("tickets").await?;
    let first = schedule(&bed, "tickets", 1, Some("r"), 50).await?;
    let refuse = "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
            'BEGIN IF NEW.group_id = ''r'' THEN RAISE EXCEPTION ''not this one''; END IF; RETURN NEW; END';
        CREATE TRIGGER refuse BEFORE INSERT ON outbox.messages_pending FOR EACH ROW EXECUTE FUNCTION refuse()";
    bed.client.batch_execute(refuse).await?;
    let relay = bed.relay().start().await?;
    relay.wait_for_log("scheduled messages that are due cannot be enqueued").await?;
    // Somebody looks after it.
    let operator = bed.connect().await?;
    operator.batch_execute("BEGIN").await?;
    operator.execute("SELECT FROM outbox.messages WHERE id = $1 FOR UPDATE", &[&first]).await?;
    for n in 2..=21 {
        schedule(&bed, "tickets", n, Some("g"), n * 50).await?;
    }
    eventually("the others are sent", || async { Ok(bed.delivered().await? == 20) }).await?;
    relay.stop().await?;
    let messages = bed.queues.contents(&queue).await?;
    ensure!(numbers(&messages)?.is_sorted(), "{:?}", numbers(&messages)?);
    Ok(())
}

#[tokio::test]
async fn without_the_privilege_to_enqueue_them_until_empty_does_not_end_well() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.standard("audit").await?;
    let roles = Roles::create(&bed).await?;
    schedule(&bed, "audit", 1, None, 20).await?;
    let role = roles.relay.replacen("relay_of", "rights_of_relay", 1);
    bed.client.batch_execute(&format!("REVOKE EXECUTE ON FUNCTION outbox.enqueue_due FROM {role}")).await?;
    let denied = bed.relay().env("DATABASE_URL", &roles.relay_url).until_empty().await?;
    ensure!(
        denied.code == Some(1) && denied.stderr.contains("messages are left"),
        "{:?} {}",
        denied.code,
        denied.stderr
    );
    Ok(())
}
