//! The part of `outbox-relay check` about routes: whether all that is written through `outbox.outboxevent` has a relay.

use super::{Findings, Verdict, rights};
use crate::config::DestinationConfig;
use crate::outbox::{Outbox, RoutedTo};
use crate::schema::Schema;

/// Says which routes lead to destinations that this relay does not have. Another one may have them, so they are warnings.
pub(super) async fn check(
    outbox: &Outbox,
    schema: &Schema,
    destinations: &[DestinationConfig],
    findings: &mut Findings,
) {
    let served: Vec<&str> = destinations.iter().map(|destination| destination.name.as_str()).collect();
    let unserved = match outbox.unserved_routes(&served).await {
        Ok(unserved) => unserved,
        Err(error) => {
            let remedy = if error.is_denied() { rights(schema) } else { String::new() };
            return findings.add("routes", Verdict::Warning, error.to_string(), remedy);
        }
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
                "add {destination} to OUTBOX_RELAY_DESTINATIONS here or of another relay, or DELETE FROM {schema}.routes: \
                 its messages wait until a relay serves it"
            ),
        );
    }
}
