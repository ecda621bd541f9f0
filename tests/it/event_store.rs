//! The event store: events are appended with an expected version and never changed. `readers.rs` has how they are read.

mod readers;

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use tokio::sync::Barrier;
use tokio::task::JoinSet;
use tokio_postgres::Client;
use tokio_postgres::error::DbError;

use support::eventually;
use support::test_bed::TestBed;

/// Appends one event; returns its version, or PostgreSQL's error.
async fn append(client: &Client, stream: &str, expected: Option<i64>, n: i64) -> Result<Result<i64, DbError>> {
    let query = "SELECT stream_version FROM outbox.append($1, $2, jsonb_build_array(
        jsonb_build_object('event_type', 'TicketPurchased', 'payload', jsonb_build_object('n', $3::bigint))), '{tickets}')";
    match client.query_one(query, &[&stream, &expected, &n]).await {
        Ok(row) => Ok(Ok(row.get(0))),
        Err(error) => Ok(Err(error.as_db_error().context("no answer of the database")?.clone())),
    }
}

async fn refused(client: &Client, statement: &str) -> Result<DbError> {
    let error = client.batch_execute(statement).await.err().with_context(|| format!("{statement} went well"))?;
    Ok(error.as_db_error().context("no answer of the database")?.clone())
}

#[tokio::test]
async fn an_append_expects_a_version_and_says_which_one_it_found() -> Result<()> {
    let bed = TestBed::new().await?;
    ensure!(append(&bed.client, "draw-7", Some(0), 1).await? == Ok(1));
    ensure!(append(&bed.client, "draw-7", Some(1), 2).await? == Ok(2));
    ensure!(append(&bed.client, "draw-7", None, 3).await? == Ok(3));
    for wrong in [0, 2, 4] {
        let error = append(&bed.client, "draw-7", Some(wrong), 4).await?.err().context("it was appended")?;
        ensure!(error.code().code() == "OX409", "{error:?}");
        ensure!(error.detail() == Some(&format!("stream_id=draw-7 expected={wrong} actual=3")), "{error:?}");
    }
    ensure!(append(&bed.client, "draw-8", Some(0), 5).await? == Ok(1), "another stream has versions of its own");
    ensure!(bed.count("SELECT outbox.stream_version('draw-7') * 10 + outbox.stream_version('none')").await? == 30);
    // The same statement writes the message, in the group of the stream.
    ensure!(
        bed.count("SELECT count(*) FROM outbox.messages WHERE group_id = 'draw-7' AND destination = 'tickets'").await?
            == 3
    );
    ensure!(
        bed.count("SELECT count(*) FROM outbox.events WHERE destinations = '{\"tickets\": \"draw-7\"}'").await? == 3
    );
    let versions = "SELECT sum(stream_version) FROM outbox.read_stream('draw-7', 2)";
    ensure!(bed.count(&format!("SELECT ({versions})::bigint")).await? == 5);
    Ok(())
}

#[tokio::test]
async fn the_same_events_again_return_what_they_returned_first() -> Result<()> {
    let bed = TestBed::new().await?;
    let call = |stream: &str, expected: i64, ids: std::ops::RangeInclusive<u8>| {
        let events: Vec<String> = ids
            .map(|id| format!("{{\"event_id\": \"00000000-0000-0000-0000-0000000000{id:02}\", \"event_type\": \"T\", \"payload\": {id}}}"))
            .collect();
        let events = events.join(", ");
        format!(
            "SELECT string_agg(concat_ws(':', right(event_id::text, 2), stream_version, event_position), ' ')
            FROM outbox.append('{stream}', {expected}, '[{events}]', '{{tickets}}')"
        )
    };
    let ask = async |query: String| anyhow::Ok(bed.client.query_one(&query, &[]).await?.get::<_, String>(0));
    let first = ask(call("s", 0, 1..=3)).await?;
    ensure!(first == "01:1:1 02:2:2 03:3:3", "{first}");
    let stored = call("s", 0, 1..=3).replace(
        "string_agg(concat_ws(':', right(event_id::text, 2), stream_version, event_position), ' ')",
        "bool_and(was_stored)::text",
    );
    ensure!(ask(stored).await? == "true");
    ask(call("s", 3, 4..=4)).await?;
    ensure!(ask(call("s", 0, 1..=3)).await? == first, "the answer is another one");
    ensure!(bed.count("SELECT count(*) FROM outbox.messages").await? == 4, "a repetition wrote a message");
    let without_stream = "INSERT INTO outbox.events (event_id, event_type, payload)
        VALUES ('00000000-0000-0000-0000-000000000009', 'T', '1')";
    bed.client.batch_execute(without_stream).await?;
    for (query, detail) in [
        (call("s", 4, 4..=5), "1 of 2"),
        (call("t", 0, 1..=3), "in stream \"s\""),
        (call("u", 0, 9..=9), "in stream \"\""),
    ] {
        let error = refused(&bed.client, &query).await?;
        ensure!(
            error.code().code() == "23505" && error.detail().is_some_and(|text| text.contains(detail)),
            "{error:?}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn writers_of_a_stream_get_positions_and_messages_in_the_order_of_versions() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.client.batch_execute("CREATE TABLE business (n bigint)").await?;
    let mut writers = JoinSet::new();
    for writer in 0..8 {
        let client = bed.connect().await?;
        writers.spawn(async move {
            for n in 0..50 {
                client.batch_execute("BEGIN").await?;
                if writer % 2 == 0 {
                    // A transaction that has its id before it waits for the lock.
                    client.batch_execute("INSERT INTO business VALUES (1)").await?;
                }
                append(&client, "draw-7", None, writer * 100 + n).await??;
                client.batch_execute(if n % 10 == 9 { "ROLLBACK" } else { "COMMIT" }).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = writers.join_next().await {
        ended??;
    }
    ensure!(bed.count("SELECT outbox.stream_version('draw-7')").await? == 360);
    let wrong = "SELECT count(*) FROM (
        SELECT stream_version, position, m.id,
            lag(position) OVER w AS position_before, lag(m.id) OVER w AS id_before, row_number() OVER w AS number
        FROM outbox.events AS e JOIN outbox.messages AS m ON m.event_position = e.position
        WINDOW w AS (ORDER BY stream_version)
    ) AS o WHERE position <= position_before OR id <= id_before OR number <> stream_version";
    ensure!(bed.count(wrong).await? == 0, "{} are out of order", bed.count(wrong).await?);
    Ok(())
}

#[tokio::test]
async fn of_several_appends_to_the_same_version_one_wins_and_the_others_retry() -> Result<()> {
    let bed = TestBed::new().await?;
    let mut writers = JoinSet::new();
    let all_have_looked = Arc::new(Barrier::new(6));
    for writer in 0..6 {
        let client = bed.connect().await?;
        let all_have_looked = Arc::clone(&all_have_looked);
        writers.spawn(async move {
            let (mut written, mut conflicts) = (0, 0);
            while written < 30 {
                let version = client.query_one("SELECT outbox.stream_version('draw-7')", &[]).await?.get(0);
                if written + conflicts == 0 {
                    // All decide on the same version, so one of them wins.
                    all_have_looked.wait().await;
                }
                match append(&client, "draw-7", Some(version), writer).await? {
                    Ok(appended) => {
                        ensure!(appended == version + 1);
                        written += 1;
                    }
                    Err(error) => {
                        ensure!(error.code().code() == "OX409", "{error:?}");
                        conflicts += 1;
                    }
                }
            }
            anyhow::Ok(conflicts)
        });
    }
    let mut conflicts = 0;
    while let Some(ended) = writers.join_next().await {
        conflicts += ended??;
    }
    ensure!(conflicts >= 5, "only {conflicts} conflicts");
    ensure!(bed.count("SELECT outbox.stream_version('draw-7')").await? == 180);
    Ok(())
}

#[tokio::test]
async fn an_insert_by_hand_makes_an_append_conflict() -> Result<()> {
    let bed = TestBed::new().await?;
    let other = bed.connect().await?;
    let by_hand =
        "BEGIN; INSERT INTO outbox.events (stream_id, stream_version, event_type, payload) VALUES ('s', 1, 'T', '1')";
    other.batch_execute(by_hand).await?;
    let client = bed.connect().await?;
    let appending = tokio::spawn(async move { append(&client, "s", None, 1).await });
    let waiting =
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
    eventually("the append waits", || async { Ok(bed.count(waiting).await? == 1) }).await?;
    other.batch_execute("COMMIT").await?;
    let error = appending.await??.err().context("it was appended")?;
    ensure!(error.code().code() == "OX409", "{error:?}");
    Ok(())
}

#[tokio::test]
async fn events_are_neither_changed_nor_deleted_except_for_maintenance() -> Result<()> {
    let bed = TestBed::new().await?;
    append(&bed.client, "s", None, 1).await??;
    for statement in
        ["UPDATE outbox.events SET payload = '2'", "DELETE FROM outbox.events", "TRUNCATE outbox.events CASCADE"]
    {
        let error = refused(&bed.client, statement).await?;
        ensure!(error.code().code() == "23001" && error.hint().is_some_and(|hint| hint.contains("outbox.maintenance")));
    }
    bed.client.batch_execute("BEGIN; SET LOCAL outbox.maintenance = 'on'; DELETE FROM outbox.events; COMMIT").await?;
    ensure!(bed.count("SELECT count(*) FROM outbox.events").await? == 0);
    append(&bed.client, "s", None, 1).await??;
    refused(&bed.client, "DELETE FROM outbox.events").await?;
    // The function's own permission to delete ends with it.
    let purge = "BEGIN; SELECT outbox.purge_events(now()); DELETE FROM outbox.events";
    let strict = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT outbox.purge_events(now())";
    ensure!(refused(&bed.client, strict).await?.code().code() == "25000");
    bed.client.batch_execute("ROLLBACK").await?;
    ensure!(refused(&bed.client, purge).await?.code().code() == "23001");
    Ok(())
}

#[tokio::test]
async fn invalid_arguments_are_refused_with_the_reason() -> Result<()> {
    let bed = TestBed::new().await?;
    for (arguments, part) in [
        ("'', 0, '[{\"event_type\": \"T\", \"payload\": 1}]'", "no stream"),
        ("NULL, 0, '[{\"event_type\": \"T\", \"payload\": 1}]'", "no stream"),
        ("'s', -1, '[{\"event_type\": \"T\", \"payload\": 1}]'", "the expected version -1 is negative"),
        (
            "repeat('s', 129), 0, '[{\"event_type\": \"T\", \"payload\": 1}]', '{tickets}'",
            "a stream of 129 characters is too long for a group, SQS takes 128",
        ),
        ("'s', 0, NULL", "at least one event"),
        ("repeat('s', 1025), 0, '[{\"event_type\": \"T\", \"payload\": 1}]'", "a stream of 1025 bytes is too long"),
        (
            "E's\\x01', 0, '[{\"event_type\": \"T\", \"payload\": 1}]', '{tickets}'",
            "the stream has a control character",
        ),
        (
            "'s', 0, '[{\"event_type\": \"T\\u0001\", \"payload\": 1}]', '{tickets}'",
            "event 1 of the array has a control character in its event_type",
        ),
        ("'s', 0, '[{\"event_type\": \"T\", \"payload\": 1, \"event_id\": 5}]'", "an event_id that is no UUID: 5"),
        (
            "'s', 0, '[{\"event_type\": \"T\", \"payload\": 1, \"event_id\": null}]'",
            "an event_id that is no UUID: null",
        ),
        (
            "'s', 0, '[{\"event_id\": \"01a21f74-e8a9-7c7b-bd32-a314be89ec65\", \"event_type\": \"T\", \"payload\": 1},
              {\"event_id\": \"01A21F74-e8a9-7c7b-bd32-a314be89ec65\", \"event_type\": \"T\", \"payload\": 2}]'",
            "an event_id is given twice",
        ),
        ("'s', 0, '[]'", "at least one event"),
        ("'s', 0, '{}'", "at least one event"),
        ("'s', 0, '[1]'", "event 1 of the array is not an object"),
        (
            "'s', 0, '[{\"event_type\": \"T\", \"payload\": 1}, {\"payload\": 1}]'",
            "event 2 of the array has no event_type",
        ),
        ("'s', 0, '[{\"event_type\": \"T\"}]'", "event 1 of the array has no payload, body or body_base64"),
        ("'s', 0, '[{\"event_type\": \"T\", \"payload\": 1, \"body\": \"b\"}]'", "has more than one of payload, body"),
        ("'s', 0, '[{\"event_type\": \"T\", \"body\": 7}]'", "event 1 of the array has a body that is no string"),
        ("'s', 0, '[{\"event_type\": \"T\", \"body_base64\": \"?\"}]'", "has a body_base64 that is no base64"),
        (
            "'s', 0, '[{\"event_type\": \"T\", \"body\": \"b\", \"group_id\": \"g\"}]'",
            "not known: {\"group_id\": \"g\"}",
        ),
        ("'s', 0, '[{\"event_type\": \"T\", \"payload\": 1, \"metadata\": 1}]'", "metadata"),
        ("'s', 0, '[{\"event_type\": \"T\", \"payload\": 1, \"version\": 1}]'", "\"version\": 1"),
        ("'s', 0, '[{\"event_type\": \"T\", \"payload\": 1}]', ARRAY[NULL]", "a destination is empty"),
        ("'s', 0, '[{\"event_type\": \"T\", \"payload\": 1}]', '{a,b,a}'", "given twice"),
    ] {
        let error = refused(&bed.client, &format!("SELECT outbox.append({arguments})")).await?;
        ensure!(error.code().code() == "22023" && error.message().contains(part), "{arguments}: {error:?}");
    }
    Ok(())
}

#[tokio::test]
async fn append_refuses_exactly_the_events_that_are_too_large_for_sqs() -> Result<()> {
    let bed = TestBed::new().await?;
    let append = |payload: &str, metadata: &str| {
        format!(
            "SELECT outbox.append('s', NULL, jsonb_build_array(jsonb_build_object('event_type', 'T', 'payload', {payload},
             'metadata', {metadata}::jsonb)), '{{tickets}}')"
        )
    };
    // Attributes take 104 bytes, up to version 9, and the quotes of the text two.
    let letters = |missing: i64| format!("repeat('x', {})", 1_048_576 - 104 - 2 - missing);
    let other = |body: &str| {
        format!(
            "SELECT outbox.append('s', NULL, jsonb_build_array(jsonb_build_object('event_type', 'T', {body})), '{{tickets}}')"
        )
    };
    let cases: [&dyn Fn(i64) -> String; 6] = [
        &|missing| append(&letters(missing), "'{}'"),
        // The relay escapes this character, so each takes six bytes.
        &|missing| append(&format!("repeat(chr(65535), 100000) || {}", letters(600_000 + missing)), "'{}'"),
        // Name, type and value of an attribute.
        &|missing| append(&letters(1 + 6 + 3 + missing), r#"'{"a": "123"}'"#),
        &|missing| append(&letters(1 + 6 + 3 + missing), r#"'{"a": 123, "AWSTraceHeader": "Root=1"}'"#),
        // A text has no quotes, and bytes are counted.
        &|missing| other(&format!("'body', 'ä' || repeat('x', {})", 1_048_576 - 104 - 2 - missing)),
        // Four characters for three bytes, and an attribute of 28; the line breaks are not sent.
        &|missing| {
            let event_type = "T".repeat(usize::try_from(1 - missing).unwrap_or(0));
            let bytes = "encode(decode(repeat('00', (1048576 - 104 - 28) / 4 * 3), 'hex'), 'base64')";
            other(&format!("'event_type', '{event_type}', 'body_base64', {bytes}"))
        },
    ];
    for case in cases {
        let error = refused(&bed.client, &case(-1)).await?;
        ensure!(error.code().code() == "22023", "{error:?}");
        ensure!(error.message().contains("a message of 1048577 bytes, SQS takes 1048576"), "{error:?}");
        bed.client.batch_execute(&case(0)).await?;
    }
    // An event that is sent nowhere may be of any size, and its stream may have a longer name.
    let nowhere = append(&letters(-1), "'{}'").replace("{tickets}", "{}").replace("'s'", "repeat('s', 200)");
    bed.client.batch_execute(&nowhere).await?;
    // The relay counts in the same way: SQS accepts whatever append accepts.
    bed.standard("tickets").await?;
    let ended = bed.relay().until_empty().await?;
    ensure!(ended.code == Some(0) && bed.delivered().await? == 6, "{ended:?}");
    Ok(())
}

#[tokio::test]
async fn a_null_or_an_invalid_number_is_refused_instead_of_looking_like_the_end() -> Result<()> {
    let bed = TestBed::new().await?;
    for (call, part) in [
        ("outbox.read_stream(NULL)", "no stream"),
        ("outbox.read_stream('')", "no stream"),
        ("outbox.read_stream('s', NULL)", "from version"),
        ("outbox.read_stream('s', -1)", "from version -1"),
        ("outbox.read_stream('s', 1, 0)", "max_count is 0"),
        ("outbox.read_stream('s', 1, NULL)", "max_count is null"),
        ("outbox.stream_version(NULL)", "no stream"),
        ("outbox.read_all(NULL)", "after position"),
        ("outbox.read_all(-1)", "after position -1"),
        ("outbox.read_all(0, -1)", "max_count is -1"),
        ("outbox.purge_events(NULL)", "a time in the past"),
        ("outbox.purge_events(now(), 0, 0)", "a step of 0"),
        ("outbox.purge_events(now(), NULL)", "after position"),
        ("outbox.prune_inbox(NULL)", "keep"),
        ("outbox.prune_inbox('-1 day')", "keep"),
        ("outbox.prune_inbox('1 day', 0)", "max_count is 0"),
        ("outbox.checkpoint(NULL)", "no consumer"),
        ("outbox.checkpoint('', 0, 1)", "no consumer"),
        ("outbox.checkpoint('c', -1, 1)", "does not go from -1 to 1"),
        ("outbox.checkpoint('c', 2, 1)", "does not go from 2 to 1"),
        ("outbox.checkpoint('c', 0, NULL)", "does not go from 0"),
    ] {
        let error = refused(&bed.client, &format!("SELECT * FROM {call}")).await?;
        ensure!(error.code().code() == "22023" && error.message().contains(part), "{call}: {error:?}");
    }
    for (call, column) in [
        ("outbox.accept(NULL, gen_random_uuid())", "consumer"),
        ("outbox.accept('', gen_random_uuid())", "consumer"),
        ("outbox.accept('c', NULL::uuid)", "event_id"),
        ("outbox.accept('c', NULL, 1)", "stream_id"),
        ("outbox.accept('c', 's', NULL)", "stream_version"),
        ("outbox.accept('c', 's', 0)", "stream_version"),
    ] {
        let error = refused(&bed.client, &format!("SELECT {call}")).await?;
        ensure!(error.code().code().starts_with("235") && error.message().contains(column), "{call}: {error:?}");
    }
    Ok(())
}

#[tokio::test]
async fn purging_keeps_the_end_of_each_stream_and_what_a_replay_needs() -> Result<()> {
    let bed = TestBed::new().await?;
    for n in 1..=6 {
        append(&bed.client, if n % 2 == 0 { "a" } else { "b" }, None, n).await??;
    }
    bed.client.batch_execute("DELETE FROM outbox.messages").await?;
    let begun = "SELECT messages FROM outbox.replay_begin('tickets', stop_position => 3) AS id,
        outbox.replay_step(id, max_count => 1, skip_running => true)";
    ensure!(bed.count(begun).await? == 1);
    bed.client.batch_execute("DELETE FROM outbox.messages").await?;
    let purge = "SELECT purged FROM outbox.purge_events(now())";
    let left = async || {
        let rows = bed.client.query("SELECT position FROM outbox.events ORDER BY position", &[]).await?;
        anyhow::Ok(rows.iter().map(|row| row.get(0)).collect::<Vec<i64>>())
    };
    ensure!(bed.count(purge).await? == 2 && left().await? == [2, 3, 5, 6], "{:?}", left().await?);
    ensure!(bed.client.query_one("SELECT outbox.replay_end(1)", &[]).await?.get::<_, bool>(0));
    ensure!(bed.count(purge).await? == 2 && left().await? == [5, 6], "{:?}", left().await?);
    ensure!(append(&bed.client, "a", Some(3), 7).await? == Ok(4), "versions go on from where they were");
    Ok(())
}
