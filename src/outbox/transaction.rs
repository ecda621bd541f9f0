//! Transactions: how they begin and end, and the limits in them. No other file writes `BEGIN` or `COMMIT`, except the script
//! that `outbox-relay migrate --print` prints.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::connect::Object;

use super::{Outbox, OutboxError, READING};

/// The end of a transaction.
pub(super) const COMMIT: &str = "COMMIT";

/// PostgreSQL 17 added this timeout, which can be set for a role and would end a claim.
const TRANSACTION_TIMEOUT_SINCE: i32 = 170_000;

/// The beginning of a transaction with these settings. READ COMMITTED, so that each statement gets a snapshot of its own,
/// whatever the default of the database or the role is.
pub(super) fn begin(settings: &[&str]) -> String {
    let settings = settings.iter().filter(|setting| !setting.is_empty()).map(|setting| format!("; {setting}"));
    settings.fold("BEGIN ISOLATION LEVEL READ COMMITTED".to_owned(), |all, setting| all + &setting)
}

impl Outbox {
    /// What every transaction but a migration begins with. With it, the server itself gives up before
    /// [`super::STATEMENT_TIMEOUT`], when it waits for a lock or a statement runs too long, and shorter limits of the server
    /// or the role do not apply.
    pub(super) fn begin(&self, settings: &str) -> String {
        const LIMITS: &str = "SET LOCAL lock_timeout = '5s'; SET LOCAL statement_timeout = '9s'";
        begin(&[LIMITS, self.no_transaction_timeout(), settings])
    }

    /// Nothing ends a transaction for its age alone; empty where the server has no such limit.
    pub(super) fn no_transaction_timeout(&self) -> &'static str {
        let has_limit = self.version.load(Ordering::Relaxed) >= TRANSACTION_TIMEOUT_SINCE;
        if has_limit { "SET LOCAL transaction_timeout = 0" } else { "" }
    }

    /// Runs statements in one transaction. All are sent at once: PostgreSQL runs the statements of a connection one
    /// after the other, in the order in which they are first polled, and under READ COMMITTED each gets its own
    /// snapshot. If one fails, the others do not run, and COMMIT rolls back.
    pub(super) async fn transaction<T>(
        &self,
        name: &'static str,
        connection: &Object,
        settings: &str,
        statements: impl Future<Output = Result<T, OutboxError>>,
    ) -> Result<T, OutboxError> {
        let begin = self.begin(settings);
        let begin = self.bounded(name, connection.batch_execute(&begin));
        let commit = self.bounded(name, connection.batch_execute(COMMIT));
        let (begun, result, committed) = tokio::join!(biased; begin, statements, commit);
        begun?;
        let value = result?;
        committed?;
        Ok(value)
    }

    /// The same for one rescan or count, which the server cuts short after this time; then it returns `None`.
    pub(super) async fn cut_short_after<T>(
        &self,
        timeout: Option<Duration>,
        name: &'static str,
        connection: &Object,
        statement: impl Future<Output = Result<T, OutboxError>>,
    ) -> Result<Option<T>, OutboxError> {
        let Some(timeout) = timeout else {
            return self.transaction(name, connection, READING, statement).await.map(Some);
        };
        let settings = format!("{READING}; SET LOCAL statement_timeout = {}", timeout.as_millis());
        match self.transaction(name, connection, &settings, statement).await {
            Err(error) if error.is_cut_short() => Ok(None),
            result => result.map(Some),
        }
    }
}
