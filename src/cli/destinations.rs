//! `outbox-relay destinations …`: the table of destinations, which relays follow whose environment names none. SQL can do
//! the same: `outbox.set_destination()`, `outbox.remove_destination()`.

use bytesize::ByteSize;
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::consent::{ask, messages, printable};
use super::steer::{Who, open};
use super::{Failure, say, table};
use crate::config::{ConfigError, DestinationRow, Flags};
use crate::outbox::{Configured, Outbox};
use crate::reading::Order;

/// What to do with the table of destinations.
#[derive(Subcommand)]
pub(super) enum Verb {
    /// List the rows of outbox.destinations
    #[command(after_help = "Examples:\n  outbox-relay destinations list\n  outbox-relay destinations list --json")]
    List {
        /// Print an array of JSON objects
        #[arg(long)]
        json: bool,
    },
    /// Add a destination, or change it as a whole: an option that is left out is removed
    #[command(
        after_help = "Examples:\n  outbox-relay destinations set audit https://sqs.eu-west-1.amazonaws.com/123456789012/audit\n  \
        outbox-relay destinations set tickets arn:aws:sns:eu-west-1:123456789012:tickets.fifo --claim-check bodies/tickets\n\n\
        Relays whose environment names no destination serve it within seconds, without a restart."
    )]
    Set(Set),
    /// Remove a destination; its messages stay and wait
    #[command(
        after_help = "Examples:\n  outbox-relay destinations remove audit\n  outbox-relay destinations remove audit --yes"
    )]
    Remove {
        /// The destination
        name: String,
        /// Do not ask; for scripts
        #[arg(long)]
        yes: bool,
        #[command(flatten)]
        who: Who,
    },
}

/// A destination.
#[derive(Args)]
pub(super) struct Set {
    /// The destination, as in outbox.messages.destination
    name: String,
    /// The URL of its queue or the ARN of its topic
    target: String,
    /// Tell a standard queue or topic the groups, so that it treats them fairly
    #[arg(long)]
    fair: bool,
    /// The role under which the target is used
    #[arg(long, value_name = "ARN")]
    role: Option<String>,
    /// The external id that the role asks for
    #[arg(long, value_name = "ID")]
    external_id: Option<String>,
    /// Where bodies go that are too large
    #[arg(long, value_name = "BUCKET/PREFIX")]
    claim_check: Option<String>,
    /// Messages above this size go there too, such as 64KiB
    #[arg(long, value_name = "SIZE", value_parser = size)]
    claim_check_above: Option<i64>,
    /// The KMS key for them
    #[arg(long, value_name = "ARN")]
    claim_check_key: Option<String>,
    #[command(flatten)]
    who: Who,
}

/// A number of bytes; clap puts the value before the sentence.
fn size(text: &str) -> Result<i64, String> {
    let bytes = text.parse::<ByteSize>().ok().and_then(|size| i64::try_from(size.as_u64()).ok());
    bytes.ok_or_else(|| "use a number of bytes with a unit, such as 64KiB".to_owned())
}

/// Runs one verb.
pub(super) async fn run(flags: &Flags, verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::List { json } => list(&open(flags).await?, json).await,
        Verb::Set(destination) => set(flags, destination).await,
        Verb::Remove { name, yes, who } => remove(&open(flags).await?, &name, yes, &who).await,
    }
}

async fn list(outbox: &Outbox, json: bool) -> Result<(), Failure> {
    let rows = outbox.configured().await?;
    if json {
        let objects: Vec<Value> = rows.iter().map(as_json).collect();
        say(&format!("{:#}\n", Value::from(objects)));
    } else if rows.is_empty() {
        say("outbox.destinations has no rows\n");
    } else {
        let head = ["NAME", "TARGET AND OPTIONS", "CHANGED BY"].map(str::to_owned);
        let row = |configured: &Configured| {
            let Configured { row, changed_by, .. } = configured;
            let means = row.read().map_or_else(
                |problem| format!("not served: {problem}"),
                |found| found.to_string().split_once('=').map_or_else(String::new, |(_, rest)| rest.to_owned()),
            );
            [printable(&row.name), printable(&means), printable(changed_by)]
        };
        say(&table(std::iter::once(head).chain(rows.iter().map(row)).collect()));
    }
    Ok(())
}

fn as_json(configured: &Configured) -> Value {
    let Configured { row, changed_at, changed_by } = configured;
    json!({
        "name": row.name,
        "target": row.target,
        "fair": row.fair,
        "role": row.role,
        "external_id": row.external_id,
        "claim_check": row.claim_check,
        "claim_check_above": row.claim_check_above,
        "claim_check_key": row.claim_check_key,
        "changed_at": changed_at,
        "changed_by": changed_by,
        "problem": row.read().err(),
    })
}

async fn set(flags: &Flags, set: Set) -> Result<(), Failure> {
    let Set { name, target, fair, role, external_id, claim_check, claim_check_above, claim_check_key, who } = set;
    let row = DestinationRow { name, target, fair, role, external_id, claim_check, claim_check_above, claim_check_key };
    // Checked before the database is used.
    let found = row.read().map_err(|problem| ConfigError(vec![problem]))?;
    let outbox = open(flags).await?;
    outbox.set_destination(&row, who.name(&outbox)).await?;
    say(&format!("set: {found}; relays whose environment names no destination follow within seconds\n"));
    Ok(())
}

async fn remove(outbox: &Outbox, name: &str, yes: bool, who: &Who) -> Result<(), Failure> {
    let rows = outbox.configured().await?;
    if rows.iter().all(|configured| configured.row.name != name) {
        let names: Vec<&str> = rows.iter().map(|configured| configured.row.name.as_str()).collect();
        let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        return Err(anyhow::anyhow!("outbox.destinations has no row {name:?}; there are: {names}").into());
    }
    let waiting = waiting(outbox, name).await?;
    if waiting > 0 && !yes {
        let question = format!("{} of {name} will wait until it is served again. Remove it?", messages(waiting));
        if !ask(&question, "--yes")? {
            return Err(anyhow::anyhow!("nothing was changed").into());
        }
    }
    outbox.remove_destination(name, who.name(outbox)).await?;
    let rest = if waiting > 0 { format!("; {} wait", messages(waiting)) } else { String::new() };
    say(&format!("removed: {name}{rest}; relays whose environment names no destination follow within seconds\n"));
    Ok(())
}

/// How many messages are pending or scheduled.
async fn waiting(outbox: &Outbox, name: &str) -> Result<i64, Failure> {
    let Some(floors) = outbox.floors(name, || true).await? else { return Ok(0) };
    let pending = outbox.backlog(name, &floors, Order::Groups).await?.messages;
    Ok(pending + outbox.scheduled(name).await?.messages)
}
