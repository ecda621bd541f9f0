//! Whether a database can hold an outbox at all, and whether this role sees every row of it. Checked by `migrate`,
//! `run` and `check`, and before the relay reports that nothing is pending: a hidden row looks like a missing one.

use std::sync::atomic::Ordering;

use super::{Outbox, OutboxError, column};

/// The oldest PostgreSQL version that supports everything the schema uses.
const OLDEST: i32 = 130_000;

impl Outbox {
    /// Checks whether the database can be used.
    ///
    /// # Errors
    ///
    /// [`OutboxError::Unsuitable`] with the first reason and its remedy, or when the statement fails.
    pub async fn check_suitable(&self) -> Result<(), OutboxError> {
        const NAME: &str = "check the database";
        let row = self.query_one(NAME, &self.sql.suitable, &[]).await?;
        let version: i32 = column(NAME, &row, 0)?;
        self.version.store(version, Ordering::Relaxed);
        let rest: Option<i64> = column(NAME, &row, 6)?;
        self.rest_millis.store(rest.and_then(|rest| u64::try_from(rest).ok()).unwrap_or(0), Ordering::Relaxed);
        let (encoding, is_standby, role): (String, bool, String) =
            (column(NAME, &row, 1)?, column(NAME, &row, 2)?, column(NAME, &row, 3)?);
        let (hidden, odd): (Vec<String>, Vec<String>) = (column(NAME, &row, 4)?, column(NAME, &row, 5)?);
        let unsuitable = |problem: String, remedy: String| {
            Err(OutboxError::Unsuitable { place: self.place.to_string(), problem, remedy })
        };
        if version < OLDEST {
            return unsuitable(
                format!("it is PostgreSQL {}", version / 10_000),
                "use PostgreSQL 13 or newer".to_owned(),
            );
        }
        if encoding != "UTF8" {
            return unsuitable(
                format!("its encoding is {encoding}, and SQS takes UTF-8 only"),
                "create a database with ENCODING 'UTF8', and move the data there".to_owned(),
            );
        }
        if is_standby {
            return unsuitable(
                "it is a standby, which takes no writes and may be behind".to_owned(),
                "point DATABASE_URL at the primary".to_owned(),
            );
        }
        if let Some(table) = odd.first() {
            return unsuitable(
                format!("{}.{table} is no table", self.schema),
                "restore the schema that `outbox-relay migrate` made".to_owned(),
            );
        }
        if let Some(table) = hidden.first() {
            let table = format!("{}.{table}", self.schema);
            return unsuitable(
                format!("row level security may hide rows of {table} from {role}"),
                format!(
                    "ALTER TABLE {table} DISABLE ROW LEVEL SECURITY, or CREATE POLICY relay ON {table} TO {role} USING (true)"
                ),
            );
        }
        Ok(())
    }
}
