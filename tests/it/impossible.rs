//! Rows that cannot be are refused by the tables themselves, whoever writes them and however.

use anyhow::{Context, Result, bail, ensure};

use support::test_bed::{TestBed, enqueue};

/// What the statement is refused with: message and hint.
async fn refused(bed: &TestBed, statement: &str) -> Result<String> {
    let Err(error) = bed.client.batch_execute(statement).await else { bail!("accepted: {statement}") };
    let error = error.as_db_error().context("no error of the server")?;
    Ok(format!("{} {}", error.message(), error.hint().unwrap_or_default()))
}

#[tokio::test]
async fn impossible_messages_are_refused_by_the_table() -> Result<()> {
    let bed = TestBed::new().await?;
    let delivered = "violates check constraint \"messages_delivered_state\"";
    let dead = "violates check constraint \"messages_dead_state\"";
    let wrong = [
        ("(destination, event_position, lane, status) VALUES ('a', 1, 3, 'delivered')", delivered),
        (
            "(destination, event_position, lane, status, delivered_at) VALUES ('a', 1, 16, 'delivered', now())",
            delivered,
        ),
        ("(destination, event_position, lane, status, delivered_at) VALUES ('', 1, 3, 'delivered', now())", delivered),
        ("(destination, event_position, status, delivered_at) VALUES ('a', 1, 'delivered', now())", "\"lane\""),
        ("(destination, event_position, lane, status, dead_at) VALUES ('a', 1, 3, 'dead', now())", dead),
        (
            "(destination, event_position, lane, status, dead_at, last_error, available_at)
                VALUES ('a', 1, 3, 'dead', now(), 'e', now())",
            dead,
        ),
        ("(destination, event_position, delivered_at) VALUES ('a', 1, now())", "Set status as well"),
        ("(destination, event_position, dead_at) VALUES ('a', 1, now())", "Set status as well"),
        ("(destination, event_position, sqs_message_id) VALUES ('a', 1, 'm')", "Set status as well"),
        ("(destination, event_position, status) VALUES ('a', 1, 'unknown')", "no partition"),
        ("(destination, event_position) VALUES ('', 1)", "a destination of 0 bytes"),
        ("(destination, event_position) VALUES (repeat('x', 81), 1)", "a destination of 81 bytes"),
        ("(destination, event_position, group_id) VALUES ('a', 1, '')", "a group of 0 bytes"),
        ("(destination, event_position, group_id) VALUES ('a', 1, repeat('x', 1025))", "a group of 1025 bytes"),
        ("(destination, event_position, attempts) VALUES ('a', 1, -1)", "attempts is -1"),
        ("(id, destination, event_position) OVERRIDING SYSTEM VALUE VALUES (0, 'a', 1)", "id is 0"),
        ("(destination, event_position, enqueued_at) VALUES ('a', 1, 'infinity')", "enqueued_at is infinity"),
    ];
    for (row, expected) in wrong {
        let said = refused(&bed, &format!("INSERT INTO outbox.messages {row}")).await?;
        ensure!(said.contains(expected), "{row}: {said}");
    }
    // Nor does a change make one of a message that is possible.
    enqueue(&bed.client, "a", "{\"n\": 1}", Some("draw-1")).await?;
    let changes = [
        ("delivered_at = now()", "Set status as well"),
        ("dead_at = now()", "Set status as well"),
        ("sqs_message_id = 'm'", "Set status as well"),
        ("destination = ''", "a destination of 0 bytes"),
        (
            "group_id = repeat('x', 1025), lane = outbox.lane(repeat('x', 1025), event_position)",
            "a group of 1025 bytes",
        ),
        ("group_id = 'draw-2'", ".lane('draw-7', event_position)"),
        ("enqueued_at = 'infinity'", "enqueued_at is infinity"),
        ("status = 'delivered'", delivered),
    ];
    for (change, expected) in changes {
        let said = refused(&bed, &format!("UPDATE outbox.messages SET {change} WHERE status = 'pending'")).await?;
        ensure!(said.contains(expected), "{change}: {said}");
    }
    let moved = "UPDATE outbox.messages SET group_id = 'draw-2', lane = outbox.lane('draw-2', event_position)";
    bed.client.batch_execute(moved).await?;
    Ok(())
}

#[tokio::test]
async fn impossible_events_are_refused_by_the_table() -> Result<()> {
    let bed = TestBed::new().await?;
    let wrong = [
        ("(event_type, payload) VALUES ('', '1')", "event_type is empty"),
        ("(event_type, payload, metadata) VALUES ('T', '1', '[]')", "metadata is a JSON array"),
        ("(event_type, payload, destinations) VALUES ('T', '1', '\"a\"')", "destinations is a JSON string"),
        ("(event_type, payload, stream_id, stream_version) VALUES ('T', '1', '', 1)", "stream_id is empty"),
        ("(event_type, payload, stream_id, stream_version) VALUES ('T', '1', 's', 0)", "stream_version is 0"),
        ("(event_type, payload, stream_id) VALUES ('T', '1', 's')", "stream_id is 's' and stream_version is null"),
        ("(event_type, payload, stream_version) VALUES ('T', '1', 1)", "stream_id is null and stream_version is 1"),
        ("(event_type, payload) VALUES (NULL, '1')", "\"event_type\""),
        ("(event_type, payload) VALUES ('T', NULL)", "payload, body and body_bytes are null Set one of them"),
        ("(event_type) VALUES ('T')", "payload, body and body_bytes are null"),
        (
            "(event_type, payload, body) VALUES ('T', '1', '1')",
            "more than one of payload, body and body_bytes is not null Set one",
        ),
        ("(event_type, payload, body_bytes) VALUES ('T', 'null', '\\x00')", "more than one of"),
        ("(event_type, body, body_bytes) VALUES ('T', '1', '\\x00')", "more than one of"),
        ("(event_type, body) VALUES ('T', '')", "body is empty SQS takes"),
        ("(event_type, body_bytes) VALUES ('T', '')", "body_bytes is empty SQS takes"),
        ("(event_type, body) VALUES ('T', 'a' || chr(1))", "body has U+0001 at character 2, which SQS refuses"),
        ("(event_type, body) VALUES ('', 'a')", "event_type is empty"),
        ("(event_type, body, metadata) VALUES ('T', 'a', '1')", "metadata is a JSON number"),
        (
            "(event_type, body_bytes, stream_id) VALUES ('T', '\\x00', 's')",
            "stream_id is 's' and stream_version is null",
        ),
    ];
    for (row, expected) in wrong {
        let said = refused(&bed, &format!("INSERT INTO outbox.events {row}")).await?;
        ensure!(said.contains(expected), "{row}: {said}");
    }
    for row in [
        "(event_type, payload) VALUES ('T', '1')",
        "(event_type, body) VALUES ('T', '1')",
        "(event_type, body_bytes, stream_id, stream_version) VALUES ('T', '\\x00', 's', 1)",
    ] {
        bed.client.batch_execute(&format!("INSERT INTO outbox.events {row}")).await.context(row)?;
    }
    let change = "BEGIN; SET LOCAL outbox.maintenance = 'on'; UPDATE outbox.events SET event_type = ''";
    let said = refused(&bed, change).await?;
    ensure!(said.contains("event_type is empty"), "{said}");
    Ok(())
}

/// The checks of rows are triggers, so nothing but the privilege to change the table may take them away.
#[tokio::test]
async fn every_row_that_a_writer_adds_is_checked_and_gets_the_lane_of_its_group() -> Result<()> {
    let bed = TestBed::new().await?;
    let ways = [
        "SELECT outbox.enqueue('a', 'T', '1', 'draw-1')",
        "SELECT outbox.enqueue_many('a', '[{\"event_type\": \"T\", \"payload\": 1, \"group_id\": \"draw-2\"}]')",
        "SELECT outbox.append('draw-3', 0, '[{\"event_type\": \"T\", \"payload\": 1}]', '{a}')",
        "INSERT INTO outbox.messages (destination, event_position, group_id) VALUES ('a', 1, 'draw-4')",
        "INSERT INTO outbox.messages (destination, event_position, lane, group_id) VALUES ('a', 1, 77, 'draw-5')",
        "INSERT INTO outbox.messages (destination, event_position) VALUES ('a', 1)",
        // One that was dead.
        "INSERT INTO outbox.messages (destination, event_position, lane, status, dead_at, last_error)
            VALUES ('a', 1, 3, 'dead', now(), 'e'); SELECT outbox.dead_redrive(destination => 'a')",
    ];
    for way in ways {
        bed.client.batch_execute(way).await.with_context(|| way.to_owned())?;
    }
    let lanes = "SELECT count(*) FROM outbox.messages_pending WHERE lane = outbox.lane(group_id, event_position)";
    ensure!(bed.count(lanes).await? == i64::try_from(ways.len())?);
    Ok(())
}
