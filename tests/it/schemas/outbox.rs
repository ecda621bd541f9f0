//! An outbox in a schema of any name, and what PostgreSQL knows of one.

use anyhow::{Context, Result, ensure};
use outbox_relay::schema::Schema;
use tokio_postgres::Client;

use support::eventually;
use support::relay::{Command, Finished};
use support::test_bed::TestBed;

/// One of the outboxes of a database, with a queue for its destination `tickets`.
pub(super) struct Outbox<'a> {
    pub(super) bed: &'a TestBed,
    pub(super) schema: Schema,
    pub(super) queue: String,
}

impl<'a> Outbox<'a> {
    pub(super) async fn migrated(bed: &'a TestBed, name: &str) -> Result<Outbox<'a>> {
        let schema = Schema::parse(name).map_err(|why| anyhow::anyhow!("{name} is not {why}"))?;
        let outbox = Outbox { bed, schema, queue: bed.queues.create_fifo("tickets").await? };
        outbox.runs("migrate").await?;
        Ok(outbox)
    }

    pub(super) fn command(&self) -> Command {
        let destination = format!("tickets={}", self.queue);
        self.bed.relay().env("OUTBOX_RELAY_SCHEMA", self.schema.name()).env("OUTBOX_RELAY_DESTINATIONS", destination)
    }

    /// Runs a command, which must succeed.
    pub(super) async fn runs(&self, words: &str) -> Result<Finished> {
        let ended = self.command().output(&words.split(' ').collect::<Vec<_>>()).await?;
        ended.ensure_success().with_context(|| words.to_owned())?;
        Ok(ended)
    }

    /// Runs statements that are written for the schema `outbox`.
    pub(super) async fn run_on(&self, client: &Client, sql: &str) -> Result<()> {
        client.batch_execute(&self.schema.sql(sql)).await.with_context(|| format!("{sql} for {}", self.schema))
    }

    pub(super) async fn run(&self, sql: &str) -> Result<()> {
        self.run_on(&self.bed.client, sql).await
    }

    pub(super) async fn count(&self, sql: &str) -> Result<i64> {
        self.bed.count(&self.schema.sql(sql)).await
    }

    /// Commits messages with these numbers and the name of this outbox in their bodies, in three groups.
    pub(super) async fn write(&self, numbers: std::ops::RangeInclusive<i64>) -> Result<()> {
        let (first, last, name) = (numbers.start(), numbers.end(), self.schema.name());
        let write = format!(
            "SELECT count(outbox.enqueue('tickets', 'T', jsonb_build_object('n', n, 'of', '{name}'), 'g' || n % 3))
            FROM generate_series({first}, {last}) AS n"
        );
        self.run(&write).await
    }

    pub(super) async fn until_nothing_is_pending(&self) -> Result<()> {
        let pending = "SELECT count(*) FROM outbox.messages_pending";
        eventually("nothing is pending", || async { Ok(self.count(pending).await? == 0) }).await
    }

    /// Makes a message dead as a relay does.
    pub(super) async fn bury(&self, id: i64) -> Result<()> {
        let bury = format!(
            "UPDATE outbox.messages SET status = 'dead', dead_at = now(), attempts = 10, last_error = 'InternalError'
            WHERE destination = 'tickets' AND id = {id} AND status = 'pending'"
        );
        ensure!(self.bed.client.execute(&*self.schema.sql(&bury), &[]).await? == 1, "nothing was buried");
        Ok(())
    }

    /// How many events `read_all` shows.
    pub(super) async fn read(&self) -> Result<i64> {
        self.count("SELECT count(*) FROM outbox.read_all()").await
    }

    pub(super) async fn ensure_arrived(&self, count: i64) -> Result<()> {
        let arrived = self.bed.queues.contents(&self.queue).await?;
        let own = format!("\"of\": \"{}\"", self.schema);
        ensure!(arrived.iter().all(|message| message.body.contains(&own)), "a message of another outbox arrived");
        self.bed.ensure_arrived_in_order(&self.queue, count).await
    }
}

/// Everything that PostgreSQL knows of a schema, a line for each thing, with the texts that are its own.
pub(super) async fn things(client: &Client, schema: &str) -> Result<Vec<String>> {
    let things = format!(
        "WITH own AS (
            SELECT n.oid FROM pg_namespace AS n WHERE n.nspname = '{schema}'
        )
        SELECT concat_ws(' ', 'function', pg_get_functiondef(p.oid), obj_description(p.oid, 'pg_proc'))
            FROM pg_proc AS p JOIN own ON own.oid = p.pronamespace
        UNION ALL SELECT concat_ws(' ', 'relation', c.relkind, c.relname, c.reloptions::text, obj_description(c.oid, 'pg_class'),
                CASE WHEN c.relkind = 'v' THEN pg_get_viewdef(c.oid) WHEN c.relkind = 'i' THEN pg_get_indexdef(c.oid) END)
            FROM pg_class AS c JOIN own ON own.oid = c.relnamespace
        UNION ALL SELECT concat_ws(' ', 'column', c.relname, a.attname, format_type(a.atttypid, a.atttypmod),
                pg_get_expr(d.adbin, d.adrelid), col_description(c.oid, a.attnum))
            FROM pg_class AS c JOIN own ON own.oid = c.relnamespace JOIN pg_attribute AS a ON a.attrelid = c.oid
            LEFT JOIN pg_attrdef AS d ON d.adrelid = c.oid AND d.adnum = a.attnum
        UNION ALL SELECT concat_ws(' ', 'constraint', k.conname, pg_get_constraintdef(k.oid))
            FROM pg_constraint AS k JOIN own ON own.oid = k.connamespace
        UNION ALL SELECT concat_ws(' ', 'trigger', pg_get_triggerdef(t.oid))
            FROM pg_trigger AS t JOIN pg_class AS c ON c.oid = t.tgrelid JOIN own ON own.oid = c.relnamespace
        ORDER BY 1"
    );
    Ok(client.query(&things, &[]).await?.iter().map(|row| row.get(0)).collect())
}
