//! Operators pause, resume and set while relays run, and see what is in force.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use support::eventually;
use support::proxy::Fault;
use support::roles::Roles;
use support::test_bed::{TestBed, enqueue_range, ensure_each_once, numbers};

#[tokio::test]
async fn a_paused_destination_publishes_nothing_until_it_is_resumed_and_others_go_on() -> Result<()> {
    let bed = TestBed::new().await?;
    let (tickets, audit) = (bed.fifo("tickets").await?, bed.standard("audit").await?);
    let relay = bed.relay().start().await?;
    bed.enqueue("tickets", "{\"n\": 1}", Some("g")).await?;
    bed.until_nothing_is_pending().await?;
    let arguments = ["pause", "tickets", "--reason", "the consumer moves", "--actor", "ada"];
    bed.relay().output(&arguments).await?.ensure_success()?;
    relay.wait_for_metric(r#"paused{destination="tickets"}"#, 1.0).await?;
    ensure!(relay.metrics().await?.get(r#"paused_since_timestamp_seconds{destination="tickets"}"#)? > 1.7e9);
    enqueue_range(&bed.client, "tickets", 2..=30, 3).await?;
    enqueue_range(&bed.client, "audit", 1..=30, 0).await?;
    relay.wait_for_metric(r#"delivered_messages_total{destination="audit"}"#, 30.0).await?;
    let pending = "SELECT count(*) FROM outbox.messages_pending WHERE destination = 'tickets'";
    ensure!(bed.count(pending).await? == 29, "something was published in the pause");
    let status = bed.relay().output(&["status"]).await?;
    status.ensure_success()?;
    let line = status.stdout.lines().find(|line| line.starts_with("tickets")).context("no line of tickets")?;
    ensure!(line.contains(" 29 ") && line.contains("by ada") && line.contains("the consumer moves"), "{line}");
    bed.relay().output(&["resume", "tickets"]).await?.ensure_success()?;
    bed.until_nothing_is_pending().await?;
    relay.wait_for_metric(r#"paused{destination="tickets"}"#, 0.0).await?;
    ensure!(relay.metrics().await?.get(r#"paused_since_timestamp_seconds{destination="tickets"}"#).is_err());
    let log = relay.stop().await?;
    ensure!(log.matches("paused; its messages wait").count() == 1 && log.matches(" resumed ").count() == 1, "{log}");
    bed.ensure_arrived_in_order(&tickets, 30).await?;
    ensure_each_once(numbers(&bed.queues.contents(&audit).await?)?, 30)
}

#[tokio::test]
async fn a_relay_that_starts_in_a_pause_publishes_nothing_before_its_end() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.standard("audit").await?;
    bed.enqueue_many("audit", 20, 0).await?;
    // As psql would do it, and before any relay has served the destination.
    bed.client.batch_execute("SELECT outbox.pause('*', NULL, 'not yet')").await?;
    let relay = bed.relay().start().await?;
    relay.wait_for_metric(r#"paused{destination="audit"}"#, 1.0).await?;
    let requests = r#"requests_total{destination="audit"}"#;
    ensure!(relay.metrics().await?.get(requests)? == 0.0, "it published in the pause");
    // A pause with an end ends automatically.
    bed.client.batch_execute("SELECT outbox.pause('*', interval '1 second', 'soon')").await?;
    bed.until_nothing_is_pending().await?;
    let over = "SELECT count(*) FROM outbox.pauses WHERE ends_at <= clock_timestamp()";
    ensure!(bed.count(over).await? == 1, "it published before the pause had ended");
    ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, 20)
}

#[tokio::test]
async fn a_relay_that_cannot_ask_whether_it_is_paused_waits_until_it_can() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.standard("audit").await?;
    bed.relay().deliver_all().await?;
    bed.enqueue_many("audit", 20, 0).await?;
    // A statement that fails for another reason than a missing privilege.
    let database: String = bed.client.query_one("SELECT current_database()", &[]).await?.get(0);
    bed.client.batch_execute(&format!("ALTER DATABASE {database} SET lock_timeout = '200ms'")).await?;
    bed.client.batch_execute("BEGIN; LOCK TABLE outbox.pauses IN ACCESS EXCLUSIVE MODE").await?;
    let relay = bed.relay().start().await?;
    relay.wait_for_log("pauses and settings cannot be read").await?;
    // Time is the subject: a relay that took silence for permission would have published long ago.
    tokio::time::sleep(Duration::from_secs(3)).await;
    ensure!(relay.metrics().await?.get(r#"requests_total{destination="audit"}"#)? == 0.0, "it may have been paused");
    bed.client.batch_execute("COMMIT").await?;
    relay.wait_for_metric(r#"delivered_messages_total{destination="audit"}"#, 20.0).await?;
    ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, 20)
}

#[tokio::test]
async fn a_pause_in_the_middle_of_a_backlog_finishes_what_is_in_flight_and_keeps_the_order() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let queue = bed.fifo("tickets").await?;
    bed.enqueue_many("tickets", 2_000, 20).await?;
    proxy.set(Fault::Delay(Duration::from_millis(100)));
    let relay = bed.relay().start().await?;
    proxy.wait_for_requests(10).await?;
    bed.relay().output(&["pause", "tickets"]).await?.ensure_success()?;
    let lanes = r#"lanes_held{destination="tickets"}"#;
    relay.wait_for_metric(r#"paused{destination="tickets"}"#, 1.0).await?;
    let known_at = proxy.requests_seen();
    relay.wait_for_metric(lanes, 0.0).await?;
    let seen = proxy.requests_seen();
    // Not only when the claim ends, which is a hundred requests later.
    ensure!(seen < known_at + 20, "{} requests were sent in the pause", seen - known_at);
    let pending = bed.pending().await?;
    ensure!(pending > 0 && pending < 2_000, "{pending} are left: the pause did not meet the backlog");
    // Time is the subject: for a second nothing is sent.
    tokio::time::sleep(Duration::from_secs(1)).await;
    ensure!(proxy.requests_seen() == seen && bed.pending().await? == pending, "something was published in the pause");
    proxy.clear();
    bed.relay().output(&["resume", "tickets"]).await?.ensure_success()?;
    bed.until_nothing_is_pending().await?;
    bed.ensure_arrived_in_order(&queue, 2_000).await
}

#[tokio::test]
async fn until_empty_ends_in_a_pause_if_nothing_is_pending_and_otherwise_on_a_signal() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.standard("audit").await?;
    bed.client.batch_execute("SELECT outbox.pause()").await?;
    bed.relay().deliver_all().await?;
    bed.enqueue_many("audit", 5, 0).await?;
    let relay = bed.relay().start_with(&["run", "--until-empty"]).await?;
    relay.wait_for_metric(r#"paused{destination="audit"}"#, 1.0).await?;
    relay.terminate().await?;
    let (status, log) = relay.wait().await?;
    ensure!(status.code() == Some(1) && log.contains("stopped while messages were pending"), "{status}: {log}");
    ensure!(bed.pending().await? == 5);
    Ok(())
}

#[tokio::test]
async fn groups_that_a_dead_message_holds_up_go_on_when_on_dead_is_set_to_skip() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.fifo("tickets").await?;
    let relay = bed.relay().env("OUTBOX_RELAY_ON_DEAD", "block").start().await?;
    bed.enqueue("tickets", &format!("{{\"n\": \"{}\"}}", "x".repeat(1_100_000)), Some("g")).await?;
    relay.wait_for_metric(r#"dead_lettered_total{destination="tickets",reason="message_permanent"}"#, 1.0).await?;
    let waiting = bed.enqueue("tickets", "{\"n\": 2}", Some("g")).await?;
    bed.enqueue("tickets", "{\"n\": 3}", Some("another")).await?;
    relay.wait_for_metric(r#"delivered_messages_total{destination="tickets"}"#, 1.0).await?;
    ensure!(bed.row(waiting).await?.status == "pending");
    bed.relay().output(&["set", "on-dead=skip"]).await?.ensure_success()?;
    relay.wait_for_metric(r#"delivered_messages_total{destination="tickets"}"#, 2.0).await
}

#[tokio::test]
async fn a_shorter_retry_reaches_a_destination_that_is_halted_already() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    bed.standard("audit").await?;
    proxy.set(Fault::queue_missing());
    bed.enqueue_many("audit", 5, 0).await?;
    let relay = bed.relay().env("OUTBOX_RELAY_RETRY_INITIAL", "1h").env("OUTBOX_RELAY_RETRY_MAX", "1h").start().await?;
    relay.wait_for_metric(r#"destination_up{destination="audit"}"#, 0.0).await?;
    for argument in ["retry-initial=100ms", "retry-max=200ms"] {
        bed.relay().output(&["set", argument]).await?.ensure_success()?;
    }
    // The destination is probed repeatedly, and not only once for each setting.
    proxy.wait_for_requests(proxy.requests_seen() + 8).await?;
    proxy.clear();
    bed.until_nothing_is_pending().await?;
    relay.wait_for_metric(r#"destination_up{destination="audit"}"#, 1.0).await
}

#[tokio::test]
async fn resuming_all_ends_every_pause_and_resuming_one_reports_a_remaining_pause() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.standard("audit").await?;
    bed.relay().deliver_all().await?;
    for arguments in [vec!["pause"], vec!["pause", "audit", "--for", "1h"]] {
        bed.relay().output(&arguments).await?.ensure_success()?;
    }
    let resumed = bed.relay().output(&["resume", "audit"]).await?;
    ensure!(resumed.stderr.contains("audit is still paused, because all destinations are"), "{}", resumed.stderr);
    ensure!(resumed.code == Some(1), "a script would take it as resumed");
    bed.relay().output(&["pause", "audit"]).await?.ensure_success()?;
    bed.relay().output(&["resume"]).await?.ensure_success()?;
    ensure!(bed.count("SELECT count(*) FROM outbox.pauses").await? == 0);
    for text in ["9000years", "367days"] {
        let endless = bed.relay().output(&["pause", "audit", "--for", text]).await?;
        let is_named =
            endless.stderr.contains(text) && endless.stderr.contains("leave --for out to pause until resumed");
        ensure!(endless.code == Some(2) && is_named, "{endless:?}");
    }
    ensure!(bed.count("SELECT count(*) FROM outbox.pauses").await? == 0);
    let unknown = bed.relay().output(&["pause", "audti"]).await?;
    ensure!(unknown.code == Some(1) && unknown.stderr.contains("there are: audit"), "{}", unknown.stderr);
    let actions = "SELECT count(*) FROM outbox.audit_log WHERE action IN ('pause', 'resume')";
    ensure!(bed.count(actions).await? == 5, "each change is on record");
    Ok(())
}

#[tokio::test]
async fn a_setting_overrides_the_environment_without_a_restart_until_it_is_unset() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.standard("audit").await?;
    bed.standard("tickets").await?;
    let relay = bed.relay().env("OUTBOX_RELAY_MAX_IN_FLIGHT", "50").start().await?;
    let limit = |name: &str| format!("in_flight_limit{{destination=\"{name}\"}}");
    relay.wait_for_metric(&limit("audit"), 50.0).await?;
    bed.enqueue_many("audit", 10, 0).await?;
    bed.until_nothing_is_pending().await?;
    bed.relay().output(&["set", "max-in-flight=7"]).await?.ensure_success()?;
    bed.relay().output(&["set", "max-in-flight=9", "--destination", "audit"]).await?.ensure_success()?;
    bed.relay().output(&["set", "request-size=1"]).await?.ensure_success()?;
    bed.client.batch_execute("SELECT outbox.set_setting('batch-size', 'lots')").await?;
    relay.wait_for_log("batch-size=\"lots\" is not allowed").await?;
    relay.wait_for_metric(&limit("audit"), 9.0).await?;
    relay.wait_for_metric(&limit("tickets"), 7.0).await?;
    let requests = r#"requests_total{destination="audit"}"#;
    let before = relay.metrics().await?.get(requests)?;
    bed.enqueue_many("audit", 10, 0).await?;
    bed.until_nothing_is_pending().await?;
    relay.wait_for_metric(requests, before + 10.0).await?;
    for (arguments, says) in [
        (vec!["set", "--unset", "max-in-flight"], "for audit stays in force"),
        (vec!["set", "--unset", "max-in-flight", "--destination", "audit"], "the environment applies again"),
    ] {
        let unset = bed.relay().output(&arguments).await?;
        ensure!(unset.code == Some(0) && unset.stdout.contains(says), "{unset:?}");
    }
    relay.wait_for_metric(&limit("audit"), 50.0).await?;
    relay.wait_for_metric(&limit("tickets"), 50.0).await
}

#[tokio::test]
async fn an_invalid_setting_is_refused_with_the_allowed_values() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.standard("audit").await?;
    bed.relay().deliver_all().await?;
    for (argument, sentence) in [
        ("batch-size=0", "batch-size=\"0\" is not allowed; use a whole number from 1 to 10000"),
        ("batchsize=1", "batchsize cannot be set while the relay runs; use one of batch-size,"),
        ("http-listen=1", "http-listen cannot be set while the relay runs"),
        ("batch-size", "\"batch-size\" has no value; use NAME=VALUE"),
        ("retry-max=5", "(the unit is missing)"),
    ] {
        let refused = bed.relay().output(&["set", argument]).await?;
        ensure!(refused.code == Some(2) && refused.stderr.contains(sentence), "{argument}: {}", refused.stderr);
    }
    ensure!(bed.count("SELECT count(*) FROM outbox.settings").await? == 0);
    Ok(())
}

#[tokio::test]
async fn config_shows_every_value_with_its_origin_and_no_secret() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.standard("audit").await?;
    bed.relay().deliver_all().await?;
    bed.relay().output(&["set", "batch-size=123", "--actor", "ada"]).await?.ensure_success()?;
    let command = bed.relay().env("OUTBOX_RELAY_RETRY_MAX", "2m");
    let text = command.output(&["config", "--drain-timeout", "7s"]).await?;
    text.ensure_success()?;
    let has = |parts: &[&str]| text.stdout.lines().any(|line| line.split_whitespace().eq(parts.iter().copied()));
    ensure!(has(&["batch-size", "all", "123", "database,", "set", "by", "ada"]), "{}", text.stdout);
    ensure!(has(&["retry-max", "all", "2m", "environment"]), "{}", text.stdout);
    bed.client
        .batch_execute("SELECT outbox.set_setting('max-attempts', 'many'), outbox.set_setting('max-atempts', '3')")
        .await?;
    let odd = command.output(&["config"]).await?.stdout;
    ensure!(odd.contains("many (not followed)") && odd.contains("3 (not followed)"), "{odd}");
    command.output(&["set", "--unset", "max-atempts"]).await?.ensure_success()?;
    // Alone it is valid, but not together with a first delay of 200 ms.
    command.output(&["set", "retry-max=100ms"]).await?.ensure_success()?;
    let odd = command.output(&["config"]).await?.stdout;
    ensure!(odd.contains("100ms (not followed)"), "{odd}");
    ensure!(has(&["drain-timeout", "all", "7s", "flag"]), "{}", text.stdout);
    ensure!(has(&["request-size", "all", "10", "default"]), "{}", text.stdout);
    let json = command.output(&["config", "--json"]).await?;
    let settings: Vec<Value> = serde_json::from_str(&json.stdout)?;
    ensure!(settings.iter().any(|one| one["setting"] == "batch-size" && one["value"] == "123"), "{}", json.stdout);
    for output in [&text, &json] {
        ensure!(!output.stdout.contains("the-secret") && !output.stderr.contains("the-secret"), "{output:?}");
    }
    Ok(())
}

#[tokio::test]
async fn config_shows_the_variables_that_aws_proxies_and_tls_follow_and_no_secret() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.standard("audit").await?;
    let command = bed
        .relay()
        .append("OUTBOX_RELAY_DESTINATIONS", ";role=arn:aws:iam::222222222222:role/publisher;external-id=abc")
        .env("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE")
        .env("AWS_SESSION_TOKEN", "the-secret-token")
        .env("AWS_DEFAULT_REGION", "eu-west-1")
        .env("AWS_PROFILE", "")
        .env("AWS_CA_BUNDLE", "")
        .env("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:1")
        .env("HTTPS_PROXY", "http://user:the-secret@proxy:3128")
        .env("no_proxy", "internal.test,10.0.0.0/8");
    let text = command.output(&["config"]).await?;
    let json = command.output(&["config", "--json"]).await?;
    let settings: Vec<Value> = serde_json::from_str(&json.stdout)?;
    let (before, section) = text.stdout.split_once("\n\nVARIABLE ").with_context(|| text.stdout.clone())?;
    ensure!(before.contains(";role=arn:aws:iam::222222222222:role/publisher;external-id=abc"), "{before}");
    for (name, value) in [
        ("AWS_REGION", "us-east-1"),
        ("AWS_DEFAULT_REGION", "eu-west-1 (not followed)"),
        ("AWS_ACCESS_KEY_ID", "…MPLE"),
        ("AWS_SECRET_ACCESS_KEY", "(set, not shown)"),
        ("AWS_SESSION_TOKEN", "(set, not shown)"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:1"),
        ("HTTPS_PROXY", "http://proxy:3128"),
        ("no_proxy", "internal.test,10.0.0.0/8"),
    ] {
        let wanted: Vec<&str> = [name].into_iter().chain(value.split(' ')).chain(["environment"]).collect();
        let is_there = section.lines().any(|line| line.split_whitespace().eq(wanted.iter().copied()));
        ensure!(is_there, "{wanted:?} is not in\n{section}");
        let one = settings.iter().find(|one| one["setting"] == name).with_context(|| json.stdout.clone())?;
        ensure!(one["value"] == value && one["origin"] == "environment", "{one}");
    }
    ensure!(!section.contains("AWS_PROFILE") && !section.contains("AWS_CA_BUNDLE"), "{section}");
    for secret in ["the-secret", "AKIAIOS", "user:"] {
        ensure!(!text.stdout.contains(secret) && !json.stdout.contains(secret), "{secret} is in\n{}", text.stdout);
    }
    Ok(())
}

#[tokio::test]
async fn status_shows_the_backlog_the_rate_and_the_state_of_the_local_relay() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    bed.standard("audit").await?;
    bed.fifo("tickets").await?;
    bed.enqueue_many("audit", 40, 0).await?;
    let relay = bed.relay().start().await?;
    bed.until_nothing_is_pending().await?;
    bed.enqueue("nowhere", "{}", None).await?;
    proxy.set(Fault::queue_missing());
    bed.enqueue_many("tickets", 5, 0).await?;
    relay.wait_for_metric(r#"destination_up{destination="tickets"}"#, 0.0).await?;
    let here = bed.relay().env("OUTBOX_RELAY_HTTP_LISTEN", relay.address());
    let told = eventually("the readiness names the reason", || async {
        let status = here.output(&["status", "--json"]).await?;
        status.ensure_success()?;
        let status: Value = serde_json::from_str(&status.stdout)?;
        let says = status["relay_here"]["says"].as_str().unwrap_or_default().contains("queue of tickets (");
        Ok(says && status["relay_here"]["is_ready"] == false)
    });
    told.await?;
    // As if they had been delivered just now; the machine may have been slow.
    bed.client.batch_execute("UPDATE outbox.messages_delivered SET delivered_at = clock_timestamp()").await?;
    let status: Value = serde_json::from_str(&here.output(&["status", "--json"]).await?.stdout)?;
    let of = |name: &str| {
        let destinations = status["destinations"].as_array().cloned().unwrap_or_default();
        destinations
            .into_iter()
            .find(|one| one["destination"] == name)
            .with_context(|| format!("no {name} in {status}"))
    };
    let (audit, tickets) = (of("audit")?, of("tickets")?);
    ensure!(audit["pending"] == 0 && audit["delivered_per_second"].as_f64().unwrap_or_default() > 0.0, "{audit}");
    ensure!(tickets["pending"] == 5 && tickets["lag_seconds"].as_f64().unwrap_or_default() > 0.0, "{tickets}");
    ensure!(tickets["paused"].is_null() && tickets["dead"] == 0 && tickets["is_served"] == true, "{tickets}");
    let nowhere = of("nowhere")?;
    ensure!(nowhere["pending"] == 1 && nowhere["is_served"] == false, "{nowhere}");
    let text = here.output(&["status"]).await?.stdout;
    ensure!(text.lines().any(|line| line.starts_with("nowhere") && line.ends_with("no relay serves it")), "{text}");
    Ok(())
}

#[tokio::test]
async fn a_relay_without_the_right_to_read_pauses_says_so_and_delivers() -> Result<()> {
    let bed = TestBed::new().await?;
    let roles = Roles::create(&bed).await?;
    let queue = bed.standard("audit").await?;
    let database: String = bed.client.query_one("SELECT current_database()", &[]).await?.get(0);
    let revoke = format!("REVOKE ALL ON outbox.pauses FROM rights_of_relay_{database}");
    bed.client.batch_execute(&revoke).await?;
    bed.enqueue_many("audit", 20, 0).await?;
    let relay = bed.relay().env("DATABASE_URL", &roles.relay_url).start().await?;
    relay.wait_for_log("pauses and settings cannot be read").await?;
    bed.until_nothing_is_pending().await?;
    ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, 20)
}

#[tokio::test]
async fn without_a_name_the_login_is_recorded_as_who_did_it() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.standard("audit").await?;
    let roles = Roles::create(&bed).await?;
    let operator = bed.relay().env("DATABASE_URL", &roles.operator_url).without("USER");
    operator.output(&["pause"]).await?.ensure_success()?;
    operator.env("USER", "").output(&["resume"]).await?.ensure_success()?;
    let login = roles.operator_url.split("://").nth(1).and_then(|rest| rest.split(':').next()).context("no login")?;
    let recorded = format!("SELECT count(*) FROM outbox.audit_log WHERE actor = '{login}'");
    ensure!(bed.count(&recorded).await? == 2, "the login {login} is not recorded");
    Ok(())
}
