//! Each statement uses the index intended for it: on an empty outbox, on a full one, and on one full of dead rows that
//! a long transaction keeps from being vacuumed.

mod costs;
mod statements;

use std::fmt::Write;

use anyhow::{Context, Result, ensure};
use outbox_relay::outbox::{PRUNING, READING, SETTLING};
use tokio_postgres::{Client, SimpleQueryMessage};

use support::test_bed::TestBed;

use statements::{OTHERS, Planned, STATEMENTS, Way, written_out};

/// One scan of a plan.
#[derive(Debug)]
struct Scan {
    relation: String,
    kind: String,
    index: String,
    condition: String,
}

fn scans(plan: &serde_json::Value, found: &mut Vec<Scan>) {
    let text = |name: &str| plan[name].as_str().unwrap_or_default().to_owned();
    if plan["Relation Name"].is_string() && plan["Node Type"] != "ModifyTable" {
        // The index and condition of a bitmap scan are one node below it.
        let of_index = if plan["Node Type"] == "Bitmap Heap Scan" { &plan["Plans"][0] } else { plan };
        let text_of_index = |name: &str| of_index[name].as_str().unwrap_or_default().to_owned();
        let (index, condition) = (text_of_index("Index Name"), text_of_index("Index Cond"));
        found.push(Scan { relation: text("Relation Name"), kind: text("Node Type"), index, condition });
    }
    plan["Plans"].as_array().into_iter().flatten().for_each(|plan| scans(plan, found));
}

/// The plan of the relay's unnamed statement, made for these very parameters.
async fn plan(client: &Client, statement: &Planned) -> Result<Vec<Scan>> {
    let Planned { name, sql, types, arguments, .. } = statement;
    let arguments = written_out(arguments);
    let settings = match *name {
        "deliver" | "supersede" | "delete_delivered" | "defer" | "dead_letter" | "replace" => SETTLING,
        "read" | "read_groups" | "read_due" | "rescan" | "look" | "held_groups" | "pending" | "unmatched"
        | "unserved" => READING,
        "prune" => PRUNING,
        // These statements run without a transaction.
        _ => "SET LOCAL jit = off",
    };
    let prepare =
        format!("BEGIN; {settings}; SET LOCAL plan_cache_mode = force_custom_plan; PREPARE {name} ({types}) AS {sql}");
    client.batch_execute(&prepare).await.with_context(|| format!("cannot prepare {name}"))?;
    let answer = client.simple_query(&format!("EXPLAIN (FORMAT JSON) EXECUTE {name} ({arguments})")).await?;
    client.batch_execute(&format!("DEALLOCATE {name}; COMMIT")).await?;
    let text = answer.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    let plan: serde_json::Value = serde_json::from_str(text.context("no plan")?)?;
    let mut found = Vec::new();
    scans(&plan[0]["Plan"], &mut found);
    Ok(found)
}

fn is_intended(scan: &Scan, statement: &Planned) -> bool {
    let condition = format!("({}", scan.condition).replace('"', "");
    let goes =
        |(index, columns): &Way| scan.index == *index && columns.iter().all(|column| has_column(&condition, column));
    match scan.relation.as_str() {
        "messages_pending" => statement.pending.iter().any(goes),
        _ if scan.kind == "Tid Scan" => true,
        other => OTHERS.iter().any(|(relation, way)| *relation == other && goes(way)) || other == "actions_id_seq",
    }
}

/// Does not find `id >` in `paid > 3`.
fn has_column(condition: &str, column: &str) -> bool {
    condition.contains(&format!("({column}"))
}

/// Disables autovacuum's analyze, so that the statistics stay as they are.
async fn never_analyze(bed: &TestBed) -> Result<()> {
    for table in
        ["messages_pending", "messages_scheduled", "messages_delivered", "messages_dead", "quarantine", "events"]
    {
        bed.client.batch_execute(&format!("ALTER TABLE outbox.{table} SET (autovacuum_enabled = off)")).await?;
    }
    Ok(())
}

const SCHEDULED: &str = "INSERT INTO outbox.messages (destination, event_position, status, deliver_at)
    SELECT 'audit', n, 'scheduled', now() + (random() * 1e6 - 1000) * interval '1 s' FROM generate_series(1, 10000) AS n";

async fn ensure_plans(bed: &TestBed) -> Result<()> {
    // On a table without pages every plan costs nothing; records are replaced only if there are some.
    let delivered = "INSERT INTO outbox.messages (destination, event_position, lane, status, delivered_at)
        SELECT 'audit', n, n % 16, 'delivered', now() FROM generate_series(1, 1000) AS n";
    bed.client.batch_execute(delivered).await?;
    bed.client.batch_execute(SCHEDULED).await?;
    let mut wrong = String::new();
    for statement in &STATEMENTS {
        let scans = plan(&bed.client, statement).await?;
        ensure!(scans.iter().any(|scan| scan.relation == "messages_pending"), "{} reads nothing", statement.name);
        for scan in scans.iter().filter(|scan| !is_intended(scan, statement)) {
            writeln!(wrong, "{}: {scan:?}", statement.name)?;
        }
    }
    ensure!(wrong.is_empty(), "not the plan that was intended:\n{wrong}");
    Ok(())
}

/// On a table without pages every plan costs nothing, and the relay's statements are planned again each time. The test
/// shows what the planner does with a table that was analyzed empty and has filled up since.
#[tokio::test]
async fn statements_use_their_indexes_on_an_outbox_that_was_analyzed_empty() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.client.batch_execute("ANALYZE").await?;
    bed.enqueue_many("audit", 30_000, 100).await?;
    ensure_plans(&bed).await
}

/// An outbox is empty most of the time, so its statistics usually say so, but its table has pages and a burst fills
/// them. Then the planner mistakes any walk through the whole index for one to a single row.
#[tokio::test]
async fn statements_use_their_indexes_on_an_outbox_that_was_analyzed_when_it_had_run_empty() -> Result<()> {
    let bed = TestBed::new().await?;
    never_analyze(&bed).await?;
    bed.enqueue_many("audit", 10_000, 100).await?;
    bed.client.batch_execute(SCHEDULED).await?;
    let forget =
        "BEGIN; SET LOCAL outbox.maintenance = 'on'; DELETE FROM outbox.messages; DELETE FROM outbox.events; COMMIT";
    bed.client.batch_execute(forget).await?;
    bed.client.batch_execute("VACUUM (TRUNCATE off, ANALYZE)").await?;
    bed.enqueue_many("audit", 30_000, 100).await?;
    let believed = "SELECT sum(reltuples)::bigint FROM pg_class
        WHERE oid IN ('outbox.messages_pending'::regclass, 'outbox.events'::regclass)";
    ensure!(bed.count(believed).await? == 0, "the statistics are not those of empty tables");
    ensure_plans(&bed).await?;
    bed.client.batch_execute("ANALYZE outbox.messages_pending").await?;
    ensure_plans(&bed).await.context("only the events were analyzed when they were gone")
}

#[tokio::test]
async fn statements_use_their_indexes_on_an_outbox_that_was_never_analyzed() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.enqueue_many("audit", 30_000, 100).await?;
    ensure_plans(&bed).await
}

#[tokio::test]
async fn statements_use_their_indexes_on_a_full_outbox() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.enqueue_many("audit", 50_000, 100).await?;
    bed.enqueue_many("tickets", 50_000, 100).await?;
    let deferred = "UPDATE outbox.messages SET available_at = now() WHERE id % 1000 = 0";
    bed.client.batch_execute(deferred).await?;
    bed.client.batch_execute("VACUUM ANALYZE").await?;
    ensure_plans(&bed).await
}

#[tokio::test]
async fn statements_use_their_indexes_on_an_outbox_full_of_dead_rows() -> Result<()> {
    let bed = TestBed::new().await?;
    let report = bed.connect().await?;
    report.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM outbox.events").await?;
    bed.enqueue_many("audit", 30_000, 100).await?;
    bed.client.batch_execute("DELETE FROM outbox.messages").await?;
    bed.enqueue_many("audit", 20, 5).await?;
    ensure_plans(&bed).await.context("before ANALYZE")?;
    bed.client.batch_execute("VACUUM ANALYZE").await?;
    let dead = "SELECT pg_relation_size('outbox.messages_pending')";
    ensure!(bed.count(dead).await? > 1_000_000, "vacuum removed the dead rows");
    ensure_plans(&bed).await.context("after ANALYZE")
}

#[tokio::test]
async fn claims_take_lane_rows_and_walk_nothing_else() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.enqueue_many("audit", 1000, 100).await?;
    let query =
        "INSERT INTO outbox.lanes SELECT d, l FROM unnest('{audit,tickets}'::text[]) AS d, generate_series(0, 15) AS l";
    bed.client.batch_execute(query).await?;
    bed.client.batch_execute("ANALYZE").await?;
    let claim = Planned {
        name: "claim",
        sql: include_str!("../../sql/queries/claim.sql"),
        types: "text, smallint[], bigint, smallint",
        arguments: "'audit', LANES, 16, 3",
        pending: &[],
    };
    let scans = plan(&bed.client, &claim).await?;
    ensure!(!scans.is_empty() && scans.iter().all(|scan| scan.relation == "lanes"), "{scans:?}");
    Ok(())
}

#[tokio::test]
async fn pruning_walks_delivered_messages_by_their_key() -> Result<()> {
    let bed = TestBed::new().await?;
    never_analyze(&bed).await?;
    let delivered = "INSERT INTO outbox.messages (destination, event_position, group_id, lane, status, delivered_at)
         SELECT 'audit', n, 'g' || n % 100, outbox.lane('g' || n % 100, n), 'delivered', now() FROM generate_series(1, 50000) AS n";
    bed.client.batch_execute(delivered).await?;
    let prune = Planned {
        name: "prune",
        sql: include_str!("../../sql/queries/prune.sql"),
        types: "text, smallint, bigint, float8, bigint",
        arguments: "'audit', 3, 10, 60, 1000",
        pending: &[],
    };
    let emptied =
        ["DELETE FROM outbox.messages", "VACUUM (TRUNCATE off, ANALYZE) outbox.messages_delivered", delivered];
    for statistics in [&[][..], &["ANALYZE"], &emptied] {
        for statement in statistics {
            bed.client.batch_execute(statement).await?;
        }
        let scans = plan(&bed.client, &prune).await?;
        let is_good = |scan: &Scan| {
            let is_by_key = scan.index == "messages_delivered_pkey" && scan.kind == "Index Scan";
            let condition = format!("({}", scan.condition);
            is_by_key && ["destination =", "lane =", "id "].iter().all(|column| has_column(&condition, column))
        };
        let scans: Vec<_> = scans.iter().filter(|scan| !scan.relation.is_empty()).collect();
        ensure!(scans.len() == 2 && scans.iter().all(|scan| is_good(scan)), "{statistics:?}: {scans:?}");
    }
    Ok(())
}

/// `age()` answers once per transaction and then repeats its answer (PostgreSQL, GetStableLatestTransactionId), and
/// several reads run in one transaction.
#[tokio::test]
async fn a_read_knows_of_writers_that_began_after_the_reads_before_it_in_its_transaction() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.enqueue("tickets", "{}", Some("g")).await?;
    let lane = bed.count("SELECT lane::bigint FROM outbox.messages").await?;
    let of = |name: &str| STATEMENTS.iter().find(|one| one.name == name).context("no such statement");
    let mut statements = Vec::new();
    for (name, arguments) in [
        (
            "read_groups",
            format!(
                "'tickets', '{{{lane}}}', '{{g}}', '{{0}}', '{{9}}', '{{9999}}', 1048576, false, '1', '', false,
                '{{9}}', 9999"
            ),
        ),
        (
            "read",
            format!(
                "'tickets', '{{{lane}}}', '{{0}}', '{{9}}', '{{9999}}', 1048576, true, false, '1', '', false,
                9999"
            ),
        ),
    ] {
        let Planned { sql, types, .. } = of(name)?;
        bed.client.batch_execute(&format!("PREPARE {name} ({types}) AS {sql}")).await?;
        statements.push(format!("EXECUTE {name} ({arguments})"));
    }
    let writer = bed.connect().await?;
    bed.client.batch_execute("BEGIN").await?;
    ensure!(first_value(&bed.client, &statements[0]).await?.is_some(), "the groups were not read");
    writer.batch_execute("BEGIN").await?;
    let written: i64 = writer.query_one("SELECT pg_current_xact_id()::text::bigint", &[]).await?.get(0);
    let said = first_value(&bed.client, &statements[1]).await?.context("the lane was not read")?;
    let next_xid: i64 = said.trim_matches(['{', '}']).split(',').next().unwrap_or_default().parse()?;
    ensure!(next_xid > written, "{next_xid} is not above {written}, which had begun");
    Ok(())
}

#[tokio::test]
async fn no_statement_fails_under_a_claim_of_a_server_that_was_further_than_this_one() -> Result<()> {
    // A standby that was behind does not know the claim's transaction id yet, and PostgreSQL refuses to return its
    // status.
    let bed = TestBed::new().await?;
    bed.enqueue("audit", "{}", Some("g1")).await?;
    let mut under_claims = 0;
    for Planned { name, sql, types, arguments, .. } in STATEMENTS.iter().filter(|one| one.arguments.contains("'1', ''"))
    {
        let arguments = written_out(&arguments.replace("'1', ''", "'99999999999', 'another'"));
        bed.client.batch_execute(&format!("PREPARE {name} ({types}) AS {sql}")).await?;
        let executed = bed.client.batch_execute(&format!("EXECUTE {name} ({arguments})")).await;
        executed.with_context(|| format!("{name} fails"))?;
        under_claims += 1;
    }
    ensure!(under_claims == 6, "{under_claims} statements are asked under a claim");
    Ok(())
}

/// The first column of the first row.
async fn first_value(client: &Client, statement: &str) -> Result<Option<String>> {
    let rows = client.simple_query(statement).await?;
    let first = rows.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row.get(0).map(str::to_owned)),
        _ => None,
    });
    Ok(first.flatten())
}
