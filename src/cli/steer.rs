//! `outbox-relay pause|resume|set|config`: what operators decide while relays run, and what is in force.
//!
//! It is kept in the database, so every relay follows it, and it survives restarts. Relays follow a pause within two
//! seconds, and a setting when their current claim ends. SQL can do the same: `outbox.pause()`, `outbox.resume()`,
//! `outbox.set_setting()`.

use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::{Failure, complain, say, table};
use crate::config::{Adjustable, ConfigError, Flags, Shown};
use crate::outbox::Outbox;
use crate::reading::{ALL_DESTINATIONS, Setting, Steering};
use crate::settings;

/// What to pause.
#[derive(Args)]
#[command(after_help = "Examples:\n  outbox-relay pause tickets --for 30m --reason 'consumer is being migrated'\n  \
    outbox-relay pause\n\nWhat is in flight is finished. Messages wait in the table; nothing is lost.")]
pub(super) struct Pause {
    /// The destination; none means all
    destination: Option<String>,
    /// Resume automatically after this time, at most 366 days
    #[arg(long = "for", value_name = "DURATION", value_parser = pause_time)]
    lasting: Option<Duration>,
    /// The reason, for people who find it paused
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    #[command(flatten)]
    who: Who,
}

/// What to resume.
#[derive(Args)]
#[command(after_help = "Examples:\n  outbox-relay resume tickets\n  outbox-relay resume")]
pub(super) struct Resume {
    /// The destination; none means all, including those that were paused one by one
    destination: Option<String>,
    #[command(flatten)]
    who: Who,
}

/// What to set.
#[derive(Args)]
#[command(after_help = "Examples:\n  outbox-relay set batch-size=5000\n  \
    outbox-relay set max-in-flight=32 --destination audit\n  outbox-relay set --unset batch-size\n\n\
    Settings win over the environment of every relay until they are unset. `outbox-relay config` shows what is in force.")]
pub(super) struct Set {
    /// NAME=VALUE; names are those of the flags, without the dashes in front
    #[arg(value_name = "NAME=VALUE", required_unless_present = "unset")]
    assignment: Option<String>,
    /// Remove the setting, so that the environment applies again
    #[arg(long, value_name = "NAME", conflicts_with = "assignment")]
    unset: Option<String>,
    /// For this destination only
    #[arg(long, value_name = "NAME")]
    destination: Option<String>,
    #[command(flatten)]
    who: Who,
}

/// The longest pause with an end. A longer one is a slip of the pen, or is meant to last until resumed.
const LONGEST_PAUSE: Duration = Duration::from_secs(366 * 86_400);

/// How long a pause lasts; clap puts the value before the sentence.
fn pause_time(text: &str) -> Result<Duration, String> {
    let lasting = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if lasting > LONGEST_PAUSE {
        return Err(
            "it is longer than 366 days; give at most 366days, or leave --for out to pause until resumed".to_owned()
        );
    }
    Ok(lasting)
}

/// Who is responsible.
#[derive(Args)]
pub(super) struct Who {
    /// The name recorded in the table audit_log; the database's login if there is none
    #[arg(long, value_name = "NAME", env = "USER")]
    actor: Option<String>,
}

impl Who {
    /// The name to record. A container has no user names, but it has a login.
    pub(super) fn name<'a>(&'a self, outbox: &'a Outbox) -> &'a str {
        self.actor.as_deref().filter(|name| !name.is_empty()).unwrap_or_else(|| outbox.login())
    }
}

pub(super) async fn open(flags: &Flags) -> Result<Outbox, Failure> {
    let outbox = Outbox::new(&flags.database()?, 1)?;
    outbox.check_schema().await?;
    Ok(outbox)
}

/// Checks a destination's name. A name that no relay has served and no message has is a mistake that no relay would
/// follow.
pub(super) async fn known(outbox: &Outbox, destination: Option<&str>) -> Result<String, Failure> {
    let Some(name) = destination else { return Ok(ALL_DESTINATIONS.to_owned()) };
    let known = outbox.destinations().await?;
    if known.iter().any(|one| one.name == name) {
        return Ok(name.to_owned());
    }
    let names: Vec<&str> = known.iter().map(|one| one.name.as_str()).collect();
    let names = if names.is_empty() { "none yet".to_owned() } else { names.join(", ") };
    Err(anyhow::anyhow!("there is no destination {name:?}; there are: {names}").into())
}

fn named(destination: &str) -> String {
    if destination == ALL_DESTINATIONS { "all destinations".to_owned() } else { destination.to_owned() }
}

pub(super) async fn pause(flags: &Flags, pause: Pause) -> Result<(), Failure> {
    let outbox = open(flags).await?;
    let Pause { destination, lasting, reason, who } = pause;
    let destination = known(&outbox, destination.as_deref()).await?;
    outbox.pause(&destination, lasting, &reason, who.name(&outbox)).await?;
    let until =
        lasting.map_or("until resumed".to_owned(), |lasting| format!("for {}", humantime::format_duration(lasting)));
    say(&format!("paused: {}, {until}; relays follow within two seconds\n", named(&destination)));
    Ok(())
}

pub(super) async fn resume(flags: &Flags, resume: Resume) -> Result<(), Failure> {
    let outbox = open(flags).await?;
    let Resume { destination, who } = resume;
    let destination = known(&outbox, destination.as_deref()).await?;
    let ended = outbox.resume(&destination, who.name(&outbox)).await?;
    let steering = outbox.steering().await?;
    if steering.pause_of(&destination).is_some() {
        // Its own pause has ended, if it had one.
        let sentence =
            format!("{destination} is still paused, because all destinations are; `outbox-relay resume` ends that");
        return Err(anyhow::anyhow!(sentence).into());
    }
    let verb = if ended == 0 { "not paused" } else { "resumed" };
    say(&format!("{verb}: {}\n", named(&destination)));
    Ok(())
}

pub(super) async fn set(flags: &Flags, set: Set) -> Result<(), Failure> {
    let Set { assignment, unset, destination, who } = set;
    let usage = |sentence: String| Failure::Configuration(ConfigError(vec![sentence]));
    let (name, value) = match (&assignment, unset) {
        (_, Some(name)) => (name, None),
        (Some(assignment), None) => match assignment.split_once('=') {
            Some((name, value)) => (name.trim().to_owned(), Some(value.trim().to_owned())),
            None => return Err(usage(format!("{assignment:?} has no value; use NAME=VALUE"))),
        },
        (None, None) => return Err(usage("nothing to set; use NAME=VALUE".to_owned())),
    };
    // Checked before the database is used.
    if let Some(value) = &value {
        flags.baseline().adjust(&name, value)?;
    }
    let outbox = open(flags).await?;
    if value.is_none() && Adjustable::named(&name).is_none() {
        // A setting that relays do not know, and warn about, can be unset all the same.
        let steering = outbox.steering().await?;
        if steering.settings.iter().all(|setting| setting.name != name) {
            return Err(usage(format!("{name} is not set")));
        }
    }
    let destination = known(&outbox, destination.as_deref()).await?;
    outbox.set_setting(&destination, &name, value.as_deref(), who.name(&outbox)).await?;
    if value.is_none() {
        let steering = outbox.steering().await?;
        let is_left = |setting: &&Setting| {
            setting.name == name && (destination == ALL_DESTINATIONS || setting.destination == ALL_DESTINATIONS)
        };
        if let Some(left) = steering.settings.iter().find(is_left) {
            let Setting { destination: of, value, .. } = left;
            say(&format!(
                "unset: {name} for {}; {name}={value} for {} stays in force\n",
                named(&destination),
                named(of)
            ));
            return Ok(());
        }
    }
    match value {
        Some(value) => say(&format!("set: {name}={value} for {}; relays follow within seconds\n", named(&destination))),
        None => say(&format!("unset: {name} for {}; the environment applies again\n", named(&destination))),
    }
    Ok(())
}

/// `outbox-relay config`: every effective value and where it comes from.
pub(super) async fn config(flags: &Flags, json: bool) -> Result<(), Failure> {
    let shown = flags.shown(crate::logging::DEFAULT_FILTER)?;
    let (steering, problem) = match decided(flags).await {
        Ok(steering) => (steering, None),
        Err(error) => (Steering::default(), Some(error)),
    };
    let (lines, _) = settings::in_force(shown, flags.baseline(), &steering, usize::MAX);
    let connection = flags.connection()?;
    let surroundings = crate::config::surroundings();
    if json {
        let objects: Vec<String> = lines
            .iter()
            .chain(&connection)
            .chain(&surroundings)
            .map(|line| {
                let Shown { name, destination, value, origin } = line;
                json!({"setting": name, "destination": destination, "value": value, "origin": origin.to_string()})
                    .to_string()
            })
            .collect();
        say(&format!("[{}]\n", objects.join(",\n ")));
    } else {
        let head = ["SETTING", "DESTINATION", "VALUE", "ORIGIN"].map(str::to_owned);
        let row = |line: &Shown| {
            let destination = line.destination.clone().unwrap_or_else(|| "all".to_owned());
            [line.name.clone(), destination, line.value.clone(), line.origin.to_string()]
        };
        say(&table(std::iter::once(head).chain(lines.iter().map(row)).collect()));
        say(&format!("\n{}", section("CONNECTION", &connection)));
        say(&variables(&surroundings));
    }
    problem.map_or(Ok(()), |error| {
        complain("settings in the database are not shown:");
        Err(Failure::Failed(error.into()))
    })
}

/// The variables that the AWS SDK, proxies and TLS follow, as a section of its own.
fn variables(surroundings: &[Shown]) -> String {
    if surroundings.is_empty() {
        return "\nno variable for AWS, proxies or certificates is set\n".to_owned();
    }
    format!("\n{}", section("VARIABLE", surroundings))
}

/// Lines that have no destination, under a heading for their names.
fn section(heading: &str, lines: &[Shown]) -> String {
    let head = [heading, "VALUE", "ORIGIN"].map(str::to_owned);
    let row = |line: &Shown| [line.name.clone(), line.value.clone(), line.origin.to_string()];
    table(std::iter::once(head).chain(lines.iter().map(row)).collect())
}

async fn decided(flags: &Flags) -> Result<Steering, crate::outbox::OutboxError> {
    let Ok(database) = flags.database() else { return Ok(Steering::default()) };
    let outbox = Outbox::new(&database, 1)?;
    outbox.check_schema().await?;
    outbox.steering().await
}
