//! Past events are published again as new messages: all of them, in order, once, whatever interrupts the replay.

use std::collections::HashSet;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tokio_postgres::Client;

use support::eventually;
use support::relay::{Command, Finished};
use support::roles::Roles;
use support::test_bed::{TestBed, enqueue, ensure_each_once, ensure_order_in_groups, numbers};

/// Writes events as `outbox.enqueue` does: it records their destinations.
async fn write(bed: &TestBed, destination: &str, numbers: std::ops::RangeInclusive<i64>, groups: i64) -> Result<()> {
    let query = "SELECT outbox.enqueue($1, CASE WHEN n % 10 = 0 THEN 'TicketCancelled' ELSE 'TicketPurchased' END,
            jsonb_build_object('n', n), CASE WHEN $4::bigint > 0 THEN 'g' || n % $4 END)
        FROM generate_series($2::bigint, $3::bigint) AS n";
    bed.client.query(query, &[&destination, numbers.start(), numbers.end(), &groups]).await?;
    Ok(())
}

/// Lets a relay serve these destinations.
async fn serve(bed: &TestBed, destinations: &[&str]) -> Result<()> {
    for destination in destinations {
        let lanes = format!("INSERT INTO outbox.lanes SELECT '{destination}', generate_series(0, 15)");
        bed.client.batch_execute(&lanes).await?;
    }
    Ok(())
}

fn operator(bed: &TestBed) -> Command {
    Command::new().env("DATABASE_URL", bed.url()).env("USER", "ada")
}

async fn replay(bed: &TestBed, arguments: &str) -> Result<Finished> {
    let arguments: Vec<&str> = std::iter::once("replay").chain(arguments.split(' ')).collect();
    operator(bed).output(&arguments).await
}

async fn succeeds(bed: &TestBed, arguments: &str) -> Result<String> {
    let ended = replay(bed, arguments).await?;
    ended.ensure_success()?;
    Ok(ended.stdout)
}

/// The numbers of the events with pending messages, in the order of the messages.
async fn waiting(bed: &TestBed, destination: &str) -> Result<Vec<i64>> {
    let query = "SELECT (e.payload ->> 'n')::bigint FROM outbox.messages_pending AS m
        JOIN outbox.events AS e ON e.position = m.event_position WHERE m.destination = $1 ORDER BY m.id";
    Ok(bed.client.query(query, &[&destination]).await?.iter().map(|row| row.get(0)).collect())
}

#[tokio::test]
async fn a_new_destination_is_filled_from_history_in_order_although_the_messages_are_gone() -> Result<()> {
    let bed = TestBed::new().await?;
    let tickets = bed.fifo("tickets").await?;
    write(&bed, "tickets", 1..=3000, 7).await?;
    // None of the messages is kept.
    bed.relay().env("OUTBOX_RELAY_DELIVERED_RETENTION", "0s").deliver_all().await?;
    ensure!(bed.count("SELECT count(*) FROM outbox.messages").await? == 0);
    let sales = bed.fifo("sales").await?;
    let relay = bed.relay().start().await?;
    let lanes = "SELECT count(*) FROM outbox.lanes WHERE destination = 'sales'";
    eventually("the relay serves it", || async { Ok(bed.count(lanes).await? > 0) }).await?;
    let said = succeeds(&bed, "--destination tickets --to-destination sales --yes").await?;
    ensure!(said.contains("3000 messages written for sales"), "{said}");
    bed.until_nothing_is_pending().await?;
    relay.stop().await?;
    let (before, after) = (bed.queues.contents(&tickets).await?, bed.queues.contents(&sales).await?);
    ensure_each_once(numbers(&after)?, 3000)?;
    ensure_order_in_groups(&after)?;
    ensure!(after.iter().filter_map(|message| message.group_id.as_deref()).collect::<HashSet<_>>().len() == 7);
    let ids = |messages: &[support::emulator::Received]| -> HashSet<Option<String>> {
        messages.iter().map(|message| message.attributes.get("event_id").cloned()).collect()
    };
    ensure!(ids(&before) == ids(&after) && ids(&after).len() == 3000, "the event ids are others");
    Ok(())
}

#[tokio::test]
async fn the_same_queue_accepts_replayed_messages_as_new_ones() -> Result<()> {
    let bed = TestBed::new().await?;
    let tickets = bed.fifo("tickets").await?;
    write(&bed, "tickets", 1..=20, 2).await?;
    bed.relay().deliver_all().await?;
    succeeds(&bed, "--destination tickets --position 11..15 --yes").await?;
    bed.relay().deliver_all().await?;
    let arrived = bed.queues.contents(&tickets).await?;
    let mut all: Vec<i64> = (1..=20).chain(11..=15).collect();
    all.sort_unstable();
    let mut found = numbers(&arrived)?;
    found.sort_unstable();
    ensure!(found == all, "{found:?}");
    let ids: HashSet<_> = arrived.iter().map(|message| message.deduplication_id.clone()).collect();
    ensure!(ids.len() == 25, "a deduplication id was used twice");
    Ok(())
}

#[tokio::test]
async fn a_killed_replay_continues_where_it_stopped() -> Result<()> {
    let bed = TestBed::new().await?;
    serve(&bed, &["tickets"]).await?;
    write(&bed, "tickets", 1..=4000, 3).await?;
    bed.client.batch_execute("DELETE FROM outbox.messages").await?;
    let arguments = ["replay", "--destination", "tickets", "--yes", "--rate", "500/s"];
    let mut child = operator(&bed).spawn(&arguments)?;
    eventually("some are written", || async { Ok(bed.pending().await? > 0) }).await?;
    child.kill().await?;
    let written = bed.pending().await?;
    ensure!(written < 4000, "it was too fast to be killed");
    let status = operator(&bed).output(&["status"]).await?.stdout;
    ensure!(status.contains("replay 1 ") && status.contains("tickets"), "{status}");
    let unasked = replay(&bed, "--destination tickets").await?;
    ensure!(unasked.code == Some(2) && unasked.stderr.contains("continue replay 1 of"), "{unasked:?}");
    let said = succeeds(&bed, "--destination tickets --dry-run").await?;
    ensure!(said.contains("the same command would continue replay 1"), "{said}");
    succeeds(&bed, "--destination tickets --yes").await?;
    ensure!(waiting(&bed, "tickets").await? == (1..=4000).collect::<Vec<_>>());
    ensure!(!operator(&bed).output(&["status"]).await?.stdout.contains("replay 1 "));
    // A completed replay starts over.
    succeeds(&bed, "--destination tickets --position 1..5 --yes").await?;
    succeeds(&bed, "--destination tickets --position 1..5 --yes").await?;
    ensure!(bed.pending().await? == 4010);
    Ok(())
}

#[tokio::test]
async fn a_restart_starts_over_and_abandons_the_rest() -> Result<()> {
    let bed = TestBed::new().await?;
    serve(&bed, &["tickets"]).await?;
    write(&bed, "tickets", 1..=30, 0).await?;
    bed.client.batch_execute("DELETE FROM outbox.messages").await?;
    let begun =
        "SELECT messages FROM outbox.replay_begin('tickets') AS id, outbox.replay_step(id, 10, skip_running => true)";
    ensure!(bed.count(begun).await? == 10);
    let said = succeeds(&bed, "--destination tickets --restart --yes").await?;
    ensure!(said.contains("replay 2: 30 messages"), "{said}");
    ensure!(bed.pending().await? == 40);
    ensure!(bed.count("SELECT count(*) FROM outbox.replays WHERE ended_at IS NULL").await? == 0);
    ensure!(bed.count("SELECT count(*) FROM outbox.audit_log WHERE action = 'replay' AND actor = 'ada'").await? == 3);
    Ok(())
}

#[tokio::test]
async fn only_what_is_asked_for_is_published_again() -> Result<()> {
    let bed = TestBed::new().await?;
    serve(&bed, &["tickets", "audit"]).await?;
    write(&bed, "tickets", 1..=100, 4).await?;
    write(&bed, "audit", 101..=120, 0).await?;
    let stream = "INSERT INTO outbox.events (event_type, payload, stream_id, stream_version)
        SELECT 'TicketPurchased', jsonb_build_object('n', 200 + v), 'draw-7', v FROM generate_series(1, 5) AS v";
    bed.client.batch_execute(stream).await?;
    bed.client.batch_execute("DELETE FROM outbox.messages").await?;
    for (arguments, expected) in [
        ("--destination audit", (101..=120).collect::<Vec<i64>>()),
        ("--destination tickets --event-type TicketCancelled", (1..=10).map(|n| n * 10).collect()),
        ("--destination tickets --position 98", vec![98, 99, 100]),
        ("--destination tickets --all-events --stream draw-7", (201..=205).collect()),
        ("--destination audit --all-events --position 99..102", vec![99, 100, 101, 102]),
        ("--destination tickets --to 2026-01-01", vec![]),
        ("--destination tickets --from 2026-01-01 --position 1..2", vec![1, 2]),
    ] {
        let dry = succeeds(&bed, &format!("{arguments} --dry-run --json")).await?;
        let dry: Value = serde_json::from_str(&dry)?;
        ensure!(dry["messages"].as_u64() == Some(expected.len() as u64), "{arguments}: {dry}");
        ensure!(bed.pending().await? == 0, "{arguments}: a dry run wrote");
        succeeds(&bed, &format!("{arguments} --yes")).await?;
        let destination = arguments.split(' ').nth(1).context("a destination")?;
        let waiting = waiting(&bed, destination).await?;
        ensure!(waiting == expected, "{arguments}: {waiting:?}");
        bed.client.batch_execute("DELETE FROM outbox.messages").await?;
    }
    let said = succeeds(&bed, "--destination tickets --dry-run").await?;
    ensure!(said.contains("25 more events do not name") && said.contains("--all-events"), "{said}");
    succeeds(&bed, "--destination tickets --all-events --stream draw-7 --yes").await?;
    ensure!(bed.count("SELECT count(*) FROM outbox.messages_pending WHERE group_id = 'draw-7'").await? == 5);
    Ok(())
}

/// The result of a step called by hand: messages written, and whether it has to wait.
async fn step(client: &Client, id: i64, skip_running: bool) -> Result<(i64, bool)> {
    let query = "SELECT messages, must_wait FROM outbox.replay_step($1, 10, $2)";
    let row = client.query_one(query, &[&id, &skip_running]).await?;
    Ok((row.get(0), row.get(1)))
}

#[tokio::test]
async fn an_event_that_was_written_before_the_replay_and_commits_later_is_part_of_it() -> Result<()> {
    let bed = TestBed::new().await?;
    serve(&bed, &["tickets"]).await?;
    let late = bed.connect().await?;
    late.batch_execute("BEGIN").await?;
    enqueue(&late, "tickets", "{\"n\": 1}", Some("g")).await?;
    write(&bed, "tickets", 2..=2, 1).await?;
    bed.client.batch_execute("DELETE FROM outbox.messages").await?;
    let id = bed.count("SELECT outbox.replay_begin('tickets')").await?;
    ensure!(step(&bed.client, id, false).await? == (0, true), "it did not wait");
    let command = operator(&bed);
    let running = tokio::spawn(async move { command.output(&["replay", "--destination", "tickets", "--yes"]).await });
    // A replay that does not wait leaves the event out.
    let hasty = bed.count("SELECT outbox.replay_begin('tickets', stop_position => 2)").await?;
    ensure!(step(&bed.client, hasty, true).await? == (1, false));
    late.batch_execute("COMMIT; DELETE FROM outbox.messages").await?;
    running.await??.ensure_success()?;
    ensure!(waiting(&bed, "tickets").await? == [1, 2], "{:?}", waiting(&bed, "tickets").await?);
    Ok(())
}

#[tokio::test]
async fn the_same_command_run_twice_at_once_publishes_nothing_twice() -> Result<()> {
    let bed = TestBed::new().await?;
    serve(&bed, &["tickets"]).await?;
    write(&bed, "tickets", 1..=3000, 5).await?;
    bed.client.batch_execute("DELETE FROM outbox.messages").await?;
    let id = bed.count("SELECT outbox.replay_begin('tickets')").await?;
    let first = bed.connect().await?;
    first.batch_execute("BEGIN").await?;
    // Without waiting, because transactions of other tests run in the cluster.
    ensure!(step(&first, id, true).await? == (10, false));
    let second = bed.connect().await?;
    let stepping = tokio::spawn(async move { step(&second, id, true).await });
    let queued = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%replay_step%'
        AND datname = current_database()";
    eventually("the second waits for the first", || async { Ok(bed.count(queued).await? == 1) }).await?;
    first.batch_execute("COMMIT").await?;
    ensure!(stepping.await?? == (10, false));
    ensure!(waiting(&bed, "tickets").await? == (1..=20).collect::<Vec<_>>());
    let arguments = "--destination tickets --yes --rate 300/s";
    let (one, other) = tokio::join!(replay(&bed, arguments), replay(&bed, arguments));
    one?.ensure_success()?;
    other?.ensure_success()?;
    ensure!(bed.count("SELECT count(*) FROM outbox.replays").await? == 1, "a second one was begun");
    ensure_each_once(waiting(&bed, "tickets").await?, 3000)
}

#[tokio::test]
async fn events_that_a_new_destination_already_had_are_left_out() -> Result<()> {
    let bed = TestBed::new().await?;
    serve(&bed, &["tickets", "sales"]).await?;
    let append = "SELECT outbox.append('draw-1', NULL, jsonb_build_array(
            jsonb_build_object('event_type', 'T', 'payload', jsonb_build_object('n', n))
        ), CASE WHEN n <= 5 THEN '{tickets}' ELSE '{tickets,sales}' END::text[]) FROM generate_series(1, 8) AS n";
    bed.client.batch_execute(append).await?;
    succeeds(&bed, "--destination tickets --to-destination sales --yes").await?;
    ensure!(waiting(&bed, "sales").await? == [6, 7, 8, 1, 2, 3, 4, 5], "{:?}", waiting(&bed, "sales").await?);
    ensure!(bed.count("SELECT count(DISTINCT group_id) FROM outbox.messages").await? == 1);
    Ok(())
}

#[tokio::test]
async fn a_replay_keeps_the_groups_of_its_source() -> Result<()> {
    let bed = TestBed::new().await?;
    let write = "INSERT INTO outbox.events (event_type, payload, stream_id, stream_version, destinations) VALUES
        ('T', '{}', 's', 1, '{\"audit\": null}'), ('T', '{}', 's', 2, '{\"tickets\": \"g\"}'), ('T', '{}', 's', 3, NULL),
        ('T', '{}', NULL, NULL, '{\"tickets\": \"h\"}'), ('T', '{}', NULL, NULL, '{\"a\": \"x\", \"b\": \"y\"}')";
    bed.client.batch_execute(write).await?;
    let step = "SELECT messages FROM outbox.replay_step(outbox.replay_begin('audit', all_events => true), skip_running => true)";
    ensure!(bed.count(step).await? == 5);
    let groups = "SELECT string_agg(coalesce(group_id, '-'), ' ' ORDER BY id) FROM outbox.messages";
    let groups: String = bed.client.query_one(groups, &[]).await?.get(0);
    ensure!(groups == "- s s h -", "{groups}");
    Ok(())
}

#[tokio::test]
async fn a_stream_is_published_again_by_versions_whatever_its_positions_are() -> Result<()> {
    let bed = TestBed::new().await?;
    serve(&bed, &["tickets"]).await?;
    // As an import may have written it.
    for version in [2, 1, 4, 3] {
        let import = format!(
            "INSERT INTO outbox.events (event_type, payload, stream_id, stream_version, destinations)
             VALUES ('T', '{{\"n\": {version}}}', 's', {version}, '{{\"tickets\": \"s\"}}')"
        );
        bed.client.batch_execute(&import).await?;
    }
    succeeds(&bed, "--destination tickets --stream s --rate 1/s --yes").await?;
    ensure!(waiting(&bed, "tickets").await? == [1, 2, 3, 4], "{:?}", waiting(&bed, "tickets").await?);
    Ok(())
}

#[tokio::test]
async fn an_answer_of_no_leaves_an_unfinished_replay_as_it_is() -> Result<()> {
    let bed = TestBed::new().await?;
    serve(&bed, &["tickets"]).await?;
    write(&bed, "tickets", 1..=30, 0).await?;
    bed.count("SELECT outbox.replay_begin('tickets')").await?;
    let unasked = replay(&bed, "--destination tickets --restart").await?;
    ensure!(unasked.code == Some(2), "{unasked:?}");
    ensure!(bed.count("SELECT count(*) FROM outbox.replays WHERE ended_at IS NULL").await? == 1);
    Ok(())
}

#[tokio::test]
async fn an_abandoned_replay_is_not_reported_as_complete() -> Result<()> {
    let bed = TestBed::new().await?;
    serve(&bed, &["tickets"]).await?;
    write(&bed, "tickets", 1..=300, 0).await?;
    bed.client.batch_execute("DELETE FROM outbox.messages").await?;
    let command = operator(&bed);
    let arguments = ["replay", "--destination", "tickets", "--yes", "--rate", "50/s"];
    let running = tokio::spawn(async move { command.output(&arguments).await });
    eventually("it has begun", || async { Ok(bed.pending().await? > 0) }).await?;
    ensure!(bed.client.query_one("SELECT outbox.replay_end(1)", &[]).await?.get::<_, bool>(0));
    let ended = running.await??;
    ensure!(ended.code == Some(1) && ended.stderr.contains("was abandoned"), "{ended:?}");
    Ok(())
}

#[tokio::test]
async fn times_bound_a_replay_exactly() -> Result<()> {
    let bed = TestBed::new().await?;
    serve(&bed, &["tickets"]).await?;
    // One event a second, over ten minutes.
    let write = "INSERT INTO outbox.events (event_type, payload, recorded_at, destinations)
        SELECT 'T', jsonb_build_object('n', n), timestamptz '2026-11-25Z' + n * interval '1 second', '{\"tickets\": null}'
        FROM generate_series(1, 600) AS n";
    bed.client.batch_execute(write).await?;
    let arguments = "--destination tickets --from 2026-11-25T00:04:00Z --to 2026-11-25T00:05:00Z";
    let said = succeeds(&bed, &format!("{arguments} --yes")).await?;
    ensure!(said.contains("60 messages would be") && said.contains("60 messages written"), "{said}");
    ensure!(waiting(&bed, "tickets").await? == (240..300).collect::<Vec<_>>());
    Ok(())
}

#[tokio::test]
async fn the_position_of_a_time_is_found_between_events() -> Result<()> {
    let bed = TestBed::new().await?;
    // With gaps, as rolled back transactions leave, and ten events a second.
    let write = "INSERT INTO outbox.events (position, event_type, payload, recorded_at) OVERRIDING SYSTEM VALUE
        SELECT n * 3 + n % 2, 'T', '{}', timestamptz '2026-11-25Z' + n * interval '0.1 second' FROM generate_series(1, 500) AS n";
    bed.client.batch_execute(write).await?;
    let wrong = "SELECT count(*) FROM generate_series(-1, 52, 0.05) AS s,
        LATERAL (SELECT timestamptz '2026-11-25Z' + s * interval '1 second' AS moment) AS m,
        LATERAL (SELECT min(position) AS position FROM outbox.events WHERE recorded_at >= moment) AS first
        WHERE (SELECT count(*) FROM outbox.events AS e WHERE e.position >= outbox.position_at(moment))
            <> (SELECT count(*) FROM outbox.events AS e WHERE e.position >= coalesce(first.position, 1e9))";
    ensure!(bed.count(wrong).await? == 0, "{} positions are wrong", bed.count(wrong).await?);
    ensure!(bed.count("SELECT outbox.position_at('infinity')").await? == 1501);
    ensure!(bed.count("SELECT outbox.position_at('-infinity')").await? == 1);
    Ok(())
}

#[tokio::test]
async fn an_operator_may_replay_and_forge_no_event() -> Result<()> {
    let bed = TestBed::new().await?;
    serve(&bed, &["tickets"]).await?;
    let roles = Roles::create(&bed).await?;
    write(&bed, "tickets", 1..=10, 2).await?;
    let arguments = ["replay", "--destination", "tickets", "--yes"];
    operator(&bed).env("DATABASE_URL", &roles.operator_url).output(&arguments).await?.ensure_success()?;
    ensure!(bed.pending().await? == 20);
    // A sidecar's container has only the relay's role.
    operator(&bed).env("DATABASE_URL", &roles.relay_url).output(&["status"]).await?.ensure_success()?;
    let relay = operator(&bed).env("DATABASE_URL", &roles.relay_url).output(&arguments).await?;
    ensure!(relay.code == Some(1) && relay.stderr.contains("permission denied"), "{relay:?}");
    Ok(())
}

#[tokio::test]
async fn invalid_arguments_are_refused_before_anything_is_written() -> Result<()> {
    let bed = TestBed::new().await?;
    serve(&bed, &["tickets"]).await?;
    write(&bed, "tickets", 1..=10, 0).await?;
    for (arguments, code, part) in [
        ("--destination tickets --to-destination sales --yes", 1, "there is no destination \"sales\""),
        ("--destination tickets --position 0 --yes", 2, "position"),
        ("--destination tickets --from 2026-11-26 --to 2026-11-25 --yes", 2, "--from is not before --to"),
        ("--destination tickets --from soon --yes", 2, "2026-11-25T09:00:00Z"),
        ("--destination tickets --rate 0 --yes", 2, "50/s"),
        ("--destination tickets", 2, "--yes"),
        ("--from 2026-11-25", 2, "--destination"),
    ] {
        let ended = replay(&bed, arguments).await?;
        ensure!(ended.code == Some(code) && ended.stderr.contains(part), "{arguments}: {ended:?}");
    }
    ensure!(bed.count("SELECT count(*) FROM outbox.replays").await? == 0 && bed.pending().await? == 10);
    Ok(())
}
