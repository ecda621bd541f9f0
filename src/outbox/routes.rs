//! Routes: where rows of the view `outbox.outboxevent` are sent. Applications own them; `outbox-relay check` looks at them.

use tokio_postgres::types::Type;

use super::{Outbox, OutboxError, Parameter, column};

/// A destination that routes lead to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoutedTo {
    /// Its name.
    pub destination: String,
    /// The aggregate types that are sent there; `*` stands for all without a route of their own.
    pub aggregate_types: Vec<String>,
}

impl Outbox {
    /// Where routes lead to, but for these destinations.
    ///
    /// # Errors
    ///
    /// When the statement fails, as when the role may not read `outbox.routes`.
    pub async fn unserved_routes(&self, served: &[&str]) -> Result<Vec<RoutedTo>, OutboxError> {
        const NAME: &str = "list routes";
        let parameters: [Parameter<'_>; 1] = [(&served, Type::TEXT_ARRAY)];
        let routed = |row: &tokio_postgres::Row| {
            Ok(RoutedTo { destination: column(NAME, row, 0)?, aggregate_types: column(NAME, row, 1)? })
        };
        self.query(NAME, &self.sql.unserved_routes, &parameters).await?.iter().map(routed).collect()
    }
}
