//! Writing several messages at once: `outbox.enqueue_many`.

use anyhow::{Context, Result, bail, ensure};

use support::test_bed::TestBed;

#[tokio::test]
async fn an_array_of_events_arrives_in_its_order_each_in_its_group() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.fifo("tickets").await?;
    let ids = "SELECT count(*) FROM (
        SELECT id, lag(id) OVER (ORDER BY n) AS before FROM outbox.enqueue_many('tickets', (
            SELECT jsonb_agg(jsonb_build_object(
                'event_type', 'T', 'payload', jsonb_build_object('n', i, 'group', i % 3), 'group_id', 'g' || i % 3
            ) ORDER BY i)
            FROM generate_series(1, 60) AS i
        )) WITH ORDINALITY AS m (id, n)
    ) AS m WHERE before IS NULL OR id > before";
    ensure!(bed.count(ids).await? == 60, "the ids are not those of the messages, in order");
    let groups = "SELECT count(*) FROM outbox.messages AS m JOIN outbox.events AS e ON e.position = m.event_position
        WHERE m.group_id = 'g' || (e.payload ->> 'group') AND e.destinations = jsonb_build_object('tickets', m.group_id)";
    ensure!(bed.count(groups).await? == 60);
    bed.relay().deliver_all().await?;
    bed.ensure_arrived_in_order(&queue, 60).await
}

#[tokio::test]
async fn group_and_metadata_may_be_left_out_and_an_empty_array_writes_nothing() -> Result<()> {
    let bed = TestBed::new().await?;
    let events = r#"[{"event_type": "T", "payload": 1}, {"event_type": "T", "payload": null, "group_id": null,
        "metadata": null}, {"event_type": "T", "payload": [], "metadata": {"a": "b"}}]"#;
    let written = format!("SELECT count(*) FROM outbox.enqueue_many('audit', '{events}')");
    ensure!(bed.count(&written).await? == 3);
    let plain = "SELECT count(*) FROM outbox.messages AS m JOIN outbox.events AS e ON e.position = m.event_position
        WHERE m.group_id IS NULL AND e.destinations = '{\"audit\": null}' AND e.metadata IN ('{}', '{\"a\": \"b\"}')";
    ensure!(bed.count(plain).await? == 3);
    ensure!(bed.count("SELECT count(*) FROM outbox.enqueue_many('audit', '[]')").await? == 0);
    ensure!(bed.pending().await? == 3);
    let others = r#"[{"event_type": "T", "body": "<a/>"}, {"event_type": "T", "body_base64": "AP8Q\n"},
        {"event_type": "T", "payload": 1, "body": null, "body_base64": null}, {"event_type": "T", "body_base64": "AA=="}]"#;
    ensure!(bed.count(&format!("SELECT count(*) FROM outbox.enqueue_many('audit', '{others}')")).await? == 4);
    let written = "SELECT string_agg(coalesce(payload::text, body, encode(body_bytes, 'hex')), ' ' ORDER BY position)
        FROM outbox.events WHERE position > 3";
    let written: String = bed.client.query_one(written, &[]).await?.get(0);
    ensure!(written == "<a/> 00ff10 1 00", "{written}");
    Ok(())
}

#[tokio::test]
async fn a_call_takes_a_payload_by_its_place_and_any_other_body_by_its_name() -> Result<()> {
    let bed = TestBed::new().await?;
    for arguments in [
        "'{\"n\": 1}'",
        "'{\"n\": 1}', 'g', '{\"a\": 1}', NULL",
        "payload => '{\"n\": 1}', group_id => 'g'",
        "body => '<n/>', group_id => 'g'",
        "NULL, 'g', body => '<n/>'",
        "body_bytes => '\\x00', deliver_at => now() + interval '1 day'",
    ] {
        let call = format!("SELECT outbox.enqueue('tickets', 'T', {arguments})");
        bed.client.batch_execute(&call).await.with_context(|| call.clone())?;
    }
    let count = "SELECT count(payload) * 100 + count(body) * 10 + count(body_bytes) FROM outbox.events";
    ensure!(bed.count(count).await? == 321);
    // A text where JSON belongs is an error, not a body.
    for (arguments, expected) in [
        ("'<n/>'", "invalid input syntax for type json"),
        ("'1', body => '1'", "more than one of"),
        ("NULL", "are null"),
    ] {
        let call = format!("SELECT outbox.enqueue('tickets', 'T', {arguments})");
        let Err(error) = bed.client.batch_execute(&call).await else { bail!("accepted: {call}") };
        ensure!(format!("{error:?}").contains(expected), "{call}: {error:?}");
    }
    Ok(())
}

#[tokio::test]
async fn one_wrong_event_of_an_array_refuses_all_and_is_named() -> Result<()> {
    let bed = TestBed::new().await?;
    let right = r#"{"event_type": "T", "payload": 1}"#;
    let wrong = [
        ("1", "event 2 of the array is not an object"),
        (r#"{"payload": 1}"#, "event 2 of the array has no event_type"),
        (r#"{"event_type": "", "payload": 1}"#, "event 2 of the array has no event_type"),
        (r#"{"event_type": "T"}"#, "event 2 of the array has no payload, body or body_base64"),
        (r#"{"event_type": "T", "body": null}"#, "event 2 of the array has no payload, body or body_base64"),
        (r#"{"event_type": "T", "payload": null, "body": "b"}"#, "has more than one of payload, body and body_base64"),
        (
            r#"{"event_type": "T", "body": "b", "body_base64": "AA=="}"#,
            "has more than one of payload, body and body_base64",
        ),
        (r#"{"event_type": "T", "body": {"a": 1}}"#, "event 2 of the array has a body that is no string"),
        (r#"{"event_type": "T", "body": ""}"#, "event 2 of the array has an empty body"),
        (r#"{"event_type": "T", "body": "a\u000b"}"#, "event 2 of the array has a body with U+000B at character 2"),
        (r#"{"event_type": "T", "body_base64": 7}"#, "event 2 of the array has a body_base64 that is no string"),
        (r#"{"event_type": "T", "body_base64": " "}"#, "event 2 of the array has an empty body_base64"),
        (r#"{"event_type": "T", "body_base64": "AP8"}"#, "event 2 of the array has a body_base64 that is no base64"),
        (r#"{"event_type": "T", "body_base64": "AP-_"}"#, "event 2 of the array has a body_base64 that is no base64"),
        (r#"{"event_type": "T", "body": "b", "group": "g"}"#, r#"has members that are not known: {"group": "g"}"#),
        (
            r#"{"event_type": "T", "payload": 1, "group_id": 7}"#,
            "event 2 of the array has a group_id that is no string",
        ),
        (
            r#"{"event_type": "T", "payload": 1, "metadata": []}"#,
            "event 2 of the array has metadata that are no object",
        ),
        (
            r#"{"event_type": "T", "payload": 1, "group": "g"}"#,
            r#"event 2 of the array has members that are not known: {"group": "g"}"#,
        ),
        (r#"{"event_type": "T", "payload": 1, "group_id": ""}"#, "a group of 0 bytes"),
    ];
    for (event, expected) in wrong {
        let statement = format!("SELECT outbox.enqueue_many('audit', '[{right}, {event}, {right}]')");
        let Err(error) = bed.client.batch_execute(&statement).await else { bail!("accepted: {event}") };
        let error = error.as_db_error().context("no error of the server")?;
        ensure!(error.message().contains(expected), "{event}: {error}");
        ensure!(error.hint().is_some(), "{event}: {error}");
    }
    for events in ["NULL", "'{}'", "'1'"] {
        let refused = bed.client.batch_execute(&format!("SELECT outbox.enqueue_many('audit', {events})")).await;
        ensure!(refused.is_err_and(|error| format!("{error:?}").contains("must be a JSON array")), "{events}");
    }
    ensure!(bed.pending().await? == 0 && bed.count("SELECT count(*) FROM outbox.events").await? == 0);
    Ok(())
}
