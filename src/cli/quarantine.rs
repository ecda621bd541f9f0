//! `outbox-relay quarantine …`: messages that were set aside because PostgreSQL refuses to record their outcome or
//! cannot read them. docs/operations.md says when to use which verb.

use clap::Subcommand;
use serde_json::{Value, json};

use super::consent::{ask, messages, printable};
use super::{Failure, say};
use crate::config::Flags;
use crate::message::Outcome;
use crate::outbox::{Outbox, QuarantinedLine};

/// What to do with messages in quarantine.
#[derive(Subcommand)]
pub(super) enum Verb {
    /// List messages in quarantine, the oldest first
    #[command(after_help = "Examples:\n  outbox-relay quarantine list\n  \
        outbox-relay quarantine list --destination tickets --json")]
    List {
        /// Only messages to this destination
        #[arg(long, value_name = "NAME")]
        destination: Option<String>,
        /// How many to show
        #[arg(long, value_name = "N", default_value_t = 100)]
        limit: u32,
        /// Print an array of JSON objects
        #[arg(long)]
        json: bool,
    },
    /// Return messages to the relays, which send them: a second time if SQS has accepted them already
    #[command(after_help = "Examples:\n  outbox-relay quarantine release 4711\n  \
        outbox-relay quarantine release 4711 4712 --yes\n\n\
        A message whose outcome only could not be recorded needs no release: relays try again once a minute,\n\
        and end the quarantine when PostgreSQL takes it.")]
    Release {
        /// Ids of messages
        #[arg(required = true)]
        ids: Vec<i64>,
        /// Do not ask; for scripts
        #[arg(long)]
        yes: bool,
    },
}

/// Runs one verb.
pub(super) async fn run(flags: &Flags, verb: Verb) -> Result<(), Failure> {
    let outbox = Outbox::new(&flags.database()?, 1)?;
    outbox.check_schema().await?;
    match verb {
        Verb::List { destination, limit, json } => list(&outbox, destination.as_deref(), limit, json).await,
        Verb::Release { ids, yes } => release(&outbox, &ids, yes).await,
    }
}

async fn list(outbox: &Outbox, destination: Option<&str>, limit: u32, json: bool) -> Result<(), Failure> {
    let lines = outbox.quarantined(destination, i64::from(limit)).await?;
    if json {
        let objects: Vec<Value> = lines.iter().map(as_json).collect();
        say(&format!("{:#}\n", Value::from(objects)));
    } else if lines.is_empty() {
        say("no messages are in quarantine\n");
    } else {
        let head = ["ID", "SINCE", "DESTINATION", "GROUP", "OUTCOME", "REASON"].map(str::to_owned);
        let row = |(destination, line): &(String, QuarantinedLine)| {
            let message = &line.message;
            let group = printable(message.group.as_deref().unwrap_or("-"));
            let reason = printable(&message.reason);
            let outcome = outcome(message.outcome.as_ref()).to_owned();
            [message.key.id.0.to_string(), line.since.clone(), destination.clone(), group, outcome, reason]
        };
        say(&super::table(std::iter::once(head).chain(lines.iter().map(row)).collect()));
    }
    Ok(())
}

fn outcome(outcome: Option<&Outcome>) -> &'static str {
    match outcome {
        Some(Outcome::Delivered { .. }) => "delivered",
        Some(Outcome::Dead { .. }) => "dead",
        Some(Outcome::Deferred { .. } | Outcome::Superseded { .. }) | None => "not sent",
    }
}

fn as_json((destination, line): &(String, QuarantinedLine)) -> Value {
    let message = &line.message;
    let sqs_message_id = match &message.outcome {
        Some(Outcome::Delivered { sqs_message_id, .. }) => Some(sqs_message_id),
        _ => None,
    };
    json!({
        "id": message.key.id.0,
        "quarantined_at": line.since,
        "destination": destination,
        "group_id": message.group.as_deref(),
        "event_position": message.origin.event_position.0,
        "outcome": outcome(message.outcome.as_ref()),
        "sqs_message_id": sqs_message_id,
        "reason": message.reason,
    })
}

async fn release(outbox: &Outbox, ids: &[i64], yes: bool) -> Result<(), Failure> {
    let all = outbox.quarantined(None, i64::MAX).await?;
    let chosen: Vec<_> = all.iter().filter(|(_, line)| ids.contains(&line.message.key.id.0)).collect();
    let missing = ids.iter().find(|id| !chosen.iter().any(|(_, line)| line.message.key.id.0 == **id));
    if let Some(id) = missing {
        return Err(anyhow::anyhow!("message {id} is not in quarantine; nothing was done").into());
    }
    let is_delivered = |line: &QuarantinedLine| matches!(line.message.outcome, Some(Outcome::Delivered { .. }));
    let sent = chosen.iter().filter(|(_, line)| is_delivered(line)).count() as i64;
    let twice = if sent > 0 {
        format!(" SQS has accepted {} of them already and gets a second copy.", sent)
    } else {
        String::new()
    };
    if !yes && !ask(&format!("release {}?{twice}", messages(chosen.len() as i64)), "--yes")? {
        return Err(anyhow::anyhow!("nothing was done").into());
    }
    let mut released = 0;
    for (destination, line) in chosen {
        released += outbox.release(destination, line.message.key.id.0).await?;
    }
    say(&format!("release: {}\n", messages(released)));
    Ok(())
}
