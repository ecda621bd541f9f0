//! What a relay says and does when the database answers, or does not.

use std::time::{Duration, Instant};

use super::{Relay, RelayError, Until};
use crate::outbox::OutboxError;

/// How long `run --until-empty` bears a database or a queue that does not work, before it gives up.
const UNTIL_EMPTY_PATIENCE: Duration = Duration::from_secs(60);

impl Relay {
    /// Says so; the delays begin anew only when a whole step has gone well, for a database may answer and yet refuse what
    /// comes next.
    pub(super) fn database_answered(&self) {
        if self.reports.database.report_up() {
            tracing::info!("the database is back");
        }
        self.reports.database_up.set(i64::from(self.reports.database.is_up()));
    }

    /// Returns how long to wait.
    pub(super) fn database_failed(&mut self, error: OutboxError, until: Until) -> Result<Duration, RelayError> {
        // Whatever failed, the next answer may come from another server, and is to come over another connection.
        self.forget_bounds();
        self.destination.outbox.forget_connections();
        self.is_prepared = false;
        let is_final = error.is_final();
        self.reports.database_up.set(0);
        if self.reports.database.report_down(&error.to_string()) {
            let unsettled = self.unsettled.len();
            tracing::warn!(error = %error, unsettled, "the database cannot be used; trying again");
        }
        if is_final && until == Until::Empty {
            return Err(RelayError::Database(error));
        }
        self.give_up_after(until, RelayError::Database(error))?;
        Ok(self.database_delays.next_delay())
    }

    pub(super) fn give_up_after(&mut self, until: Until, error: RelayError) -> Result<(), RelayError> {
        let since = *self.failing_since.get_or_insert_with(Instant::now);
        if until == Until::Empty && since.elapsed() >= UNTIL_EMPTY_PATIENCE { Err(error) } else { Ok(()) }
    }
}
