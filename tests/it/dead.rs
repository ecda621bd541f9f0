//! Operations on dead messages: they are found, shown, redriven and discarded, and every step is recorded.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use support::eventually;
use support::relay::{Command, Finished};
use support::test_bed::{TestBed, numbers};

/// The command as an operator runs it: it needs only the database.
fn operator(bed: &TestBed) -> Command {
    Command::new().env("DATABASE_URL", bed.url()).env("USER", "ada")
}

async fn dead(bed: &TestBed, arguments: &str) -> Result<Finished> {
    let arguments: Vec<&str> = std::iter::once("dead").chain(arguments.split(' ')).collect();
    operator(bed).output(&arguments).await
}

async fn succeeds(bed: &TestBed, arguments: &str) -> Result<String> {
    let ended = dead(bed, arguments).await?;
    ended.ensure_success()?;
    Ok(ended.stdout)
}

/// Makes messages dead as a relay does, with the reasons it would record.
async fn bury(bed: &TestBed, destination: &str, condition: &str, reason: &str) -> Result<()> {
    let update = format!(
        "UPDATE outbox.messages AS m SET status = 'dead', dead_at = clock_timestamp(), attempts = 10, last_error = '{reason}'
         FROM outbox.events AS e WHERE e.position = m.event_position AND m.destination = '{destination}' AND {condition}"
    );
    ensure!(bed.client.execute(&update, &[]).await? > 0, "nothing was buried");
    Ok(())
}

/// Twenty messages to each of two destinations; 3, 7 and 12 to the first and 4 to the second are dead.
async fn graveyard() -> Result<TestBed> {
    let bed = TestBed::new().await?;
    bed.enqueue_many("tickets", 20, 5).await?;
    bed.enqueue_many("audit", 20, 0).await?;
    let number = "(payload ->> 'n')::int";
    bury(&bed, "tickets", &format!("{number} IN (3, 7)"), "InternalError: try again").await?;
    bury(&bed, "tickets", &format!("{number} = 12"), "MessageTooLong: 1048577 bytes").await?;
    bury(&bed, "audit", &format!("{number} = 4"), "InternalError: try again").await?;
    Ok(bed)
}

async fn dead_ids(bed: &TestBed) -> Result<Vec<i64>> {
    let rows = bed.client.query("SELECT id FROM outbox.messages_dead ORDER BY id", &[]).await?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Action, actor, count, ids and filter of every recorded action.
async fn actions(bed: &TestBed) -> Result<Vec<String>> {
    let query = "SELECT concat_ws(' ', action, actor, messages, message_ids, filter - 'since' - 'upto')
                 FROM outbox.audit_log ORDER BY id";
    Ok(bed.client.query(query, &[]).await?.iter().map(|row| row.get(0)).collect())
}

#[tokio::test]
async fn dead_messages_are_listed_by_every_filter() -> Result<()> {
    let bed = graveyard().await?;
    let ids = dead_ids(&bed).await?;
    let all = succeeds(&bed, "list").await?;
    ensure!(all.lines().count() == 5 && all.starts_with("ID "), "{all}");
    ensure!(
        ids.iter().all(|id| all.contains(&id.to_string())) && all.contains("MessageTooLong: 1048577 bytes"),
        "{all}"
    );
    for (filter, expected) in [
        ("--destination audit", 1),
        ("--destination tickets", 3),
        ("--group g3", 1),
        ("--reason internalerror", 3),
        ("--destination tickets --reason internalerror", 2),
        ("--event-type TicketPurchased", 4),
        ("--event-type DrawClosed", 0),
        ("--since 1h", 4),
        ("--since 2099-01-01", 0),
        ("--since 2020-01-01T00:00:00Z", 4),
    ] {
        let json: serde_json::Value = serde_json::from_str(&succeeds(&bed, &format!("list {filter} --json")).await?)?;
        let found = json.as_array().context("no array")?;
        ensure!(found.len() == expected, "{filter}: {json}");
        ensure!(found.iter().all(|one| one["reason"].is_string() && one["attempts"] == 10), "{json}");
    }
    let some = succeeds(&bed, "list --limit 2").await?;
    ensure!(some.contains("2 of 4 dead messages"), "{some}");
    ensure!(succeeds(&bed, &format!("list {} {}", ids[0], ids[2])).await?.lines().count() == 3);
    ensure!(succeeds(&bed, "list --destination nowhere").await? == "no dead messages\n");
    Ok(())
}

#[tokio::test]
async fn a_dead_message_is_shown_with_payload_and_attributes() -> Result<()> {
    let bed = TestBed::new().await?;
    let payload = r#"{"big": 12345678901234567890123, "text": "ü"}"#;
    let query = "SELECT outbox.enqueue('tickets', 'TicketPurchased', $1::text::jsonb, 'draw 7', '{\"traceparent\": \"00-ab-01\"}')";
    let id: i64 = bed.client.query_one(query, &[&payload]).await?.get(0);
    let missing = dead(&bed, &format!("show {id}")).await?;
    ensure!(missing.code == Some(1) && missing.stderr.contains("is not dead"), "{missing:?}");
    bury(&bed, "tickets", "true", "InvalidMessageContents: no").await?;
    let shown = succeeds(&bed, &format!("show {id}")).await?;
    for part in [
        payload,
        "traceparent = 00-ab-01 (String)",
        "event_type = TicketPurchased",
        "InvalidMessageContents: no",
        "draw 7",
        "sha256-",
    ] {
        ensure!(shown.contains(part), "{part} is not in\n{shown}");
    }
    let json = succeeds(&bed, &format!("show {id} --json")).await?;
    ensure!(json.contains("12345678901234567890123"), "{json}");
    let value: serde_json::Value = serde_json::from_str(&json)?;
    ensure!(value["metadata"]["traceparent"] == "00-ab-01" && value["attempts"] == 10, "{json}");
    Ok(())
}

#[tokio::test]
async fn a_dead_message_of_text_is_shown_as_it_is_and_one_of_bytes_in_base64() -> Result<()> {
    let bed = TestBed::new().await?;
    let ids = "SELECT outbox.enqueue('tickets', 'T', body => E'<a>\\n\\t\"ü\"</a>'),
        outbox.enqueue('tickets', 'T', body_bytes => decode(repeat('00ff', 40), 'hex'))";
    let row = bed.client.query_one(ids, &[]).await?;
    let (text, bytes): (i64, i64) = (row.get(0), row.get(1));
    bury(&bed, "tickets", "true", "refused").await?;
    let shown = succeeds(&bed, &format!("show {text}")).await?;
    ensure!(shown.ends_with("\nbody\n<a>\n\t\"ü\"</a>\n"), "{shown}");
    let shown = succeeds(&bed, &format!("show {bytes}")).await?;
    ensure!(
        shown.contains("\nbody in base64\nAP8A/wD/AP8A") && shown.contains("content-encoding = base64 (String)"),
        "{shown}"
    );
    let line = shown.lines().last().context("no line")?;
    ensure!(line.len() == 108, "{} characters instead of those of 80 bytes: {line}", line.len());
    let json = async |id: i64| -> Result<serde_json::Value> {
        Ok(serde_json::from_str(&succeeds(&bed, &format!("show {id} --json")).await?)?)
    };
    let (of_text, of_bytes) = (json(text).await?, json(bytes).await?);
    ensure!(of_text["body"] == "<a>\n\t\"ü\"</a>" && of_text["payload"].is_null(), "{of_text}");
    ensure!(of_text["body_base64"].is_null() && of_bytes["body"].is_null(), "{of_text} {of_bytes}");
    ensure!(of_bytes["body_base64"] == line && of_bytes.get("body_bytes").is_none(), "{of_bytes}");
    Ok(())
}

#[tokio::test]
async fn a_redriven_message_is_delivered_by_a_running_relay() -> Result<()> {
    let bed = graveyard().await?;
    let (tickets, _) = (bed.fifo("tickets").await?, bed.standard("audit").await?);
    let relay = bed.relay().start().await?;
    bed.until_nothing_is_pending().await?;
    let ids = dead_ids(&bed).await?;
    let before = numbers(&bed.queues.contents(&tickets).await?)?;
    ensure!(before.len() == 17, "{before:?}");
    let done = succeeds(&bed, &format!("redrive {} --yes", ids[0])).await?;
    ensure!(done.contains("redrive: 1 message"), "{done}");
    let started = Instant::now();
    eventually("it is delivered", || async { Ok(bed.row(ids[0]).await?.status == "delivered") }).await?;
    // Found through the index of due messages, not by the next rescan.
    println!("delivered {:?} after the redrive", started.elapsed());
    ensure!(bed.row(ids[0]).await?.attempts == 0, "attempts start from 0");
    succeeds(&bed, "redrive --destination tickets --yes").await?;
    eventually("all tickets are delivered", || async {
        Ok(dead_ids(&bed).await?.len() == 1 && bed.pending().await? == 0)
    })
    .await?;
    let arrived = numbers(&bed.queues.contents(&tickets).await?)?;
    ensure!([3, 7, 12].iter().all(|n| arrived.contains(n)) && arrived.len() == 20, "{arrived:?}");
    relay.stop().await?;
    let recorded = actions(&bed).await?;
    ensure!(recorded.len() == 2 && recorded[0].starts_with(&format!("redrive ada 1 {{{}}}", ids[0])), "{recorded:?}");
    ensure!(
        recorded[1].starts_with("redrive ada 2") && recorded[1].contains(r#""destination": "tickets""#),
        "{recorded:?}"
    );
    Ok(())
}

#[tokio::test]
async fn discarded_messages_are_gone_and_their_events_stay() -> Result<()> {
    let bed = graveyard().await?;
    let events = bed.count("SELECT count(*) FROM outbox.events").await?;
    let kept = dead_ids(&bed).await?[2];
    let done = succeeds(&bed, "discard --reason internalerror --yes").await?;
    ensure!(done.contains("discard: 3 messages"), "{done}");
    ensure!(dead_ids(&bed).await? == [kept]);
    ensure!(bed.count("SELECT count(*) FROM outbox.events").await? == events);
    ensure!(actions(&bed).await?.len() == 1);
    Ok(())
}

#[tokio::test]
async fn nothing_is_changed_without_consent() -> Result<()> {
    let bed = graveyard().await?;
    let ids = dead_ids(&bed).await?;
    for verb in ["redrive", "discard"] {
        let dry = succeeds(&bed, &format!("{verb} --destination tickets --dry-run")).await?;
        ensure!(dry.contains(&format!("would {verb} 3 messages")), "{dry}");
        let unasked = dead(&bed, &format!("{verb} --destination tickets")).await?;
        ensure!(unasked.code == Some(2) && unasked.stderr.contains("--yes"), "{unasked:?}");
        let unbounded = dead(&bed, &format!("{verb} --yes")).await?;
        ensure!(unbounded.code == Some(2) && unbounded.stderr.contains("--all"), "{unbounded:?}");
        let nothing = succeeds(&bed, &format!("{verb} --group nobody --yes")).await?;
        ensure!(nothing.contains("no dead message matches"), "{nothing}");
        let unknown = dead(&bed, &format!("{verb} 999999 --yes")).await?;
        ensure!(unknown.code == Some(1) && unknown.stderr.contains("none of these messages is dead"), "{unknown:?}");
    }
    ensure!(dead_ids(&bed).await? == ids && actions(&bed).await?.is_empty());
    let all = succeeds(&bed, "discard --all --yes").await?;
    ensure!(all.contains("discard: 4 messages") && dead_ids(&bed).await?.is_empty(), "{all}");
    Ok(())
}

#[tokio::test]
async fn a_redrive_keeps_to_its_rate() -> Result<()> {
    let bed = graveyard().await?;
    let started = Instant::now();
    succeeds(&bed, "redrive --destination tickets --rate 2/s --yes").await?;
    // Two at once, the third a second later. Time is the subject; a slow machine only makes it longer.
    ensure!(started.elapsed() >= Duration::from_secs(1), "{:?}", started.elapsed());
    let recorded = actions(&bed).await?;
    ensure!(recorded.len() == 2 && recorded[0].starts_with("redrive ada 2"), "{recorded:?}");
    ensure!(dead_ids(&bed).await?.len() == 1);
    Ok(())
}

#[tokio::test]
async fn a_redrive_warns_inside_the_deduplication_window_and_not_after_it() -> Result<()> {
    let bed = graveyard().await?;
    let soon = dead(&bed, "redrive --destination audit --yes").await?;
    ensure!(soon.code == Some(0) && soon.stderr.contains("less than 5 minutes ago"), "{soon:?}");
    bed.client.execute("UPDATE outbox.messages_dead SET dead_at = now() - interval '6 minutes'", &[]).await?;
    let later = dead(&bed, "redrive --destination tickets --yes").await?;
    ensure!(later.code == Some(0) && later.stderr.is_empty(), "{later:?}");
    Ok(())
}

#[tokio::test]
async fn psql_is_enough_to_list_redrive_and_discard() -> Result<()> {
    let bed = graveyard().await?;
    let ids = dead_ids(&bed).await?;
    ensure!(
        bed.count("SELECT count(*) FROM outbox.dead_list(destination => 'tickets', reason => 'internal')").await? == 2
    );
    let shown = bed.client.query_one("SELECT reason, payload::text FROM outbox.dead_show($1)", &[&ids[2]]).await?;
    ensure!(shown.get::<_, &str>(0).starts_with("MessageTooLong") && shown.get::<_, &str>(1) == r#"{"n": 12}"#);
    ensure!(bed.count("SELECT outbox.dead_redrive(group_id => 'g3')").await? == 1);
    ensure!(bed.count(&format!("SELECT outbox.dead_discard(ids => '{{{}}}')", ids[2])).await? == 1);
    ensure!(dead_ids(&bed).await? == [ids[1], ids[3]]);
    let refused =
        bed.client.query("SELECT outbox.dead_discard()", &[]).await.err().context("it discarded everything")?;
    ensure!(format!("{:?}", refused.as_db_error()).contains("-infinity"), "{refused:?}");
    let fewer_than_none = "SELECT outbox.dead_discard(since => '-infinity', max_count => -1)";
    let refused = bed.client.query(fewer_than_none, &[]).await.err().context("it took -1 messages")?;
    ensure!(format!("{:?}", refused.as_db_error()).contains("at most -1 messages"), "{refused:?}");
    ensure!(bed.count("SELECT outbox.dead_discard(since => '-infinity')").await? == 2);
    let recorded = actions(&bed).await?;
    ensure!(recorded.len() == 3 && recorded[0].starts_with("redrive postgres 1"), "{recorded:?}");
    Ok(())
}

#[tokio::test]
async fn a_locked_message_is_left_out_and_reported() -> Result<()> {
    let bed = graveyard().await?;
    let ids = dead_ids(&bed).await?;
    let other = bed.connect().await?;
    other.batch_execute(&format!("BEGIN; SELECT FROM outbox.messages_dead WHERE id = {} FOR UPDATE", ids[0])).await?;
    // One message at a time; the locked one would come first.
    let said = succeeds(&bed, "redrive --since 2000-01-01 --rate 1/s --yes").await?;
    ensure!(said.contains("1 fewer than counted"), "{said}");
    ensure!(dead_ids(&bed).await? == ids[..1]);
    Ok(())
}

#[tokio::test]
async fn a_redrive_walks_the_dead_messages_once_although_the_table_was_empty_when_analyzed() -> Result<()> {
    let bed = TestBed::new().await?;
    let die = "INSERT INTO outbox.messages (destination, event_position, lane, status, dead_at, last_error)
        SELECT 'audit', n, n % 16, 'dead', now() - interval '1 hour', 'refused' FROM generate_series(1, 3000) AS n";
    let statements =
        ["ALTER TABLE outbox.messages_dead SET (autovacuum_enabled = off)", die, "DELETE FROM outbox.messages"];
    for statement in statements.into_iter().chain(["ANALYZE outbox.messages_dead", die]) {
        bed.client.batch_execute(statement).await?;
    }
    let walked = "SELECT coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0)
        FROM pg_stat_user_tables WHERE relid = 'outbox.messages_dead'::regclass";
    // A session reports its statistics when it ends.
    let operator = bed.connect().await?;
    for act in ["redrive", "discard"] {
        let act = format!("SELECT outbox.dead_{act}(destination => 'audit', max_count => 1000)");
        ensure!(operator.query_one(&act, &[]).await?.get::<_, i64>(0) == 1000, "{act}");
    }
    drop(operator);
    let counted = async || bed.connect().await?.query_one(walked, &[]).await?.try_get::<_, i64>(0).context("no number");
    eventually("the statistics are there", || async { Ok(counted().await? >= 5000) }).await?;
    let walked = counted().await?;
    ensure!(walked < 30_000, "{walked} rows were walked");
    Ok(())
}
