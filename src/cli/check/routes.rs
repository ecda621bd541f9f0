//! The part of `outbox-relay check` about routes: whether all that is written through `outbox.outboxevent` has a relay.

use super::{Findings, Verdict, rights};
use crate::config::RelayConfig;
use crate::outbox::{Outbox, OutboxError, RoutedTo};

/// Says which routes lead to destinations that this relay does not have. Another one may have them, so they are warnings.
pub(super) async fn check(config: &RelayConfig, findings: &mut Findings) {
    let schema = &config.database.schema;
    let unserved = match ask(config).await {
        Ok(unserved) => unserved,
        Err(error) if error.is_denied() => {
            return findings.add("routes", Verdict::Warning, error.to_string(), rights(schema));
        }
        // What is wrong with the database has been said.
        Err(_) => return,
    };
    if unserved.is_empty() {
        findings.good("routes", "lead to destinations of this relay only");
    }
    for RoutedTo { destination, aggregate_types } in unserved {
        findings.add(
            "routes",
            Verdict::Warning,
            format!("{} lead to {destination}, which this relay does not serve", aggregate_types.join(", ")),
            format!(
                "add {destination} to the destinations of this relay or of another one, or DELETE FROM {schema}.routes: its \
                 messages wait until a relay serves it"
            ),
        );
    }
}

async fn ask(config: &RelayConfig) -> Result<Vec<RoutedTo>, OutboxError> {
    let served: Vec<&str> = config.destinations.iter().map(|destination| destination.name.as_str()).collect();
    Outbox::new(&config.database, 1)?.unserved_routes(&served).await
}
