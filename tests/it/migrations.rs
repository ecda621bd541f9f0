//! Migrations: each applies on data, many may start at once, and an unsuitable schema is refused.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use outbox_relay::config::Flags;
use outbox_relay::outbox::{MIGRATIONS, Migration, Outbox, STATEMENT_TIMEOUT, script};
use outbox_relay::schema::Schema;

use support::eventually;
use support::postgres::PASSWORD;
use support::relay::Command;
use support::test_bed::{TestBed, connect, enqueue};

const RECORDED: &str = "SELECT count(*) FROM outbox.migrations";

/// The whole schema, one line per object.
async fn schema(bed: &TestBed) -> Result<Vec<String>> {
    let query = "SELECT concat_ws(' ', 'column', table_name, column_name, data_type, is_nullable, column_default,
                is_identity, generation_expression) AS line
            FROM information_schema.columns WHERE table_schema = 'outbox'
        UNION ALL SELECT concat_ws(' ', 'index', indexname, indexdef) FROM pg_indexes WHERE schemaname = 'outbox'
        UNION ALL SELECT concat_ws(' ', 'constraint', conrelid::regclass, conname, pg_get_constraintdef(oid))
            FROM pg_constraint WHERE connamespace = 'outbox'::regnamespace
        UNION ALL SELECT concat_ws(' ', 'function', pg_get_functiondef(oid))
            FROM pg_proc WHERE pronamespace = 'outbox'::regnamespace
        UNION ALL SELECT concat_ws(' ', 'table', oid::regclass, relkind, reloptions::text, obj_description(oid, 'pg_class'))
            FROM pg_class WHERE relnamespace = 'outbox'::regnamespace
        UNION ALL SELECT concat_ws(' ', 'migration', version, name, checksum) FROM outbox.migrations
        ORDER BY 1";
    Ok(bed.client.query(query, &[]).await?.iter().map(|row| row.get(0)).collect())
}

/// The table that records migrations.
const PRELUDE: &str = "CREATE SCHEMA outbox; CREATE TABLE outbox.migrations (version integer PRIMARY KEY, name text NOT NULL,
    checksum text NOT NULL, applied_at timestamptz NOT NULL DEFAULT clock_timestamp(), needs integer NOT NULL DEFAULT 1)";

/// Applies a migration as an earlier version did.
async fn apply(bed: &TestBed, migration: &Migration) -> Result<()> {
    bed.client.batch_execute(migration.sql).await.with_context(|| migration.name.to_owned())?;
    let record = "INSERT INTO outbox.migrations (version, name, checksum) VALUES ($1, $2, $3)";
    bed.client.execute(record, &[&migration.version, &migration.name, &migration.checksum()]).await?;
    Ok(())
}

#[tokio::test]
async fn every_migration_applies_on_data() -> Result<()> {
    let bed = TestBed::empty().await?;
    let queue = bed.fifo("tickets").await?;
    // The records that the relay keeps of each migration, so that it accepts the database as migrated by itself.
    let reference = TestBed::new().await?;
    let rows = reference.client.query("SELECT version, checksum FROM outbox.migrations ORDER BY version", &[]).await?;
    ensure!(rows.len() == MIGRATIONS.len());
    bed.client.batch_execute(PRELUDE).await?;
    for (number, migration) in (1..).zip(MIGRATIONS) {
        ensure!(migration.version == number, "a gap before migration {}", migration.version);
        apply(&bed, &migration).await?;
        if number == 1 {
            // There are no messages yet.
            continue;
        }
        // Data of every kind, for the next migration.
        enqueue(&bed.client, "tickets", "{\"n\": 1}", Some("draw-1")).await?;
        let settled =
            "INSERT INTO outbox.messages (destination, event_position, lane, status, delivered_at, dead_at, last_error)
            VALUES ('tickets', 1, 3, 'delivered', now(), NULL, NULL), ('tickets', 1, 3, 'dead', NULL, now(), 'too large')";
        bed.client.batch_execute(settled).await?;
    }
    let migrated = bed.relay().output(&["migrate"]).await?;
    migrated.ensure_success()?;
    ensure!(migrated.stdout.contains("up to date"), "{migrated:?}");
    bed.relay().deliver_all().await?;
    ensure!(bed.queues.depth(&queue).await?.visible == MIGRATIONS.len() - 1);
    Ok(())
}

#[tokio::test]
async fn migrating_twice_changes_nothing() -> Result<()> {
    let bed = TestBed::new().await?;
    let before = schema(&bed).await?;
    let again = bed.relay().output(&["migrate"]).await?;
    again.ensure_success()?;
    ensure!(again.stdout.contains("up to date") && !again.stdout.contains("applied"), "{again:?}");
    ensure!(schema(&bed).await? == before && before.len() > 50, "{before:#?}");
    Ok(())
}

#[tokio::test]
async fn ten_migrations_at_once_apply_each_one_once() -> Result<()> {
    let bed = TestBed::empty().await?;
    // Every migration waits until this transaction ends, so that all ten run when it does.
    let start = bed.connect().await?;
    start.batch_execute("BEGIN; SELECT pg_advisory_xact_lock(x'6F750004'::int, hashtext('outbox'))").await?;
    let all_wait = async {
        let waiting = "SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND wait_event_type = 'Lock'";
        eventually("ten migrations wait", || async { Ok(bed.count(waiting).await? == 10) }).await?;
        anyhow::Ok(start.batch_execute("ROLLBACK").await?)
    };
    let command = bed.relay();
    let outputs = futures_util::future::try_join_all((0..10).map(|_| command.output(&["migrate"])));
    let (outputs, ()) = futures_util::future::try_join(outputs, all_wait).await?;
    for output in &outputs {
        output.ensure_success()?;
    }
    let applied: usize = outputs.iter().map(|output| output.stdout.matches("applied migration").count()).sum();
    ensure!(applied == MIGRATIONS.len(), "{applied} were applied");
    ensure!(bed.count(RECORDED).await? == i64::try_from(MIGRATIONS.len())?);
    ensure!(schema(&bed).await? == schema(&TestBed::new().await?).await?);
    Ok(())
}

#[tokio::test]
async fn a_database_newer_than_the_relay_is_left_alone_by_migrate_and_served_by_run() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.fifo("tickets").await?;
    let newer = "INSERT INTO outbox.migrations (version, name, checksum) VALUES (99, 'future', 'x')";
    bed.client.batch_execute(newer).await?;
    // An init container of the old version may start again during a rollout, and must not block.
    let migrated = bed.relay().output(&["migrate"]).await?;
    migrated.ensure_success()?;
    ensure!(migrated.stderr.contains("newer") && migrated.stderr.contains("version=99"), "{migrated:?}");
    ensure!(bed.count(RECORDED).await? == i64::try_from(MIGRATIONS.len())? + 1);
    bed.enqueue("tickets", "{}", None).await?;
    bed.relay().deliver_all().await?;
    ensure!(bed.queues.depth(&queue).await?.visible == 1);
    Ok(())
}

#[tokio::test]
async fn a_database_that_needs_a_newer_relay_is_refused_by_every_command_with_the_remedy() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.fifo("tickets").await?;
    let newer = "INSERT INTO outbox.migrations (version, name, checksum, needs) VALUES (99, 'future', 'x', 98)";
    bed.client.batch_execute(newer).await?;
    for command in [&["migrate"][..], &["run", "--until-empty"], &["status"]] {
        let refused = bed.relay().output(command).await?;
        let said = refused.stderr.lines().last().unwrap_or_default();
        ensure!(refused.code == Some(1), "{refused:?}");
        ensure!(said.contains("98 or newer") && said.contains("install a newer outbox-relay"), "{refused:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_migration_that_was_changed_is_refused() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.client.batch_execute("UPDATE outbox.migrations SET checksum = 'x' WHERE version = 1").await?;
    let refused = bed.relay().output(&["migrate"]).await?;
    ensure!(refused.code == Some(1) && refused.stderr.lines().count() == 1, "{refused:?}");
    ensure!(refused.stderr.contains("migration 1"), "{refused:?}");
    Ok(())
}

#[tokio::test]
async fn a_failing_migration_leaves_nothing_behind() -> Result<()> {
    let bed = TestBed::empty().await?;
    // This conflicts with an object that the first migration creates.
    bed.client.batch_execute("CREATE SCHEMA outbox; CREATE TABLE outbox.lanes (in_the_way integer)").await?;
    let failed = bed.relay().output(&["migrate"]).await?;
    ensure!(failed.code == Some(1) && failed.stderr.contains("lanes"), "{failed:?}");
    let tables = "SELECT count(*) FROM pg_class WHERE relnamespace = 'outbox'::regnamespace AND relkind IN ('r', 'p')";
    ensure!(bed.count(tables).await? == 1, "half a migration is left");
    bed.client.batch_execute("DROP TABLE outbox.lanes").await?;
    bed.relay().output(&["migrate"]).await?.ensure_success()
}

#[tokio::test]
async fn the_printed_migrations_make_the_same_schema() -> Result<()> {
    let bed = TestBed::empty().await?;
    // Without a database or any setting: a team that runs SQL itself may have neither.
    let printed = Command::new().output(&["migrate", "--print"]).await?;
    printed.ensure_success()?;
    bed.client.batch_execute(&printed.stdout).await?;
    ensure!(schema(&bed).await? == schema(&TestBed::new().await?).await?);
    let migrated = bed.relay().output(&["migrate"]).await?;
    ensure!(migrated.stdout.contains("up to date"), "{migrated:?}");
    Ok(())
}

/// A role that may only log in, and the address of the test's database for it.
async fn role(bed: &TestBed, name: &str) -> Result<String> {
    bed.client.batch_execute(&format!("CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}'")).await?;
    Ok(bed.url().replace("//postgres:", &format!("//{name}:")))
}

#[tokio::test]
async fn a_role_that_may_only_read_learns_that_all_is_up_to_date() -> Result<()> {
    let bed = TestBed::new().await?;
    let url = role(&bed, "may_only_look").await?;
    let rights = "GRANT USAGE ON SCHEMA outbox TO may_only_look; GRANT SELECT ON outbox.migrations TO may_only_look";
    bed.client.batch_execute(rights).await?;
    let migrated = bed.relay().env("DATABASE_URL", &url).output(&["migrate"]).await?;
    migrated.ensure_success()?;
    ensure!(migrated.stdout.contains("up to date"), "{migrated:?}");
    // It does not say so when there is something to do.
    bed.client.batch_execute("DELETE FROM outbox.migrations WHERE version > 1").await?;
    let refused = bed.relay().env("DATABASE_URL", &url).output(&["migrate"]).await?;
    ensure!(refused.code == Some(1) && refused.stderr.contains("permission denied"), "{refused:?}");
    Ok(())
}

#[tokio::test]
async fn a_role_that_owns_the_schema_needs_no_right_on_the_database() -> Result<()> {
    let bed = TestBed::empty().await?;
    let url = role(&bed, "owns_the_schema").await?;
    bed.client.batch_execute("CREATE SCHEMA outbox AUTHORIZATION owns_the_schema").await?;
    let migrated = bed.relay().env("DATABASE_URL", &url).output(&["migrate"]).await?;
    migrated.ensure_success()?;
    ensure!(migrated.stdout.matches("applied").count() == MIGRATIONS.len(), "{migrated:?}");
    ensure!(schema(&bed).await? == schema(&TestBed::new().await?).await?);
    // Nor does the printed script.
    bed.client.batch_execute("DROP SCHEMA outbox CASCADE; CREATE SCHEMA outbox AUTHORIZATION owns_the_schema").await?;
    connect(&url).await?.batch_execute(&script(&Schema::OUTBOX)).await?;
    ensure!(schema(&bed).await? == schema(&TestBed::new().await?).await?);
    Ok(())
}

async fn until_one_waits(bed: &TestBed) -> Result<()> {
    let query = "SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = database
        WHERE locktype = 'advisory' AND NOT granted AND datname = current_database()";
    eventually("a migration waits for the lock", || async { Ok(bed.count(query).await? == 1) }).await
}

#[tokio::test]
async fn a_migration_waits_for_another_one_that_takes_long() -> Result<()> {
    let bed = TestBed::empty().await?;
    let other = bed.connect().await?;
    other.batch_execute("BEGIN; SELECT pg_advisory_xact_lock(x'6F750004'::int, hashtext('outbox'))").await?;
    let waiting = async {
        until_one_waits(&bed).await?;
        // Time is the subject: longer than any statement of the relay may take.
        tokio::time::sleep(STATEMENT_TIMEOUT + std::time::Duration::from_secs(1)).await;
        anyhow::Ok(other.batch_execute("ROLLBACK").await?)
    };
    let command = bed.relay();
    let (migrated, ()) = futures_util::future::try_join(command.output(&["migrate"]), waiting).await?;
    migrated.ensure_success()?;
    ensure!(migrated.stderr.contains("another outbox-relay is migrating"), "{migrated:?}");
    Ok(())
}

/// A role may have another default isolation level, under which the end of the other migration would be invisible.
#[tokio::test]
async fn a_migration_sees_what_another_one_did_at_any_isolation() -> Result<()> {
    let bed = TestBed::empty().await?;
    let database: String = bed.client.query_one("SELECT current_database()::text", &[]).await?.get(0);
    let level = format!("ALTER DATABASE {database} SET default_transaction_isolation = 'repeatable read'");
    bed.client.batch_execute(&level).await?;
    let other = bed.connect().await?;
    let open = script(&Schema::OUTBOX).replace("COMMIT;", "");
    other.batch_execute(&open).await?;
    let waiting = async {
        until_one_waits(&bed).await?;
        anyhow::Ok(other.batch_execute("COMMIT").await?)
    };
    let command = bed.relay();
    let (migrated, ()) = futures_util::future::try_join(command.output(&["migrate"]), waiting).await?;
    migrated.ensure_success()?;
    ensure!(migrated.stdout.contains("up to date"), "{migrated:?}");
    Ok(())
}

#[tokio::test]
async fn every_table_and_column_has_a_comment() -> Result<()> {
    let bed = TestBed::new().await?;
    let tables = "SELECT oid::regclass::text FROM pg_class
        WHERE relnamespace = 'outbox'::regnamespace AND relkind IN ('r', 'p') ORDER BY 1";
    ensure!(bed.client.query(tables, &[]).await?.len() >= 7);
    let silent = "SELECT oid::regclass::text FROM pg_class
            WHERE relnamespace = 'outbox'::regnamespace AND relkind IN ('r', 'p', 'v')
                AND obj_description(oid, 'pg_class') IS NULL
        UNION ALL SELECT attrelid::regclass::text || '.' || attname FROM pg_attribute JOIN pg_class ON oid = attrelid
            WHERE relnamespace = 'outbox'::regnamespace AND relkind IN ('r', 'p', 'v') AND NOT relispartition
                AND attnum > 0 AND NOT attisdropped AND col_description(attrelid, attnum) IS NULL
        UNION ALL SELECT oid::regprocedure::text FROM pg_proc
            WHERE pronamespace = 'outbox'::regnamespace AND obj_description(oid, 'pg_proc') IS NULL";
    let silent: Vec<String> = bed.client.query(silent, &[]).await?.iter().map(|row| row.get(0)).collect();
    ensure!(silent.is_empty(), "without a comment: {silent:?}");
    Ok(())
}

#[tokio::test]
async fn the_printed_migrations_are_plain_ascii() -> Result<()> {
    let printed = Command::new().output(&["migrate", "--print"]).await?;
    printed.ensure_success()?;
    let odd: Vec<&str> = printed.stdout.lines().filter(|line| !line.is_ascii()).collect();
    ensure!(odd.is_empty() && printed.stdout.len() > 10_000, "psql may take these for another encoding: {odd:#?}");
    Ok(())
}

/// A migration that a later release may contain: every writer queues behind a statement that waits for the lock of a
/// table in use.
const LATER: Migration = Migration {
    version: MIGRATIONS.len() as i32 + 1,
    name: "later",
    sql: "ALTER TABLE outbox.events ADD COLUMN later text;",
    needs: 1,
};

#[tokio::test]
async fn a_migration_never_holds_writers_up_while_it_waits_for_a_table() -> Result<()> {
    let bed = TestBed::new().await?;
    // A long-running report holds locks on the tables it reads.
    let report = bed.connect().await?;
    report.batch_execute("BEGIN; SELECT count(*) FROM outbox.events").await?;
    let flags = Flags::default().with("database-url", bed.url()).with("schema", bed.schema()?);
    let outbox = Outbox::new(&flags.database()?, 1)?;
    let migrations = [&MIGRATIONS[..], &[LATER]].concat();
    let writing = async {
        let (since, mut longest) = (Instant::now(), Duration::ZERO);
        // Time is the subject: long enough for several attempts of the migration.
        while since.elapsed() < Duration::from_secs(10) {
            let began = Instant::now();
            enqueue(&bed.client, "tickets", "{\"n\": 1}", Some("draw-1")).await?;
            longest = longest.max(began.elapsed());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        report.batch_execute("ROLLBACK").await?;
        anyhow::Ok(longest)
    };
    let migrating = async { Ok(outbox.migrate_to(&migrations).await?) };
    let (applied, longest) = futures_util::future::try_join(migrating, writing).await?;
    ensure!(applied.len() == 1 && bed.count(RECORDED).await? == migrations.len() as i64);
    ensure!(longest < Duration::from_secs(5), "a writer waited {longest:?}");
    Ok(())
}

#[tokio::test]
async fn every_advisory_lock_has_a_key_of_the_documented_range() -> Result<()> {
    let bed = TestBed::new().await?;
    let documented = MIGRATIONS[0].sql;
    let client = bed.connect().await?;
    let all = "BEGIN;
        SELECT pg_advisory_xact_lock(x'6F750004'::int, hashtext('outbox'));
        SELECT outbox.append('draw-1', 0, '[{\"event_type\": \"T\", \"payload\": 1}]', '{tickets}');
        SELECT outbox.enqueue_due('tickets', 1);
        SELECT outbox.replay_begin('tickets')";
    client.batch_execute(all).await?;
    let keys = "SELECT CASE
            WHEN objsubid = 2 THEN '0x' || upper(to_hex(classid::bigint))
            WHEN classid::bigint >> 16 = hashtext('outbox') & 65535 THEN 'above ' || objid
        END
        FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid() ORDER BY 1";
    let keys: Vec<Option<String>> = client.query(keys, &[]).await?.iter().map(|row| row.get(0)).collect();
    let keys: Vec<String> = keys.into_iter().map(|key| key.context("a key of no range")).collect::<Result<_>>()?;
    let [two_numbers @ .., fence] = &keys[..] else { anyhow::bail!("no keys") };
    ensure!(fence == "above 0" && two_numbers.len() == 4, "{keys:?}");
    for key in two_numbers {
        ensure!(documented.contains(&format!("({key}, hash of ")), "{key} is not documented");
    }
    Ok(())
}

#[tokio::test]
async fn a_message_is_found_by_its_id_whatever_its_status() -> Result<()> {
    let bed = TestBed::new().await?;
    let rows =
        "INSERT INTO outbox.messages (destination, event_position, lane, status, delivered_at, dead_at, last_error)
        VALUES ('tickets', 1, 3, 'delivered', now(), NULL, NULL), ('tickets', 1, 3, 'dead', NULL, now(), 'too large'),
            ('tickets', 1, 3, 'pending', NULL, NULL, NULL)";
    bed.client.batch_execute(rows).await?;
    let found = "SELECT status FROM generate_series(1, 3) AS n, outbox.find_message('tickets', n) ORDER BY n";
    let found: Vec<String> = bed.client.query(found, &[]).await?.iter().map(|row| row.get(0)).collect();
    ensure!(found == ["delivered", "dead", "pending"], "{found:?}");
    ensure!(bed.count("SELECT count(*) FROM outbox.find_message('audit', 1)").await? == 0);
    // And not by walking all of them.
    bed.client.batch_execute("ANALYZE").await?;
    bed.enqueue_many("tickets", 30_000, 100).await?;
    let plan = "EXPLAIN (COSTS off) SELECT * FROM outbox.find_message('tickets', 1000)";
    let plan: Vec<String> = bed.client.query(plan, &[]).await?.iter().map(|row| row.get(0)).collect();
    let plan = plan.join("\n");
    ensure!(!plan.contains("Seq Scan on messages_pending") && plan.contains("messages_pending_pkey"), "{plan}");
    Ok(())
}

/// A migration of a later release that changes two tables, slowly enough for others to come between.
const OF_TWO_TABLES: Migration = Migration {
    version: MIGRATIONS.len() as i32 + 1,
    name: "of_two_tables",
    sql: "ALTER TABLE outbox.events ADD COLUMN later text; SELECT pg_sleep(0.3); ALTER TABLE outbox.messages ADD COLUMN later text;",
    needs: 1,
};

/// A relay's read uses messages before events, writers use events before messages: whatever the order of a migration is, it
/// is another one for somebody.
#[tokio::test]
async fn a_session_that_uses_tables_in_the_other_order_is_never_the_victim_of_a_migration() -> Result<()> {
    let bed = TestBed::new().await?;
    let flags = Flags::default().with("database-url", bed.url()).with("schema", bed.schema()?);
    let outbox = Outbox::new(&flags.database()?, 1)?;
    let migrations = [&MIGRATIONS[..], &[OF_TWO_TABLES]].concat();
    let reader = bed.connect().await?;
    reader.batch_execute("BEGIN; SELECT FROM outbox.messages LIMIT 1").await?;
    let reading = async {
        let changes = "SELECT count(*) FROM pg_locks JOIN pg_database ON pg_database.oid = database
            WHERE relation = 'outbox.events'::regclass AND mode = 'AccessExclusiveLock' AND granted
                AND datname = current_database()";
        eventually("the migration changes events", || async { Ok(bed.count(changes).await? == 1) }).await?;
        reader.batch_execute("SELECT FROM outbox.events LIMIT 1; COMMIT").await.context("the reader")
    };
    let migrating = async { Ok(outbox.migrate_to(&migrations).await?.len()) };
    let (applied, ()) = futures_util::future::try_join(migrating, reading).await?;
    ensure!(applied == 1);
    Ok(())
}
