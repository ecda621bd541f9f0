//! `outbox-relay pause|resume|set|config`: what operators decide while relays run, and what is in force.
//!
//! It is kept in the database, so every relay follows, and a restart forgets nothing: a pause within two seconds, a setting when
//! the claim is over that it meets. The same as SQL: `outbox.pause()`, `outbox.resume()`, `outbox.set_setting()`.

use std::time::Duration;

use clap::Args;
use serde_json::json;

use super::{Failure, complain, say, table};
use crate::config::{Adjustable, ConfigError, Flags, Origin, Shown, Tuning};
use crate::outbox::{ALL_DESTINATIONS, Outbox, Setting, Steering};

/// What to pause.
#[derive(Args)]
#[command(after_help = "Examples:\n  outbox-relay pause tickets --for 30m --reason 'consumer is being migrated'\n  \
    outbox-relay pause\n\nWhat is in flight is finished. Messages wait in the table; nothing is lost.")]
pub(super) struct Pause {
    /// Which destination; none means all
    destination: Option<String>,
    /// Resume by itself after this time
    #[arg(long = "for", value_name = "DURATION", value_parser = humantime::parse_duration)]
    lasting: Option<Duration>,
    /// Why, for those who find it paused
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    #[command(flatten)]
    who: Who,
}

/// What to resume.
#[derive(Args)]
#[command(after_help = "Examples:\n  outbox-relay resume tickets\n  outbox-relay resume")]
pub(super) struct Resume {
    /// Which destination; none means all, those that were paused one by one included
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
    /// Let the environment count again
    #[arg(long, value_name = "NAME", conflicts_with = "assignment")]
    unset: Option<String>,
    /// For this destination only
    #[arg(long, value_name = "NAME")]
    destination: Option<String>,
    #[command(flatten)]
    who: Who,
}

/// Who answers for it.
#[derive(Args)]
pub(super) struct Who {
    /// Who does it, for outbox.audit_log
    #[arg(long, value_name = "NAME", env = "USER", default_value = "unknown")]
    pub(super) actor: String,
}

pub(super) async fn open(flags: &Flags) -> Result<Outbox, Failure> {
    let outbox = Outbox::new(&flags.database()?, 1)?;
    outbox.check_schema().await?;
    Ok(outbox)
}

/// A name that no relay has served and no message has is a mistake, and would be followed by nobody.
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
    outbox.pause(&destination, lasting, &reason, &who.actor).await?;
    let until =
        lasting.map_or("until resumed".to_owned(), |lasting| format!("for {}", humantime::format_duration(lasting)));
    say(&format!("paused: {}, {until}; relays follow within two seconds\n", named(&destination)));
    Ok(())
}

pub(super) async fn resume(flags: &Flags, resume: Resume) -> Result<(), Failure> {
    let outbox = open(flags).await?;
    let Resume { destination, who } = resume;
    let destination = known(&outbox, destination.as_deref()).await?;
    let ended = outbox.resume(&destination, &who.actor).await?;
    let steering = outbox.steering().await?;
    if steering.pause_of(&destination).is_some() {
        // Its own pause is over, if it had one.
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
    // Before the database is asked for anything.
    if let Some(value) = &value {
        flags.baseline().adjust(&name, value)?;
    }
    let outbox = open(flags).await?;
    if value.is_none() && Adjustable::named(&name).is_none() {
        // What relays warn about because they do not know it can be unset all the same.
        let steering = outbox.steering().await?;
        if steering.settings.iter().all(|setting| setting.name != name) {
            return Err(usage(format!("{name} is not set")));
        }
    }
    let destination = known(&outbox, destination.as_deref()).await?;
    outbox.set_setting(&destination, &name, value.as_deref(), &who.actor).await?;
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
        None => say(&format!("unset: {name} for {}; the environment counts again\n", named(&destination))),
    }
    Ok(())
}

/// `outbox-relay config`: every effective value and where it comes from.
pub(super) async fn config(flags: &Flags, json: bool) -> Result<(), Failure> {
    let shown = flags.shown(crate::logging::DEFAULT_FILTER)?;
    let (steering, problem) = match settings(flags).await {
        Ok(steering) => (steering, None),
        Err(error) => (Steering::default(), Some(error)),
    };
    let baseline = flags.baseline();
    let settings: Vec<Setting> = steering.settings.iter().map(|setting| judged(baseline, &steering, setting)).collect();
    let names: Vec<&str> = shown.iter().map(|shown| shown.name.as_str()).collect();
    let unknown = settings.iter().filter(|setting| !names.contains(&setting.name.as_str())).map(|setting| Shown {
        name: setting.name.clone(),
        destination: (setting.destination != ALL_DESTINATIONS).then(|| setting.destination.clone()),
        value: setting.value.clone(),
        origin: Origin::Database { actor: setting.actor.clone() },
    });
    let unknown: Vec<Shown> = unknown.collect();
    let known = shown.into_iter().flat_map(|shown| with_settings(shown, &settings));
    let lines: Vec<Shown> = known.chain(unknown).collect();
    if json {
        let objects: Vec<String> = lines
            .iter()
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
    }
    problem.map_or(Ok(()), |error| {
        complain("what is set in the database is not shown:");
        Err(Failure::Failed(error.into()))
    })
}

async fn settings(flags: &Flags) -> Result<Steering, crate::outbox::OutboxError> {
    let Ok(database) = flags.database() else { return Ok(Steering::default()) };
    let outbox = Outbox::new(&database, 1)?;
    outbox.check_schema().await?;
    outbox.steering().await
}

/// A setting that relays refuse, by itself or beside the others, is shown as what it is.
fn judged(baseline: Tuning, steering: &Steering, setting: &Setting) -> Setting {
    let pair = |setting: &'_ Setting| (setting.name.clone(), setting.value.clone());
    let all: Vec<(String, String)> = steering.settings_of(&setting.destination).map(pair).collect();
    let (_, wrong) = baseline.adjusted(all.iter().map(|(name, value)| (name.as_str(), value.as_str())));
    let is_wrong = baseline.adjust(&setting.name, &setting.value).is_err()
        || wrong.iter().any(|sentence| sentence.starts_with(&format!("{}={} ", setting.name, setting.value)));
    let mut setting = setting.clone();
    if is_wrong {
        setting.value.push_str(" (not followed)");
    }
    setting
}

/// A setting of operators for all takes the line's place; those for one destination come after it.
fn with_settings(shown: Shown, settings: &[Setting]) -> Vec<Shown> {
    let name = shown.name.clone();
    let mut lines = vec![shown];
    for setting in settings.iter().filter(|setting| setting.name == name) {
        let origin = Origin::Database { actor: setting.actor.clone() };
        let is_for_all = setting.destination == ALL_DESTINATIONS;
        let destination = (!is_for_all).then(|| setting.destination.clone());
        let line = Shown { name: name.clone(), destination, value: setting.value.clone(), origin };
        if is_for_all {
            lines[0] = line;
        } else {
            lines.push(line);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_for_all_takes_the_place_of_the_environments_and_others_follow() {
        let shown = Shown {
            name: "batch-size".to_owned(),
            destination: None,
            value: "2000".to_owned(),
            origin: Origin::Default,
        };
        let setting = |destination: &str, name: &str, value: &str| Setting {
            destination: destination.to_owned(),
            name: name.to_owned(),
            value: value.to_owned(),
            actor: "ada".to_owned(),
        };
        let settings = [
            setting("*", "batch-size", "10"),
            setting("audit", "batch-size", "20"),
            setting("audit", "on-dead", "block"),
        ];
        let lines = with_settings(shown, &settings);
        let values: Vec<(Option<&str>, &str)> =
            lines.iter().map(|line| (line.destination.as_deref(), line.value.as_str())).collect();
        assert_eq!(values, [(None, "10"), (Some("audit"), "20")]);
        assert_eq!(lines[0].origin.to_string(), "database, set by ada");
    }
}
