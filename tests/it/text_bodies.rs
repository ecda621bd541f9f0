//! Bodies that are not JSON: text arrives byte for byte and bytes arrive in base64, on every way a message can take; and what
//! SQS would refuse is refused when it is written.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, Mac as _};
use outbox_relay::clock::Time;
use outbox_relay::message::{
    Accepts, BodyForm, Content, DestinationKind, Event, EventPosition, Lane, Message, MessageId, MessageKey, Origin,
};
use outbox_relay::publisher::compose;
use sha2::Sha256;

use support::emulator::Received;
use support::eventually;
use support::test_bed::TestBed;

/// The largest message in SQS: body, and names, types and values of attributes.
const MAX_BYTES: usize = 1_048_576;

/// With a byte order mark, blanks that a parser would drop, all three line ends, and characters of one to four bytes.
const XML: &str = "\u{feff}<?xml version=\"1.0\" encoding=\"UTF-8\"?>\r\n<invoice  id='c-7'>\t<to>Grüße 漢字 🎲 e\u{301} \u{200f}\u{85}\u{2028}</to>\r\
    <odd>\u{7f}\u{9f}\u{d7ff}\u{e000}\u{fffd}\u{10000}\u{1fffe}\u{10ffff}</odd>\n</invoice>\n ";

/// Commits a message with a body of text; returns its id.
async fn enqueue_text(bed: &TestBed, destination: &str, body: &str, group: Option<&str>) -> Result<i64> {
    let query = "SELECT outbox.enqueue($1, 'InvoiceIssued', body => $2, group_id => $3)";
    Ok(bed.client.query_one(query, &[&destination, &body, &group]).await?.try_get(0)?)
}

/// Commits a message with a body of bytes; returns its id.
async fn enqueue_bytes(bed: &TestBed, destination: &str, body: &[u8], group: Option<&str>) -> Result<i64> {
    let query = "SELECT outbox.enqueue($1, 'InvoiceIssued', body_bytes => $2, group_id => $3)";
    Ok(bed.client.query_one(query, &[&destination, &body, &group]).await?.try_get(0)?)
}

async fn only_message(bed: &TestBed, queue: &str) -> Result<Received> {
    let mut messages = bed.queues.contents(queue).await?;
    ensure!(messages.len() == 1, "{} messages", messages.len());
    messages.pop().context("no message")
}

/// The bytes of a body, as a consumer gets them back.
fn decoded(message: &Received) -> Result<Vec<u8>> {
    ensure!(message.attributes.get("content-encoding").is_some_and(|encoding| encoding == "base64"), "{message:?}");
    Ok(STANDARD.decode(&message.body)?)
}

fn random_bytes(dice: &mut fastrand::Rng, length: usize) -> Vec<u8> {
    std::iter::repeat_with(|| dice.u8(..)).take(length).collect()
}

/// What PostgreSQL says to a statement: message and hint.
async fn refused(bed: &TestBed, statement: &str) -> Result<String> {
    let Err(error) = bed.client.batch_execute(statement).await else { bail!("accepted: {statement}") };
    let error = error.as_db_error().context("no error of the server")?;
    Ok(format!("{} {}", error.message(), error.hint().context("no hint")?))
}

#[tokio::test]
async fn xml_with_characters_of_every_kind_arrives_byte_for_byte() -> Result<()> {
    let bed = TestBed::new().await?;
    for queue in [bed.standard("audit").await?, bed.fifo("tickets").await?] {
        let destination = if queue.ends_with(".fifo") { "tickets" } else { "audit" };
        let query = "SELECT outbox.enqueue($1, 'InvoiceIssued', body => $2, group_id => 'c-7',
            metadata => '{\"content-type\": \"application/xml\"}')";
        bed.client.query_one(query, &[&destination, &XML]).await?;
        bed.relay().deliver_all().await?;
        let message = only_message(&bed, &queue).await?;
        ensure!(message.body == XML, "{:?}", message.body);
        ensure!(message.attributes["content-type"] == "application/xml", "{message:?}");
        ensure!(message.attributes.len() == 3, "a text has no other attribute of its own: {message:?}");
    }
    Ok(())
}

#[tokio::test]
async fn the_signature_over_a_body_of_json_verifies_at_the_consumer() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.fifo("tickets").await?;
    let json = r#"{"total": 1e2,  "currency":"EUR", "id": "c-7", "id": "c-8", "note": "\u00fc" }"#;
    let mac = || Hmac::<Sha256>::new_from_slice(b"a shared secret");
    let signature = STANDARD.encode(mac()?.chain_update(json).finalize().into_bytes());
    let metadata = serde_json::json!({ "signature": signature }).to_string();
    for (column, group) in [("body => $1", "text"), ("payload => $1::text::jsonb", "payload")] {
        let query = format!(
            "SELECT outbox.enqueue('tickets', 'InvoiceIssued', {column}, group_id => '{group}', metadata => $2::text::jsonb)"
        );
        bed.client.query_one(&query, &[&json, &metadata]).await?;
    }
    bed.relay().deliver_all().await?;
    let messages = bed.queues.contents(&queue).await?;
    let verifies = |group: &str| -> Result<bool> {
        let message =
            messages.iter().find(|message| message.group_id.as_deref() == Some(group)).context("not there")?;
        let signature = STANDARD.decode(&message.attributes["signature"])?;
        Ok(mac()?.chain_update(&message.body).verify_slice(&signature).is_ok())
    };
    ensure!(verifies("text")?, "{messages:?}");
    ensure!(!verifies("payload")?, "PostgreSQL did not change the payload, so this test proves nothing");
    Ok(())
}

#[tokio::test]
async fn bytes_arrive_in_base64_without_line_breaks_and_decode_to_the_same() -> Result<()> {
    let bed = TestBed::new().await?;
    let (audit, tickets) = (bed.standard("audit").await?, bed.fifo("tickets").await?);
    let mut dice = fastrand::Rng::with_seed(7);
    // PostgreSQL breaks lines after 57 bytes.
    let mut written: Vec<Vec<u8>> = (1..=180).map(|length| random_bytes(&mut dice, length)).collect();
    written.push(random_bytes(&mut dice, 100_000));
    written.push(vec![0]);
    for bytes in &written {
        enqueue_bytes(&bed, "audit", bytes, None).await?;
        enqueue_bytes(&bed, "tickets", bytes, Some("g")).await?;
    }
    bed.relay().env("OUTBOX_RELAY_FIFO_MODE", "batched").deliver_all().await?;
    let in_order = bed.queues.contents(&tickets).await?.iter().map(decoded).collect::<Result<Vec<_>>>()?;
    ensure!(in_order == written, "other bytes, or in another order");
    let mut arrived = bed.queues.contents(&audit).await?.iter().map(decoded).collect::<Result<Vec<_>>>()?;
    arrived.sort();
    written.sort();
    ensure!(arrived == written, "other bytes");
    Ok(())
}

#[tokio::test]
async fn all_kinds_of_bodies_keep_the_order_of_a_group_that_is_longer_than_a_read() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.fifo("tickets").await?;
    let write = "SELECT outbox.enqueue_many('tickets', (
        SELECT jsonb_agg(jsonb_build_object('event_type', 'T', 'group_id', 'g') || CASE n % 3
            WHEN 0 THEN jsonb_build_object('payload', n)
            WHEN 1 THEN jsonb_build_object('body', 'text ' || n, 'body_base64', NULL)
            ELSE jsonb_build_object('body_base64', encode(convert_to(n::text, 'UTF8'), 'base64')) END ORDER BY n)
        FROM generate_series(1, 1500) AS n))";
    bed.client.query(write, &[]).await?;
    let relay = bed.relay().env("OUTBOX_RELAY_FIFO_MODE", "batched").env("OUTBOX_RELAY_BATCH_SIZE", "100");
    relay.deliver_all().await?;
    let arrived = bed.queues.contents(&queue).await?;
    ensure!(arrived.len() == 1500, "{} messages", arrived.len());
    for (message, n) in arrived.iter().zip(1..) {
        let (body, is_encoded) = match n % 3 {
            0 => (format!("{n}"), false),
            1 => (format!("text {n}"), false),
            _ => (STANDARD.encode(n.to_string()), true),
        };
        ensure!(message.body == body, "{message:?} instead of {body}");
        ensure!(message.attributes.contains_key("content-encoding") == is_encoded, "{message:?}");
    }
    Ok(())
}

#[tokio::test]
async fn an_attribute_of_metadata_yields_to_the_encoding_of_bytes_and_counts_as_left_out() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.standard("audit").await?;
    for body in ["body_bytes => '\\x00ff'", "body => 'AP8='"] {
        let query = format!(
            "SELECT outbox.enqueue('audit', 'T', {body}, metadata => '{{\"content-encoding\": \"gzip\", \"z\": \"1\"}}')"
        );
        bed.client.query_one(&query, &[]).await?;
    }
    let relay = bed.relay().start().await?;
    bed.until_nothing_is_pending().await?;
    relay.wait_for_metric(r#"attributes_left_out_total{destination="audit"}"#, 1.0).await?;
    relay.stop().await?;
    let arrived = bed.queues.contents(&queue).await?;
    let mut encodings: Vec<_> = arrived.iter().map(|message| message.attributes["content-encoding"].as_str()).collect();
    encodings.sort_unstable();
    ensure!(encodings == ["base64", "gzip"], "{arrived:?}");
    ensure!(arrived.iter().all(|message| message.body == "AP8=" && message.attributes["z"] == "1"), "{arrived:?}");
    Ok(())
}

#[tokio::test]
async fn a_character_that_sqs_refuses_is_refused_when_it_is_written_with_its_place() -> Result<()> {
    let bed = TestBed::new().await?;
    let refusable = (1..=8).chain([0xb, 0xc]).chain(0xe..=0x1f).chain([0xfffe, 0xffff]);
    for code in refusable {
        let insert =
            format!("INSERT INTO outbox.events (event_type, body) VALUES ('T', 'ä🎲\n' || chr({code}) || chr(1))");
        let said = refused(&bed, &insert).await?;
        ensure!(said.contains(&format!("body has U+{code:04X} at character 4, which SQS refuses")), "{code}: {said}");
        ensure!(said.contains("as body_bytes"), "{said}");
    }
    let ways = [
        ("SELECT outbox.enqueue('a', 'T', body => E'ab\\x0bc')", "body has U+000B at character 3"),
        (
            "SELECT outbox.enqueue_many('a', '[{\"event_type\": \"T\", \"body\": \"a\"}, {\"event_type\": \"T\", \"body\": \"\\uffff\"}]')",
            "event 2 of the array has a body with U+FFFF at character 1",
        ),
        (
            "SELECT outbox.append('s', 0, '[{\"event_type\": \"T\", \"body\": \"ab\\u0007\"}]')",
            "event 1 of the array has a body with U+0007 at character 3",
        ),
        ("SELECT outbox.enqueue('a', 'T', body => '')", "body is empty"),
        ("SELECT outbox.enqueue('a', 'T', body_bytes => '')", "body_bytes is empty"),
    ];
    for (way, expected) in ways {
        let said = refused(&bed, way).await?;
        ensure!(said.contains(expected), "{way}: {said}");
    }
    ensure!(bed.count("SELECT count(*) FROM outbox.events").await? == 0);
    let maintenance = "INSERT INTO outbox.events (event_type, body) VALUES ('T', 'x');
        BEGIN; SET LOCAL outbox.maintenance = 'on'; UPDATE outbox.events SET body = chr(2)";
    ensure!(refused(&bed, maintenance).await?.contains("U+0002 at character 1"), "a change is not checked");
    Ok(())
}

/// A text of characters of all classes; those at the ends of SQS's ranges are frequent.
fn odd_text(dice: &mut fastrand::Rng) -> String {
    const ENDS: &str = "\u{1}\u{8}\t\n\u{b}\u{c}\r\u{e}\u{1f} ~\u{7f}\u{80}\u{9f}\u{7ff}\u{800}\u{d7ff}\u{e000}\u{fdd0}\u{fffd}\u{fffe}\u{ffff}\
        \u{10000}\u{1fffe}\u{1ffff}\u{10ffff}";
    let ends: Vec<char> = ENDS.chars().collect();
    let mut character = || match dice.u8(..8) {
        0 => ends[dice.usize(..ends.len())],
        1..=3 => dice.char('\u{1}'..=char::MAX),
        _ => dice.char('\u{20}'..='\u{7e}'),
    };
    let first = character();
    std::iter::once(first).chain(std::iter::repeat_with(character).take(5)).collect()
}

/// What the relay says to a body of text before it sends anything.
fn composed(body: &str) -> Result<String, String> {
    let message = Message {
        key: MessageKey { lane: Lane::all().next().ok_or("no lane")?, id: MessageId(1) },
        origin: Origin { event_position: EventPosition(1), enqueued_at: SystemTime::UNIX_EPOCH },
        group: None,
        attempts: 0,
        superseded: None,
        age_when_read: Duration::ZERO,
        read_at: Time::default(),
        wait: None,
        hold: None,
        content: Content::Event(Event {
            event_id: "0190a0b0-0000-7000-8000-000000000001".to_owned(),
            event_type: "T".to_owned(),
            stream: None,
            body: body.to_owned(),
            form: BodyForm::Text,
            metadata: "{}".to_owned(),
        }),
    };
    compose(message, &Accepts::queue(DestinationKind::Fifo)).map(|_| String::new()).map_err(|fault| fault.to_string())
}

/// Two rules, one in the database and one in the relay, and SQS's own: whatever the first accepts, the others accept.
#[tokio::test]
async fn whatever_text_the_table_accepts_the_relay_sends_and_sqs_takes_and_they_refuse_the_same() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.standard("audit").await?;
    let attempt = "CREATE FUNCTION attempt(body text) RETURNS text LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM outbox.enqueue('audit', 'T', body => attempt.body);
            RETURN '';
        EXCEPTION WHEN check_violation THEN
            RETURN SQLERRM;
        END $$";
    bed.client.batch_execute(attempt).await?;
    let seed = fastrand::u64(..);
    let mut dice = fastrand::Rng::with_seed(seed);
    let mut accepted = Vec::new();
    let mut refused = 0;
    for _ in 0..1500 {
        let text = odd_text(&mut dice);
        let said: String = bed.client.query_one("SELECT attempt($1)", &[&text]).await?.try_get(0)?;
        match composed(&text) {
            Ok(_) => {
                ensure!(said.is_empty(), "seed {seed}: {text:?}: only the table says {said}");
                accepted.push(text);
            }
            Err(fault) => {
                let place = fault.rsplit("has ").next().context("no place")?;
                ensure!(said.contains(place), "seed {seed}: {text:?}: the relay says {fault}, and the table {said:?}");
                refused += 1;
            }
        }
    }
    ensure!(accepted.len() > 300 && refused > 100, "{} accepted and {refused} refused", accepted.len());
    bed.relay().deliver_all().await?;
    let mut arrived: Vec<_> = bed.queues.contents(&queue).await?.into_iter().map(|message| message.body).collect();
    arrived.sort();
    accepted.sort();
    ensure!(arrived == accepted, "seed {seed}: {} arrived of {}", arrived.len(), accepted.len());
    Ok(())
}

#[tokio::test]
async fn what_a_superuser_smuggled_past_the_trigger_is_dead_with_its_reason_and_spoils_no_request() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.standard("audit").await?;
    enqueue_text(&bed, "audit", "before", None).await?;
    let smuggle = "BEGIN; SET LOCAL session_replication_role = replica;
        INSERT INTO outbox.events (event_type, body) VALUES ('T', 'ab' || chr(65534)), ('T', NULL); COMMIT;
        INSERT INTO outbox.messages (destination, event_position) SELECT 'audit', position FROM outbox.events
            WHERE event_type = 'T' ORDER BY position";
    bed.client.batch_execute(smuggle).await?;
    enqueue_text(&bed, "audit", "after", None).await?;
    ensure!(bed.relay().until_empty().await?.code == Some(1));
    let dead = bed.client.query("SELECT id, last_error FROM outbox.messages_dead ORDER BY id", &[]).await?;
    let reasons: Vec<String> = dead.iter().map(|row| row.get(1)).collect();
    let expected =
        ["InvalidMessageContents: the body has U+FFFE at character 3", "InvalidMessageContents: the body is empty"];
    ensure!(reasons == expected, "{reasons:?}");
    ensure!(bed.queues.contents(&queue).await?.len() == 2);
    let shown = bed.relay().output(&["dead", "show", &dead[1].get::<_, i64>(0).to_string()]).await?;
    ensure!(shown.code == Some(0) && shown.stdout.contains("the body is empty"), "{shown:?}");
    Ok(())
}

/// The bytes that SQS counts for a message that arrived.
fn counted(message: &Received) -> usize {
    message.body.len() + message.attributes.iter().map(|(name, value)| name.len() + value.len() + 6).sum::<usize>()
}

#[tokio::test]
async fn the_largest_text_and_the_most_bytes_that_sqs_takes_arrive_and_one_more_is_dead_with_its_size() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.fifo("tickets").await?;
    // "event_id", "event_type" and their types are 30 bytes, the id is 36, and the event type one or two.
    let text = format!("x{}", "é".repeat((MAX_BYTES - 30 - 36 - 1) / 2));
    // "content-encoding", its type and its value are 28 bytes more; three bytes become four.
    let bytes = random_bytes(&mut fastrand::Rng::with_seed(3), (MAX_BYTES - 30 - 36 - 2 - 28) / 4 * 3);
    let enqueue_text = "SELECT outbox.enqueue('tickets', 'T', body => $1)";
    let enqueue_bytes = "SELECT outbox.enqueue('tickets', 'TT', body_bytes => $1)";
    bed.client.query_one(enqueue_text, &[&text]).await?;
    bed.client.query_one(enqueue_text, &[&format!("{text}x")]).await?;
    bed.client.query_one(enqueue_bytes, &[&bytes]).await?;
    bed.client.query_one(enqueue_bytes, &[&[&bytes[..], &[0]].concat()]).await?;
    ensure!(bed.relay().until_empty().await?.code == Some(1));
    let mut arrived = bed.queues.contents(&queue).await?;
    arrived.sort_by_key(|message| message.attributes.len());
    let sizes: Vec<usize> = arrived.iter().map(counted).collect();
    ensure!(sizes == [MAX_BYTES, MAX_BYTES], "{sizes:?}");
    ensure!(arrived[0].body == text, "another text");
    ensure!(decoded(&arrived[1])? == bytes, "other bytes");
    let dead = bed.client.query("SELECT last_error FROM outbox.messages_dead ORDER BY id", &[]).await?;
    let reasons: Vec<String> = dead.iter().map(|row| row.get(0)).collect();
    ensure!(reasons.len() == 2 && reasons[0].contains("1048577") && reasons[1].contains("1048580"), "{reasons:?}");
    Ok(())
}

/// A text and bytes, through everything that can be done to a message.
#[tokio::test]
async fn other_bodies_are_scheduled_retried_redriven_and_replayed_as_they_were_written() -> Result<()> {
    let bed = TestBed::new().await?;
    for queue in [bed.standard("audit").await?, bed.fifo("tickets").await?] {
        let destination = if queue.ends_with(".fifo") { "tickets" } else { "audit" };
        let group = Some("g");
        let mut dice = fastrand::Rng::with_seed(11);
        let bytes = random_bytes(&mut dice, 1000);
        let soon = "SELECT outbox.enqueue($1, 'T', body => $2, body_bytes => $3, group_id => $4,
            deliver_at => clock_timestamp() + interval '200 ms')";
        bed.client.query_one(soon, &[&destination, &Some(XML), &None::<Vec<u8>>, &group]).await?;
        bed.client.query_one(soon, &[&destination, &None::<&str>, &Some(&bytes), &group]).await?;
        let ids = [
            enqueue_text(&bed, destination, XML, group).await?,
            enqueue_bytes(&bed, destination, &bytes, group).await?,
        ];
        // As after a retry that another relay recorded.
        let defer = "UPDATE outbox.messages SET available_at = clock_timestamp() WHERE id = ANY ($1)";
        ensure!(bed.client.execute(defer, &[&&ids[..]]).await? == 2);
        let buried = [
            enqueue_text(&bed, destination, XML, group).await?,
            enqueue_bytes(&bed, destination, &bytes, group).await?,
        ];
        let bury = "UPDATE outbox.messages SET status = 'dead', dead_at = clock_timestamp(), last_error = 'refused', available_at = NULL
            WHERE id = ANY ($1)";
        ensure!(bed.client.execute(bury, &[&&buried[..]]).await? == 2);
        let relay = bed.relay().start().await?;
        bed.until_nothing_is_pending().await?;
        let redriven = "SELECT outbox.dead_redrive(destination => $1)";
        ensure!(bed.client.query_one(redriven, &[&destination]).await?.get::<_, i64>(0) == 2);
        let is_delivered = "SELECT count(*) FROM outbox.messages WHERE destination = $1 AND status = 'delivered'";
        let delivered =
            async || anyhow::Ok(bed.client.query_one(is_delivered, &[&destination]).await?.get::<_, i64>(0));
        eventually("what was scheduled and redriven is delivered", || async { Ok(delivered().await? == 6) }).await?;
        let replay = "SELECT messages FROM outbox.replay_begin($1) AS id, outbox.replay_step(id, skip_running => true)";
        ensure!(bed.client.query_one(replay, &[&destination]).await?.get::<_, i64>(0) == 6);
        eventually("the replay is delivered", || async { Ok(delivered().await? == 12) }).await?;
        relay.stop().await?;
        let arrived = bed.queues.contents(&queue).await?;
        let texts = arrived.iter().filter(|message| message.body == XML).count();
        ensure!(texts == 6 && arrived.len() == 12, "{texts} of {} are the text", arrived.len());
        for message in arrived.iter().filter(|message| message.body != XML) {
            ensure!(decoded(message)? == bytes, "{message:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn readers_of_the_store_get_text_and_bytes_beside_the_payload() -> Result<()> {
    let bed = TestBed::new().await?;
    let append = "SELECT count(*) FROM outbox.append('s', 0, '[{\"event_type\": \"A\", \"payload\": null},
        {\"event_type\": \"B\", \"body\": \"<b/>\"}, {\"event_type\": \"C\", \"body_base64\": \"AP8Q\\n\"},
        {\"event_type\": \"D\", \"payload\": 1, \"body\": null, \"body_base64\": null}]')";
    ensure!(bed.count(append).await? == 4);
    for read in ["outbox.read_stream('s')", "outbox.read_all()"] {
        let query = format!("SELECT concat_ws(' ', event_type, payload, body, encode(body_bytes, 'hex')) FROM {read}");
        let rows = bed.client.query(&query, &[]).await?;
        let rows: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        ensure!(rows == ["A null", "B <b/>", "C 00ff10", "D 1"], "{read}: {rows:?}");
    }
    Ok(())
}
