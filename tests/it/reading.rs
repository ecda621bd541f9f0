//! Reading finds everything and walks no dead rows: late commits, many writers, long transactions elsewhere.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio_postgres::{Client, SimpleQueryMessage};

use outbox_relay::config::Flags;
use outbox_relay::message::{Lane, MessageId};
use outbox_relay::outbox::{Outbox, READING};
use outbox_relay::reading::{Range, Rescan};

use support::postgres::{Cluster, Options};
use support::test_bed::{TestBed, enqueue, enqueue_range, ensure_each_once, numbers};
use support::{chosen_major, eventually, eventually_within_minutes};

const READ: &str = include_str!("../../sql/queries/read.sql");
const READ_GROUPS: &str = include_str!("../../sql/queries/read_groups.sql");

/// The time limit for the delivery of a late commit.
const LATE_LIMIT: Duration = Duration::from_secs(2);

#[tokio::test]
async fn a_late_committer_with_a_lower_id_is_delivered_within_two_seconds() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.standard("audit").await?;
    let relay = bed.relay().start().await?;
    let late = bed.connect().await?;
    late.batch_execute("BEGIN").await?;
    let id = enqueue(&late, "audit", "{\"n\": 10001}", None).await?;
    for wave in 0..20 {
        enqueue_range(&bed.client, "audit", wave * 500 + 1..=wave * 500 + 500, 0).await?;
        bed.until_nothing_is_pending().await?;
    }
    ensure!(bed.delivered().await? == 10_000 && bed.count("SELECT min(id) FROM outbox.messages").await? > id);
    ensure_delivered_soon(&bed, id, &late).await?;
    relay.stop().await?;
    let arrived = bed.queues.contents(&queue).await?;
    let numbered: Vec<_> = arrived.into_iter().filter(|message| message.body != "{}").collect();
    ensure_each_once(numbers(&numbered)?, 10_001)
}

#[tokio::test]
async fn a_commit_later_than_the_low_watermark_waits_is_delivered_too() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.fifo("tickets").await?;
    let relay = bed.relay().start().await?;
    let late = bed.connect().await?;
    late.batch_execute("BEGIN").await?;
    let id = enqueue(&late, "tickets", "{}", Some("g1")).await?;
    // The low watermark passes a running transaction after two seconds, if reads show that there is more.
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(3) {
        bed.enqueue_many("tickets", 100, 20).await?;
        bed.until_nothing_is_pending().await?;
    }
    ensure_delivered_soon(&bed, id, &late).await?;
    relay.stop().await?;
    Ok(())
}

/// Commits the late message. The limit is for an idle machine; the current latency of an ordinary message shows how
/// busy this one is.
async fn ensure_delivered_soon(bed: &TestBed, id: i64, late: &Client) -> Result<()> {
    let is_delivered = async |id: i64| anyhow::Ok(bed.row(id).await?.status == "delivered");
    let started = Instant::now();
    for _ in 0..5 {
        let ordinary =
            "WITH e AS (INSERT INTO outbox.events (event_type, payload) VALUES ('T', '{}') RETURNING position)
            INSERT INTO outbox.messages (destination, event_position)
            SELECT m.destination, e.position FROM e, outbox.messages AS m LIMIT 1 RETURNING id";
        let ordinary: i64 = bed.client.query_one(ordinary, &[]).await?.get(0);
        eventually("an ordinary message is delivered", || is_delivered(ordinary)).await?;
    }
    let limit = LATE_LIMIT + started.elapsed() * 10;
    late.batch_execute("COMMIT").await?;
    let committed = Instant::now();
    eventually("the late message is delivered", || is_delivered(id)).await?;
    ensure!(committed.elapsed() < limit, "it took {:?}, allowed are {limit:?}", committed.elapsed());
    Ok(())
}

#[tokio::test]
async fn eight_writers_that_commit_out_of_order_lose_nothing() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.fifo("tickets").await?;
    let relay = bed.relay().start().await?;
    let mut writers = Vec::new();
    for writer in 0..8 {
        writers.push(write_slowly(bed.connect().await?, writer));
    }
    futures_util::future::try_join_all(writers).await?;
    bed.until_nothing_is_pending().await?;
    relay.stop().await?;
    let messages = bed.queues.contents(&queue).await?;
    ensure_each_once(numbers(&messages)?, 8 * 50)?;
    for writer in 0..8 {
        let group = format!("writer {writer}");
        let own = numbers(&messages)?.into_iter().filter(|n| (n - 1) / 50 == writer).collect::<Vec<_>>();
        ensure!(own.len() == 50 && own.is_sorted(), "{group}: {own:?}");
    }
    Ok(())
}

/// Fifty transactions, each of which takes its id and commits at a different time from the others.
async fn write_slowly(client: Client, writer: i64) -> Result<()> {
    let group = format!("writer {writer}");
    for number in writer * 50 + 1..=writer * 50 + 50 {
        client.batch_execute("BEGIN").await?;
        enqueue(&client, "tickets", &format!("{{\"n\": {number}}}"), Some(&group)).await?;
        // This waits for nothing: the delay between taking an id and committing is the subject.
        client.batch_execute("SELECT pg_sleep(random() * 0.04)").await?;
        client.batch_execute("COMMIT").await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_idle_repeatable_read_session_does_not_slow_reading() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.standard("audit").await?;
    let _report = long_transaction(&bed).await?;
    let (bounded, unbounded) = buffers_after_delivering(&bed, 1..=10_000).await?;
    let (bounded_later, unbounded_later) = buffers_after_delivering(&bed, 10_001..=20_000).await?;
    ensure!(bounded_later < bounded + 500, "{bounded} buffers became {bounded_later}");
    ensure!(unbounded_later > unbounded + 1000, "{unbounded} buffers without the bound became {unbounded_later}");
    ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, 20_000)
}

/// The pages that a read of a thousand messages touches behind delivered ones: above the watermark, and from the
/// bottom.
async fn buffers_after_delivering(bed: &TestBed, numbers: RangeInclusive<i64>) -> Result<(i64, i64)> {
    enqueue_range(&bed.client, "audit", numbers, 0).await?;
    bed.relay().deliver_all().await?;
    let last = bed.count("SELECT max(id) FROM outbox.messages").await?;
    let writer = bed.connect().await?;
    writer.batch_execute("BEGIN").await?;
    enqueue_range(&writer, "audit", 1..=1000, 0).await?;
    // One plan for all measurements, whatever the statistics.
    writer
        .batch_execute("ANALYZE outbox.events; SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off")
        .await?;
    let bounded = buffers_of_a_read(&writer, last).await?;
    let unbounded = buffers_of_a_read(&writer, 0).await?;
    writer.batch_execute("ROLLBACK").await?;
    Ok((bounded, unbounded))
}

#[tokio::test]
async fn a_relay_walks_no_dead_rows_over_and_over() -> Result<()> {
    // The transactions of other tests would hold the watermarks back, and everything above them is walked repeatedly.
    // Hence a separate cluster.
    let cluster = Cluster::start(&Options { major: chosen_major(), ..Options::default() })?;
    let bed = TestBed::on(&cluster).await?;
    bed.standard("audit").await?;
    let _report = long_transaction(&bed).await?;
    let started = Instant::now();
    let relay = bed.relay().start().await?;
    for wave in 0..200 {
        enqueue_range(&bed.client, "audit", wave * 100 + 1..=wave * 100 + 100, 0).await?;
        // The relay is asked, because a query of the table would walk the dead rows too.
        let delivered = (wave * 100 + 100) as f64;
        relay.wait_for_metric(r#"delivered_messages_total{destination="audit"}"#, delivered).await?;
    }
    relay.stop().await?;
    // Two hundred reads that begin at the bottom would walk 200 × 10,000 entries, and as many again for each look.
    let query = "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE indexrelname = 'messages_pending_pkey'";
    let walked = bed.count(query).await?;
    ensure!(walked >= 20_000, "{walked} index entries: statistics are not there");
    // A rescan from the bottom each second is intended; a slow machine needs more of them for the same messages.
    let allowed = 300_000 + i64::try_from(started.elapsed().as_secs())? * 25_000;
    ensure!(walked < allowed, "{walked} index entries were walked for 20,000 messages, {allowed} are allowed");
    Ok(())
}

/// A transaction that keeps vacuum from removing anything deleted from now on.
async fn long_transaction(bed: &TestBed) -> Result<Client> {
    let report = bed.connect().await?;
    report.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM outbox.events").await?;
    Ok(report)
}

/// The pages that the relay's read touches when all lanes are read from this position.
const PREPARE: &str =
    "PREPARE read (text, smallint[], bigint[], bigint[], bigint[], bigint, boolean, boolean, text, text,
    boolean, bigint) AS ";

const PREPARE_GROUPS: &str =
    "PREPARE read_groups (text, smallint[], text[], bigint[], bigint[], bigint[], bigint, boolean, text, text, boolean,
    bigint[], bigint) AS ";

/// Reads all lanes of a standard queue, each above the same id, and with all bytes that each lane may have.
fn execute_read(above: i64, most: i64, bytes: i64) -> String {
    execute_read_together(above, most, bytes, 16 * bytes)
}

/// The same with another limit of the bytes of all lanes together.
fn execute_read_together(above: i64, most: i64, bytes: i64, together: i64) -> String {
    let all = |value: i64| format!("array_fill({value}::bigint, '{{16}}')");
    let (above, most, bytes) = (all(above), all(most), all(bytes));
    format!(
        "EXECUTE read ('audit', '{{0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15}}', {above}, {most}, {bytes}, 1048576,
            false, false, NULL, NULL, false, {together})"
    )
}

async fn buffers_of_a_read(client: &Client, cursor: i64) -> Result<i64> {
    client.batch_execute(&format!("{READING}; {PREPARE}{READ}")).await?;
    let read = execute_read(cursor, 63, 1_000_000);
    let answer = client.simple_query(&format!("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {read}")).await?;
    client.batch_execute("DEALLOCATE read").await?;
    let text = answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    let plan: serde_json::Value = serde_json::from_str(text.context("no plan")?)?;
    let plan = &plan[0]["Plan"];
    let number = |name: &str| plan[name].as_i64().with_context(|| format!("no {name}"));
    Ok(number("Shared Hit Blocks")? + number("Shared Read Blocks")?)
}

#[tokio::test]
async fn a_relay_that_starts_amid_dead_rows_delivers_and_measures() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.fifo("tickets").await?;
    let _report = long_transaction(&bed).await?;
    // More ids than a chunk has, so that the first scan takes several.
    enqueue_range(&bed.client, "tickets", 1..=400_000, 100).await?;
    bed.client.batch_execute("DELETE FROM outbox.messages").await?;
    enqueue_range(&bed.client, "tickets", 1..=300, 100).await?;
    let relay = bed.relay().start().await?;
    relay.wait_for_metric(r#"delivered_messages_total{destination="tickets"}"#, 300.0).await?;
    relay.wait_for_metric(r#"backlog_messages{destination="tickets"}"#, 0.0).await?;
    relay.stop().await?;
    ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, 300)
}

#[tokio::test]
async fn a_chunk_of_too_many_dead_rows_is_cut_short_and_a_narrower_one_comes_back_on_the_same_connection() -> Result<()>
{
    let bed = TestBed::new().await?;
    let _report = long_transaction(&bed).await?;
    enqueue_range(&bed.client, "tickets", 1..=200_000, 100).await?;
    bed.client.batch_execute("DELETE FROM outbox.messages").await?;
    let id = enqueue(&bed.client, "tickets", "{}", Some("g")).await?;
    let flags = Flags::default().with("database-url", bed.url()).with("schema", bed.schema()?);
    let outbox = Outbox::new(&flags.database()?, 1)?;
    let all = |above, upto, timeout| {
        let range = |lane| Range::new(lane, MessageId(above), MessageId(upto));
        Rescan { ranges: Lane::all().map(range).collect(), limit: 1, timeout, ..Rescan::default() }
    };
    let timeout = Some(Duration::from_millis(1));
    let session = "SELECT min(pid)::bigint FROM pg_stat_activity WHERE datname = current_database() \
        AND application_name LIKE 'outbox-relay%'";
    ensure!(outbox.rescan("tickets", &all(0, id, timeout), None).await?.is_none(), "200,000 rows within a millisecond");
    let before = bed.count(session).await?;
    let narrow = outbox.rescan("tickets", &all(id - 100, id, Some(Duration::from_secs(5))), None).await?;
    let found = narrow.context("a hundred rows take over five seconds")?.found;
    ensure!(found.iter().map(|found| found.key.id.0).collect::<Vec<_>>() == [id], "{found:?}");
    ensure!(bed.count(session).await? == before, "it was given another connection");
    Ok(())
}

#[tokio::test]
async fn a_rescan_that_leaves_out_held_up_messages_still_shows_those_of_known_groups() -> Result<()> {
    let bed = TestBed::new().await?;
    for group in ["a", "b"] {
        for n in 1..=2 {
            bed.enqueue("tickets", &format!("{{\"n\": {n}}}"), Some(group)).await?;
        }
    }
    // The first of each group is deferred, and so holds up the second.
    bed.client
        .batch_execute("UPDATE outbox.messages SET available_at = now() + interval '1 hour' WHERE id IN (1, 3)")
        .await?;
    let flags = Flags::default().with("database-url", bed.url()).with("schema", bed.schema()?);
    let outbox = Outbox::new(&flags.database()?, 1)?;
    let rescan = async |ready_upto: MessageId, known: &[&str]| {
        let range = |lane| Range { ready_upto, ..Range::new(lane, MessageId::NONE, MessageId(100)) };
        let known = known.iter().copied().map(std::sync::Arc::from).collect();
        let order = outbox_relay::reading::Order::Groups;
        let ranges = Lane::all().map(range).collect();
        let request = Rescan { ranges, limit: 10, known, order, ..Rescan::default() };
        let found = outbox.rescan("tickets", &request, None).await?.context("it was cut short")?.found;
        anyhow::Ok(found.iter().map(|found| found.key.id.0).collect::<BTreeSet<_>>())
    };
    ensure!(rescan(MessageId::NONE, &[]).await? == BTreeSet::from([2, 4]));
    ensure!(rescan(MessageId(100), &[]).await?.is_empty());
    ensure!(rescan(MessageId(2), &[]).await? == BTreeSet::from([4]), "only up to there");
    ensure!(rescan(MessageId(100), &["b"]).await? == BTreeSet::from([4]));
    Ok(())
}

#[tokio::test]
async fn a_read_returns_no_more_bytes_than_asked_for() -> Result<()> {
    let bed = TestBed::new().await?;
    let random = "(SELECT string_agg(md5(random()::text || i), '') FROM generate_series(1, 8000) AS i)";
    let insert = format!(
        "SELECT outbox.enqueue('audit', 'T', jsonb_build_object('pad', {random}), 'g') FROM generate_series(1, 10) AS n"
    );
    bed.client.batch_execute(&insert).await?;
    bed.client.batch_execute(&format!("{PREPARE}{READ}")).await?;
    // Each is a quarter of a megabyte; the third begins below the limit.
    let rows = bed.client.query(&execute_read(0, 100, 600_000), &[]).await?;
    let messages = || rows.iter().filter(|row| row.get::<_, Option<i64>>("id").is_some());
    let has_more: Vec<bool> = messages().map(|row| row.get("has_more")).collect();
    ensure!(has_more == [true, true, true], "{has_more:?}");
    let ids: Vec<i64> = messages().map(|row| row.get("id")).collect();
    ensure!(ids == [1, 2, 3], "{ids:?}");
    Ok(())
}

/// Otherwise a read would bring the first message of each lane, whatever its size.
#[tokio::test]
async fn the_bytes_of_a_read_are_those_of_all_lanes_and_of_all_groups_together() -> Result<()> {
    let bed = TestBed::new().await?;
    let random = "(SELECT string_agg(md5(random()::text || i), '') FROM generate_series(1, 8000) AS i)";
    // A quarter of a megabyte each.
    let event = format!(
        "INSERT INTO outbox.events (event_type, payload) VALUES ('T', jsonb_build_object('pad', {random})) RETURNING position"
    );
    let position: i64 = bed.client.query_one(&event, &[]).await?.get(0);
    let messages = "INSERT INTO outbox.messages (destination, event_position, group_id)
        SELECT d, $1, 'g' || n FROM generate_series(1, 16) AS n, unnest('{audit,tickets}'::text[]) AS d";
    bed.client.execute(messages, &[&position]).await?;
    bed.client.batch_execute(&format!("{PREPARE}{READ}; {PREPARE_GROUPS}{READ_GROUPS}")).await?;
    let arrays = "SELECT array_agg(lane ORDER BY id)::text, array_agg(group_id ORDER BY id)::text
        FROM outbox.messages WHERE destination = 'tickets'";
    let arrays = bed.client.query_one(arrays, &[]).await?;
    let (lanes, groups): (String, String) = (arrays.get(0), arrays.get(1));
    let all = |value: i64| format!("array_fill({value}::bigint, '{{16}}')");
    let of_groups = format!(
        "EXECUTE read_groups ('tickets', '{lanes}', '{groups}', {}, {}, {}, 1048576, false, NULL, NULL, false, {}, 300000)",
        all(0),
        all(9),
        all(600_000),
        all(99)
    );
    for read in [execute_read_together(0, 100, 600_000, 300_000), of_groups] {
        let rows = bed.client.query(&read, &[]).await?;
        let count = |is_left: bool, has_body: bool| {
            let is_one = |row: &&tokio_postgres::Row| {
                (row.get::<_, i32>("part") < 0) == is_left && row.get::<_, Option<&str>>("body").is_some() == has_body
            };
            rows.iter().filter(is_one).count()
        };
        ensure!(count(false, true) == 2 && count(false, false) == 0, "{} came", count(false, true));
        ensure!(count(true, false) > 3 && count(true, true) == 0, "{} lanes or groups have more", count(true, false));
    }
    Ok(())
}

#[tokio::test]
async fn large_messages_are_delivered_with_little_memory() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.fifo("audit").await?;
    // They compress to almost nothing in the table, so the server's count of bytes says little.
    let insert = "WITH event AS (
            INSERT INTO outbox.events (event_type, payload)
            SELECT 'T', jsonb_build_object('n', n, 'pad', repeat('x', 900000)) FROM generate_series(1, 30) AS n
            RETURNING position
        )
        INSERT INTO outbox.messages (destination, event_position) SELECT 'audit', position FROM event";
    bed.client.batch_execute(insert).await?;
    let relay = bed.relay().start().await?;
    // They are 27 MB, which PostgreSQL, PgBouncer, relay and emulator share one machine to move.
    eventually_within_minutes("nothing is pending", || async { Ok(bed.pending().await? == 0) }).await?;
    let status = std::fs::read_to_string(format!("/proc/{}/status", relay.process_id()?))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no peak of memory")?;
    let peak: i64 = peak.trim().trim_end_matches(" kB").parse()?;
    println!("{peak} kB at the peak");
    relay.stop().await?;
    ensure!(peak < 150_000, "{peak} kB at the peak");
    ensure_each_once(numbers(&bed.queues.contents(&queue).await?)?, 30)
}
