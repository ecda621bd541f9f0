//! Migrations: forward only, embedded, recorded with a checksum, safe when many sidecars start at once.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use deadpool_postgres::Object;
use sha2::{Digest as _, Sha256};

use super::{Outbox, OutboxError, TRANSACTION_TIMEOUT_SINCE, column};
use crate::retry::Delays;

/// One step of the schema.
#[derive(Clone, Copy, Debug)]
pub struct Migration {
    /// 1, 2, 3, …
    pub version: i32,
    /// The file's name without number and ending.
    pub name: &'static str,
    /// What to run.
    pub sql: &'static str,
}

impl Migration {
    /// SHA-256 of the text, in hexadecimal digits.
    pub fn checksum(&self) -> String {
        Sha256::digest(self.sql.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    fn record(&self) -> String {
        format!(
            "INSERT INTO outbox.migrations (version, name, checksum) VALUES ({}, '{}', '{}');\n",
            self.version,
            self.name,
            self.checksum()
        )
    }
}

/// All migrations, in order. A released one is never changed. These seven are the schema of the first release, by topic.
pub const MIGRATIONS: [Migration; 7] = [
    Migration { version: 1, name: "events", sql: include_str!("../../sql/migrations/0001_events.sql") },
    Migration { version: 2, name: "messages", sql: include_str!("../../sql/migrations/0002_messages.sql") },
    Migration { version: 3, name: "dead_letters", sql: include_str!("../../sql/migrations/0003_dead_letters.sql") },
    Migration { version: 4, name: "steering", sql: include_str!("../../sql/migrations/0004_steering.sql") },
    Migration { version: 5, name: "replay", sql: include_str!("../../sql/migrations/0005_replay.sql") },
    Migration { version: 6, name: "event_store", sql: include_str!("../../sql/migrations/0006_event_store.sql") },
    Migration { version: 7, name: "consumers", sql: include_str!("../../sql/migrations/0007_consumers.sql") },
];

/// Not IF NOT EXISTS, which asks for the right to create schemas even when there is nothing to create.
const SCHEMA: &str = "\
DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_namespace WHERE nspname = 'outbox') THEN CREATE SCHEMA outbox; END IF; END $$;
";

/// Where migrations are recorded; made before the first of them.
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
COMMENT ON COLUMN outbox.migrations.checksum IS 'SHA-256 of its text; a difference means that it was changed afterwards.';
COMMENT ON COLUMN outbox.migrations.applied_at IS 'When it was applied.';
COMMENT ON COLUMN outbox.migrations.needs IS
    'The oldest schema version whose relays work with the database after this migration.';
";

/// What the statements here are called in errors.
const MIGRATE: &str = "migrate";

/// Others may hold the lock and build an index meanwhile; longer than that, somebody should look.
const MIGRATION_TIMEOUT: Duration = Duration::from_secs(600);

/// What a migration's transaction begins with, so that settings of the server or the role do not count; and what follows once
/// nobody else migrates: it waits for a table no longer than writers may wait behind it.
const LIMITS: &str = "SET LOCAL lock_timeout = 0; SET LOCAL statement_timeout = '600s'; \
    SET LOCAL idle_in_transaction_session_timeout = '60s'";
const NO_TRANSACTION_TIMEOUT: &str = "; SET LOCAL transaction_timeout = 0";
const LOCK_TIMEOUT: &str = "SET LOCAL lock_timeout = '2s'";

/// First and longest pause before a migration tries again whose lock somebody held.
const LOCK_RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));

/// One lock for everybody who migrates. Within the transaction, so that it works behind PgBouncer and cannot be forgotten. Its
/// key is listed at the top of `sql/migrations/0001_events.sql`.
const LOCK: &str = "SELECT pg_advisory_xact_lock(x'6F75FFFFFFFFFF01'::bigint)";
const TRY_LOCK: &str = "SELECT pg_try_advisory_xact_lock(x'6F75FFFFFFFFFF01'::bigint)";

/// What a person who runs the script has to know.
const HINT: &str = "-- It waits for the lock of a table that is in use for two seconds, so that no writer waits longer behind it. \
    Run it\n-- again after \"canceling statement due to lock timeout\"; nothing has changed then.\n";

/// The whole schema as one script, for teams that run SQL themselves.
pub fn script() -> String {
    let mut script = format!("{HINT}BEGIN;\n{LIMITS};\n{LOCK};\n{LOCK_TIMEOUT};\n{SCHEMA}{RECORDS}");
    for migration in MIGRATIONS {
        script.push_str(&format!("\n-- Migration {}: {}\n", migration.version, migration.name));
        script.push_str(migration.sql);
        script.push_str(&migration.record());
    }
    script.push_str("COMMIT;\n");
    script
}

impl Outbox {
    /// Brings the schema to this program's version; returns the migrations that were applied now. Where nothing is to be
    /// done it only looks, so a role that may do no more is enough.
    ///
    /// # Errors
    ///
    /// When the database is newer, a recorded migration differs, or a statement fails; then nothing has changed.
    pub async fn migrate(&self) -> Result<Vec<Migration>, OutboxError> {
        self.migrate_to(&MIGRATIONS).await
    }

    /// The same to another list of migrations, which begins as this program's does: what the next release will do.
    ///
    /// # Errors
    ///
    /// As [`Outbox::migrate`].
    pub async fn migrate_to(&self, migrations: &[Migration]) -> Result<Vec<Migration>, OutboxError> {
        // Before a connection is taken: there may be one only.
        self.check_suitable().await?;
        let started = Instant::now();
        let (mut delays, mut dice) = (Delays::new(LOCK_RETRY.0, LOCK_RETRY.1), fastrand::Rng::new());
        let mut is_told = false;
        loop {
            let connection = self.connection().await?;
            // A failure leaves the transaction open, and closing the connection rolls it back.
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
        // Under a stricter isolation, what another one did while this one waited for the lock would not be seen.
        let is_limited = self.version.load(Ordering::Relaxed) >= TRANSACTION_TIMEOUT_SINCE;
        let no_timeout = if is_limited { NO_TRANSACTION_TIMEOUT } else { "" };
        let begin = format!("BEGIN ISOLATION LEVEL READ COMMITTED; {LIMITS}{no_timeout}");
        self.bounded(MIGRATE, connection.batch_execute(&begin)).await?;
        let tried = self.bounded(MIGRATE, connection.query_typed(TRY_LOCK, &[])).await?;
        if !tried.first().map_or(Ok(false), |row| column::<bool>(MIGRATE, row, 0))? {
            tracing::info!(database = %self.place, "another outbox-relay migrates; waiting for it");
            self.within(MIGRATION_TIMEOUT, MIGRATE, connection.batch_execute(LOCK)).await?;
        }
        self.bounded(MIGRATE, connection.batch_execute(LOCK_TIMEOUT)).await?;
        let recorded = self.recorded(connection, migrations).await?;
        if recorded.is_none() {
            let records = format!("{SCHEMA}{RECORDS}");
            self.within(MIGRATION_TIMEOUT, MIGRATE, connection.batch_execute(&records)).await?;
        }
        let missing: Vec<Migration> =
            migrations.iter().copied().filter(|migration| Some(migration.version) > recorded).collect();
        for migration in &missing {
            self.within(MIGRATION_TIMEOUT, MIGRATE, connection.batch_execute(migration.sql)).await?;
            self.within(MIGRATION_TIMEOUT, MIGRATE, connection.batch_execute(&migration.record())).await?;
        }
        self.within(MIGRATION_TIMEOUT, MIGRATE, connection.batch_execute("COMMIT")).await?;
        Ok(missing)
    }

    /// The version that is recorded, or none when there are no records yet.
    async fn recorded(&self, connection: &Object, migrations: &[Migration]) -> Result<Option<i32>, OutboxError> {
        // Asked of the catalog: to_regclass may still answer from before the wait for the lock.
        let exists = "SELECT EXISTS (
            SELECT FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
            WHERE n.nspname = 'outbox' AND c.relname = 'migrations'
        )";
        let exists = self.bounded(MIGRATE, connection.query_typed(exists, &[])).await?;
        if !exists.first().map_or(Ok(false), |row| column::<bool>(MIGRATE, row, 0))? {
            return Ok(None);
        }
        let recorded = "SELECT version, name, checksum, needs FROM outbox.migrations ORDER BY version";
        let recorded = self.bounded(MIGRATE, connection.query_typed(recorded, &[])).await?;
        self.check_recorded(&recorded, migrations).map(Some)
    }

    /// Whether this program can work with the schema, and with the database at all.
    ///
    /// # Errors
    ///
    /// [`OutboxError::NotMigrated`] when it is older or missing. A newer schema is fine, so that old relays go on while the new
    /// version is rolled out, and when it is rolled back; unless it says that this program is too old for it.
    pub async fn check_schema(&self) -> Result<(), OutboxError> {
        self.check_suitable().await?;
        const NAME: &str = "check the schema";
        const VERSION: &str = "SELECT coalesce(max(version), 0), coalesce(max(needs), 0) FROM outbox.migrations";
        let row = self.query_one(NAME, VERSION, &[]).await?;
        let (version, needed): (i32, i32) = (column(NAME, &row, 0)?, column(NAME, &row, 1)?);
        let known = MIGRATIONS.last().map_or(0, |migration| migration.version);
        if needed > known {
            return Err(OutboxError::TooNew { place: self.place.to_string(), found: version, needed, known });
        }
        if version < known {
            return Err(OutboxError::NotMigrated {
                place: self.place.to_string(),
                problem: format!("it has schema version {version}, {known} is needed"),
            });
        }
        Ok(())
    }

    fn check_recorded(&self, rows: &[tokio_postgres::Row], migrations: &[Migration]) -> Result<i32, OutboxError> {
        let known = migrations.last().map_or(0, |migration| migration.version);
        let mut applied = 0;
        for row in rows {
            let version: i32 = column(MIGRATE, row, 0)?;
            let Some(migration) = migrations.iter().find(|migration| migration.version == version) else {
                let needed: i32 = column(MIGRATE, row, 3)?;
                if needed > known {
                    return Err(OutboxError::TooNew { place: self.place.to_string(), found: version, needed, known });
                }
                tracing::info!(version, known, "the schema is newer than this outbox-relay, which can work with it");
                continue;
            };
            if column::<String>(MIGRATE, row, 2)? != migration.checksum() {
                let name: String = column(MIGRATE, row, 1)?;
                return Err(OutboxError::Changed { place: self.place.to_string(), version, name });
            }
            applied = version;
        }
        Ok(applied)
    }
}
