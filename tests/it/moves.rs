//! A database moves to another server by logical replication, as for a major upgrade (docs/restoring.md).

use anyhow::{Context as _, Result, ensure};

use support::postgres::{Cluster, Options};
use support::test_bed::{TestBed, enqueue_range};
use support::{chosen_major, eventually};

/// The tables of which logical replication cannot find the rows that change.
const WITHOUT_KEY: &str = "SELECT count(*) FROM pg_class AS c
    WHERE relnamespace = 'outbox'::regnamespace AND relkind = 'r' AND relpersistence = 'p' AND relreplident = 'd'
        AND NOT EXISTS (SELECT FROM pg_index WHERE indrelid = c.oid AND indisprimary)";

/// The statements of the page that contain this.
fn statements(word: &str) -> Result<String> {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/restoring.md"))?;
    let blocks = page.split("```sql\n").skip(1).filter_map(|text| text.split("```").next());
    let block = blocks.into_iter().find(|block| block.contains(word));
    Ok(block.with_context(|| format!("the page has no {word}"))?.to_owned())
}

#[tokio::test]
async fn a_database_that_moved_by_logical_replication_is_served_once_its_sequences_are_set() -> Result<()> {
    let options = |level: &str| Options {
        major: chosen_major(),
        settings: vec![("wal_level".to_owned(), level.to_owned())],
        ..Options::default()
    };
    let (blue, green) = (Cluster::start(&options("logical"))?, Cluster::start(&options("logical"))?);
    let (old, mut new) = (TestBed::on(&blue).await?, TestBed::on(&green).await?);
    ensure!(old.count(WITHOUT_KEY).await? == 0, "a table has no key");
    let queue = old.fifo("tickets").await?;
    new.add_destination("tickets", &queue);

    let publication: String = old.client.query_one(&statements("CREATE PUBLICATION")?, &[]).await?.get(0);
    old.client.batch_execute(&publication).await?;
    let subscribe = format!("CREATE SUBSCRIPTION moves CONNECTION '{}' PUBLICATION moves", old.url());
    new.client.batch_execute(&subscribe).await?;
    // Part is delivered, part is pending when the old server takes no more writes.
    let relay = old.relay().start().await?;
    old.enqueue_many("tickets", 100, 20).await?;
    old.until_nothing_is_pending().await?;
    relay.stop().await?;
    enqueue_range(&old.client, "tickets", 101..=150, 20).await?;
    eventually("the new server has everything", || async {
        // Each table is copied by itself.
        let events = new.count("SELECT count(*) FROM outbox.events").await?;
        Ok(events == 150 && new.pending().await? == 50 && new.delivered().await? == 100)
    })
    .await
    .with_context(|| std::fs::read_to_string(green.log_path()).unwrap_or_default())?;
    new.client
        .batch_execute("ALTER SUBSCRIPTION moves DISABLE; ALTER SUBSCRIPTION moves SET (slot_name = NONE)")
        .await?;
    new.client.batch_execute("DROP SUBSCRIPTION moves").await?;

    // Without this nobody can write: values are assigned again, and the keys refuse them.
    let refused = new.enqueue("tickets", "{\"n\": 151, \"group\": 1}", Some("g")).await;
    let refused = refused.err().map(|error| format!("{error:?}")).unwrap_or_default();
    ensure!(refused.contains("duplicate key"), "it was not refused, or for another reason: {refused}");
    new.client.batch_execute(&statements("setval")?).await?;
    // Lanes of another version of the hash function.
    new.client.batch_execute("ALTER TABLE outbox.messages_pending DISABLE TRIGGER check_change").await?;
    new.client.batch_execute("UPDATE outbox.messages_pending SET lane = (lane + 1) % 16").await?;
    new.client.batch_execute("ALTER TABLE outbox.messages_pending ENABLE TRIGGER check_change").await?;
    new.client.batch_execute(&statements("SET lane")?).await?;
    let strays = "SELECT count(*) FROM outbox.messages_pending WHERE lane <> outbox.lane(group_id, event_position)";
    ensure!(new.count(strays).await? == 0);
    new.client = new.connect().await?;
    enqueue_range(&new.client, "tickets", 151..=200, 20).await?;
    new.relay().deliver_all().await?;
    ensure!(new.delivered().await? == 200);
    new.ensure_arrived_in_order(&queue, 200).await
}
