//! Large bodies go to a bucket of S3, and the libraries of Amazon read them back.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use aws_sdk_sqs::types::QueueAttributeName;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;

use support::emulator::{Buckets, Received, Subscription};
use support::test_bed::TestBed;
use support::{emulator, eventually};

const MAX_BYTES: i64 = 1_048_576;

/// How long a library may take to be installed and to read a queue.
const PATIENCE: Duration = Duration::from_secs(900);

/// Writes a message with so many letters in its body; returns its id and the id of its event.
async fn enqueue(bed: &TestBed, destination: &str, letters: i64, group: Option<&str>) -> Result<(i64, String)> {
    let id: i64 = bed
        .client
        .query_one(
            "SELECT outbox.enqueue($1, 'DocumentSigned', jsonb_build_object('t', 'ü' || repeat('x', $2::bigint::integer)), $3,
                metadata => '{\"tenant\": \"a\"}')",
            &[&destination, &letters, &group],
        )
        .await?
        .get(0);
    let found =
        "SELECT e.event_id::text FROM outbox.messages AS m JOIN outbox.events AS e ON e.position = m.event_position
        WHERE m.id = $1";
    Ok((id, bed.client.query_one(found, &[&id]).await?.get(0)))
}

fn body(letters: i64) -> String {
    format!("{{\"t\": \"ü{}\"}}", "x".repeat(letters as usize))
}

/// A bucket, and a destination `documents` for this queue or topic that uses it.
async fn with_bucket(bed: &TestBed, target: &str, options: &str) -> Result<String> {
    let bucket = Buckets::name("bodies");
    bed.buckets.create(&bucket).await?;
    bed.add_destination("documents", &format!("{target};claim-check={bucket}/large{options}"));
    Ok(bucket)
}

fn find<'a>(messages: &'a [Received], event_id: &str) -> Result<&'a Received> {
    let is_it = |message: &&Received| message.attributes.get("event_id").is_some_and(|id| id == event_id);
    messages.iter().find(is_it).with_context(|| format!("{event_id} did not come"))
}

/// Checks that the message is a pointer to an object with this body, whose key is this one and the name of the relay.
async fn ensure_offloaded(bed: &TestBed, bucket: &str, message: &Received, key: &str, expected: &str) -> Result<()> {
    let pointer: Value = serde_json::from_str(&message.body)?;
    ensure!(pointer[0] == "software.amazon.payloadoffloading.PayloadS3Pointer", "{pointer}");
    let key =
        pointer[1]["s3Key"].as_str().filter(|found| found.starts_with(&format!("{key}-"))).context("another key")?;
    ensure!(pointer[1] == serde_json::json!({"s3BucketName": bucket, "s3Key": key}), "{pointer}");
    let size = message.attributes.get("ExtendedPayloadSize").context("no size")?;
    ensure!(*size == expected.len().to_string(), "{size} instead of {}", expected.len());
    let objects = bed.buckets.contents(bucket).await?;
    ensure!(objects.get(key).is_some_and(|object| object == expected.as_bytes()), "the object is another");
    Ok(())
}

#[tokio::test]
async fn only_a_body_that_sqs_cannot_take_goes_to_the_bucket() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.queues.create_fifo("documents").await?;
    let bucket = with_bucket(&bed, &queue, "").await?;
    let (_, small) = enqueue(&bed, "documents", 1_000_000, Some("c-1")).await?;
    let (id, large) = enqueue(&bed, "documents", MAX_BYTES, Some("c-1")).await?;
    let (_, after) = enqueue(&bed, "documents", 10, Some("c-1")).await?;
    let relay = bed.relay().start().await?;
    bed.until_nothing_is_pending().await?;
    let metrics = relay.metrics().await?;
    ensure!(metrics.get("claim_checks_total{destination=\"documents\"}")? == 1.0);
    ensure!(metrics.get("claim_check_bytes_total{destination=\"documents\"}")? == body(MAX_BYTES).len() as f64);
    relay.stop().await?;
    let messages = bed.queues.contents(&queue).await?;
    let ids: Vec<&str> = messages.iter().map(|message| message.attributes["event_id"].as_str()).collect();
    ensure!(ids == [small.as_str(), large.as_str(), after.as_str()], "the order of the group is kept: {ids:?}");
    ensure!(find(&messages, &small)?.body == body(1_000_000));
    ensure!(find(&messages, &after)?.body == body(10));
    let key = format!("large/{large}-{id}");
    let message = find(&messages, &large)?;
    ensure_offloaded(&bed, &bucket, message, &key, &body(MAX_BYTES)).await?;
    ensure!(message.attributes.get("tenant").is_some_and(|tenant| tenant == "a"), "{message:?}");
    ensure!(bed.buckets.contents(&bucket).await?.len() == 1);
    Ok(())
}

#[tokio::test]
async fn a_threshold_sends_smaller_bodies_to_the_bucket_and_nine_attributes_stay() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.queues.create_standard("documents").await?;
    let bucket = with_bucket(&bed, &queue, ";claim-check-above=64KiB").await?;
    let metadata: Value =
        (0..12).map(|n| (format!("m{n:02}"), Value::from("v"))).collect::<serde_json::Map<_, _>>().into();
    let write = "SELECT outbox.enqueue('documents', 'E', jsonb_build_object('t', repeat('x', 70000)), metadata => $1::text::jsonb)";
    let id: i64 = bed.client.query_one(write, &[&metadata.to_string()]).await?.get(0);
    enqueue(&bed, "documents", 1000, None).await?;
    bed.relay().deliver_all().await?;
    let messages = bed.queues.contents(&queue).await?;
    let [message] = &messages.iter().filter(|message| message.body.starts_with('[')).collect::<Vec<_>>()[..] else {
        bail!("one of two goes to the bucket: {messages:?}")
    };
    ensure!(message.attributes.len() == 10 && message.attributes.contains_key("ExtendedPayloadSize"), "{message:?}");
    let key = format!("large/{}-{id}", message.attributes["event_id"]);
    let expected = format!("{{\"t\": \"{}\"}}", "x".repeat(70_000));
    ensure_offloaded(&bed, &bucket, message, &key, &expected).await
}

#[tokio::test]
async fn a_topic_passes_the_pointer_on() -> Result<()> {
    let bed = TestBed::new().await?;
    let topic = bed.topics.create(&support::emulator::Topics::name("documents", true)).await?;
    let queue = bed.queues.create_fifo("archive").await?;
    let raw = Subscription { is_raw: true, filter_policy: "" };
    bed.topics.subscribe(&topic, &bed.queues, &queue, raw).await?;
    let bucket = with_bucket(&bed, &topic, "").await?;
    // More than a topic takes, and less than a queue does.
    let (id, event) = enqueue(&bed, "documents", 300_000, Some("c-1")).await?;
    bed.relay().deliver_all().await?;
    let messages = bed.queues.contents(&queue).await?;
    let key = format!("large/{event}-{id}");
    ensure_offloaded(&bed, &bucket, find(&messages, &event)?, &key, &body(300_000)).await
}

#[tokio::test]
async fn a_bucket_that_is_missing_halts_its_destination_and_kills_nothing() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.queues.create_standard("documents").await?;
    let bucket = Buckets::name("late");
    bed.add_destination("documents", &format!("{queue};claim-check={bucket}"));
    let checked = bed.relay().output(&["check"]).await?;
    let says = format!("✗ bucket {bucket} of documents: this relay cannot store bodies: S3.NoSuchBucket");
    ensure!(checked.stdout.contains(&says) && checked.code == Some(1), "{}", checked.stdout);
    let (id, event) = enqueue(&bed, "documents", MAX_BYTES, None).await?;
    let relay = bed.relay().env("OUTBOX_RELAY_RETRY_MAX", "300ms").start().await?;
    relay.wait_for_log("destination halted").await?;
    ensure!(relay.log().contains("S3.NoSuchBucket"), "{}", relay.log());
    ensure!(bed.queues.contents(&queue).await?.is_empty(), "a pointer to nothing was sent");
    bed.buckets.create(&bucket).await?;
    bed.until_nothing_is_pending().await?;
    relay.stop().await?;
    ensure!(bed.row(id).await?.attempts == 0);
    let messages = bed.queues.contents(&queue).await?;
    let key = format!("{event}-{id}");
    ensure_offloaded(&bed, &bucket, find(&messages, &event)?, &key, &body(MAX_BYTES)).await?;
    let checked = bed.relay().output(&["check"]).await?;
    ensure!(checked.stdout.contains(&format!("✓ bucket {bucket} of documents: this relay may store bodies")));
    Ok(())
}

#[tokio::test]
async fn a_body_beyond_the_memory_of_the_relay_is_dead_and_says_what_to_raise() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.queues.create_standard("documents").await?;
    with_bucket(&bed, &queue, "").await?;
    let write = "SELECT outbox.enqueue('documents', 'E', jsonb_build_object('t', repeat('x', 6000000)))";
    bed.client.query_one(write, &[]).await?;
    let (_, event) = enqueue(&bed, "documents", MAX_BYTES + 100_000, None).await?;
    let relay = bed.relay().env("OUTBOX_RELAY_MEMORY", "64MiB").start().await?;
    eventually("one is dead", || async { Ok(bed.count("SELECT count(*) FROM outbox.messages_dead").await? == 1) })
        .await?;
    bed.until_nothing_is_pending().await?;
    relay.stop().await?;
    let error: String = bed.client.query_one("SELECT last_error FROM outbox.messages_dead", &[]).await?.get(0);
    ensure!(error.contains("raise OUTBOX_RELAY_MEMORY"), "{error}");
    find(&bed.queues.contents(&queue).await?, &event)?;
    Ok(())
}

#[tokio::test]
async fn a_body_that_only_this_queue_cannot_take_goes_to_the_bucket_in_its_turn() -> Result<()> {
    for mode in ["strict", "batched"] {
        let bed = TestBed::new().await?;
        let name = format!("{}.fifo", Buckets::name("documents"));
        let attributes = [(QueueAttributeName::FifoQueue, "true"), (QueueAttributeName::MaximumMessageSize, "262144")];
        let queue = bed.queues.create(&name, &attributes).await?;
        let bucket = with_bucket(&bed, &queue, "").await?;
        let mut ids = Vec::new();
        for letters in [10, 300_000, 20, 300_000, 30] {
            ids.push(enqueue(&bed, "documents", letters, Some("c-1")).await?);
        }
        bed.relay().env("OUTBOX_RELAY_FIFO_MODE", mode).deliver_all().await?;
        ensure!(bed.count("SELECT count(*) FROM outbox.messages_dead").await? == 0, "{mode}");
        let messages = bed.queues.contents(&queue).await?;
        // The last copies are in order.
        let last = |id: &str| messages.iter().rposition(|message| message.attributes["event_id"] == id);
        let places: Vec<_> = ids.iter().map(|(_, event)| last(event)).collect();
        ensure!(places.is_sorted() && places.iter().all(Option::is_some), "{mode}: {places:?}");
        let large = find(&messages, &ids[1].1)?;
        ensure!(large.attributes.get("tenant").is_some_and(|tenant| tenant == "a"), "{large:?}");
        let key = format!("large/{}-{}", ids[1].1, ids[1].0);
        ensure_offloaded(&bed, &bucket, large, &key, &body(300_000)).await?;
    }
    Ok(())
}

/// An S3 that never answers a PUT of a body above this size, and is the emulator's for all others; returns its endpoint.
async fn stuck_above(bytes: usize) -> Result<String> {
    let upstream = emulator()?.endpoint().trim_start_matches("http://").trim_end_matches('/').to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let endpoint = format!("http://{}", listener.local_addr()?);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(forward(client, upstream.clone(), bytes));
        }
    });
    Ok(endpoint)
}

/// Forwards one request; the connection ends with its answer.
async fn forward(mut client: TcpStream, upstream: String, most: usize) -> Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await?);
    }
    let text = String::from_utf8(head)?;
    let lower = text.to_ascii_lowercase();
    let length = lower.lines().find_map(|line| line.strip_prefix("content-length:"));
    if length.and_then(|length| length.trim().parse::<usize>().ok()).is_some_and(|length| length > most) {
        // Until the client closes it.
        while client.read(&mut [0; 65_536]).await? > 0 {}
        return Ok(());
    }
    let mut server = TcpStream::connect(upstream).await?;
    server.write_all(text.replacen("\r\n", "\r\nConnection: close\r\n", 1).as_bytes()).await?;
    tokio::io::copy_bidirectional(&mut client, &mut server).await?;
    Ok(())
}

#[tokio::test]
async fn check_says_what_a_queue_cannot_take_that_would_not_go_to_the_bucket() -> Result<()> {
    let bed = TestBed::new().await?;
    let attributes = [(QueueAttributeName::MaximumMessageSize, "262144")];
    let queue = bed.queues.create(&Buckets::name("documents"), &attributes).await?;
    let bucket = Buckets::name("bodies");
    bed.buckets.create(&bucket).await?;
    bed.add_destination("documents", &format!("{queue};claim-check={bucket}"));
    bed.add_destination("fitting", &format!("{queue};claim-check={bucket};claim-check-above=256KiB"));
    let checked = bed.relay().output(&["check"]).await?;
    ensure!(checked.code == Some(1), "{}", checked.stdout);
    for sentence in [
        "✗ queue of documents: takes no message above 262144 bytes, and larger ones go to the bucket only above 1048576",
        "add ;claim-check-above=262144",
        "is at http://",
    ] {
        ensure!(checked.stdout.contains(sentence), "{sentence:?} is not in:\n{}", checked.stdout);
    }
    ensure!(!checked.stdout.contains("queue of fitting: takes no message"), "{}", checked.stdout);
    Ok(())
}

#[tokio::test]
async fn check_asks_where_s3_is_if_the_queue_is_not_on_aws() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.queues.create_standard("documents").await?;
    with_bucket(&bed, &queue, "").await?;
    let checked = bed.relay().without("AWS_ENDPOINT_URL_S3").output(&["check"]).await?;
    ensure!(checked.code == Some(1) && checked.stdout.contains("set AWS_ENDPOINT_URL_S3"), "{}", checked.stdout);
    Ok(())
}

#[tokio::test]
async fn a_body_that_cannot_be_stored_in_time_holds_up_no_other_and_dies_while_others_are_stored() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.queues.create_standard("documents").await?;
    with_bucket(&bed, &queue, "").await?;
    let (stuck, _) = enqueue(&bed, "documents", MAX_BYTES + 400_000, None).await?;
    let (_, small) = enqueue(&bed, "documents", 10, None).await?;
    let relay = bed.relay().env("AWS_ENDPOINT_URL_S3", &stuck_above(1_200_000).await?);
    let relay = relay.env("OUTBOX_RELAY_REQUEST_TIMEOUT", "1s").env("OUTBOX_RELAY_RETRY_MAX", "300ms");
    let relay = relay.env("OUTBOX_RELAY_MAX_ATTEMPTS", "2").start().await?;
    eventually("the small one is delivered", || async { Ok(bed.delivered().await? == 1) }).await?;
    ensure!(bed.row(stuck).await?.attempts == 0, "no other body was stored");
    for stored in 2..=100 {
        if bed.row(stuck).await?.status == "dead" {
            break;
        }
        enqueue(&bed, "documents", MAX_BYTES, None).await?;
        eventually("another body is stored", || async { Ok(bed.delivered().await? == stored) }).await?;
    }
    let row = bed.row(stuck).await?;
    ensure!(row.status == "dead", "it is {}:\n{}", row.status, relay.log());
    bed.until_nothing_is_pending().await?;
    let error = row.last_error.context("no reason")?;
    ensure!(row.attempts == 2 && error.contains("S3.Timeout"), "{} {error}", row.attempts);
    ensure!(!relay.stop().await?.contains("destination halted"), "it halts the destination");
    find(&bed.queues.contents(&queue).await?, &small)?;
    Ok(())
}

/// Fills a queue with bodies above and below the limit; returns what a reader must say of each: the event, the length and
/// the digest of the body.
async fn fill(bed: &TestBed, queue: &str) -> Result<(String, Vec<String>)> {
    let bucket = with_bucket(bed, queue, "").await?;
    let mut expected = Vec::new();
    for letters in [10, MAX_BYTES, 3 * MAX_BYTES] {
        let (_, event) = enqueue(bed, "documents", letters, None).await?;
        let digest = "SELECT encode(sha256(convert_to($1, 'UTF8')), 'hex')";
        let digest: String = bed.client.query_one(digest, &[&body(letters)]).await?.get(0);
        expected.push(format!("{event} {} {digest}", body(letters).len()));
    }
    bed.relay().deliver_all().await?;
    expected.sort_unstable();
    Ok((bucket, expected))
}

/// The path that a script of `tests/tools` prints once it has installed what it is for.
async fn installed(script: &str) -> Result<PathBuf> {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/tools").join(script);
    let mut command = Command::new("/bin/sh");
    Ok(PathBuf::from(run(command.arg(script)).await?.join("\n")))
}

/// The lines that a program prints, sorted.
async fn run(command: &mut Command) -> Result<Vec<String>> {
    command.stdin(Stdio::null()).stderr(Stdio::inherit()).kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, command.output()).await.context("it did not end in time")??;
    ensure!(output.status.success(), "{command:?} ended with {}", output.status);
    let mut lines: Vec<String> = String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect();
    lines.sort_unstable();
    Ok(lines)
}

#[tokio::test]
async fn the_extended_client_library_for_java_reads_the_bodies() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.queues.create_standard("documents").await?;
    let (bucket, expected) = fill(&bed, &queue).await?;
    let jars = installed("claim_check_java.sh").await?;
    let program = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/tools/claim_check/Receive.java");
    let mut command = Command::new("java");
    command.arg("-cp").arg(jars.join("*")).arg(program).args([&queue, &bucket, emulator()?.endpoint()]);
    let lines = run(&mut command).await?;
    ensure!(lines == expected, "{lines:?} instead of {expected:?}");
    Ok(())
}

#[tokio::test]
async fn the_extended_client_library_for_python_reads_the_bodies() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.queues.create_standard("documents").await?;
    let (bucket, expected) = fill(&bed, &queue).await?;
    let python = installed("claim_check_python.sh").await?;
    let program = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/tools/claim_check/receive.py");
    let mut command = Command::new(python);
    command.arg(program).args([&queue, &bucket, emulator()?.endpoint()]);
    let lines = run(&mut command).await?;
    ensure!(lines == expected, "{lines:?} instead of {expected:?}");
    Ok(())
}
