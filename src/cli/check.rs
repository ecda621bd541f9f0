//! `outbox-relay check`: checks everything that a relay needs, and says how to fix what is wrong.
//!
//! It changes nothing and sends nothing that a queue would keep. Something that works but is unwise is a warning and
//! does not affect the exit code.

mod collector;
mod routes;
mod table;
mod targets;

use std::time::Duration;

use serde_json::json;

use super::{Failure, say};
use crate::config::{ConfigError, DatabaseConfig, Flags};
use crate::outbox::{self, Inspected, Outbox};
use crate::schema::Schema;
use crate::way::Step;

/// Beyond this skew SQS refuses a signature (Signature Version 4: five minutes).
const SKEW_REFUSED: f64 = 300.0;

/// A skew beyond this is reported.
const SKEW_ODD: f64 = 5.0;

/// The oldest version of PostgreSQL that the tests run on.
const OLDEST: i32 = 130_000;

/// A transaction that holds vacuum back for longer than this is reported.
const HORIZON_ODD: Duration = Duration::from_secs(600);

/// The remedy for a missing privilege.
fn rights(schema: &Schema) -> String {
    let script = match schema.is_renamed() {
        false => "deploy/roles.sql".to_owned(),
        true => format!("the SQL of `outbox-relay generate roles --schema {schema}`"),
    };
    format!("run {script} as the owner, and GRANT {} to this role", schema.role("relay"))
}

/// The verdict of one check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Good,
    Warning,
    Bad,
}

/// The result of one check.
#[derive(Debug)]
struct Finding {
    what: String,
    verdict: Verdict,
    says: String,
    remedy: String,
}

/// The results of all checks so far.
#[derive(Debug)]
struct Findings {
    /// The name of the database, if there may be several.
    database: Option<String>,
    all: Vec<Finding>,
}

impl Findings {
    fn add(&mut self, what: impl Into<String>, verdict: Verdict, says: impl Into<String>, remedy: impl Into<String>) {
        self.all.push(Finding { what: what.into(), verdict, says: says.into(), remedy: remedy.into() });
    }

    fn good(&mut self, what: impl Into<String>, says: impl Into<String>) {
        self.add(what, Verdict::Good, says, "");
    }

    /// Adds a check that is good or not.
    fn judge(&mut self, what: &str, is_good: bool, verdict: Verdict, (good, bad): (&str, String), remedy: &str) {
        if is_good { self.good(what, good) } else { self.add(what, verdict, bad, remedy) }
    }

    fn is_bad(&self) -> bool {
        self.all.iter().any(|finding| finding.verdict == Verdict::Bad)
    }

    fn text(&self) -> String {
        let line = |finding: &Finding| {
            let Finding { what, verdict, says, remedy } = finding;
            let sign = match verdict {
                Verdict::Good => '✓',
                Verdict::Warning => '!',
                Verdict::Bad => '✗',
            };
            let remedy = if remedy.is_empty() { String::new() } else { format!("\n    → {remedy}") };
            format!("{sign} {what}: {says}{remedy}\n")
        };
        let heading = self.database.iter().map(|name| format!("database {name}\n"));
        heading.chain(self.all.iter().map(line)).collect()
    }

    fn objects(&self) -> Vec<String> {
        let object = |finding: &Finding| {
            let verdict = match finding.verdict {
                Verdict::Good => "good",
                Verdict::Warning => "warning",
                Verdict::Bad => "bad",
            };
            let mut object =
                json!({"check": finding.what, "verdict": verdict, "says": finding.says, "remedy": finding.remedy});
            if let Some(database) = &self.database {
                object["database"] = json!(database);
            }
            object.to_string()
        };
        self.all.iter().map(object).collect()
    }
}

/// Runs all checks for every database; `asks_identity` is whether STS is asked whose the credentials are.
pub(super) async fn run(flags: &Flags, json: bool, asks_identity: bool) -> Result<(), Failure> {
    let (mut objects, mut is_misconfigured, mut is_bad) = (Vec::new(), false, false);
    let each = match flags.each_database() {
        Ok(each) => each,
        // The checks tell it in their own way.
        Err(_) => vec![flags.clone()],
    };
    for flags in each {
        let mut findings = Findings { database: flags.chosen_database().map(str::to_owned), all: Vec::new() };
        is_misconfigured |= !check_all(&flags, asks_identity, &mut findings).await;
        is_bad |= findings.is_bad();
        if json { objects.extend(findings.objects()) } else { say(&findings.text()) }
    }
    if json {
        say(&format!("[{}]\n", objects.join(",\n ")));
    }
    match (is_misconfigured, is_bad) {
        // The errors have been printed; the exit code is that of any command with such a configuration.
        (true, _) => Err(Failure::Configuration(ConfigError(Vec::new()))),
        (false, true) => Err(Failure::Silent),
        (false, false) => Ok(()),
    }
}

/// Runs all checks for a database; returns whether its configuration can be used.
async fn check_all(flags: &Flags, asks_identity: bool, findings: &mut Findings) -> bool {
    match flags.relay() {
        Ok(config) => {
            findings.good(
                "configuration",
                if config.follows_the_table() {
                    "the destinations are those in outbox.destinations".to_owned()
                } else {
                    format!("{} destination(s)", config.destinations.len())
                },
            );
            check_database(&config.database, findings).await;
            let config = table::check(config, findings).await;
            routes::check(&config, findings).await;
            targets::check(&config, asks_identity, findings).await;
            collector::check(config.traces.as_ref(), findings).await;
            true
        }
        Err(ConfigError(problems)) => {
            for problem in problems {
                findings.add("configuration", Verdict::Bad, problem, "");
            }
            // The database comes first when one sets things up.
            if let Ok(database) = flags.database() {
                check_database(&database, findings).await;
            }
            false
        }
    }
}

/// Checks the database; without valid destinations, nothing is said about routes to others.
async fn check_database(config: &DatabaseConfig, findings: &mut Findings) {
    let outbox = match Outbox::new(config, 1) {
        Ok(outbox) => outbox,
        Err(error) => return findings.add("PostgreSQL", Verdict::Bad, error.to_string(), ""),
    };
    if !is_reached(config, findings).await {
        return;
    }
    if let Err(error) = outbox.check_schema().await {
        // Other errors name their remedy themselves if there is one.
        let remedy = if error.is_denied() { rights(&config.schema) } else { String::new() };
        return findings.add("PostgreSQL", Verdict::Bad, error.to_string(), remedy);
    }
    let found = match outbox.inspect().await {
        Ok(found) => found,
        Err(error) => return findings.add("PostgreSQL", Verdict::Bad, error.to_string(), ""),
    };
    findings.judge(
        "PostgreSQL",
        found.version_number >= OLDEST,
        Verdict::Bad,
        (&format!("{} at {}", found.version, config.place()), format!("{} is too old", found.version)),
        "use PostgreSQL 13 or newer",
    );
    findings.good("schema", format!("{} is up to date", config.schema));
    judge_server(&found, findings);
    judge_tables(&found, &config.schema, findings);
    judge_horizon(&outbox, &found, findings).await;
}

/// What holds vacuum back.
async fn judge_horizon(outbox: &Outbox, found: &Inspected, findings: &mut Findings) {
    match outbox.horizon().await {
        Ok(horizon) => {
            let old = |seconds: f64| seconds > HORIZON_ODD.as_secs_f64();
            for holder in horizon.holders.iter().filter(|holder| holder.seconds.is_some_and(old)) {
                let age = Duration::from_secs_f64(holder.seconds.unwrap_or_default().max(0.0).round());
                let says = format!(
                    "a {} has held the vacuum horizon back for {}",
                    holder.kind.replace('_', " "),
                    humantime::format_duration(age)
                );
                let remedy = "delivery is not slower, but the tables grow; docs/operations.md, \"The vacuum horizon is held back\"";
                findings.add("vacuum horizon", Verdict::Warning, says, remedy);
            }
            if !horizon.sees_all_sessions {
                let says = format!("{} sees its own sessions only", found.role);
                findings.add(
                    "vacuum horizon",
                    Verdict::Warning,
                    says,
                    format!("GRANT pg_read_all_stats TO {}; then it sees what else holds the horizon back", found.role),
                );
            } else if !horizon.holders.iter().any(|holder| holder.seconds.is_some_and(old)) {
                let timeless = horizon.holders.iter().filter(|holder| holder.seconds.is_none());
                let kinds: Vec<String> = timeless.map(|holder| holder.kind.replace('_', " ")).collect();
                findings.good(
                    "vacuum horizon",
                    &if kinds.is_empty() {
                        "nothing has held it back for ten minutes".to_owned()
                    } else {
                        // A running relay measures it, so the alert covers it.
                        format!(
                            "no session has held it back for ten minutes; a {} does, and PostgreSQL does not say for how long",
                            kinds.join(" and a ")
                        )
                    },
                );
            }
        }
        Err(error) => findings.add("vacuum horizon", Verdict::Warning, error.to_string(), ""),
    }
}

/// Walks the way to each server. Only one of several servers need be there.
async fn is_reached(config: &DatabaseConfig, findings: &mut Findings) -> bool {
    let ways = outbox::walk(config).await;
    let is_good = |steps: &Vec<Step>| steps.iter().all(|step| step.result.is_ok());
    let is_reached = ways.iter().any(is_good);
    for Step { what, result } in ways.into_iter().flatten() {
        let what = format!("PostgreSQL, {what}");
        match result {
            Ok(says) => findings.good(what, says),
            Err(trouble) => {
                let verdict = if is_reached { Verdict::Warning } else { Verdict::Bad };
                findings.add(what, verdict, trouble.says, trouble.remedy);
            }
        }
    }
    is_reached
}

fn judge_server(found: &Inspected, findings: &mut Findings) {
    findings.judge(
        "server",
        !found.is_standby && !found.is_read_only,
        Verdict::Bad,
        ("takes writes", if found.is_standby { "is a standby" } else { "is read-only by default" }.to_owned()),
        "point DATABASE_URL at the primary, and let its transactions write",
    );
    findings.judge(
        "durability",
        found.is_durable,
        Verdict::Warning,
        ("committed transactions survive a crash", "fsync, full_page_writes or synchronous_commit is off".to_owned()),
        "turn them on, or a crash of the machine can lose events and corrupt the outbox",
    );
    let skew = found.clock_ahead.abs();
    let verdict = if skew > SKEW_REFUSED { Verdict::Bad } else { Verdict::Warning };
    findings.judge(
        "clocks",
        skew <= SKEW_ODD,
        verdict,
        ("this host and PostgreSQL agree", format!("PostgreSQL is {:+.0} s from this host", found.clock_ahead)),
        "synchronise the clocks; SQS refuses requests that are signed five minutes off",
    );
}

fn judge_tables(found: &Inspected, schema: &Schema, findings: &mut Findings) {
    findings.judge(
        "rights",
        found.missing_rights.is_empty(),
        Verdict::Bad,
        (
            &format!("{} has all a relay needs", found.role),
            format!("{} lacks {}", found.role, found.missing_rights.join(", ")),
        ),
        &rights(schema),
    );
    findings.judge(
        "indexes and partitions",
        found.broken.is_empty(),
        Verdict::Bad,
        ("in place", format!("missing or invalid: {}", found.broken.join(", "))),
        "create them again as `outbox-relay migrate --print` shows, or REINDEX the invalid ones",
    );
    let bad = if found.has_autovacuum {
        format!("turned off for {}", found.unvacuumed.join(", "))
    } else {
        "turned off".to_owned()
    };
    findings.judge(
        "autovacuum",
        found.has_autovacuum && found.unvacuumed.is_empty(),
        Verdict::Warning,
        ("on", bad),
        "turn it on; outbox tables change constantly",
    );
}
