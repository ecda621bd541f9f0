//! Outboxes in schemas of other names. Every command works where the usual name belongs to somebody else, and the outboxes
//! of one database do not disturb each other.

use std::collections::HashSet;

use anyhow::{Context, Result, ensure};
use outbox_relay::schema::Schema;
use serde_json::Value;
use tokio_postgres::Client;

use support::eventually;
use support::postgres::PASSWORD;
use support::relay::{Command, Finished};
use support::test_bed::{TestBed, connect};

/// One of the outboxes of a database, with a queue for its destination `tickets`.
struct Outbox<'a> {
    bed: &'a TestBed,
    schema: Schema,
    queue: String,
}

impl<'a> Outbox<'a> {
    async fn migrated(bed: &'a TestBed, name: &str) -> Result<Outbox<'a>> {
        let schema = Schema::parse(name).map_err(|why| anyhow::anyhow!("{name} is not {why}"))?;
        let outbox = Outbox { bed, schema, queue: bed.queues.create_fifo("tickets").await? };
        outbox.runs("migrate").await?;
        Ok(outbox)
    }

    fn command(&self) -> Command {
        let destination = format!("tickets={}", self.queue);
        self.bed.relay().env("OUTBOX_RELAY_SCHEMA", self.schema.name()).env("OUTBOX_RELAY_DESTINATIONS", destination)
    }

    /// Runs a command, which must succeed.
    async fn runs(&self, words: &str) -> Result<Finished> {
        let ended = self.command().output(&words.split(' ').collect::<Vec<_>>()).await?;
        ended.ensure_success().with_context(|| words.to_owned())?;
        Ok(ended)
    }

    /// Runs statements that are written for the schema `outbox`.
    async fn run_on(&self, client: &Client, sql: &str) -> Result<()> {
        client.batch_execute(&self.schema.sql(sql)).await.with_context(|| format!("{sql} for {}", self.schema))
    }

    async fn run(&self, sql: &str) -> Result<()> {
        self.run_on(&self.bed.client, sql).await
    }

    async fn count(&self, sql: &str) -> Result<i64> {
        self.bed.count(&self.schema.sql(sql)).await
    }

    /// Commits messages with these numbers and the name of this outbox in their bodies, in three groups.
    async fn write(&self, numbers: std::ops::RangeInclusive<i64>) -> Result<()> {
        let (first, last, name) = (numbers.start(), numbers.end(), self.schema.name());
        let write = format!(
            "SELECT count(outbox.enqueue('tickets', 'T', jsonb_build_object('n', n, 'of', '{name}'), 'g' || n % 3))
            FROM generate_series({first}, {last}) AS n"
        );
        self.run(&write).await
    }

    async fn until_nothing_is_pending(&self) -> Result<()> {
        let pending = "SELECT count(*) FROM outbox.messages_pending";
        eventually("nothing is pending", || async { Ok(self.count(pending).await? == 0) }).await
    }

    /// Makes a message dead as a relay does.
    async fn bury(&self, id: i64) -> Result<()> {
        let bury = format!(
            "UPDATE outbox.messages SET status = 'dead', dead_at = now(), attempts = 10, last_error = 'InternalError'
            WHERE destination = 'tickets' AND id = {id} AND status = 'pending'"
        );
        ensure!(self.bed.client.execute(&*self.schema.sql(&bury), &[]).await? == 1, "nothing was buried");
        Ok(())
    }

    /// How many events `read_all` shows.
    async fn read(&self) -> Result<i64> {
        self.count("SELECT count(*) FROM outbox.read_all()").await
    }

    async fn ensure_arrived(&self, count: i64) -> Result<()> {
        let arrived = self.bed.queues.contents(&self.queue).await?;
        let own = format!("\"of\": \"{}\"", self.schema);
        ensure!(arrived.iter().all(|message| message.body.contains(&own)), "a message of another outbox arrived");
        self.bed.ensure_arrived_in_order(&self.queue, count).await
    }
}

/// Everything that PostgreSQL knows of a schema, a line for each thing, with the texts that are its own.
async fn things(client: &Client, schema: &str) -> Result<Vec<String>> {
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

#[tokio::test]
async fn nothing_in_a_schema_of_another_name_tells_the_usual_one() -> Result<()> {
    let bed = TestBed::empty().await?;
    Outbox::migrated(&bed, "lottery").await?;
    let things = things(&bed.client, "lottery").await?;
    ensure!(things.len() > 300, "only {} things", things.len());
    // `outbox-relay` is one word.
    let has_the_word =
        |text: &str| text.split(|c: char| !(c.is_alphanumeric() || "_-".contains(c))).any(|word| word == "outbox");
    // The comment on the lane says so in prose.
    let is_wrong = |text: &&String| has_the_word(&text.replace("let the outbox run empty", ""));
    let wrong: Vec<&String> = things.iter().filter(is_wrong).collect();
    ensure!(wrong.is_empty(), "these name another schema: {wrong:#?}");
    ensure!(
        things.iter().any(|text| text.contains("SET LOCAL lottery.maintenance")),
        "a hint does not name the schema"
    );
    ensure!(bed.count("SELECT count(*) FROM pg_namespace WHERE nspname = 'outbox'").await? == 0);
    Ok(())
}

#[tokio::test]
async fn the_printed_migrations_of_another_name_make_what_migrate_makes() -> Result<()> {
    let (printed, migrated) = (TestBed::empty().await?, TestBed::empty().await?);
    let script = Command::new().env("OUTBOX_RELAY_SCHEMA", "lottery_outbox").output(&["migrate", "--print"]).await?;
    let by_flag = Command::new().output(&["migrate", "--print", "--schema", "lottery_outbox"]).await?;
    ensure!(script.stdout == by_flag.stdout, "the flag is another setting");
    printed.client.batch_execute(&script.stdout).await?;
    Outbox::migrated(&migrated, "lottery_outbox").await?;
    let name = "lottery_outbox";
    ensure!(things(&printed.client, name).await? == things(&migrated.client, name).await?);
    // The records are the same as of any other name, so this is no other schema to a relay.
    let again = printed.relay().env("OUTBOX_RELAY_SCHEMA", name).output(&["migrate"]).await?;
    ensure!(again.stdout.contains("(schema lottery_outbox) is up to date"), "{again:?}");
    Ok(())
}

/// A schema of the usual name, which belongs to somebody else, and a login that may create schemas.
async fn somebody_elses(bed: &TestBed) -> Result<String> {
    let database: String = bed.client.query_one("SELECT current_database()", &[]).await?.get(0);
    // Its names are those that a forgotten statement would use.
    let theirs = format!(
        "CREATE SCHEMA outbox;
        CREATE TABLE outbox.events (note text);
        CREATE TABLE outbox.messages (note text);
        CREATE TABLE outbox.migrations (note text);
        CREATE ROLE stranger_of_{database} LOGIN PASSWORD '{PASSWORD}';
        GRANT CREATE ON DATABASE {database} TO stranger_of_{database}"
    );
    bed.client.batch_execute(&theirs).await?;
    Ok(bed.url().replace("//postgres:", &format!("//stranger_of_{database}:")))
}

#[tokio::test]
async fn every_command_works_beside_a_schema_of_the_usual_name_that_belongs_to_somebody_else() -> Result<()> {
    let bed = TestBed::empty().await?;
    let url = somebody_elses(&bed).await?;
    let before = things(&bed.client, "outbox").await?;
    let outbox = Outbox { bed: &bed, schema: own()?, queue: bed.queues.create_fifo("tickets").await? };
    let command = || outbox.command().env("DATABASE_URL", &url);
    let runs = async |words: &str| {
        let ended = command().output(&words.split(' ').collect::<Vec<_>>()).await?;
        ended.ensure_success().with_context(|| format!("{words}: {}", ended.stdout))?;
        anyhow::Ok(ended.stdout)
    };
    let refused = command().output(&["status"]).await?;
    ensure!(
        refused.code == Some(1) && refused.stderr.contains("(schema lottery_outbox) is not migrated"),
        "{refused:?}"
    );
    let migrated = runs("migrate").await?;
    ensure!(
        migrated.contains("applied migration 1 (events)") && migrated.contains("(schema lottery_outbox)"),
        "{migrated}"
    );
    ensure!(runs("migrate").await?.contains("up to date"));
    ensure!(runs("check").await?.contains("✓ schema: lottery_outbox is up to date"));
    ensure!(runs("config").await?.contains("lottery_outbox"));
    let owner = connect(&url).await?;
    let write = "SELECT outbox.enqueue('tickets', 'T', jsonb_build_object('n', n), 'g' || n % 2) FROM generate_series(1, 6) AS n";
    outbox.run_on(&owner, write).await?;
    outbox.bury(2).await?;
    ensure!(
        runs("dead list --json").await?.contains("InternalError")
            && runs("dead show 2").await?.contains("InternalError")
    );
    runs("dead redrive 2 --yes").await?;
    outbox.bury(3).await?;
    runs("dead discard 3 --yes").await?;
    let aside = "INSERT INTO outbox.quarantine (destination, lane, message_id, event_position, enqueued_at, group_id, reason)
        SELECT destination, lane, id, event_position, enqueued_at, group_id, 'broken' FROM outbox.messages WHERE id = 4";
    outbox.run(aside).await?;
    ensure!(runs("quarantine list --json").await?.contains("broken"));
    runs("quarantine release 4 --yes").await?;
    runs("pause tickets --reason test").await?;
    ensure!(runs("status").await?.contains("paused"));
    runs("resume tickets").await?;
    runs("set batch-size=500").await?;
    ensure!(runs("config").await?.contains("500"));
    runs("set --unset batch-size").await?;
    runs("run --until-empty").await?;
    let status: Value = serde_json::from_str(&runs("status --json").await?)?;
    ensure!(
        status["destinations"][0]["pending"] == 0 && status["destinations"][0]["destination"] == "tickets",
        "{status}"
    );
    ensure!(runs("replay --destination tickets --dry-run").await?.contains('6'));
    runs("replay --destination tickets --yes").await?;
    runs("run --until-empty").await?;
    ensure!(bed.queues.depth(&outbox.queue).await?.visible == 5 + 6);
    for function in
        ["append('s', 0, '[{\"event_type\": \"T\", \"payload\": 1}]')", "read_all()", "accept('c', gen_random_uuid())"]
    {
        outbox.run_on(&owner, &format!("SELECT outbox.{function}")).await?;
    }
    outbox.run_on(&owner, "CALL outbox.purge(now())").await?;
    ensure!(things(&bed.client, "outbox").await? == before, "the schema of somebody else was changed");
    Ok(())
}

fn own() -> Result<Schema> {
    Schema::parse("lottery_outbox").map_err(|why| anyhow::anyhow!(why))
}

#[tokio::test]
async fn the_generated_roles_are_named_after_the_schema_and_may_use_it_only() -> Result<()> {
    let usual = Command::new().output(&["generate", "roles"]).await?;
    ensure!(usual.stdout == include_str!("../../deploy/roles.sql"), "not what deploy/roles.sql has");
    let bed = TestBed::new().await?;
    // Roles belong to the cluster, which other tests use as well.
    let outbox = Outbox::migrated(&bed, "own_roles").await?;
    let roles = outbox.runs("generate roles").await?.stdout;
    bed.client.batch_execute(&roles).await?;
    let login = format!("CREATE ROLE serves_own_roles LOGIN PASSWORD '{PASSWORD}' IN ROLE own_roles_relay");
    bed.client.batch_execute(&login).await?;
    let url = bed.url().replace("//postgres:", "//serves_own_roles:");
    outbox.write(1..=30).await?;
    let relay = outbox.command().env("DATABASE_URL", &url);
    let checked = relay.output(&["check"]).await?;
    ensure!(checked.code == Some(0) && checked.stdout.contains("✓ rights"), "{}", checked.stdout);
    relay.deliver_all().await?;
    outbox.ensure_arrived(30).await?;
    let others = connect(&url).await?.query("SELECT FROM outbox.messages", &[]).await;
    ensure!(others.is_err(), "it may read another outbox");
    // Without one of them, the remedy names the schema and the role.
    outbox.run("REVOKE DELETE ON outbox.messages FROM own_roles_relay").await?;
    let checked = relay.output(&["check"]).await?;
    let remedy = "lacks DELETE on own_roles.messages\n    → run the SQL of `outbox-relay generate roles --schema own_roles` as \
                  the owner, and GRANT own_roles_relay to this role";
    ensure!(checked.code == Some(1) && checked.stdout.contains(remedy), "{}", checked.stdout);
    Ok(())
}

#[tokio::test]
async fn every_word_that_needs_quotes_is_refused_as_a_name() -> Result<()> {
    let bed = TestBed::empty().await?;
    let words = "SELECT word, quote_ident(word) = word FROM pg_get_keywords()";
    let mut usable = 0;
    for row in bed.client.query(words, &[]).await? {
        let (word, is_plain): (String, bool) = (row.get(0), row.get(1));
        let parsed = Schema::parse(&word);
        ensure!(is_plain || parsed.is_err(), "{word} would need quotes");
        usable += usize::from(parsed.is_ok());
    }
    ensure!(usable > 200, "only {usable} words can be used");
    // Words of SQL that need none.
    for name in ["schema", "sequence", "trigger", "function"] {
        let outbox = Outbox::migrated(&bed, name).await?;
        outbox.write(1..=3).await?;
        outbox.command().deliver_all().await?;
        outbox.runs("replay --destination tickets --yes").await?;
        ensure!(outbox.count("SELECT count(*) FROM outbox.messages_pending").await? == 3, "{name}");
    }
    Ok(())
}

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

#[tokio::test]
async fn an_outbox_that_was_renamed_as_the_page_on_upgrading_says_works_on() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.enqueue_many("tickets", 10, 2).await?;
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/upgrading.md"))?;
    let blocks = page.split("```sql\n").skip(1).filter_map(|text| text.split("```").next());
    let rename =
        blocks.into_iter().find(|block| block.contains("RENAME TO lottery_outbox")).context("not on the page")?;
    bed.client.batch_execute(rename).await?;
    // As if it had always had that name, but for the comments.
    let fresh = TestBed::empty().await?;
    Outbox::migrated(&fresh, "lottery_outbox").await?;
    let (renamed, made) =
        (things(&bed.client, "lottery_outbox").await?, things(&fresh.client, "lottery_outbox").await?);
    let functions = |things: Vec<String>| -> HashSet<String> {
        let all = things.into_iter().filter(|thing| thing.starts_with("function"));
        all.map(|thing| thing.rsplit_once('$').map_or(thing.clone(), |(body, _)| body.to_owned())).collect()
    };
    let (renamed, made) = (functions(renamed), functions(made));
    ensure!(made.len() > 40 && renamed == made, "{:#?}", renamed.difference(&made).collect::<Vec<_>>());
    let outbox = Outbox::migrated(&bed, "lottery_outbox").await?;
    outbox.run("SELECT outbox.enqueue('tickets', 'T', '{\"n\": 11}', 'g1')").await?;
    outbox.command().deliver_all().await?;
    bed.ensure_arrived_in_order(&outbox.queue, 11).await?;
    ensure!(outbox.read().await? == 11);
    Ok(())
}
