//! Migrations: forward only, embedded, recorded with a checksum, and safe when many sidecars start at once.

use std::time::{Duration, Instant};

use super::connect::Object;
use sha2::{Digest as _, Sha256};

use super::transaction::{COMMIT, begin};
use super::{Outbox, OutboxError, column};
use crate::retry::Delays;
use crate::schema::Schema;

/// One step of the schema.
#[derive(Clone, Copy, Debug)]
pub struct Migration {
    /// 1, 2, 3, …
    pub version: i32,
    /// The file name without number and extension.
    pub name: &'static str,
    /// The SQL to run, for the schema `outbox`.
    pub sql: &'static str,
    /// The oldest schema version whose relays work with the database after it. A migration that only adds leaves it as
    /// it is; one that takes something away names the version that stopped using it (docs/upgrading.md).
    pub needs: i32,
}

impl Migration {
    /// SHA-256 of the text, in hexadecimal digits; the same whatever the name of the schema is.
    pub fn checksum(&self) -> String {
        Sha256::digest(self.sql.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn record(&self) -> String {
        format!(
            "INSERT INTO outbox.migrations (version, name, checksum, needs) VALUES ({}, '{}', '{}', {});\n",
            self.version,
            self.name,
            self.checksum(),
            self.needs
        )
    }
}

/// All migrations, in order. A released one is never changed. These eight are the schema of the first release, by topic.
pub const MIGRATIONS: [Migration; 8] = [
    first(1, "events", include_str!("../../sql/migrations/0001_events.sql")),
    first(2, "messages", include_str!("../../sql/migrations/0002_messages.sql")),
    first(3, "dead_letters", include_str!("../../sql/migrations/0003_dead_letters.sql")),
    first(4, "steering", include_str!("../../sql/migrations/0004_steering.sql")),
    first(5, "replay", include_str!("../../sql/migrations/0005_replay.sql")),
    first(6, "event_store", include_str!("../../sql/migrations/0006_event_store.sql")),
    first(7, "consumers", include_str!("../../sql/migrations/0007_consumers.sql")),
    first(8, "one_table", include_str!("../../sql/migrations/0008_one_table.sql")),
];

/// A migration of the first release.
const fn first(version: i32, name: &'static str, sql: &'static str) -> Migration {
    Migration { version, name, sql, needs: 1 }
}

/// Not IF NOT EXISTS, which needs the privilege to create schemas even when there is nothing to create.
///
/// Of the schema's hash 16 bits are in the key of a fence (`outbox.fence()`). Two outboxes that share them, one in 65,536
/// pairs of names, would take each other's fences for their own, so the second is refused.
const SCHEMA: &str = "\
DO $$
BEGIN
    IF EXISTS (
        SELECT FROM pg_namespace AS n
        WHERE n.nspname <> 'outbox' AND (hashtext(n.nspname::text) & 65535) = (hashtext('outbox') & 65535)
            AND EXISTS (SELECT FROM pg_proc AS p WHERE p.pronamespace = n.oid AND p.proname = 'safe_position')
    ) THEN
        RAISE EXCEPTION 'locks of this schema would be those of another outbox in this database; use another name for it';
    ELSIF NOT EXISTS (SELECT FROM pg_namespace WHERE nspname = 'outbox') THEN
        CREATE SCHEMA outbox;
    END IF;
END
$$;
";

/// The table that records migrations; it is created before the first of them.
const RECORDS: &str = "\
CREATE TABLE IF NOT EXISTS outbox.migrations (
    version    integer PRIMARY KEY,
    name       text NOT NULL,
    checksum   text NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    needs      integer NOT NULL DEFAULT 1
);
COMMENT ON TABLE outbox.migrations IS 'Which migrations of outbox-relay have been applied.';
COMMENT ON COLUMN outbox.migrations.version IS 'Number of the migration, from 1.';
COMMENT ON COLUMN outbox.migrations.name IS 'Name of the migration.';
COMMENT ON COLUMN outbox.migrations.checksum IS 'SHA-256 of its text; a difference means that the text was changed later.';
COMMENT ON COLUMN outbox.migrations.applied_at IS 'When it was applied.';
COMMENT ON COLUMN outbox.migrations.needs IS
    'The oldest schema version whose relays work with the database after this migration.';
";

/// Whether there are records. This queries the catalog: to_regclass may still answer from before the wait for the lock.
const HAS_RECORDS: &str = "SELECT EXISTS (
    SELECT FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = 'outbox' AND c.relname = 'migrations'
)";

/// What is recorded.
const RECORDED: &str = "SELECT version, name, checksum, needs FROM outbox.migrations ORDER BY version";

/// The name of these statements in errors.
const MIGRATE: &str = "migrate";

/// Another migration may hold the lock and build an index meanwhile; if it takes longer than this, somebody should
/// look.
const MIGRATION_TIMEOUT: Duration = Duration::from_secs(600);

/// What a migration's transaction begins with, so that settings of the server or the role do not apply. Nor does a search
/// path: whoever may create functions or operators in a schema on it would get the rights of whoever migrates, because one
/// that fits the arguments better is preferred to PostgreSQL's own.
const LIMITS: &str = "SET LOCAL search_path = pg_catalog, pg_temp; SET LOCAL lock_timeout = 0; SET LOCAL statement_timeout = '600s'; \
    SET LOCAL idle_in_transaction_session_timeout = '60s'";

/// What follows once no other migration runs. It waits for a table only as long as writers may wait behind it. And it
/// gives up before anybody looks for a deadlock with it: a session that waits for what the migration holds is ended as
/// the victim if the migration still waits for that session after deadlock_timeout (PostgreSQL, "Lock Management").
const LOCK_TIMEOUT: &str = "DO $$ BEGIN EXECUTE (\
    SELECT format('SET LOCAL lock_timeout = %s', greatest(1, least(2000, setting::integer / 2))) \
    FROM pg_settings WHERE name = 'deadlock_timeout'); END $$";

/// First and longest pause before a migration is retried because another session held a lock.
const LOCK_RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// One lock for all migrations of a schema. It belongs to the transaction, so it works behind PgBouncer and is always
/// released. Its key is listed at the top of `sql/migrations/0001_events.sql`.
const LOCK: &str = "SELECT pg_advisory_xact_lock(x'6F750004'::int, hashtext('outbox'))";
const TRY_LOCK: &str = "SELECT pg_try_advisory_xact_lock(x'6F750004'::int, hashtext('outbox'))";

/// A note for the person who runs the script.
const HINT: &str = "-- It waits for the lock of a table that is in use for half of deadlock_timeout, so that no writer waits longer \
    behind\n-- it. Run it again after \"canceling statement due to lock timeout\"; nothing has changed then.\n";

/// The whole schema as one script, for teams that run SQL themselves.
pub fn script(schema: &Schema) -> String {
    let mut script = format!("{HINT}BEGIN;\n{LIMITS};\n{LOCK};\n{LOCK_TIMEOUT};\n{SCHEMA}{RECORDS}");
    for migration in MIGRATIONS {
        script.push_str(&format!("\n-- Migration {}: {}\n", migration.version, migration.name));
        script.push_str(migration.sql);
        script.push_str(&migration.record());
    }
    script.push_str("COMMIT;\n");
    schema.sql(&script).into_owned()
}

impl Outbox {
    /// Brings the schema to this program's version; returns the migrations that were applied now. If there is nothing
    /// to do it only reads, so a role without further privileges is enough.
    ///
    /// # Errors
    ///
    /// When the schema is newer and does not support this program, when a recorded migration differs, or when a
    /// statement fails; then nothing has changed.
    pub async fn migrate(&self) -> Result<Vec<Migration>, OutboxError> {
        self.migrate_to(&MIGRATIONS).await
    }

    /// The same for another list of migrations that begins with this program's; used to simulate the next release.
    ///
    /// # Errors
    ///
    /// As [`Outbox::migrate`].
    pub async fn migrate_to(&self, migrations: &[Migration]) -> Result<Vec<Migration>, OutboxError> {
        // This comes before a connection is taken: there may be only one.
        self.check_suitable().await?;
        let started = Instant::now();
        let (mut delays, mut dice) = (Delays::new(LOCK_RETRY.0, LOCK_RETRY.1), fastrand::Rng::new());
        let mut is_told = false;
        loop {
            let connection = self.connection().await?;
            // A failure leaves the transaction open; closing the connection rolls it back.
            let result = self.migrate_with(&connection, migrations).await;
            match self.keep_if_ok(connection, result).await {
                Err(error) if error.is_in_the_way() && started.elapsed() < MIGRATION_TIMEOUT => {
                    if !std::mem::replace(&mut is_told, true) {
                        tracing::info!(database = %self.place, %error, "a table is in use; trying again");
                    }
                    tokio::time::sleep(delays.next_delay(&mut dice)).await;
                }
                result => return result,
            }
        }
    }

    async fn migrate_with(&self, connection: &Object, migrations: &[Migration]) -> Result<Vec<Migration>, OutboxError> {
        let last = migrations.last().map(|migration| migration.version);
        if self.recorded(connection, migrations).await? == last {
            return Ok(Vec::new());
        }
        // Under a stricter isolation level, changes made by another migration during the wait for the lock would be
        // invisible.
        let begin = begin(&[LIMITS, self.no_transaction_timeout()]);
        self.bounded(MIGRATE, connection.batch_execute(&begin)).await?;
        let tried = self.bounded(MIGRATE, connection.query_typed(&self.schema.sql(TRY_LOCK), &[])).await?;
        if !tried.first().map_or(Ok(false), |row| column::<bool>(MIGRATE, row, 0))? {
            tracing::info!(database = %self.place, "another outbox-relay is migrating; waiting for it");
            self.within(MIGRATION_TIMEOUT, MIGRATE, connection.batch_execute(&self.schema.sql(LOCK))).await?;
        }
        self.bounded(MIGRATE, connection.batch_execute(LOCK_TIMEOUT)).await?;
        let recorded = self.recorded(connection, migrations).await?;
        if recorded.is_none() {
            let records = format!("{SCHEMA}{RECORDS}");
            self.within(MIGRATION_TIMEOUT, MIGRATE, connection.batch_execute(&self.schema.sql(&records))).await?;
        }
        let missing: Vec<Migration> =
            migrations.iter().copied().filter(|migration| Some(migration.version) > recorded).collect();
        for migration in &missing {
            self.within(MIGRATION_TIMEOUT, MIGRATE, connection.batch_execute(&self.schema.sql(migration.sql))).await?;
            self.within(MIGRATION_TIMEOUT, MIGRATE, connection.batch_execute(&self.schema.sql(&migration.record())))
                .await?;
        }
        self.within(MIGRATION_TIMEOUT, MIGRATE, connection.batch_execute(COMMIT)).await?;
        Ok(missing)
    }

    /// The recorded version, or `None` when there are no records yet.
    async fn recorded(&self, connection: &Object, migrations: &[Migration]) -> Result<Option<i32>, OutboxError> {
        let exists = self.bounded(MIGRATE, connection.query_typed(&self.schema.sql(HAS_RECORDS), &[])).await?;
        if !exists.first().map_or(Ok(false), |row| column::<bool>(MIGRATE, row, 0))? {
            return Ok(None);
        }
        let rows = self.bounded(MIGRATE, connection.query_typed(&self.schema.sql(RECORDED), &[])).await?;
        let recorded = self.compare(MIGRATE, &rows, migrations)?;
        if let Some(version) = recorded.newer {
            let known = recorded.known;
            tracing::info!(version, known, "the schema is newer than this outbox-relay, which can work with it");
        }
        Ok(Some(recorded.known))
    }

    /// The version of the schema, of whatever release it is; `None` if there is none. For `outbox-relay dev`, which
    /// changes nothing that others use.
    ///
    /// # Errors
    ///
    /// When a statement fails.
    #[cfg(feature = "dev")]
    pub async fn schema_version(&self) -> Result<Option<i32>, OutboxError> {
        const NAME: &str = "look for a schema";
        if !column::<bool>(NAME, &self.query_one(NAME, &self.schema.sql(HAS_RECORDS), &[]).await?, 0)? {
            return Ok(None);
        }
        let newest = "SELECT coalesce(max(version), 0) FROM outbox.migrations";
        column(NAME, &self.query_one(NAME, &self.schema.sql(newest), &[]).await?, 0).map(Some)
    }

    /// Whether this program can work with the schema, and with the database at all.
    ///
    /// # Errors
    ///
    /// [`OutboxError::NotMigrated`] when it is older or missing; [`OutboxError::Changed`] when a migration was another
    /// one. A newer schema is accepted, so that old relays keep working while the new version is rolled out and if it is
    /// rolled back, unless the schema says that this program is too old.
    pub async fn check_schema(&self) -> Result<(), OutboxError> {
        self.check_suitable().await?;
        const NAME: &str = "check the schema";
        let rows = self.query(NAME, &self.schema.sql(RECORDED), &[]).await?;
        let found = self.compare(NAME, &rows, &MIGRATIONS)?.known;
        let needed = MIGRATIONS.last().map_or(0, |migration| migration.version);
        if found < needed {
            return Err(OutboxError::NotMigrated {
                place: self.place.to_string(),
                problem: format!("it has schema version {found}, {needed} is needed"),
            });
        }
        Ok(())
    }

    /// Compares what is recorded with the migrations of this program.
    fn compare(
        &self,
        name: &'static str,
        rows: &[tokio_postgres::Row],
        migrations: &[Migration],
    ) -> Result<Recorded, OutboxError> {
        let place = || self.place.to_string();
        let last = migrations.last().map_or(0, |migration| migration.version);
        let mut recorded = Recorded { known: 0, newer: None };
        for row in rows {
            let (version, needed): (i32, i32) = (column(name, row, 0)?, column(name, row, 3)?);
            if needed > last {
                return Err(OutboxError::TooNew { place: place(), found: version, needed, known: last });
            }
            let Some(migration) = migrations.iter().find(|migration| migration.version == version) else {
                recorded.newer = Some(version);
                continue;
            };
            if column::<String>(name, row, 2)? != migration.checksum() {
                return Err(OutboxError::Changed { place: place(), version, name: column(name, row, 1)? });
            }
            recorded.known = version;
        }
        Ok(recorded)
    }
}

/// Which migrations a database has.
struct Recorded {
    /// The last one that this program knows, or 0.
    known: i32,
    /// The last one that it does not know.
    newer: Option<i32>,
}
