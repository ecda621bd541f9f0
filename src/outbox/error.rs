//! What can go wrong between the relay and its tables, and what to do about it.

use tokio_postgres::error::SqlState;

/// What can go wrong between the relay and its tables.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OutboxError {
    /// No connection could be made.
    #[error("cannot connect to PostgreSQL at {place}: {problem}")]
    Connect {
        /// Host, port and database.
        place: String,
        /// The cause.
        problem: String,
        /// Whether waiting cannot help: a wrong password, a database that does not exist.
        is_final: bool,
    },
    /// The database cannot hold an outbox, or this role cannot see it.
    #[error("the database at {place} cannot be used: {problem}; {remedy}")]
    Unsuitable {
        /// Host, port and database.
        place: String,
        /// What is wrong.
        problem: String,
        /// What to do.
        remedy: String,
    },
    /// The schema is missing or too old.
    #[error("the database at {place} is not migrated ({problem}); run `outbox-relay migrate`")]
    NotMigrated {
        /// Host, port and database.
        place: String,
        /// What is missing.
        problem: String,
    },
    /// The schema is newer than this program, and says that this program is too old for it.
    #[error(
        "the database at {place} has schema version {found}, which needs an outbox-relay of schema version {needed} or newer; this one has {known}: install a newer outbox-relay"
    )]
    TooNew {
        /// Host, port and database.
        place: String,
        /// The version in the database.
        found: i32,
        /// The oldest version that can work with it.
        needed: i32,
        /// The newest version this program knows.
        known: i32,
    },
    /// A migration in the database differs from the one in this program.
    #[error(
        "migration {version} ({name}) in the database at {place} is not the one in this outbox-relay; restore the file or the database it came from"
    )]
    Changed {
        /// Host, port and database.
        place: String,
        /// Which migration.
        version: i32,
        /// Its name.
        name: String,
    },
    /// A statement failed.
    #[error("{statement} failed at {place}: {problem}")]
    Statement {
        /// What PostgreSQL calls it, where it was PostgreSQL that failed.
        state: Option<SqlState>,
        /// Which statement.
        statement: &'static str,
        /// Host, port and database.
        place: String,
        /// What PostgreSQL said.
        problem: String,
    },
    /// A statement did not end in time.
    #[error("{statement} got no answer from {place} in time")]
    Timeout {
        /// Which statement.
        statement: &'static str,
        /// Host, port and database.
        place: String,
    },
    /// The answer does not fit the statement.
    #[error("{statement} answered what it should not: {problem}")]
    Answer {
        /// Which statement.
        statement: &'static str,
        /// What is odd.
        problem: String,
    },
    /// The connection that held the claim is gone, or leads to another server.
    #[error("the claim is gone: its connection was closed, or leads to another server")]
    ClaimLost,
    /// Connections cannot be made the way they are configured.
    #[error("{0}")]
    Setup(String),
}

/// SQLSTATE classes that tell of the server, the session or the schema, never of a row (PostgreSQL, appendix A): connection,
/// cursors and transactions, authorization, names, rollback, syntax, resources, states of objects, operators, the system.
const NOT_ABOUT_A_ROW: [&str; 18] =
    ["08", "09", "0A", "24", "25", "26", "28", "2D", "34", "3B", "3D", "3F", "40", "42", "53", "55", "57", "58"];

impl OutboxError {
    /// Whether trying again later cannot help without somebody changing something here.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Connect { is_final, .. } => *is_final,
            Self::Unsuitable { .. }
            | Self::NotMigrated { .. }
            | Self::TooNew { .. }
            | Self::Changed { .. }
            | Self::Setup(_) => true,
            Self::Statement { .. } | Self::Timeout { .. } | Self::Answer { .. } | Self::ClaimLost => false,
        }
    }

    fn state(&self) -> Option<&SqlState> {
        match self {
            Self::Statement { state, .. } => state.as_ref(),
            _ => None,
        }
    }

    /// Whether the role lacks a right.
    pub fn is_denied(&self) -> bool {
        self.state() == Some(&SqlState::INSUFFICIENT_PRIVILEGE)
    }

    /// Whether a row with the same key is there already.
    pub fn is_duplicate(&self) -> bool {
        self.state() == Some(&SqlState::UNIQUE_VIOLATION)
    }

    /// Whether another transaction was in the way and the same statements may succeed at once.
    pub fn is_conflict(&self) -> bool {
        let conflicts = [SqlState::T_R_SERIALIZATION_FAILURE, SqlState::T_R_DEADLOCK_DETECTED];
        self.state().is_some_and(|state| conflicts.contains(state))
    }

    /// Whether somebody held a lock for longer than this could wait.
    pub fn is_in_the_way(&self) -> bool {
        self.is_conflict() || self.state() == Some(&SqlState::LOCK_NOT_AVAILABLE)
    }

    /// Whether the server ended a statement because it ran longer than it may, or because somebody asked it to.
    pub fn is_cut_short(&self) -> bool {
        self.state() == Some(&SqlState::QUERY_CANCELED)
    }

    /// Whether a statement may have failed because of one of its rows: a constraint, a trigger, a right that a policy gives
    /// row by row, a value that cannot be read. Other rows may be written or read.
    pub fn is_about_a_row(&self) -> bool {
        let of_rows = [SqlState::INSUFFICIENT_PRIVILEGE, SqlState::OUT_OF_MEMORY];
        self.state().is_some_and(|state| {
            let class = state.code().get(..2).unwrap_or_default();
            of_rows.contains(state) || !NOT_ABOUT_A_ROW.contains(&class)
        })
    }

    /// As if PostgreSQL had refused something with this code.
    #[cfg(test)]
    pub(crate) fn of_code(code: &str) -> Self {
        let (place, problem) = (String::new(), String::new());
        Self::Statement { state: Some(SqlState::from_code(code)), statement: "settle", place, problem }
    }

    pub(super) fn of_statement(statement: &'static str, place: &str, error: &tokio_postgres::Error) -> Self {
        let missing = [
            SqlState::UNDEFINED_TABLE,
            SqlState::INVALID_SCHEMA_NAME,
            SqlState::UNDEFINED_COLUMN,
            SqlState::UNDEFINED_FUNCTION,
        ];
        let place = place.to_owned();
        match error.as_db_error() {
            Some(cause) if missing.contains(cause.code()) => {
                Self::NotMigrated { place, problem: cause.message().to_owned() }
            }
            cause => {
                let state = cause.map(|cause| cause.code().clone());
                Self::Statement { state, statement, place, problem: explain(error) }
            }
        }
    }
}

/// tokio-postgres keeps PostgreSQL's own words in the source of its error.
pub(super) fn explain(error: &tokio_postgres::Error) -> String {
    if let Some(cause) = error.as_db_error() {
        return format!("{} (SQLSTATE {})", cause.message(), cause.code().code());
    }
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    // The words of tokio-postgres for a server that says so in answer to target_session_attrs=read-write.
    if text.ends_with("database does not allow writes") {
        text.push_str(": it is a standby, or its transactions are read-only; point DATABASE_URL at the primary");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constraints_triggers_policies_and_values_are_about_a_row_and_nothing_else_is() {
        for code in ["23505", "23514", "22021", "22P02", "P0001", "OX409", "42501", "XX001", "54000", "53200", "44000"]
        {
            assert!(OutboxError::of_code(code).is_about_a_row(), "{code}");
        }
        for code in ["08006", "25006", "25P02", "40001", "42P01", "53100", "53300", "55P03", "57014", "57P01", "58030"]
        {
            assert!(!OutboxError::of_code(code).is_about_a_row(), "{code}");
        }
        assert!(!OutboxError::ClaimLost.is_about_a_row());
        assert!(OutboxError::of_code("40P01").is_conflict() && OutboxError::of_code("42501").is_denied());
    }
}
