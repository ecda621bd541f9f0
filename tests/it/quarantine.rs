//! A row that PostgreSQL refuses or cannot read stops only itself and its group.

use anyhow::{Context, Result, ensure};

use support::postgres::{Cluster, Options, StopMode};
use support::test_bed::{TestBed, ensure_order_in_groups, numbers};
use support::{chosen_major, eventually};

/// Every way in which a database refuses to record a delivery, and how to fix it.
const REFUSALS: [(&str, &str, &str); 4] = [
    (
        "a trigger",
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'not this one'; END $$;
         CREATE TRIGGER refuse BEFORE INSERT ON outbox.messages_delivered
             FOR EACH ROW WHEN (NEW.group_id = 'odd') EXECUTE FUNCTION refuse()",
        "DROP FUNCTION refuse CASCADE",
    ),
    (
        "a trigger that says nothing is wrong with the row",
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN RAISE EXCEPTION 'not this one' USING ERRCODE = 'insufficient_privilege'; END $$;
         CREATE TRIGGER refuse BEFORE INSERT ON outbox.messages_delivered
             FOR EACH ROW WHEN (NEW.group_id = 'odd') EXECUTE FUNCTION refuse()",
        "DROP FUNCTION refuse CASCADE",
    ),
    (
        "a constraint",
        "ALTER TABLE outbox.messages_delivered ADD CONSTRAINT refuse CHECK (group_id IS DISTINCT FROM 'odd')",
        "ALTER TABLE outbox.messages_delivered DROP CONSTRAINT refuse",
    ),
    (
        "a unique index",
        "CREATE UNIQUE INDEX refuse ON outbox.messages_delivered (group_id) WHERE group_id = 'odd';
         INSERT INTO outbox.messages (destination, event_position, group_id, lane, status, delivered_at)
             VALUES ('elsewhere', 1, 'odd', 3, 'delivered', now())",
        "DROP INDEX outbox.refuse",
    ),
];

async fn is_refused_alone(refuse: &str, mend: &str) -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.fifo("tickets").await?;
    bed.client.batch_execute(refuse).await?;
    let relay = bed.relay().start().await?;
    bed.enqueue("tickets", "{\"n\": 0}", Some("odd")).await?;
    relay.wait_for_log("messages are in quarantine").await?;
    let behind = bed.enqueue("tickets", "{\"n\": 1}", Some("odd")).await?;
    bed.enqueue_many("tickets", 200, 20).await?;
    let others = "SELECT count(*) FROM outbox.messages_pending WHERE group_id <> 'odd'";
    eventually("the others are delivered", || async { Ok(bed.count(others).await? == 0) }).await?;
    relay.wait_for_metric(r#"quarantined_messages{destination="tickets"}"#, 1.0).await?;
    ensure!(relay.get("/readyz").await?.0 == 200, "one row makes the relay unready");
    ensure!(bed.row(behind).await?.status == "pending", "what follows in the group was not held up");
    let listed = bed.relay().output(&["quarantine", "list", "--json"]).await?;
    listed.ensure_success()?;
    let listed: serde_json::Value = serde_json::from_str(&listed.stdout)?;
    ensure!(listed[0]["outcome"] == "delivered" && listed[0]["group_id"] == "odd", "{listed}");
    ensure!(listed.as_array().is_some_and(|lines| lines.len() == 1), "{listed}");
    bed.client.batch_execute(mend).await?;
    // A relay that starts retries at once; otherwise it takes a minute.
    relay.stop().await?;
    let relay = bed.relay().start().await?;
    bed.until_nothing_is_pending().await?;
    relay.wait_for_metric(r#"quarantined_messages{destination="tickets"}"#, 0.0).await?;
    relay.stop().await?;
    let all = bed.queues.contents(&queue).await?;
    ensure!(all.len() == 202, "{} messages", all.len());
    ensure_order_in_groups(&all)
}

#[tokio::test]
async fn an_outcome_that_postgresql_refuses_stops_only_its_group_and_is_recorded_once_that_is_fixed() -> Result<()> {
    for (name, refuse, mend) in REFUSALS {
        is_refused_alone(refuse, mend).await.with_context(|| name.to_owned())?;
    }
    Ok(())
}

#[tokio::test]
async fn an_unreadable_message_stops_only_its_group_and_goes_once_it_is_released() -> Result<()> {
    let cluster = Cluster::start(&Options { major: chosen_major(), ..Options::default() })?;
    let mut bed = TestBed::on(&cluster).await?;
    let queue = bed.fifo("tickets").await?;
    // Random text, so that it is stored outside the row; then a part of it is lost.
    let random = "(SELECT string_agg(md5(random()::text || i), '') FROM generate_series(1, 2000) AS i)";
    let insert = format!("SELECT outbox.enqueue('tickets', 'T', jsonb_build_object('pad', {random}), 'odd')");
    bed.client.batch_execute(&insert).await?;
    let id = bed.count("SELECT max(id) FROM outbox.messages").await?;
    let behind = bed.enqueue("tickets", "{\"n\": 1}", Some("odd")).await?;
    bed.enqueue_many("tickets", 200, 20).await?;
    let toast = "SELECT pg_relation_filepath(reltoastrelid) FROM pg_class WHERE oid = 'outbox.events'::regclass";
    let toast: String = bed.client.query_one(toast, &[]).await?.try_get(0)?;
    cluster.stop(StopMode::Fast)?;
    let kept = cluster.blank(&toast)?;
    cluster.start_again()?;
    bed.client = bed.connect().await?;
    let relay = bed.relay().start().await?;
    let others = "SELECT count(*) FROM outbox.messages_pending WHERE group_id <> 'odd'";
    eventually("the others are delivered", || async { Ok(bed.count(others).await? == 0) }).await?;
    let log = relay.wait_for_log("messages are in quarantine").await?;
    ensure!(log.contains("missing chunk"), "the reason is not told:\n{log}");
    ensure!(bed.row(behind).await?.status == "pending", "what follows in the group was not held up");
    let listed = bed.relay().output(&["quarantine", "list"]).await?;
    listed.ensure_success()?;
    ensure!(listed.stdout.contains("not sent") && listed.stdout.contains("missing chunk"), "{listed:?}");
    let status = bed.relay().output(&["status", "--json"]).await?;
    let status: serde_json::Value = serde_json::from_str(&status.stdout)?;
    ensure!(status["destinations"][0]["quarantined"] == 1, "{status}");
    cluster.stop(StopMode::Fast)?;
    cluster.put_back(&toast, &kept)?;
    cluster.start_again()?;
    bed.client = bed.connect().await?;
    // A reader has marked the index entries of missing rows as dead.
    bed.client.batch_execute("REINDEX TABLE outbox.events").await?;
    let unknown = bed.relay().output(&["quarantine", "release", "999999", "--yes"]).await?;
    ensure!(unknown.code == Some(1) && unknown.stderr.contains("message 999999 is not in quarantine"), "{unknown:?}");
    let released = bed.relay().output(&["quarantine", "release", &id.to_string(), "--yes"]).await?;
    released.ensure_success()?;
    bed.until_nothing_is_pending().await?;
    relay.stop().await?;
    let all = bed.queues.contents(&queue).await?;
    ensure!(all.len() == 202, "{} messages", all.len());
    let small: Vec<_> = all.into_iter().filter(|message| message.body.len() < 1000).collect();
    ensure!(numbers(&small)?.len() == 201);
    let actions = bed.count("SELECT count(*) FROM outbox.audit_log WHERE action = 'release'").await?;
    ensure!(actions == 1, "{actions} releases are recorded");
    Ok(())
}

/// PostgreSQL hands out where a long text is stored, and fails only when somebody looks there: that must be the function that
/// reads one event, not the statement for all.
#[tokio::test]
async fn unreadable_text_and_bytes_stop_only_their_groups_too() -> Result<()> {
    let cluster = Cluster::start(&Options { major: chosen_major(), ..Options::default() })?;
    let mut bed = TestBed::on(&cluster).await?;
    let queue = bed.fifo("tickets").await?;
    let random = "(SELECT string_agg(md5(random()::text || i), '') FROM generate_series(1, 2000) AS i)";
    for body in [format!("body => {random}"), format!("body_bytes => decode({random}, 'hex')")] {
        let insert = format!("SELECT outbox.enqueue('tickets', 'T', {body}, group_id => 'odd-{}')", body.len());
        bed.client.batch_execute(&insert).await?;
    }
    bed.enqueue_many("tickets", 200, 20).await?;
    let toast = "SELECT pg_relation_filepath(reltoastrelid) FROM pg_class WHERE oid = 'outbox.events'::regclass";
    let toast: String = bed.client.query_one(toast, &[]).await?.try_get(0)?;
    cluster.stop(StopMode::Fast)?;
    let kept = cluster.blank(&toast)?;
    cluster.start_again()?;
    bed.client = bed.connect().await?;
    let relay = bed.relay().start().await?;
    let others = "SELECT count(*) FROM outbox.messages_pending WHERE group_id NOT LIKE 'odd%'";
    eventually("the others are delivered", || async { Ok(bed.count(others).await? == 0) }).await?;
    let reasons = "SELECT count(*) FROM outbox.quarantine WHERE outcome IS NULL AND reason LIKE '%missing chunk%'";
    eventually("both are in quarantine", || async { Ok(bed.count(reasons).await? == 2) }).await?;
    cluster.stop(StopMode::Fast)?;
    cluster.put_back(&toast, &kept)?;
    cluster.start_again()?;
    bed.client = bed.connect().await?;
    bed.client.batch_execute("REINDEX TABLE outbox.events").await?;
    bed.client.batch_execute("SELECT outbox.release(destination, message_id) FROM outbox.quarantine").await?;
    bed.until_nothing_is_pending().await?;
    relay.stop().await?;
    let arrived = bed.queues.contents(&queue).await?;
    let large: Vec<_> = arrived.iter().filter(|message| message.body.len() > 1000).collect();
    ensure!(arrived.len() == 202 && large.len() == 2, "{} messages", arrived.len());
    let intact =
        "SELECT count(*) FROM outbox.events WHERE body = $1 OR replace(encode(body_bytes, 'base64'), E'\\n', '') = $1";
    for message in large {
        ensure!(bed.client.query_one(intact, &[&message.body]).await?.get::<_, i64>(0) == 1, "another body arrived");
    }
    Ok(())
}

#[tokio::test]
async fn a_whole_batch_that_postgresql_refuses_to_record_stops_no_others_and_is_sent_once() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.standard("tickets").await?;
    let (_, refuse, mend) = REFUSALS[0];
    bed.client.batch_execute(refuse).await?;
    // All of one group, and so neighbours in one lane; there is nothing else at first.
    let insert =
        "SELECT outbox.enqueue('tickets', 'T', jsonb_build_object('n', n), 'odd') FROM generate_series(1, 60) AS n";
    bed.client.batch_execute(insert).await?;
    let relay = bed.relay().start().await?;
    relay.wait_for_metric(r#"quarantined_messages{destination="tickets"}"#, 60.0).await?;
    bed.enqueue_many("tickets", 200, 20).await?;
    let others = "SELECT count(*) FROM outbox.messages_pending WHERE group_id <> 'odd'";
    eventually("the others are delivered", || async { Ok(bed.count(others).await? == 0) }).await?;
    bed.client.batch_execute(mend).await?;
    relay.stop().await?;
    let relay = bed.relay().start().await?;
    bed.until_nothing_is_pending().await?;
    relay.stop().await?;
    let all = bed.queues.contents(&queue).await?;
    ensure!(all.len() == 260, "{} messages", all.len());
    Ok(())
}

#[tokio::test]
async fn recordable_messages_leave_the_quarantine_however_many_stay_and_a_death_keeps_its_reason() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.fifo("tickets").await?;
    let id = bed.enqueue("tickets", "{}", Some("a")).await?;
    bed.enqueue_many("tickets", 300, 7).await?;
    // None of the others was sent, so they have no outcome to record. Five are not there any more.
    let unreadable = format!(
        "INSERT INTO outbox.quarantine (destination, lane, message_id, event_position, enqueued_at, group_id, reason)
         SELECT destination, lane, id, event_position, enqueued_at, group_id, 'unreadable' FROM outbox.messages
         WHERE id <> {id}
         UNION ALL
         SELECT 'tickets', 0, -n, 1, now(), NULL, 'unreadable' FROM generate_series(1, 5) AS n"
    );
    bed.client.batch_execute(&unreadable).await?;
    let dead = format!(
        "INSERT INTO outbox.quarantine (destination, lane, message_id, event_position, enqueued_at, group_id, outcome,
             attempts, last_error, reason)
         SELECT destination, lane, id, event_position, enqueued_at, group_id, 'dead', 3, 'InternalError: of SQS', 'refused'
         FROM outbox.messages WHERE id = {id}"
    );
    bed.client.batch_execute(&dead).await?;
    let relay = bed.relay().start().await?;
    let recorded = format!(
        "SELECT count(*) FROM outbox.messages
         WHERE id = {id} AND status = 'dead' AND attempts = 3 AND last_error = 'InternalError: of SQS'"
    );
    eventually("the death is recorded", || async { Ok(bed.count(&recorded).await? == 1) }).await?;
    relay.wait_for_metric(r#"quarantined_messages{destination="tickets"}"#, 300.0).await?;
    relay.stop().await?;
    Ok(())
}
