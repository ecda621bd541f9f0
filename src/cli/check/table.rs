//! The part of `outbox-relay check` about which destinations are served: those of the environment or those of
//! `outbox.destinations`, and messages that wait for others.

use super::{Findings, Verdict};
use crate::config::{ConfiguredDestinations, Difference, RelayConfig};
use crate::outbox::{Outbox, OutboxError};

/// Judges the destinations; returns the configuration with those that a relay would serve.
pub(super) async fn check(config: RelayConfig, findings: &mut Findings) -> RelayConfig {
    let (table, unserved) = match ask(&config).await {
        Ok(answers) => answers,
        Err(error) => {
            // What is wrong with the database has been said.
            if config.follows_the_table() && !findings.is_bad() {
                findings.add("destinations", Verdict::Bad, error.to_string(), super::rights(&config.database.schema));
            }
            return config;
        }
    };
    let config = if config.follows_the_table() {
        judge_table(&table, findings);
        config.with_destinations(table.served)
    } else {
        judge_overridden(&config, &table, findings);
        config
    };
    let is_own = |name: &str| config.destinations.iter().any(|destination| destination.name == name);
    let unserved: Vec<String> = unserved
        .into_iter()
        .filter(|(name, _)| !is_own(name))
        .map(|(name, messages)| format!("{name} ({messages})"))
        .collect();
    if !unserved.is_empty() {
        findings.add(
            "messages",
            Verdict::Warning,
            format!("no running relay serves these destinations, whose messages wait: {}", unserved.join(", ")),
            "serve them, or correct the name where they are written; docs/operations.md, \"Nobody serves a destination\"",
        );
    }
    config
}

async fn ask(config: &RelayConfig) -> Result<(ConfiguredDestinations, Vec<(String, i64)>), OutboxError> {
    let outbox = Outbox::new(&config.database, 1)?;
    let rows = outbox.configured().await?;
    let table = ConfiguredDestinations::read(rows.iter().map(|configured| &configured.row));
    Ok((table, outbox.unserved(&[]).await?))
}

fn judge_table(table: &ConfiguredDestinations, findings: &mut Findings) {
    for row in &table.refused {
        findings.add(format!("row {} of outbox.destinations", row.name), Verdict::Bad, row.problem.clone(), "");
    }
    if table.served.is_empty() {
        let says = "none: OUTBOX_RELAY_DESTINATIONS is not set, and outbox.destinations has no row that can be used";
        let remedy = "outbox-relay destinations set NAME QUEUE_URL, or OUTBOX_RELAY_DESTINATIONS=NAME=QUEUE_URL";
        findings.add("destinations", Verdict::Warning, says, remedy);
    } else {
        findings.good("destinations", format!("{} in outbox.destinations", table.served.len()));
    }
}

fn judge_overridden(config: &RelayConfig, table: &ConfiguredDestinations, findings: &mut Findings) {
    let rows = table.served.len() + table.refused.len();
    if rows == 0 {
        return;
    }
    let in_table = config.with_destinations(table.served.clone());
    let difference = Difference::between(&in_table.destinations, &config.destinations);
    let differing = difference.names();
    let says = format!("OUTBOX_RELAY_DESTINATIONS overrides {rows} row(s) of outbox.destinations");
    if differing.is_empty() {
        findings.good("destinations", format!("{says}, which say the same"));
    } else {
        let says = format!("{says}; these differ: {}", differing.join(", "));
        findings.add("destinations", Verdict::Warning, says, "unset it to follow the table, or remove the rows");
    }
}
