//! The errors between the relay and its tables.

use tokio_postgres::error::SqlState;

/// An error between the relay and its tables.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OutboxError {
    /// No connection could be made.
    #[error("cannot connect to PostgreSQL at {place}: {problem}")]
    Connect {
        /// Host, port and database.
        place: String,
        /// The cause.
        problem: String,
        /// The cause for readers who need no login.
        shown: String,
        /// Whether waiting cannot help: a wrong password, or a database that does not exist.
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
    /// The schema is newer than this program and says that this program is too old for it.
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
        "migration {version} ({name}) in the database at {place} is not the one in this outbox-relay: another build made this schema; run that build, or let a release make the schema in an empty database"
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
        /// PostgreSQL's SQLSTATE, if the error came from PostgreSQL.
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
    #[error("unexpected answer to {statement}: {problem}")]
    Answer {
        /// Which statement.
        statement: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The connection that held the claim is gone, or leads to another server.
    #[error("the claim is gone: its connection was closed, or leads to another server")]
    ClaimLost,
    /// The configured connection cannot be set up.
    #[error("{0}")]
    Setup(String),
}

/// SQLSTATE classes that are about the server, the session or the schema, never about a row (PostgreSQL, appendix A):
/// connection, cursors and transactions, authorization, names, rollback, syntax, resources, object states, operator
/// intervention, system errors.
const NOT_ABOUT_A_ROW: [&str; 18] =
    ["08", "09", "0A", "24", "25", "26", "28", "2D", "34", "3B", "3D", "3F", "40", "42", "53", "55", "57", "58"];

impl OutboxError {
    /// Whether trying again later is useless until somebody changes something here.
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

    /// The error for readers who need no login: without what a password command has said, which may be a secret.
    pub fn shown(&self) -> String {
        match self {
            Self::Connect { place, shown, is_final, .. } => {
                let (place, problem) = (place.clone(), shown.clone());
                Self::Connect { place, problem, shown: String::new(), is_final: *is_final }.to_string()
            }
            other => other.to_string(),
        }
    }

    fn state(&self) -> Option<&SqlState> {
        match self {
            Self::Statement { state, .. } => state.as_ref(),
            _ => None,
        }
    }

    /// Whether the role lacks a privilege.
    pub fn is_denied(&self) -> bool {
        self.state() == Some(&SqlState::INSUFFICIENT_PRIVILEGE)
    }

    /// Whether a row with the same key exists already.
    pub fn is_duplicate(&self) -> bool {
        self.state() == Some(&SqlState::UNIQUE_VIOLATION)
    }

    /// Whether another transaction conflicted, so that the same statements may succeed at once.
    pub fn is_conflict(&self) -> bool {
        let conflicts = [SqlState::T_R_SERIALIZATION_FAILURE, SqlState::T_R_DEADLOCK_DETECTED];
        self.state().is_some_and(|state| conflicts.contains(state))
    }

    /// Whether another session held a lock for longer than this one could wait.
    pub fn is_in_the_way(&self) -> bool {
        self.is_conflict() || self.state() == Some(&SqlState::LOCK_NOT_AVAILABLE)
    }

    /// Whether the server ended a statement because it exceeded its time limit or was cancelled.
    pub fn is_cut_short(&self) -> bool {
        self.state() == Some(&SqlState::QUERY_CANCELED)
    }

    /// Whether a statement may have failed because of one of its rows: a constraint, a trigger, a row-level policy, a
    /// value that cannot be read. Other rows may still be written or read.
    pub fn is_about_a_row(&self) -> bool {
        let of_rows = [SqlState::INSUFFICIENT_PRIVILEGE, SqlState::OUT_OF_MEMORY];
        self.state().is_some_and(|state| {
            let class = state.code().get(..2).unwrap_or_default();
            of_rows.contains(state) || !NOT_ABOUT_A_ROW.contains(&class)
        })
    }

    /// An error as if PostgreSQL had refused something with this code.
    #[cfg(test)]
    pub(crate) fn of_code(code: &str) -> Self {
        let (place, problem) = (String::new(), String::new());
        Self::Statement { state: Some(SqlState::from_code(code)), statement: "settle", place, problem }
    }

    /// What PostgreSQL has said about a row, and a function of the outbox has passed on.
    pub(super) fn of_refusal(statement: &'static str, place: &str, code: &str, message: &str) -> Self {
        let problem = format!("{} (SQLSTATE {code})", crate::causes::harmless(message));
        Self::Statement { state: Some(SqlState::from_code(code)), statement, place: place.to_owned(), problem }
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

/// tokio-postgres keeps PostgreSQL's own message in the source of its error.
pub(super) fn explain(error: &tokio_postgres::Error) -> String {
    if let Some(cause) = error.as_db_error() {
        return format!("{} (SQLSTATE {})", crate::causes::harmless(cause.message()), cause.code().code());
    }
    let mut text = crate::causes::sentence(error);
    // tokio-postgres's text when a server is not writable although target_session_attrs=read-write was asked for.
    if text.ends_with("database does not allow writes") {
        text.push_str(": it is a standby, or its transactions are read-only; point DATABASE_URL at the primary");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_constraints_triggers_policies_and_values_are_about_a_row() {
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
