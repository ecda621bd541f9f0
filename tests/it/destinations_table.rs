//! Destinations in the database: running relays take up rows of `outbox.destinations`, and the environment overrides them.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use support::proxy::Fault;
use support::relay::{Command, Finished, Relay};
use support::roles::Roles;
use support::test_bed::{TestBed, connect, enqueue_range, ensure_each_once, ensure_order_in_groups, numbers};
use support::{eventually, eventually_within_minutes};

const DESTINATIONS: &str = "OUTBOX_RELAY_DESTINATIONS";

/// A relay whose environment names no destination.
fn follower(bed: &TestBed) -> Command {
    bed.relay().without(DESTINATIONS)
}

async fn say(bed: &TestBed, arguments: &[&str]) -> Result<Finished> {
    let ended = follower(bed).output(&[&["destinations"], arguments].concat()).await?;
    ended.ensure_success()?;
    Ok(ended)
}

async fn is_served(relay: &Relay, destination: &str) -> Result<bool> {
    let series = format!("delivered_messages_total{{destination=\"{destination}\"}}");
    Ok(relay.metrics().await?.get(&series).is_ok())
}

async fn until_delivered(relay: &Relay, destination: &str, count: f64) -> Result<()> {
    relay.wait_for_metric(&format!("delivered_messages_total{{destination=\"{destination}\"}}"), count).await
}

#[tokio::test]
async fn a_destination_added_to_the_table_is_served_within_seconds() -> Result<()> {
    let bed = TestBed::new().await?;
    let (audit, tickets) = (bed.queues.create_standard("audit").await?, bed.queues.create_fifo("tickets").await?);
    let relay = follower(&bed).start().await?;
    relay.wait_for_log("waiting for one").await?;
    let (_, page) = relay.get("/").await?;
    ensure!(page.contains("There is no destination"), "{page}");
    enqueue_range(&bed.client, "audit", 1..=20, 0).await?;
    let said = say(&bed, &["set", "audit", &audit, "--fair", "--actor", "ada"]).await?.stdout;
    ensure!(said.contains(&audit) && said.contains("fair=true"), "{said}");
    let set_at = Instant::now();
    bed.until_nothing_is_pending().await?;
    ensure!(set_at.elapsed() < Duration::from_secs(15), "it took {:?}", set_at.elapsed());
    // As psql would do it.
    bed.client.execute("SELECT outbox.set_destination('tickets', $1)", &[&tickets]).await?;
    enqueue_range(&bed.client, "tickets", 1..=30, 3).await?;
    bed.until_nothing_is_pending().await?;
    until_delivered(&relay, "tickets", 30.0).await?;
    // Counters of a destination that stays go on.
    until_delivered(&relay, "audit", 20.0).await?;
    let log = relay.stop().await?;
    ensure!(log.contains("added=\"audit\"") && log.contains("added=\"tickets\""), "{log}");
    ensure!(log.matches("outbox-relay starts").count() == 1, "{log}");
    ensure_each_once(numbers(&bed.queues.contents(&audit).await?)?, 20)?;
    bed.ensure_arrived_in_order(&tickets, 30).await?;
    let actions = "SELECT count(*) FROM outbox.audit_log WHERE action = 'set destination'
        AND (actor = 'ada' AND filter->>'destination' = 'audit' OR filter->>'destination' = 'tickets')";
    ensure!(bed.count(actions).await? == 2);
    Ok(())
}

#[tokio::test]
async fn a_destination_removed_from_the_table_is_served_no_more_and_its_messages_wait() -> Result<()> {
    let bed = TestBed::new().await?;
    let (audit, tickets) = (bed.queues.create_standard("audit").await?, bed.queues.create_fifo("tickets").await?);
    say(&bed, &["set", "audit", &audit]).await?;
    say(&bed, &["set", "tickets", &tickets]).await?;
    let relay = follower(&bed).start().await?;
    enqueue_range(&bed.client, "audit", 1..=5, 0).await?;
    until_delivered(&relay, "audit", 5.0).await?;
    bed.relay().output(&["pause", "audit"]).await?.ensure_success()?;
    relay.wait_for_metric(r#"paused{destination="audit"}"#, 1.0).await?;
    enqueue_range(&bed.client, "audit", 6..=10, 0).await?;
    let asked = follower(&bed).output(&["destinations", "remove", "audit"]).await?;
    ensure!(asked.code == Some(2) && asked.stderr.contains("5 messages of audit will wait"), "{asked:?}");
    ensure!(bed.count("SELECT count(*) FROM outbox.destinations").await? == 2, "removed without consent");
    say(&bed, &["remove", "audit", "--yes"]).await?;
    eventually("audit has no series", || async { Ok(!is_served(&relay, "audit").await?) }).await?;
    let text = relay.get("/metrics").await?.1;
    ensure!(!text.contains("destination=\"audit\"") && text.contains("destination=\"tickets\""), "{text}");
    bed.relay().output(&["resume", "audit"]).await?.ensure_success()?;
    enqueue_range(&bed.client, "tickets", 1..=9, 3).await?;
    until_delivered(&relay, "tickets", 9.0).await?;
    ensure!(bed.pending().await? == 5, "{} are pending", bed.pending().await?);
    let log = relay.stop().await?;
    ensure!(log.contains("removed=\"audit\""), "{log}");
    let again = follower(&bed).output(&["destinations", "remove", "audit"]).await?;
    ensure!(again.code == Some(1) && again.stderr.contains("there are: tickets"), "{again:?}");
    Ok(())
}

#[tokio::test]
async fn a_destination_whose_target_changed_in_the_table_is_delivered_to_the_new_one() -> Result<()> {
    let bed = TestBed::new().await?;
    let (old, new) = (bed.queues.create_standard("old").await?, bed.queues.create_standard("new").await?);
    say(&bed, &["set", "audit", &old]).await?;
    let relay = follower(&bed).start().await?;
    enqueue_range(&bed.client, "audit", 1..=10, 0).await?;
    until_delivered(&relay, "audit", 10.0).await?;
    say(&bed, &["set", "audit", &new]).await?;
    relay.wait_for_log("changed=\"audit\"").await?;
    enqueue_range(&bed.client, "audit", 11..=30, 0).await?;
    until_delivered(&relay, "audit", 30.0).await?;
    relay.stop().await?;
    let (mut before, after) =
        (numbers(&bed.queues.contents(&old).await?)?, numbers(&bed.queues.contents(&new).await?)?);
    ensure!(before.len() == 10 && after.len() == 20, "{before:?}, {after:?}");
    before.extend(after);
    ensure_each_once(before, 30)
}

#[tokio::test]
async fn the_environment_overrides_the_table_and_says_so() -> Result<()> {
    let bed = TestBed::new().await?;
    let audit = bed.standard("audit").await?;
    let other = bed.queues.create_standard("other").await?;
    say(&bed, &["set", "audit", &other]).await?;
    say(&bed, &["set", "extra", &other]).await?;
    let relay = bed.relay().start().await?;
    let line = relay.wait_for_log("overrides outbox.destinations").await?;
    ensure!(line.contains("rows=2") && line.contains("extra") && line.contains("audit"), "{line}");
    enqueue_range(&bed.client, "audit", 1..=10, 0).await?;
    until_delivered(&relay, "audit", 10.0).await?;
    ensure!(!is_served(&relay, "extra").await?);
    relay.stop().await?;
    ensure!(bed.queues.contents(&other).await?.is_empty());
    ensure_each_once(numbers(&bed.queues.contents(&audit).await?)?, 10)?;
    let check = bed.relay().output(&["check"]).await?;
    check.ensure_success()?;
    let said = check.stdout.lines().find(|line| line.contains("overrides 2 row(s)")).context(check.stdout.clone())?;
    ensure!(said.starts_with('!') && said.contains("extra") && said.contains("audit"), "{said}");
    Ok(())
}

#[tokio::test]
async fn a_bad_row_stops_nobody_else_and_is_shown() -> Result<()> {
    let bed = TestBed::new().await?;
    let audit = bed.queues.create_standard("audit").await?;
    say(&bed, &["set", "audit", &audit]).await?;
    let rows = "INSERT INTO outbox.destinations (name, target) VALUES
        ('arn', 'arn:aws:sqs:eu-west-1:1:audit'), ('nowhere', 'https://sqs.us-east-1.api.aws/1/nowhere')";
    bed.client.batch_execute(rows).await?;
    // The second one contradicts the endpoint in the environment, which is found only when its publisher is made.
    let relay = follower(&bed).start().await?;
    relay.wait_for_log("has the ARN of a queue").await?;
    relay.wait_for_log("names the endpoint sqs.us-east-1.api.aws").await?;
    enqueue_range(&bed.client, "audit", 1..=10, 0).await?;
    until_delivered(&relay, "audit", 10.0).await?;
    let page = relay.get("/").await?.1;
    ensure!(page.contains("cannot be used: arn, nowhere"), "{page}");
    let check = follower(&bed).output(&["check"]).await?;
    ensure!(check.code == Some(1) && check.stdout.contains("✗ row arn of outbox.destinations"), "{}", check.stdout);
    ensure!(check.stdout.contains("audit"), "{}", check.stdout);
    let listed: Value = serde_json::from_str(&say(&bed, &["list", "--json"]).await?.stdout)?;
    ensure!(listed[0]["problem"].as_str().is_some_and(|problem| problem.contains("ARN")), "{listed}");
    ensure!(listed[1]["name"] == "audit" && listed[1]["problem"].is_null(), "{listed}");
    say(&bed, &["remove", "arn"]).await?;
    eventually("the page is content", || async { Ok(!relay.get("/").await?.1.contains("cannot be used: arn")) })
        .await?;
    let log = relay.stop().await?;
    ensure!(log.matches("has the ARN of a queue").count() == 1, "{log}");
    ensure_each_once(numbers(&bed.queues.contents(&audit).await?)?, 10)
}

#[tokio::test]
async fn a_wrong_destination_is_refused_before_it_is_written() -> Result<()> {
    let bed = TestBed::new().await?;
    for (arguments, expected) in [
        (&["audit", "audit"][..], "use NAME="),
        (&["a b", "https://sqs.eu-west-1.amazonaws.com/1/audit"], "bad name"),
        (&["audit", "https://sqs.eu-west-1.amazonaws.com/1/audit", "--role", "publisher"], "not the ARN of a role"),
        (&["audit", "https://sqs.eu-west-1.amazonaws.com/1/audit.fifo", "--fair"], "fair=true and a FIFO queue"),
        (&["audit", "https://sqs.eu-west-1.amazonaws.com/1/audit", "--claim-check-above", "much"], "such as 64KiB"),
    ] {
        let ended = follower(&bed).output(&[&["destinations", "set"], arguments].concat()).await?;
        ensure!(ended.code == Some(2), "{arguments:?}: {ended:?}");
        ensure!(ended.stderr.contains(expected) || expected == "use NAME=", "{arguments:?}: {ended:?}");
    }
    ensure!(bed.count("SELECT count(*) FROM outbox.destinations").await? == 0);
    Ok(())
}

#[tokio::test]
async fn nothing_is_lost_or_doubled_while_destinations_change() -> Result<()> {
    let bed = TestBed::new().await?;
    let proxy = bed.proxy().await?;
    let tickets = bed.queues.create_fifo("tickets").await?;
    let other = bed.queues.create_standard("other").await?;
    say(&bed, &["set", "tickets", &tickets]).await?;
    proxy.set(Fault::Delay(Duration::from_millis(50)));
    let relay = follower(&bed).start().await?;
    let mut written = 0;
    for round in 0..6 {
        enqueue_range(&bed.client, "tickets", written + 1..=written + 300, 20).await?;
        written += 300;
        let name = format!("other-{}", round / 2);
        if round % 2 == 0 {
            say(&bed, &["set", &name, &other]).await?;
            eventually("it is served", || is_served(&relay, &name)).await?;
        } else {
            say(&bed, &["remove", &name]).await?;
            eventually("it is gone", || async { Ok(!is_served(&relay, &name).await?) }).await?;
        }
        let (status, said) = relay.get("/livez").await?;
        ensure!(status == 200, "{said}");
    }
    proxy.clear();
    bed.until_nothing_is_pending().await?;
    until_delivered(&relay, "tickets", written as f64).await?;
    let metrics = relay.metrics().await?;
    ensure!(metrics.get(r#"possible_duplicates_total{destination="tickets"}"#)? == 0.0);
    let log = relay.stop().await?;
    ensure!(!log.contains("may be published again"), "{log}");
    let contents = bed.queues.contents(&tickets).await?;
    ensure_order_in_groups(&contents)?;
    ensure_each_once(numbers(&contents)?, written)
}

#[tokio::test]
async fn until_empty_delivers_to_the_destinations_of_the_table() -> Result<()> {
    let bed = TestBed::new().await?;
    follower(&bed).deliver_all().await?;
    let audit = bed.queues.create_standard("audit").await?;
    say(&bed, &["set", "audit", &audit]).await?;
    enqueue_range(&bed.client, "audit", 1..=10, 0).await?;
    follower(&bed).deliver_all().await?;
    ensure_each_once(numbers(&bed.queues.contents(&audit).await?)?, 10)
}

#[tokio::test]
async fn a_relay_that_has_no_destination_drains_on_a_signal() -> Result<()> {
    let bed = TestBed::new().await?;
    let relay = follower(&bed).start().await?;
    relay.wait_for_log("waiting for one").await?;
    relay.wait_for_status("/readyz", 200).await?;
    let check = follower(&bed).output(&["check"]).await?;
    ensure!(check.stdout.contains("! destinations: none"), "{}", check.stdout);
    relay.stop().await?;
    Ok(())
}

#[tokio::test]
async fn the_roles_of_relay_and_operator_have_the_rights_for_the_table() -> Result<()> {
    let bed = TestBed::new().await?;
    let roles = Roles::create(&bed).await?;
    let audit = bed.queues.create_standard("audit").await?;
    let relay = follower(&bed).env("DATABASE_URL", &roles.relay_url).start().await?;
    relay.wait_for_log("waiting for one").await?;
    let operator = follower(&bed).env("DATABASE_URL", &roles.operator_url);
    operator.output(&["destinations", "set", "audit", &audit]).await?.ensure_success()?;
    enqueue_range(&bed.client, "audit", 1..=10, 0).await?;
    until_delivered(&relay, "audit", 10.0).await?;
    let noted = "SELECT count(*) FROM outbox.served WHERE destination = 'audit'";
    eventually("the relay notes what it serves", || async { Ok(bed.count(noted).await? == 1) }).await?;
    operator.output(&["destinations", "list"]).await?.ensure_success()?;
    operator.output(&["destinations", "remove", "audit"]).await?.ensure_success()?;
    let login = connect(&roles.relay_url).await?;
    let denied = login.batch_execute("SELECT outbox.set_destination('audit', 'https://h/q')").await.err();
    let code = denied.as_ref().and_then(|error| error.code()).map(|code| code.code().to_owned());
    ensure!(code.as_deref() == Some("42501"), "{denied:?}");
    let log = relay.stop().await?;
    ensure!(!log.contains("42501"), "{log}");
    Ok(())
}

#[tokio::test]
async fn messages_that_no_relay_serves_are_counted_and_those_of_another_relay_are_not() -> Result<()> {
    let bed = TestBed::new().await?;
    let (audit, other) = (bed.queues.create_standard("audit").await?, bed.queues.create_standard("other").await?);
    // What another relay said lately, and long ago.
    let noted = "INSERT INTO outbox.served VALUES ('elsewhere', now()), ('gone', now() - interval '10 minutes')";
    bed.client.batch_execute(noted).await?;
    for (destination, count) in [("audit", 3), ("elsewhere", 5), ("gone", 7), ("misspelt", 11)] {
        enqueue_range(&bed.client, destination, 1..=count, 0).await?;
    }
    // One that fell due becomes pending only by a relay that serves it, and one for later is not due.
    let later = "INSERT INTO outbox.messages (destination, event_position, status, deliver_at)
        SELECT 'forgotten', 1, 'scheduled', now() + make_interval(secs => s) FROM unnest(ARRAY[-5, 3600]) AS s";
    bed.client.batch_execute(later).await?;
    let relay = bed.relay().env(DESTINATIONS, format!("audit={audit}")).start().await?;
    relay.wait_for_metric("unserved_messages", 19.0).await?;
    let line = relay.wait_for_log("no running relay serves").await?;
    ensure!(line.contains("forgotten,gone,misspelt"), "{line}");
    eventually("the page shows it", || async {
        Ok(relay.get("/").await?.1.contains("serves: forgotten, gone, misspelt"))
    })
    .await?;
    let check = bed.relay().env(DESTINATIONS, format!("audit={audit}")).output(&["check"]).await?;
    let said = check.stdout.lines().find(|line| line.contains("no running relay")).context(check.stdout.clone())?;
    ensure!(said.starts_with("! messages") && said.contains("forgotten (1), gone (7), misspelt (11)"), "{said}");
    let both = format!("misspelt={other},gone={other},forgotten={other}");
    let second = bed.relay().env(DESTINATIONS, both).start().await?;
    // Each looks every 30 seconds.
    eventually_within_minutes("all are served", || async {
        Ok(relay.metrics().await?.get("unserved_messages")? == 0.0)
    })
    .await?;
    second.stop().await?;
    relay.stop().await?;
    Ok(())
}

#[tokio::test]
async fn append_takes_larger_events_if_every_destination_of_the_call_has_a_claim_check_in_the_table() -> Result<()> {
    let bed = TestBed::new().await?;
    let roles = Roles::create(&bed).await?;
    let url = "https://sqs.eu-west-1.amazonaws.com/1/audit";
    say(&bed, &["set", "large", url, "--claim-check", "bodies"]).await?;
    say(&bed, &["set", "small", url]).await?;
    let application = connect(&roles.application_url).await?;
    let append = "SELECT outbox.append('s', NULL, jsonb_build_array(jsonb_build_object(
        'event_type', 'T', 'payload', repeat('x', 1100000))), $1::text[])";
    for refused in [&["small"][..], &["large", "small"], &["unknown"]] {
        let error = application.query(append, &[&refused]).await.err().context("it was taken")?;
        let said = error.as_db_error().map(|error| error.message().to_owned()).unwrap_or_default();
        ensure!(said.contains("SQS takes 1048576"), "{refused:?}: {error:?}");
    }
    application.query(append, &[&&["large"][..]]).await?;
    ensure!(bed.pending().await? == 1);
    Ok(())
}
