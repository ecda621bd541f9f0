//! Several outboxes in one database: none disturbs another, neither by what it does nor by its locks.

use anyhow::{Result, ensure};
use serde_json::Value;
use tokio_postgres::Client;

use support::test_bed::TestBed;

use super::outbox::{Outbox, things};

#[tokio::test]
async fn two_outboxes_of_a_database_deliver_each_its_own_messages_in_order() -> Result<()> {
    let bed = TestBed::empty().await?;
    let first = Outbox::migrated(&bed, "outbox").await?;
    first.write(1..=10).await?;
    let before = things(&bed.client, "outbox").await?;
    // The second is made while a session uses the first.
    let user = bed.connect().await?;
    user.batch_execute("BEGIN; LOCK TABLE outbox.events, outbox.messages").await?;
    let second = Outbox::migrated(&bed, "lottery_outbox").await?;
    user.batch_execute("COMMIT").await?;
    ensure!(things(&bed.client, "outbox").await? == before, "the first was changed");
    let (one, two) = (first.command().start().await?, second.command().start().await?);
    for chunk in 0..20 {
        first.write(11 + chunk * 30..=40 + chunk * 30).await?;
        second.write(1 + chunk * 20..=20 + chunk * 20).await?;
    }
    // Each lists its own relay only, also if it asks the other one, which has a destination of the same name.
    for (outbox, relay) in [(&first, &one), (&second, &two)] {
        outbox.until_nothing_is_pending().await?;
        let ask = async |address: &str| {
            let status =
                outbox.command().env("OUTBOX_RELAY_HTTP_LISTEN", address).output(&["status", "--json"]).await?;
            anyhow::Ok(serde_json::from_str::<Value>(&status.stdout)?)
        };
        let own = ask(relay.address()).await?;
        ensure!(own["relays"].as_array().is_some_and(|relays| relays.len() == 1), "{own}");
        ensure!(own["relay_here"]["answers"] == true && own["destinations"][0]["here"].is_object(), "{own}");
        let other = if relay.address() == one.address() { two.address() } else { one.address() };
        let other = ask(other).await?;
        ensure!(other["relay_here"]["answers"] == false && other["destinations"][0]["here"].is_null(), "{other}");
        let says = other["relay_here"]["says"].as_str().unwrap_or_default();
        ensure!(says.starts_with("serves the schema "), "{other}");
    }
    ensure!(two.log().contains("schema=lottery_outbox") && one.log().contains("schema=outbox"), "{}", two.log());
    let page = two.get("/").await?.1;
    ensure!(page.contains("(schema lottery_outbox)"), "{page}");
    let (_, runbook) = two.get("/docs/operations.md").await?;
    ensure!(
        runbook.contains("lottery_outbox.messages_pending") && runbook.contains("`lottery_outbox_operator`"),
        "{runbook}"
    );
    one.stop().await?;
    two.stop().await?;
    first.ensure_arrived(610).await?;
    second.ensure_arrived(400).await
}

#[tokio::test]
async fn what_operators_do_to_an_outbox_is_no_concern_of_another_one() -> Result<()> {
    let bed = TestBed::empty().await?;
    let (first, second) = (Outbox::migrated(&bed, "outbox").await?, Outbox::migrated(&bed, "lottery_outbox").await?);
    for outbox in [&first, &second] {
        // The same ids and the same groups in both.
        outbox.write(1..=9).await?;
        outbox.bury(5).await?;
    }
    first.runs("dead redrive --all --yes").await?;
    first.runs("set batch-size=7 --destination tickets").await?;
    first.runs("pause --reason test").await?;
    second.command().deliver_all().await?;
    let dead = |outbox: &Outbox<'_>| outbox.schema.sql("SELECT count(*) FROM outbox.messages_dead").into_owned();
    ensure!(bed.count(&dead(&second)).await? == 1 && bed.count(&dead(&first)).await? == 0);
    ensure!(first.count("SELECT count(*) FROM outbox.messages_pending").await? == 9, "it did not pause");
    ensure!(!second.runs("config").await?.stdout.contains(" 7 "), "a setting of the other outbox is followed");
    first.runs("resume").await?;
    first.command().deliver_all().await?;
    let before = things_written(&bed, &first).await?;
    second.runs("replay --destination tickets --position 1..4 --yes").await?;
    second.runs("dead discard --all --yes").await?;
    second.command().deliver_all().await?;
    ensure!(things_written(&bed, &first).await? == before, "a replay or a discard changed the other outbox");
    first.ensure_arrived(9).await?;
    ensure!(bed.queues.contents(&second.queue).await?.len() == 8 + 4);
    Ok(())
}

/// Messages and what was done to them.
async fn things_written(bed: &TestBed, outbox: &Outbox<'_>) -> Result<Vec<String>> {
    let all = "SELECT m::text FROM outbox.messages AS m UNION ALL SELECT a::text FROM outbox.audit_log AS a
        UNION ALL SELECT r::text FROM outbox.replays AS r ORDER BY 1";
    Ok(bed.client.query(&*outbox.schema.sql(all), &[]).await?.iter().map(|row| row.get(0)).collect())
}

/// A message that is due at once is scheduled no more, so its time is set afterwards.
const SCHEDULED: &str = "SELECT outbox.enqueue('tickets', 'T', '{}', deliver_at => now() + interval '1 hour');
    UPDATE outbox.messages_scheduled SET deliver_at = now() - interval '1 s'";

#[tokio::test]
async fn no_lock_of_an_outbox_makes_a_session_of_another_one_wait() -> Result<()> {
    let bed = TestBed::empty().await?;
    let (first, second) = (Outbox::migrated(&bed, "outbox").await?, Outbox::migrated(&bed, "lottery_outbox").await?);
    for outbox in [&first, &second] {
        outbox.run(SCHEDULED).await?;
    }
    let holder = bed.connect().await?;
    holder.batch_execute("BEGIN").await?;
    let all = [
        "SELECT outbox.append('draw-7', 0, '[{\"event_type\": \"T\", \"payload\": 1}]', '{tickets}')",
        "SELECT outbox.replay_begin('tickets')",
        "SELECT outbox.purge_events(now())",
    ];
    for statement in all {
        first.run_on(&holder, statement).await?;
    }
    let due = "SELECT moved FROM outbox.enqueue_due('tickets', 10)";
    let moved = async |outbox: &Outbox<'_>, client: &Client| {
        anyhow::Ok(client.query_one(&*outbox.schema.sql(due), &[]).await?.get::<_, i64>(0))
    };
    ensure!(moved(&first, &holder).await? == 1 && moved(&first, &bed.client).await? == 0, "one at a time");
    bed.client.batch_execute("SET lock_timeout = '2s'").await?;
    for statement in all {
        second.run(statement).await?;
    }
    ensure!(moved(&second, &bed.client).await? == 1, "it waits for the other outbox");
    // A migration that is under way.
    holder.batch_execute("SELECT pg_advisory_xact_lock(x'6F750004'::int, hashtext('outbox'))").await?;
    let third = Outbox::migrated(&bed, "third_outbox").await?;
    ensure!(third.count("SELECT count(*) FROM outbox.migrations").await? > 0);
    let waits = first.run(
        "SET lock_timeout = '100ms'; SELECT outbox.append('draw-7', 0, '[{\"event_type\": \"T\", \"payload\": 1}]')",
    );
    ensure!(waits.await.is_err(), "nobody holds the lock");
    Ok(())
}

#[tokio::test]
async fn a_transaction_with_events_of_an_outbox_holds_up_the_readers_of_that_one_only() -> Result<()> {
    let bed = TestBed::empty().await?;
    let (first, second) = (Outbox::migrated(&bed, "outbox").await?, Outbox::migrated(&bed, "lottery_outbox").await?);
    // Positions of the second are far above those of the first.
    second.write(1..=100).await?;
    let writer = bed.connect().await?;
    writer.batch_execute("BEGIN").await?;
    first.run_on(&writer, "SELECT outbox.enqueue('tickets', 'T', '{}')").await?;
    first.write(1..=3).await?;
    second.write(101..=103).await?;
    ensure!(first.read().await? == 0, "an event was read beyond one that is not committed");
    ensure!(second.read().await? == 103, "a writer of another outbox held it up");
    ensure!(second.count("SELECT outbox.safe_position()").await? == 103);
    let step =
        "SELECT count(*) FROM outbox.replay_begin('tickets') AS id, outbox.replay_step(id) AS s WHERE NOT s.must_wait";
    ensure!(second.count(step).await? == 1, "a replay waits for a writer of another outbox");
    // The other way round.
    let other = bed.connect().await?;
    other.batch_execute("BEGIN").await?;
    second.run_on(&other, "SELECT outbox.enqueue('tickets', 'T', '{}')").await?;
    writer.batch_execute("ROLLBACK").await?;
    ensure!(first.read().await? == 3);
    second.write(104..=104).await?;
    ensure!(second.read().await? == 103, "an event was read beyond one that is not committed");
    Ok(())
}

#[tokio::test]
async fn a_transaction_with_events_of_two_outboxes_holds_up_the_readers_of_both() -> Result<()> {
    let bed = TestBed::empty().await?;
    let (first, second) = (Outbox::migrated(&bed, "outbox").await?, Outbox::migrated(&bed, "lottery_outbox").await?);
    second.write(1..=50).await?;
    let writer = bed.connect().await?;
    writer.batch_execute("BEGIN").await?;
    for outbox in [&first, &second] {
        outbox.run_on(&writer, "SELECT outbox.enqueue('tickets', 'T', '{}')").await?;
    }
    for outbox in [&first, &second] {
        outbox.write(51..=53).await?;
    }
    ensure!(first.read().await? == 0, "the mark of the first was not set");
    ensure!(second.read().await? == 50, "the mark of the first counted for the second");
    // A fence of each, above the positions of its own outbox.
    let fences = "SELECT (l.classid::bigint & 65535) << 32 | l.objid::bigint FROM pg_locks AS l
        WHERE l.locktype = 'advisory' AND l.mode = 'ShareLock' AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
        ORDER BY 1";
    let fences: Vec<i64> = bed.client.query(fences, &[]).await?.iter().map(|row| row.get(0)).collect();
    ensure!(fences == [0, 50], "{fences:?}");
    writer.batch_execute("COMMIT").await?;
    ensure!(first.read().await? == 4 && second.read().await? == 54);
    Ok(())
}

#[tokio::test]
async fn a_name_whose_locks_would_be_those_of_another_outbox_is_refused() -> Result<()> {
    let bed = TestBed::empty().await?;
    Outbox::migrated(&bed, "outbox").await?;
    let same = "SELECT 'outbox_' || n FROM generate_series(1, 10000000) AS n
        WHERE hashtext('outbox_' || n) & 65535 = hashtext('outbox') & 65535 LIMIT 1";
    let same: String = bed.client.query_one(same, &[]).await?.get(0);
    let refused = bed.relay().env("OUTBOX_RELAY_SCHEMA", &same).output(&["migrate"]).await?;
    ensure!(refused.code == Some(1) && refused.stderr.contains("would be those of another outbox"), "{refused:?}");
    ensure!(refused.stderr.contains("use another name"), "{refused:?}");
    let left = format!("SELECT count(*) FROM pg_namespace WHERE nspname = '{same}'");
    ensure!(bed.count(&left).await? == 0);
    // In a database of its own nothing is wrong with it.
    let alone = TestBed::empty().await?;
    Outbox::migrated(&alone, &same).await?;
    Ok(())
}
