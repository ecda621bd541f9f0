//! The statements of docs/coming-over.md take over the tables of others, as they stand there: while the application writes
//! and the old way and a relay send to one queue, each row arrives once, and those of an aggregate in order. And back.

mod application;
mod debezium;
mod outboxer;
mod own_table;

use anyhow::{Context, Result, ensure};
use tokio_postgres::{Client, SimpleQueryMessage};

use support::eventually;
use support::postgres::PASSWORD;
use support::relay::Relay;
use support::test_bed::{TestBed, connect};

use application::{Application, OldWay};

/// A database with another's table, and the queue that consumers read already.
struct Ground {
    bed: TestBed,
    queue: String,
    /// The application's login.
    shop: String,
}

impl Ground {
    /// Creates the other's table, and a login that may do this with it.
    async fn new(bed: TestBed, table: &str, rights: &str) -> Result<Ground> {
        let queue = bed.fifo("orders").await?;
        let database: String = bed.client.query_one("SELECT current_database()", &[]).await?.get(0);
        let shop = format!("shop_of_{database}");
        let login = format!("CREATE ROLE {shop} LOGIN PASSWORD '{PASSWORD}'; GRANT {rights} TO {shop}");
        bed.client.batch_execute(table).await?;
        bed.client.batch_execute(&login).await?;
        Ok(Ground { bed, queue, shop })
    }

    /// A session of the application.
    async fn shop(&self) -> Result<Client> {
        connect(&self.bed.url().replace("//postgres:", &format!("//{}:", self.shop))).await
    }

    /// The SQL under this heading, for this login.
    fn statements<const N: usize>(&self, heading: &str) -> Result<[String; N]> {
        let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/coming-over.md"))?;
        let part = page.split(&format!("\n### {heading}\n")).nth(1).with_context(|| format!("no heading {heading}"))?;
        let part = part.split("\n##").next().unwrap_or_default();
        let blocks = part.split("```sql\n").skip(1).filter_map(|rest| rest.split("```").next());
        let blocks: Vec<String> = blocks.map(|sql| sql.replace("TO shop;", &format!("TO {};", self.shop))).collect();
        let found = blocks.len();
        blocks.try_into().ok().with_context(|| format!("{found} blocks under {heading}"))
    }

    /// Runs the SQL under this heading, all of it.
    async fn run(&self, heading: &str) -> Result<()> {
        let [statements] = self.statements(heading)?;
        self.bed.client.batch_execute(&statements).await.with_context(|| heading.to_owned())
    }

    /// How many messages have arrived.
    async fn arrived(&self) -> Result<i64> {
        Ok(i64::try_from(self.bed.queues.contents(&self.queue).await?.len())?)
    }

    /// A relay that runs and sends nothing until it is resumed.
    async fn paused_relay(&self) -> Result<Relay> {
        let relay = self.bed.relay().start().await?;
        eventually("the destination is known, and paused", || async {
            Ok(self.bed.relay().output(&["pause", "orders"]).await?.code == Some(0))
        })
        .await?;
        // It looks every second or two.
        relay.wait_for_log("paused; its messages wait").await?;
        Ok(relay)
    }

    async fn resume(&self) -> Result<()> {
        self.bed.relay().output(&["resume", "orders"]).await?.ensure_success()
    }

    /// The numbers that a block prints: of its rows, and how many rows its other statements changed.
    async fn printed(&self, statements: &str) -> Result<Vec<u64>> {
        let number = |message: &SimpleQueryMessage| match message {
            SimpleQueryMessage::Row(row) => row.get(0).and_then(|text| text.parse().ok()),
            SimpleQueryMessage::CommandComplete(count) => Some(*count),
            _ => None,
        };
        Ok(self.bed.client.simple_query(statements).await?.iter().filter_map(number).collect())
    }
}

#[test]
fn the_guides_pause_and_resume_the_destination_of_their_statements() -> Result<()> {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/coming-over.md"))?;
    for command in ["outbox-relay pause orders --reason 'coming over'", "outbox-relay resume orders"] {
        ensure!(page.contains(command), "{command}");
    }
    Ok(())
}
