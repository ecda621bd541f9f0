//! The consumers' end: an effect happens exactly once although messages come more than once, and projections skip
//! nothing.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use tokio::sync::Barrier;
use tokio::task::JoinSet;

use support::eventually;
use support::roles::Roles;
use support::test_bed::{TestBed, connect};

const ID: &str = "'00000000-0000-0000-0000-000000000001'";

#[tokio::test]
async fn an_event_is_accepted_once_by_each_consumer() -> Result<()> {
    let bed = TestBed::new().await?;
    let accepts = "SELECT concat_ws(' ', outbox.accept('a', id), outbox.accept('a', id), outbox.accept('b', id))
        FROM gen_random_uuid() AS id";
    let said: String = bed.client.query_one(accepts, &[]).await?.get(0);
    ensure!(said == "t f t", "{said}");
    Ok(())
}

#[tokio::test]
async fn the_name_of_a_consumer_has_1_to_200_characters() -> Result<()> {
    let bed = TestBed::new().await?;
    let calls = ["accept($1, gen_random_uuid())", "accept($1, 's', 1)", "checkpoint($1, 0, 1)"];
    for call in calls {
        let call = format!("SELECT outbox.{call}");
        ensure!(bed.client.query_one(&call, &[&"ü".repeat(200)]).await?.get::<_, bool>(0), "{call}");
        for name in [String::new(), "ü".repeat(201), "a".repeat(100_000)] {
            let error = bed.client.query_one(&call, &[&name]).await.err().context("it was accepted")?;
            let said = error.as_db_error().context("no answer of the database")?.message().to_owned();
            let is_told = said.contains("consumer_has_1_to_200_characters") || said == "no consumer was given";
            ensure!(is_told, "{call}, {} bytes: {said}", name.len());
        }
    }
    Ok(())
}

#[tokio::test]
async fn of_two_at_a_time_the_second_is_accepted_only_if_the_first_is_rolled_back() -> Result<()> {
    let bed = TestBed::new().await?;
    for (end, expected) in [("COMMIT", false), ("ROLLBACK", true)] {
        let (first, second) = (bed.connect().await?, bed.connect().await?);
        let accept = format!("SELECT outbox.accept('{end}', {ID})");
        first.batch_execute("BEGIN").await?;
        ensure!(first.query_one(&accept, &[]).await?.get::<_, bool>(0));
        let waiting = tokio::spawn(async move { anyhow::Ok(second.query_one(&accept, &[]).await?.get::<_, bool>(0)) });
        let locks =
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()";
        eventually("the second waits", || async { Ok(bed.count(locks).await? == 1) }).await?;
        first.batch_execute(end).await?;
        ensure!(waiting.await?? == expected, "after {end}");
    }
    Ok(())
}

#[tokio::test]
async fn a_consumer_in_order_accepts_only_what_is_newer_in_its_stream() -> Result<()> {
    let bed = TestBed::new().await?;
    for (stream, version, expected) in
        [("s", 1, true), ("s", 1, false), ("s", 3, true), ("s", 2, false), ("t", 1, true)]
    {
        let row = bed.client.query_one("SELECT outbox.accept('c', $1, $2)", &[&stream, &i64::from(version)]).await?;
        ensure!(row.get::<_, bool>(0) == expected, "{stream} {version}");
    }
    ensure!(bed.count("SELECT count(*) FROM outbox.inbox_versions").await? == 2);
    Ok(())
}

#[tokio::test]
async fn two_projections_of_one_name_move_on_once_for_each_event() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.client.batch_execute("CREATE TABLE sums (n bigint); INSERT INTO sums VALUES (0)").await?;
    bed.enqueue_many("tickets", 500, 0).await?;
    let mut projections = JoinSet::new();
    let all_have_looked = Arc::new(Barrier::new(3));
    for _ in 0..3 {
        let mut client = bed.connect().await?;
        let all_have_looked = Arc::clone(&all_have_looked);
        projections.spawn(async move {
            let mut beaten = 0_u32;
            loop {
                let transaction = client.transaction().await?;
                let at: i64 = transaction.query_one("SELECT outbox.checkpoint('sums')", &[]).await?.get(0);
                if at == 0 && beaten == 0 {
                    // All begin at the same position, so all but one lose.
                    all_have_looked.wait().await;
                }
                let query =
                    "SELECT max(event_position), sum((payload ->> 'n')::bigint)::bigint FROM outbox.read_all($1, 7)";
                let row = transaction.query_one(query, &[&at]).await?;
                let Some(last) = row.get::<_, Option<i64>>(0) else { return anyhow::Ok(beaten) };
                transaction.execute("UPDATE sums SET n = n + $1", &[&row.get::<_, i64>(1)]).await?;
                let moved = transaction.query_one("SELECT outbox.checkpoint('sums', $1, $2)", &[&at, &last]).await?;
                if moved.get(0) {
                    transaction.commit().await?;
                } else {
                    transaction.rollback().await?;
                    beaten += 1;
                }
            }
        });
    }
    let mut beaten = 0;
    while let Some(ended) = projections.join_next().await {
        beaten += ended??;
    }
    ensure!(beaten >= 2, "only {beaten} were beaten");
    ensure!(bed.count("SELECT n FROM sums").await? == 500 * 501 / 2);
    let error =
        bed.client.batch_execute("SELECT outbox.checkpoint('sums', 7, 6)").await.err().context("it went back")?;
    ensure!(error.code().is_some_and(|code| code.code() == "22023"), "{error}");
    Ok(())
}

#[tokio::test]
async fn old_inbox_rows_are_pruned_on_request() -> Result<()> {
    let bed = TestBed::new().await?;
    let fill = "INSERT INTO outbox.inbox (consumer, event_id, accepted_at)
        SELECT 'c', gen_random_uuid(), now() - n * interval '1 day' FROM generate_series(1, 30) AS n";
    bed.client.batch_execute(fill).await?;
    ensure!(bed.count("SELECT outbox.prune_inbox(max_count => 10)").await? == 10);
    ensure!(bed.count("SELECT outbox.prune_inbox() + outbox.prune_inbox()").await? == 6);
    ensure!(bed.count("SELECT count(*) FROM outbox.inbox").await? == 14, "fifteen days are kept");
    Ok(())
}

#[tokio::test]
async fn a_consumer_with_the_rights_of_the_template_accepts_reads_and_prunes() -> Result<()> {
    let bed = TestBed::new().await?;
    let roles = Roles::create(&bed).await?;
    bed.enqueue("tickets", "{}", None).await?;
    let consumer = connect(&roles.consumer_url).await?;
    for statement in [
        format!("SELECT outbox.accept('c', {ID}), outbox.accept('c', 's', 1)"),
        "SELECT outbox.checkpoint('c', 0, 5), outbox.checkpoint('c', 5, 6)".to_owned(),
        "SELECT outbox.checkpoint('c'), outbox.prune_inbox()".to_owned(),
        "DELETE FROM outbox.inbox; DELETE FROM outbox.inbox_versions; DELETE FROM outbox.checkpoints".to_owned(),
    ] {
        consumer.batch_execute(&statement).await.with_context(|| statement)?;
    }
    for statement in [
        "DELETE FROM outbox.messages",
        "SELECT outbox.enqueue('t', 'T', '{}')",
        "SELECT FROM outbox.audit_log",
        "SELECT FROM outbox.read_all()",
    ] {
        let error = consumer.batch_execute(statement).await.err().with_context(|| format!("{statement} went well"))?;
        ensure!(error.code().is_some_and(|code| code.code() == "42501"), "{statement}: {error}");
    }
    connect(&roles.reader_url).await?.batch_execute("SELECT FROM outbox.read_all()").await?;
    // An application that only reads its streams and appends to them.
    let application = connect(&roles.application_url).await?;
    let append = "SELECT outbox.append('s', 0, '[{\"event_type\": \"T\", \"payload\": 1}]', '{tickets}')";
    application.batch_execute(append).await?;
    application.batch_execute("SELECT outbox.stream_version('s')").await?;
    let read = "SELECT FROM outbox.read_stream('s')";
    ensure!(
        application
            .batch_execute(read)
            .await
            .is_err_and(|error| error.code().is_some_and(|code| code.code() == "42501"))
    );
    let database: String = bed.client.query_one("SELECT current_database()", &[]).await?.get(0);
    let grant = format!("GRANT rights_of_reader_{database} TO rights_of_application_{database}");
    bed.client.batch_execute(&grant).await?;
    application.batch_execute(read).await?;
    Ok(())
}
