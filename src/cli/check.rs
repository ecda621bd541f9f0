//! `outbox-relay check`: looks at everything that a relay needs, and says what to do about what is wrong.
//!
//! It changes nothing and sends nothing that a queue would keep. What is merely unwise is a warning and does not count for the
//! exit code.

use std::time::Duration;

use serde_json::json;

use super::{Failure, say};
use crate::config::{ConfigError, Flags, RelayConfig};
use crate::message::{FaultKind, QueueKind};
use crate::outbox::{Inspected, Outbox};
use crate::sqs::{self, Queue};

/// Beyond this SQS refuses a signature (Signature Version 4: five minutes).
const SKEW_REFUSED: f64 = 300.0;

/// A skew that deserves a look.
const SKEW_ODD: f64 = 5.0;

/// The oldest version of PostgreSQL that the tests run on.
const OLDEST: i32 = 130_000;

/// A transaction that keeps vacuum away for longer than this is worth a word.
const HORIZON_ODD: Duration = Duration::from_secs(600);

/// What helps against a right that is missing.
const RIGHTS: &str = "run deploy/roles.sql as the owner, and GRANT outbox_relay to this role";

/// How one look went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Good,
    Warning,
    Bad,
}

/// One look.
#[derive(Debug)]
struct Finding {
    what: String,
    verdict: Verdict,
    says: String,
    remedy: String,
}

/// All looks so far.
#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn add(&mut self, what: impl Into<String>, verdict: Verdict, says: impl Into<String>, remedy: impl Into<String>) {
        self.0.push(Finding { what: what.into(), verdict, says: says.into(), remedy: remedy.into() });
    }

    fn good(&mut self, what: impl Into<String>, says: impl Into<String>) {
        self.add(what, Verdict::Good, says, "");
    }

    /// A look that is good, or not.
    fn judge(&mut self, what: &str, is_good: bool, verdict: Verdict, (good, bad): (&str, String), remedy: &str) {
        if is_good { self.good(what, good) } else { self.add(what, verdict, bad, remedy) }
    }

    fn is_bad(&self) -> bool {
        self.0.iter().any(|finding| finding.verdict == Verdict::Bad)
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
        self.0.iter().map(line).collect()
    }

    fn json(&self) -> String {
        let object = |finding: &Finding| {
            let verdict = match finding.verdict {
                Verdict::Good => "good",
                Verdict::Warning => "warning",
                Verdict::Bad => "bad",
            };
            json!({"check": finding.what, "verdict": verdict, "says": finding.says, "remedy": finding.remedy})
                .to_string()
        };
        format!("[{}]\n", self.0.iter().map(object).collect::<Vec<_>>().join(",\n "))
    }
}

/// Runs all checks.
pub(super) async fn run(flags: &Flags, json: bool) -> Result<(), Failure> {
    let mut findings = Findings::default();
    let mut is_misconfigured = false;
    match flags.relay() {
        Ok(config) => {
            findings.good("configuration", format!("{} destination(s)", config.destinations.len()));
            check_database(&config, &mut findings).await;
            check_queues(&config, &mut findings).await;
        }
        Err(ConfigError(problems)) => {
            is_misconfigured = true;
            for problem in problems {
                findings.add("configuration", Verdict::Bad, problem, "");
            }
        }
    }
    say(&if json { findings.json() } else { findings.text() });
    match (is_misconfigured, findings.is_bad()) {
        // It has been said, but the exit code is that of any command with such a configuration.
        (true, _) => Err(Failure::Configuration(ConfigError(Vec::new()))),
        (false, true) => Err(Failure::Silent),
        (false, false) => Ok(()),
    }
}

async fn check_database(config: &RelayConfig, findings: &mut Findings) {
    let outbox = match Outbox::new(&config.database, 1) {
        Ok(outbox) => outbox,
        Err(error) => return findings.add("PostgreSQL", Verdict::Bad, error.to_string(), ""),
    };
    if let Err(error) = outbox.check_schema().await {
        // Other sentences name their remedy where there is one.
        let remedy = if error.is_denied() { RIGHTS } else { "" };
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
        (&format!("{} at {}", found.version, config.database.place()), format!("{} is too old", found.version)),
        "use PostgreSQL 13 or newer",
    );
    findings.good("schema", "up to date");
    judge_server(&found, findings);
    judge_tables(&found, findings);
    match outbox.horizon().await {
        Ok(horizon) => {
            let old = |seconds: f64| seconds > HORIZON_ODD.as_secs_f64();
            for holder in horizon.holders.iter().filter(|holder| holder.seconds.is_some_and(old)) {
                let age = Duration::from_secs_f64(holder.seconds.unwrap_or_default().max(0.0).round());
                let says = format!(
                    "a {} has kept vacuum away for {}",
                    holder.kind.replace('_', " "),
                    humantime::format_duration(age)
                );
                let remedy = "delivery is not slowed, but the tables grow; docs/operations.md, \"The vacuum horizon is held back\"";
                findings.add("vacuum horizon", Verdict::Warning, says, remedy);
            }
            if !horizon.sees_all_sessions {
                let says = format!("{} sees its own sessions only", found.role);
                findings.add(
                    "vacuum horizon",
                    Verdict::Warning,
                    says,
                    "GRANT pg_read_all_stats to see who else keeps vacuum away",
                );
            } else if !horizon.holders.iter().any(|holder| holder.seconds.is_some_and(old)) {
                let timeless = horizon.holders.iter().filter(|holder| holder.seconds.is_none());
                let kinds: Vec<String> = timeless.map(|holder| holder.kind.replace('_', " ")).collect();
                findings.good(
                    "vacuum horizon",
                    &if kinds.is_empty() {
                        "nobody has held it for ten minutes".to_owned()
                    } else {
                        // A relay that runs measures it, and so the alert knows.
                        format!(
                            "no session has held it for ten minutes; a {} does, PostgreSQL does not say how long",
                            kinds.join(" and a ")
                        )
                    },
                );
            }
        }
        Err(error) => findings.add("vacuum horizon", Verdict::Warning, error.to_string(), ""),
    }
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
        ("what is committed survives a crash", "fsync, full_page_writes or synchronous_commit is off".to_owned()),
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

fn judge_tables(found: &Inspected, findings: &mut Findings) {
    findings.judge(
        "rights",
        found.missing_rights.is_empty(),
        Verdict::Bad,
        (
            &format!("{} has all a relay needs", found.role),
            format!("{} lacks {}", found.role, found.missing_rights.join(", ")),
        ),
        RIGHTS,
    );
    findings.judge(
        "indexes and partitions",
        found.broken.is_empty(),
        Verdict::Bad,
        ("in place", format!("missing or invalid: {}", found.broken.join(", "))),
        "make them again as `outbox-relay migrate --print` shows, or REINDEX what is invalid",
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
        "turn it on; the outbox is all churn",
    );
}

async fn check_queues(config: &RelayConfig, findings: &mut Findings) {
    let queues = match sqs::connect(&config.destinations, config.tuning.request_timeout).await {
        Ok(queues) => queues,
        Err(error) => return findings.add("SQS", Verdict::Bad, error.to_string(), ""),
    };
    for (destination, queue) in config.destinations.iter().zip(&queues) {
        check_queue(&destination.name, queue, findings).await;
    }
}

async fn check_queue(name: &str, queue: &Queue, findings: &mut Findings) {
    let what = format!("queue of {name}");
    match queue.attributes().await {
        Ok(attributes) => {
            let is_fifo = queue.kind() == QueueKind::Fifo;
            let kind = if attributes.is_fifo { "a FIFO queue" } else { "a standard queue" };
            if attributes.is_fifo != is_fifo {
                let remedy = "give the queue's own URL; that of a FIFO queue ends with .fifo";
                findings.add(what.clone(), Verdict::Bad, format!("{kind}, which its URL does not say"), remedy);
            } else {
                let bytes = attributes.most_bytes.map_or("unknown".to_owned(), |most| most.to_string());
                let says = format!("{kind}, takes {bytes} bytes, encryption: {}", attributes.encryption);
                findings.good(what.clone(), says);
            }
            if attributes.needs_key {
                let remedy = "allow kms:GenerateDataKey and kms:Decrypt on it; without them the destination halts";
                let says = "the rights on its key cannot be tried without sending";
                findings.add(what.clone(), Verdict::Warning, says, remedy);
            }
            if attributes.is_small() {
                let bytes = attributes.most_bytes.unwrap_or_default();
                let remedy =
                    "raise MaximumMessageSize to 1048576, or keep events small; larger ones become dead messages";
                findings.add(what.clone(), Verdict::Warning, format!("takes no message above {bytes} bytes"), remedy);
            }
        }
        Err(refused) => {
            let says = format!("its attributes cannot be seen: {}: {}", refused.code, refused.detail);
            let is_denied = refused.code.contains("AccessDenied");
            let remedy = if is_denied { "allow sqs:GetQueueAttributes to have them checked" } else { "" };
            findings.add(what.clone(), Verdict::Warning, says, remedy);
        }
    }
    match queue.may_send().await {
        Ok(()) => findings.good(what, "this relay may send"),
        Err(fault) => {
            let remedy = match fault.kind {
                FaultKind::Outage | FaultKind::ServerError | FaultKind::Ambiguous => {
                    "docs/operations.md, \"SQS is down or cannot be reached\""
                }
                _ => "docs/operations.md, \"A destination is halted\"",
            };
            findings.add(what, Verdict::Bad, format!("this relay cannot send: {fault}"), remedy);
        }
    }
}
