//! What PostgreSQL touches for each message: pages and rows of the statements that run for every one of them. The
//! bounds leave room for all supported versions; a lost index or a walk through a table exceeds them many times.

use std::fmt::Write;

use anyhow::{Context, Result, ensure};
use outbox_relay::outbox::{READING, SETTLING};
use serde_json::Value;
use tokio_postgres::{Client, SimpleQueryMessage};

use support::test_bed::TestBed;

use super::statements::{LANES, STATEMENTS, written_out};

/// Messages that are pending for each of two destinations.
const PENDING: i64 = 5_000;

/// Messages of one read, of one settling and of one transaction that writes.
const READ: i64 = 800;
const SETTLED: i64 = 500;
const WRITTEN: i64 = 500;

/// A statement, and the most that it may touch.
struct Bounded {
    name: &'static str,
    /// How many messages it is for, or how many lanes.
    units: i64,
    /// Pages of tables and indexes for each, in the cache or not.
    pages: f64,
    /// Rows of messages and events for each.
    rows: f64,
}

const BOUNDS: [Bounded; 8] = [
    // An index probe a lane.
    Bounded { name: "look", units: 16, pages: 8.0, rows: 2.0 },
    // A row lock a lane.
    Bounded { name: "claim", units: 16, pages: 4.0, rows: 0.0 },
    // A row from the walk along the lane, and an event by its position.
    Bounded { name: "read", units: READ, pages: 6.0, rows: 2.1 },
    // A row by its key, which moves to another partition.
    Bounded { name: "deliver", units: SETTLED, pages: 14.0, rows: 1.1 },
    Bounded { name: "delete_delivered", units: SETTLED, pages: 8.0, rows: 1.1 },
    // A row of events with its indexes, a row of messages with its index, and both ids.
    Bounded { name: "insert", units: WRITTEN, pages: 18.0, rows: 0.0 },
    Bounded { name: "enqueue", units: WRITTEN, pages: 20.0, rows: 0.0 },
    // The same, and the route.
    Bounded { name: "outboxevent", units: WRITTEN, pages: 22.0, rows: 0.0 },
];

/// What one execution touched.
#[derive(Clone, Copy, Debug)]
struct Touched {
    /// Messages that were read, recorded or written, or lanes.
    units: i64,
    pages: i64,
    rows: i64,
    /// Scans of whole tables of messages or events.
    walks: i64,
}

#[tokio::test]
async fn statements_touch_few_pages_and_rows_for_each_message() -> Result<()> {
    let bed = outbox().await?;
    let mut exceeded = String::new();
    for bounded in &BOUNDS {
        let touched = touched(&bed, bounded).await.with_context(|| bounded.name)?;
        ensure!(touched.units == bounded.units, "{} did not do its work: {touched:?}", bounded.name);
        if !touched.is_within(bounded) {
            writeln!(exceeded, "{}: {}", bounded.name, touched.told())?;
        }
    }
    ensure!(exceeded.is_empty(), "more than allowed:\n{exceeded}");
    Ok(())
}

/// Shows that the bounds are tight enough to notice.
#[tokio::test]
async fn a_lost_index_touches_more_than_is_allowed() -> Result<()> {
    for (lost, of) in [
        (
            "ALTER TABLE outbox.messages_pending DROP CONSTRAINT messages_pending_pkey",
            &["look", "read", "deliver", "delete_delivered"][..],
        ),
        ("ALTER TABLE outbox.events DROP CONSTRAINT events_pkey", &["read"]),
    ] {
        let bed = outbox().await?;
        bed.client.batch_execute(lost).await?;
        for bounded in BOUNDS.iter().filter(|bounded| of.contains(&bounded.name)) {
            let touched = touched(&bed, bounded).await.with_context(|| bounded.name)?;
            ensure!(!touched.is_within(bounded), "{} after {lost}: {}", bounded.name, touched.told());
        }
    }
    Ok(())
}

/// As it usually is: analyzed, with a backlog.
async fn outbox() -> Result<TestBed> {
    let bed = TestBed::new().await?;
    super::never_analyze(&bed).await?;
    bed.enqueue_many("audit", PENDING, 1000).await?;
    bed.enqueue_many("tickets", PENDING, 1000).await?;
    let lanes = "INSERT INTO outbox.lanes SELECT 'audit', generate_series(0, 15)";
    bed.client.batch_execute(lanes).await?;
    bed.client.batch_execute("INSERT INTO outbox.routes VALUES ('Ticket', 'audit')").await?;
    bed.client.batch_execute("VACUUM ANALYZE").await?;
    Ok(bed)
}

impl Touched {
    fn is_within(&self, bounded: &Bounded) -> bool {
        let each = |count: i64| count as f64 / bounded.units as f64;
        self.walks == 0 && each(self.pages) <= bounded.pages && each(self.rows) <= bounded.rows
    }

    fn told(&self) -> String {
        let each = |count: i64| count as f64 / self.units.max(1) as f64;
        format!("{:.2} pages and {:.2} rows each, {} walks, {self:?}", each(self.pages), each(self.rows), self.walks)
    }
}

/// Runs a statement as the relay or a writer does, and takes it back.
async fn touched(bed: &TestBed, bounded: &Bounded) -> Result<Touched> {
    let client = bed.connect().await?;
    let statement = statement(&client, bounded.name).await?;
    let settings = match bounded.name {
        "look" | "read" => READING,
        "deliver" | "delete_delivered" => SETTLING,
        _ => "SET LOCAL jit = off",
    };
    client.batch_execute(&format!("BEGIN; {settings}; SET LOCAL plan_cache_mode = force_custom_plan")).await?;
    if let Some(prepare) = &statement.prepare {
        client.batch_execute(prepare).await?;
    }
    let (rows_before, walks_before) = scanned(&client).await?;
    let plan = explained(&client, &statement.execute).await?;
    let (rows, walks) = scanned(&client).await?;
    client.batch_execute("ROLLBACK").await?;
    let number = |name: &str| plan[name].as_i64().with_context(|| format!("no {name} in {plan}"));
    let units = match bounded.name {
        // One row that names the lanes.
        "look" => 16,
        // An UPDATE or DELETE returns no rows; the scan below it found them.
        "deliver" | "delete_delivered" => plan["Plans"][0]["Actual Rows"].as_f64().context("no rows")? as i64,
        _ => plan["Actual Rows"].as_f64().context("no rows")? as i64,
    };
    let pages = number("Shared Hit Blocks")? + number("Shared Read Blocks")?;
    Ok(Touched { units, pages, rows: rows - rows_before, walks: walks - walks_before })
}

struct Statement {
    prepare: Option<String>,
    execute: String,
}

async fn statement(client: &Client, name: &str) -> Result<Statement> {
    const CLAIM: &str = include_str!("../../../sql/queries/claim.sql");
    let arguments = match name {
        "insert" | "enqueue" | "outboxevent" => return Ok(Statement { prepare: None, execute: writing(name) }),
        "claim" => "'audit', LANES, 16, 3".to_owned(),
        "look" => "'audit', LANES, NONE, true, 60, true".to_owned(),
        "read" => {
            let each = format!("array_fill({}::bigint, '{{16}}')", READ / 16);
            format!("'audit', LANES, NONE, {each}, BYTES, 1048576, true, true, '1', '', false, NULL")
        }
        "deliver" => {
            let filled = |text: &str| format!("array_fill('{text}'::text, '{{{SETTLED}}}')");
            // A MessageId and a SequenceNumber.
            let (id, number) = (filled("id"), filled("18849496460467696128"));
            format!("'audit', {}, {id}, {number}", keys(client).await?)
        }
        _ => format!("'audit', {}", keys(client).await?),
    };
    let none = "array_fill(0::bigint, '{16}')";
    let arguments = written_out(&arguments.replace("NONE", none).replace("LANES", LANES));
    let (sql, types) = match STATEMENTS.iter().find(|one| one.name == name) {
        Some(found) => (found.sql, found.types),
        None => (CLAIM, "text, smallint[], bigint, smallint"),
    };
    let prepare = Some(format!("PREPARE {name} ({types}) AS {sql}"));
    Ok(Statement { prepare, execute: format!("EXECUTE {name} ({arguments})") })
}

/// As docs/writing.md and docs/one-table.md tell writers to do it.
fn writing(name: &str) -> String {
    let payload = "jsonb_build_object('n', n, 'ticket', repeat('x', 416))";
    match name {
        "insert" => format!(
            "WITH event AS (
                INSERT INTO outbox.events (event_type, payload)
                SELECT 'TicketPurchased', {payload} FROM generate_series(1, {WRITTEN}) AS n RETURNING position
            )
            INSERT INTO outbox.messages (destination, event_position, group_id)
            SELECT 'audit', position, 'g' || position % 100 FROM event RETURNING id"
        ),
        "outboxevent" => format!(
            "INSERT INTO outbox.outboxevent (aggregatetype, aggregateid, type, payload)
            SELECT 'Ticket', 'g' || n % 100, 'TicketPurchased', {payload} FROM generate_series(1, {WRITTEN}) AS n
            RETURNING id"
        ),
        _ => format!(
            "SELECT outbox.enqueue('audit', 'TicketPurchased', {payload}, 'g' || n % 100)
            FROM generate_series(1, {WRITTEN}) AS n"
        ),
    }
}

/// The keys of the first pending messages, as the arguments of a settling.
async fn keys(client: &Client) -> Result<String> {
    let query = "SELECT concat_ws(', ', quote_literal(array_agg(lane)), quote_literal(array_agg(id)),
            quote_literal(array_agg(event_position)), quote_literal(array_agg(enqueued_at)))
        FROM (
            SELECT * FROM outbox.messages_pending WHERE destination = 'audit' ORDER BY lane, id LIMIT $1
        ) AS first";
    Ok(client.query_one(query, &[&SETTLED]).await?.try_get(0)?)
}

/// Rows of messages and events that this transaction has read so far, and scans of whole tables of them.
async fn scanned(client: &Client) -> Result<(i64, i64)> {
    let query =
        "SELECT coalesce(sum(seq_tup_read + coalesce(idx_tup_fetch, 0)), 0)::bigint, coalesce(sum(seq_scan), 0)::bigint
        FROM pg_stat_xact_user_tables
        WHERE schemaname = 'outbox' AND (relname LIKE 'messages%' OR relname = 'events')";
    let row = client.query_one(query, &[]).await?;
    Ok((row.try_get(0)?, row.try_get(1)?))
}

/// The executed plan.
async fn explained(client: &Client, statement: &str) -> Result<Value> {
    let explain = format!("EXPLAIN (ANALYZE, BUFFERS, TIMING off, FORMAT JSON) {statement}");
    let answer = client.simple_query(&explain).await?;
    let text = answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    let mut plan: Value = serde_json::from_str(text.context("no plan")?)?;
    Ok(plan[0]["Plan"].take())
}
