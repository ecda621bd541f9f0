//! A table and a job as many have them.

use anyhow::{Result, ensure};
use tokio_postgres::Client;

use support::emulator::Queues;
use support::eventually;
use support::test_bed::TestBed;

use super::application::send;
use super::{Application, Ground, OldWay};

const RIGHTS: &str = "SELECT, INSERT ON public.outgoing";

fn insert(n: i64, aggregate: &str) -> String {
    format!(
        "INSERT INTO public.outgoing (topic, payload, processed_at)
        VALUES ('orders', '{{\"n\": {n}, \"order\": \"{aggregate}\", \"type\": \"OrderChanged\"}}', NULL)"
    )
}

/// The table of the page.
fn table() -> Result<String> {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/coming-over.md"))?;
    let part = page.split("\n## A table of your own\n").nth(1).unwrap_or_default();
    let table = part.split("```sql\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap_or_default();
    ensure!(table.starts_with("CREATE TABLE public.outgoing"), "{table}");
    Ok(table.to_owned())
}

/// A run of the job.
async fn work(client: &Client, queues: &Queues, queue: &str) -> Result<()> {
    client.batch_execute("BEGIN").await?;
    let rows = "SELECT id, payload::text, payload ->> 'order' FROM public.outgoing
        WHERE processed_at IS NULL ORDER BY id LIMIT 20 FOR UPDATE SKIP LOCKED";
    for row in client.query(rows, &[]).await? {
        let (id, body, group): (i64, String, String) = (row.get(0), row.get(1), row.get(2));
        send(queues, queue, &format!("job-{id}"), &group, &body).await?;
        client.execute("UPDATE public.outgoing SET processed_at = now() WHERE id = $1", &[&id]).await?;
    }
    client.batch_execute("COMMIT").await?;
    Ok(())
}

async fn job(ground: &Ground) -> Result<OldWay> {
    let client = std::sync::Arc::new(ground.bed.connect().await?);
    let (queues, queue) = (ground.bed.queues.clone(), ground.queue.clone());
    Ok(OldWay::start(move || {
        let (client, queues, queue) = (client.clone(), queues.clone(), queue.clone());
        async move { work(&client, &queues, &queue).await }
    }))
}

#[tokio::test]
async fn rows_of_a_table_of_ones_own_arrive_once_and_in_order_when_the_job_is_left_and_when_it_comes_back() -> Result<()>
{
    let ground = Ground::new(TestBed::new().await?, &table()?, RIGHTS).await?;
    let bed = &ground.bed;
    let relay = ground.paused_relay().await?;
    let mut application = Application::start(&ground, insert).await?;
    application.begin(60);
    let before = job(&ground).await?;
    eventually("the job sends", || async { Ok(ground.arrived().await? > 30) }).await?;
    ground.run("A table of your own: before").await?;
    before.stop().await?;
    application.write(40).await?;
    let now: String = bed.client.query_one("SELECT now()::text", &[]).await?.get(0);
    let [switch, compare] = ground.statements("A table of your own: the switch")?;
    let compare = compare.replace("2026-12-01 12:00+01", &now);
    application.begin(100);
    let moved = ground.printed(&switch).await?;
    ensure!(moved.iter().any(|moved| *moved >= 40), "what waited was not moved: {moved:?}");
    // A job that was forgotten finds nothing.
    let forgotten = job(&ground).await?;
    application.write(40).await?;
    ground.resume().await?;
    application.begin(20);
    eventually("the relay sends", || async { Ok(bed.delivered().await? >= 80) }).await?;
    forgotten.stop().await?;

    let [back] = ground.statements("A table of your own: going back")?;
    let before_back = "SELECT count(*) FROM public.outgoing WHERE processed_at IS NULL";
    ensure!(bed.count(before_back).await? == 0);
    ensure!(bed.client.query(&compare, &[]).await?.is_empty(), "a row has no event, or two");
    application.begin(60);
    bed.client.batch_execute(&back).await?;
    bed.until_nothing_is_pending().await?;
    let back = job(&ground).await?;
    application.begin(20);
    let count = application.stop().await?;
    eventually("all has arrived", || async { Ok(ground.arrived().await? == count) }).await?;
    back.stop().await?;
    relay.stop().await?;
    bed.ensure_arrived_in_order(&ground.queue, count).await
}

#[tokio::test]
async fn the_comparison_finds_a_row_without_an_event_and_a_skipped_insert_writes_none() -> Result<()> {
    let ground = Ground::new(TestBed::new().await?, &table()?, RIGHTS).await?;
    let bed = &ground.bed;
    let now: String = bed.client.query_one("SELECT now()::text", &[]).await?.get(0);
    ground.run("A table of your own: before").await?;
    let [switch, compare] = ground.statements("A table of your own: the switch")?;
    bed.client.batch_execute(&switch).await?;
    let shop = ground.shop().await?;
    shop.batch_execute(&insert(1, "g")).await?;
    let skipped = "INSERT INTO public.outgoing (id, topic, payload) OVERRIDING SYSTEM VALUE VALUES (1, 'orders', '{}')
        ON CONFLICT DO NOTHING";
    ensure!(shop.execute(skipped, &[]).await? == 0 && bed.pending().await? == 1);
    let compare = compare.replace("2026-12-01 12:00+01", &now);
    ensure!(bed.client.query(&compare, &[]).await?.is_empty());
    bed.client.batch_execute("ALTER TABLE public.outgoing DISABLE TRIGGER after_outgoing").await?;
    shop.batch_execute(&insert(2, "g")).await?;
    ensure!(bed.client.query(&compare, &[]).await?.len() == 1);
    Ok(())
}
