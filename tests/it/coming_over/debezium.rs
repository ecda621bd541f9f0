//! Debezium, its slot and its connector. The connector is a stand-in that reads the slot as Debezium does: it confirms the
//! position of the row that it sent last, which is before the end of the row's transaction.

use std::cell::Cell;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio_postgres::{Client, Row};

use support::chosen_major;
use support::emulator::Queues;
use support::eventually;
use support::postgres::{Cluster, Options};
use support::test_bed::{TestBed, numbers};

use super::application::send;
use super::{Application, Ground, OldWay};

/// The documentation's basic table.
fn basic_table() -> String {
    let basic = include_str!("../../../benches/peers/debezium-server/create.sql");
    basic.replace("CREATE TABLE outbox ", "CREATE TABLE public.outboxevent ")
}

/// By default Debezium publishes all tables.
const PUBLICATION: &str = "CREATE PUBLICATION dbz_publication FOR ALL TABLES";
const SLOT: &str = "SELECT pg_create_logical_replication_slot('debezium', 'pgoutput')";

/// Every other row is deleted where it was inserted.
fn insert(n: i64, aggregate: &str) -> String {
    let deletion = if n % 2 == 0 { "DELETE FROM public.outboxevent WHERE id = own.id;" } else { "" };
    format!(
        "BEGIN;
        INSERT INTO public.outboxevent (id, aggregatetype, aggregateid, type, payload)
        VALUES (md5('{n}')::uuid, 'Order', '{aggregate}', 'OrderChanged', '{{\"n\": {n}}}');
        {}
        COMMIT",
        deletion.replace("own.id", &format!("md5('{n}')::uuid"))
    )
}

/// The columns of an INSERT in the protocol of pgoutput (PostgreSQL, "Logical Replication Message Formats"): the letter I, the
/// table's oid, the letter N, the number of columns, and each as a letter, a length and its text.
fn inserted(data: &[u8], table: u32) -> Option<Vec<String>> {
    let number = |at: usize| Some(u32::from_be_bytes(data.get(at..at + 4)?.try_into().ok()?));
    if data.first() != Some(&b'I') || number(1)? != table {
        return None;
    }
    let (mut at, mut columns) = (8, Vec::new());
    while at < data.len() {
        let length = number(at + 1)? as usize;
        columns.push(String::from_utf8_lossy(data.get(at + 5..at + 5 + length)?).into_owned());
        at += 5 + length;
    }
    Some(columns)
}

/// Position and transaction of the row that was sent last, as in the connector's file of offsets.
type Offset = Arc<Mutex<(String, String)>>;

/// Sends what the slot has after the row that was sent last, and confirms that; if there is nothing to send, what it has seen of
/// other tables. Changes come in the order of commits, so a later one may have a lower position, which cannot be confirmed.
async fn capture(client: &Client, queues: &Queues, queue: &str, table: u32, offset: &Offset) -> Result<()> {
    let changes = "SELECT lsn::text, xid::text, data FROM pg_logical_slot_peek_binary_changes('debezium', NULL, 200,
        'proto_version', '1', 'publication_names', 'dbz_publication')";
    let changes = client.query(changes, &[]).await?;
    let place = |change: &Row| (change.get::<_, String>(0), change.get::<_, String>(1));
    let known = offset.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let first = changes.iter().rposition(|change| place(change) == known).map_or(0, |last| last + 1);
    let (mut sent, mut seen) = (None, None);
    for change in &changes[first..] {
        seen = Some(place(change));
        let Some(columns) = inserted(change.get(2), table) else { continue };
        let [id, _, aggregate, _, payload] = &columns[..] else { anyhow::bail!("{columns:?}") };
        send(queues, queue, id, aggregate, payload).await?;
        sent = seen.clone();
    }
    if let Some(place) = &sent {
        offset.lock().unwrap_or_else(PoisonError::into_inner).clone_from(place);
    }
    let confirm = "SELECT pg_replication_slot_advance('debezium', $1::text::pg_lsn) FROM pg_replication_slots
        WHERE slot_name = 'debezium' AND confirmed_flush_lsn < $1::text::pg_lsn";
    for (position, _) in [sent, seen].into_iter().flatten() {
        if !client.query(confirm, &[&position]).await?.is_empty() {
            break;
        }
    }
    Ok(())
}

async fn connector(ground: &Ground, table: u32, offset: &Offset) -> Result<OldWay> {
    let client = Arc::new(ground.bed.connect().await?);
    let (queues, queue, offset) = (ground.bed.queues.clone(), ground.queue.clone(), Arc::clone(offset));
    Ok(OldWay::start(move || {
        let (client, queues, queue, offset) = (client.clone(), queues.clone(), queue.clone(), offset.clone());
        async move { capture(&client, &queues, &queue, table, &offset).await }
    }))
}

#[tokio::test]
async fn rows_for_debezium_arrive_once_and_in_order_when_it_is_left_and_when_it_comes_back() -> Result<()> {
    let settings = vec![("wal_level".to_owned(), "logical".to_owned())];
    let cluster = Cluster::start(&Options { major: chosen_major(), settings, ..Options::default() })?;
    let rights = "SELECT, INSERT, DELETE ON public.outboxevent";
    let ground = Ground::new(TestBed::on(&cluster).await?, &basic_table(), rights).await?;
    let bed = &ground.bed;
    bed.client.batch_execute(PUBLICATION).await?;
    bed.client.batch_execute(SLOT).await?;
    let table: u32 = bed.client.query_one("SELECT 'public.outboxevent'::regclass::oid", &[]).await?.get(0);
    let relay = ground.paused_relay().await?;
    let mut application = Application::start(&ground, insert).await?;
    application.begin(60);
    let offset = Offset::default();
    let before = connector(&ground, table, &offset).await?;
    eventually("the connector sends", || async { Ok(ground.arrived().await? > 30) }).await?;
    ground.run("Debezium: before").await?;

    // The connector is behind when the switch comes.
    before.stop().await?;
    application.write(40).await?;
    let [switch, left] = ground.statements("Debezium: the switch")?;
    application.begin(100);
    bed.client.batch_execute(&switch).await?;
    application.write(40).await?;
    let behind = bed.count(&left).await?;
    ensure!(behind >= 40, "{behind} are said to be left");
    // As the page says: start it, stop it, ask.
    let before = Cell::new((behind, 0));
    eventually("the connector has sent what came before", || async {
        let again = connector(&ground, table, &offset).await?;
        // Time is the subject: it is left for a while, in which it has something to do or not.
        tokio::time::sleep(Duration::from_millis(300)).await;
        again.stop().await?;
        let now = (bed.count(&left).await?, ground.arrived().await?);
        Ok(before.replace(now) == now)
    })
    .await?;
    let (pending, delivered) = (bed.pending().await?, bed.delivered().await?);
    ensure!(pending >= 40 && delivered == 0, "{pending} are pending, the relay has sent {delivered}");
    ground.resume().await?;
    eventually("the relay sends", || async { Ok(bed.delivered().await? >= 40) }).await?;

    // And back.
    let [back, pending] = ground.statements("Debezium: going back")?;
    application.begin(60);
    bed.client.batch_execute(&back).await?;
    eventually("the relay has nothing left", || async { Ok(bed.count(&pending).await? == 0) }).await?;
    let back = connector(&ground, table, &offset).await?;
    application.begin(20);
    let count = application.stop().await?;
    eventually("all has arrived", || async { Ok(ground.arrived().await? == count) }).await?;
    back.stop().await?;
    relay.stop().await?;
    bed.ensure_arrived_in_order(&ground.queue, count).await?;

    // For good.
    bed.client.batch_execute(&switch).await?;
    ground.run("Debezium: afterwards").await?;
    ensure!(bed.count("SELECT count(*) FROM pg_replication_slots").await? == 0);
    Ok(())
}

#[tokio::test]
async fn rows_that_no_connector_can_send_are_moved_in_their_order_with_their_ids() -> Result<()> {
    let ground =
        Ground::new(TestBed::new().await?, &basic_table(), "SELECT, INSERT, DELETE ON public.outboxevent").await?;
    let bed = &ground.bed;
    let write = "INSERT INTO public.outboxevent
        SELECT md5(n::text)::uuid, 'Order', 'g' || n % 3, 'T', jsonb_build_object('n', n) FROM generate_series(1, 100) AS n";
    bed.client.batch_execute(write).await?;
    ground.run("Debezium: before").await?;
    let [switch, _] = ground.statements("Debezium: the switch")?;
    bed.client.batch_execute(&switch).await?;
    ground.run("Debezium: rows without a connector").await?;
    bed.relay().deliver_all().await?;
    bed.ensure_arrived_in_order(&ground.queue, 100).await?;
    let arrived = bed.queues.contents(&ground.queue).await?;
    let ids = "SELECT count(*) FROM public.outboxevent_of_debezium WHERE id::text = ANY ($1)";
    let sent: Vec<&str> = arrived.iter().filter_map(|one| Some(one.attributes.get("event_id")?.as_str())).collect();
    ensure!(bed.client.query_one(ids, &[&sent]).await?.get::<_, i64>(0) == 100);
    // A second time the ids are known.
    ensure!(ground.run("Debezium: rows without a connector").await.is_err());
    Ok(())
}

/// The table that the extension for Quarkus makes (its documentation, "Configuration").
const OF_QUARKUS: &str = "CREATE TABLE public.outboxevent (
    id UUID NOT NULL PRIMARY KEY, aggregatetype VARCHAR(255) NOT NULL, aggregateid VARCHAR(255) NOT NULL,
    type VARCHAR(255) NOT NULL, timestamp TIMESTAMP NOT NULL, payload VARCHAR(8000), tracingspancontext VARCHAR(256)
)";

#[tokio::test]
async fn other_columns_become_attributes() -> Result<()> {
    let ground = Ground::new(TestBed::new().await?, OF_QUARKUS, "SELECT, INSERT, DELETE ON public.outboxevent").await?;
    let bed = &ground.bed;
    ground.run("Debezium: before").await?;
    let [switch, _] = ground.statements("Debezium: the switch")?;
    let [columns] = ground.statements::<1>("Debezium: other columns")?;
    let view = "CREATE VIEW public.outboxevent AS SELECT * FROM outbox.outboxevent;";
    ensure!(switch.contains(view));
    bed.client.batch_execute(&switch.replace(view, &columns)).await?;
    let shop = ground.shop().await?;
    // As the extension does: all columns, and then a DELETE.
    let write = "BEGIN;
        INSERT INTO public.outboxevent (aggregatetype, aggregateid, type, payload, timestamp, tracingspancontext, id)
        VALUES ('Order', 'g1', 'OrderCreated', '{\"n\": 1}', '2026-11-30 12:00:00.5',
            E'#Mon Nov 30 12:00:00 UTC 2026\\ntraceparent=00-1-2-01\\n', '4d47e190-0402-4048-bc2c-89dd54343cdc');
        DELETE FROM public.outboxevent WHERE id = '4d47e190-0402-4048-bc2c-89dd54343cdc';
        INSERT INTO public.outboxevent (aggregatetype, aggregateid, type, payload, timestamp, id)
        VALUES ('Order', 'g1', 'OrderCreated', '{\"n\": 2}', now(), gen_random_uuid());
        COMMIT";
    shop.batch_execute(write).await?;
    bed.relay().deliver_all().await?;
    let arrived = bed.queues.contents(&ground.queue).await?;
    ensure!(numbers(&arrived)? == [1, 2], "{arrived:?}");
    let attribute = |name: &str| arrived[0].attributes.get(name).map(String::as_str).context("it is not there");
    ensure!(attribute("timestamp")? == "2026-11-30T12:00:00.5" && attribute("traceparent")? == "00-1-2-01");
    ensure!(attribute("event_id")? == "4d47e190-0402-4048-bc2c-89dd54343cdc" && attribute("aggregateid")? == "g1");
    ensure!(!arrived[1].attributes.contains_key("traceparent"));
    Ok(())
}
