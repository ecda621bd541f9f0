//! What is wrong now, in plain words, each with the section of the runbook that says what to do. Pure.
//!
//! The limits are those of the alerts (`deploy/prometheus/outbox-relay.rules.yml`), without their waiting times: an alert
//! decides whom to wake, the page shows what is so at this moment.

use std::time::Duration;

use super::measured::{Destination, Measured};
use super::words;

/// The most problems that are listed; there are a few for each destination at most.
const MOST: usize = 60;

/// A message that waits longer than this is late.
const LATE_SECONDS: f64 = 60.0;

/// The vacuum horizon may be held back for this long.
const HORIZON_SECONDS: f64 = 1800.0;

/// The share of requests that may fail within this period, and the fewest failures that count.
const FAILING: (f64, u64, Duration) = (0.05, 3, Duration::from_secs(600));

/// How much it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Severity {
    /// Messages are not delivered, or a decision is needed.
    Critical,
    /// It can wait until working hours.
    Warning,
    /// Somebody wants it so.
    Note,
}

impl Severity {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Critical => "critical",
            Self::Warning => "warning",
            Self::Note => "notice",
        }
    }
}

/// A heading of the runbook, `docs/operations.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Section {
    pub(super) heading: &'static str,
    pub(super) anchor: &'static str,
}

const fn section(heading: &'static str, anchor: &'static str) -> Section {
    Section { heading, anchor }
}

const DATABASE: Section = section("The database cannot be used", "the-database-cannot-be-used");
const UNMEASURED: Section = section("Lag and backlog are not measured", "lag-and-backlog-are-not-measured");
const HANGING: Section =
    section("A relay was killed, hangs or lost its network", "a-relay-was-killed-hangs-or-lost-its-network");
const HORIZON: Section = section("The vacuum horizon is held back", "the-vacuum-horizon-is-held-back");
const HALTED: Section = section("A destination is halted", "a-destination-is-halted");
const STALLED: Section = section("Delivery has stalled", "delivery-has-stalled");
const PAUSED: Section = section("A destination is paused", "a-destination-is-paused");
const QUARANTINE: Section = section("A message is in quarantine", "a-message-is-in-quarantine");
const DEAD: Section = section("A message is dead", "a-message-is-dead");
const LATE: Section = section("Messages wait too long", "messages-wait-too-long");
const GROUP: Section = section("A group stands still", "a-group-stands-still");
const HOT: Section = section("Groups are hot", "groups-are-hot");
const FAILING_SECTION: Section = section("Many requests fail", "many-requests-fail");
const THROTTLED: Section = section("SQS throttles", "sqs-throttles");
const TABLE: Section = section("A destination in the table is not served", "a-destination-in-the-table-is-not-served");
const UNSERVED: Section = section("Nobody serves a destination", "nobody-serves-a-destination");
const LOG: Section = section("Log lines", "log-lines");

/// All sections that a problem can lead to.
#[cfg(test)]
const SECTIONS: [Section; 17] = [
    DATABASE,
    UNMEASURED,
    HANGING,
    HORIZON,
    HALTED,
    STALLED,
    PAUSED,
    QUARANTINE,
    DEAD,
    LATE,
    GROUP,
    HOT,
    FAILING_SECTION,
    THROTTLED,
    TABLE,
    UNSERVED,
    LOG,
];

/// One problem.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Problem {
    pub(super) severity: Severity,
    /// The destination; `None` for the process or the database.
    pub(super) about: Option<String>,
    pub(super) text: String,
    pub(super) section: Section,
}

/// Everything that is wrong, the worst first.
pub(super) fn of(measured: &Measured) -> Vec<Problem> {
    let mut found = of_the_process(measured);
    for destination in &measured.destinations {
        let about = |(severity, text, section)| Problem {
            severity,
            about: Some(words::short(&destination.name)),
            text,
            section,
        };
        found.extend(of_the_queue(destination, measured).into_iter().map(about));
        if measured.measured_ago.is_some() {
            found.extend(of_the_table(destination, measured).into_iter().map(about));
        }
    }
    found.sort_by_key(|problem| problem.severity);
    found.truncate(MOST);
    found
}

fn of_the_process(measured: &Measured) -> Vec<Problem> {
    let mut found = Vec::new();
    let mut add = |severity, text, section| found.push(Problem { severity, about: None, text, section });
    if let Some(outage) = &measured.database.outage {
        let (since, reason) = (ago(outage.lasting), words::short(&outage.reason));
        add(
            Severity::Critical,
            format!("The database cannot be used {since}: {reason}. Messages wait; none is lost."),
            DATABASE,
        );
    }
    if !measured.hanging.is_empty() {
        let names = words::short(&measured.hanging.join(", "));
        add(
            Severity::Critical,
            format!("These parts of the relay hang: {names}. Restart it; nothing is lost."),
            HANGING,
        );
    }
    found.extend(of_the_destinations(measured));
    let mut add = |severity, text, section| found.push(Problem { severity, about: None, text, section });
    let is_new = measured.running_for < Duration::from_secs(60);
    if measured.measured_ago.is_none() && measured.database.outage.is_none() && !is_new {
        let text = "Lag, backlog and dead messages could not be measured for a minute.".to_owned();
        add(Severity::Warning, text, UNMEASURED);
    }
    for (kind, seconds) in measured.horizon.iter().filter(|(_, seconds)| *seconds > HORIZON_SECONDS) {
        let (kind, lasting) = (kind.replace('_', " "), words::seconds(*seconds));
        add(
            Severity::Warning,
            format!("A {kind} has held the vacuum horizon back for {lasting}, so tables grow."),
            HORIZON,
        );
    }
    for refused in measured.settings.iter().filter(|setting| setting.value.ends_with("(not followed)")) {
        let text = format!("The setting {}={} is refused.", words::short(&refused.name), words::short(&refused.value));
        add(Severity::Warning, text, LOG);
    }
    found
}

/// Destinations that this relay, or no relay, serves.
fn of_the_destinations(measured: &Measured) -> Vec<Problem> {
    let mut found = Vec::new();
    let mut add = |text, section| found.push(Problem { severity: Severity::Warning, about: None, text, section });
    if measured.lacks_destinations {
        let text = "There is no destination: outbox.destinations has no row that can be used. The relay waits for one.";
        add(text.to_owned(), TABLE);
    }
    if !measured.refused_rows.is_empty() {
        let names = words::short(&measured.refused_rows.join(", "));
        add(
            format!("Rows of outbox.destinations cannot be used: {names}. The log and outbox-relay check say why."),
            TABLE,
        );
    }
    if !measured.unserved.is_empty() {
        let names = words::short(&measured.unserved.join(", "));
        add(format!("Messages wait for destinations that no running relay serves: {names}."), UNSERVED);
    }
    found
}

type Found = (Severity, String, Section);

fn of_the_queue(destination: &Destination, measured: &Measured) -> Vec<Found> {
    let mut found = Vec::new();
    if let Some(outage) = &destination.outage {
        let (since, reason) = (ago(outage.lasting), words::short(&outage.reason));
        let waiting = if measured.measured_ago.is_some() {
            format!("{} pending, not lost.", words::messages(destination.pending))
        } else {
            "Its messages wait; none is lost.".to_owned()
        };
        found.push((Severity::Critical, format!("has been halted {since}: {reason}. {waiting}"), HALTED));
    }
    if let Some(lasting) = destination.stalled {
        let text =
            format!("has messages that are due, and nothing was delivered {}, without a known reason.", ago(lasting));
        found.push((Severity::Critical, text, STALLED));
    }
    if let Some(pause) = &destination.pause {
        let by = words::short(&pause.actor);
        let left = pause.left.filter(|left| words::end(measured.now, Some(*left)).is_some());
        let end =
            left.map_or_else(|| "until it is resumed".to_owned(), |left| format!("for {} more", words::lasting(left)));
        found.push((
            Severity::Note,
            format!("has been paused for {} by {by}, {end}.", words::lasting(pause.age)),
            PAUSED,
        ));
    }
    if destination.outage.is_none() {
        let (share, fewest, period) = FAILING;
        let failures = destination.past.growth(|point| point.failures, destination.failures, period);
        let requests = destination.past.growth(|point| point.requests, destination.requests, period);
        if failures >= fewest && failures as f64 > requests as f64 * share {
            let text =
                format!("has had {failures} of its last {requests} requests fail, within {}.", words::lasting(period));
            found.push((Severity::Warning, text, FAILING_SECTION));
        }
        if destination.hot_groups > 0 {
            found.push((Severity::Warning, hot(destination), HOT));
        }
        if destination.in_flight_limit < destination.max_in_flight && destination.pause.is_none() {
            let (limit, max) = (destination.in_flight_limit, destination.max_in_flight);
            let text = format!(
                "sends {limit} requests at a time instead of {max}, because it was asked for fewer or answers failed."
            );
            found.push((Severity::Note, text, THROTTLED));
        }
    }
    found
}

fn of_the_table(destination: &Destination, measured: &Measured) -> Vec<Found> {
    let mut found = Vec::new();
    let dead = words::messages(destination.dead).replace("message", "dead message");
    if destination.quarantined > 0 {
        let count = words::messages(destination.quarantined);
        let text = format!("has {count} in quarantine, whose outcome cannot be recorded, or which cannot be read.");
        found.push((Severity::Critical, text, QUARANTINE));
    }
    if destination.dead > 0 {
        let text = format!("has {dead}, which wait for a decision: redrive or discard.");
        found.push((Severity::Warning, text, DEAD));
    }
    let is_explained =
        destination.outage.is_some() || destination.pause.is_some() || measured.database.outage.is_some();
    if destination.lag > LATE_SECONDS && !is_explained {
        let lag = words::seconds(destination.lag);
        if destination.ready_lag.is_some_and(|ready_lag| ready_lag <= 0.0) {
            let text = format!(
                "has a message that has waited for {lag}. Everything pending is held up by a retry, by a message of its group, or by hand."
            );
            found.push((Severity::Warning, text, GROUP));
        } else {
            found.push((Severity::Warning, format!("has a message that has waited for {lag}."), LATE));
        }
    }
    found
}

/// What limits hot groups, and what would lift it. Their names are not for everybody who can see the page.
fn hot(destination: &Destination) -> String {
    let Destination { hot_groups, hot_group_rate, fifo_mode, .. } = destination;
    let (groups, each) = if *hot_groups == 1 { ("group", "it gets") } else { ("groups", "each gets") };
    format!(
        "has {hot_groups} hot {groups}, which OUTBOX_RELAY_FIFO_MODE={} limits: {each} {} messages a second, and its messages \
         wait. The log and outbox-relay status name {}; {}.",
        fifo_mode.word(),
        words::rate(*hot_group_rate),
        if *hot_groups == 1 { "it" } else { "some of them" },
        fifo_mode.remedy()
    )
}

fn ago(lasting: Duration) -> String {
    format!("for {}", words::lasting(lasting))
}

#[cfg(test)]
mod tests {
    use super::super::measured::{Database, Ongoing};
    use super::super::samples::{Texts, destination, healthy, measured, pause};
    use super::*;
    use crate::config::FifoMode;

    fn texts(measured: &Measured) -> Vec<(Severity, String)> {
        let text = |problem: &Problem| format!("{} {}", problem.about.clone().unwrap_or_default(), problem.text);
        of(measured).iter().map(|problem| (problem.severity, text(problem).trim().to_owned())).collect()
    }

    fn one(destination: Destination) -> String {
        let found = of(&healthy(vec![destination]));
        assert_eq!(found.len(), 1, "{found:?}");
        format!("{} ({})", found[0].text, found[0].section.anchor)
    }

    #[test]
    fn a_healthy_relay_has_no_problem() {
        assert_eq!(texts(&healthy(vec![destination("tickets"), destination("audit")])), []);
    }

    #[test]
    fn each_problem_is_said_in_plain_words_with_its_section() {
        let base = || destination("tickets");
        let outage = Some(Ongoing { lasting: Duration::from_secs(240), reason: "NonExistentQueue: none".to_owned() });
        let table = [
            (
                Destination { outage, pending: 120, lag: 500.0, ready_lag: Some(500.0), ..base() },
                "has been halted for 4 min: NonExistentQueue: none. 120 messages pending, not lost. (a-destination-is-halted)",
            ),
            (
                Destination { stalled: Some(Duration::from_secs(45)), ..base() },
                "has messages that are due, and nothing was delivered for 45 s, without a known reason. (delivery-has-stalled)",
            ),
            (
                Destination { pause: Some(pause("ada", "")), lag: 500.0, ..base() },
                "has been paused for 5 min by ada, for 10 min more. (a-destination-is-paused)",
            ),
            (
                Destination { quarantined: 1, ..base() },
                "has 1 message in quarantine, whose outcome cannot be recorded, or which cannot be read. (a-message-is-in-quarantine)",
            ),
            (
                Destination { dead: 2, ..base() },
                "has 2 dead messages, which wait for a decision: redrive or discard. (a-message-is-dead)",
            ),
            (
                Destination { lag: 61.0, ready_lag: Some(61.0), pending: 1, ..base() },
                "has a message that has waited for 1 min 1 s. (messages-wait-too-long)",
            ),
            (
                Destination { failures: 6, ..base() },
                "has had 6 of its last 100 requests fail, within 10 min. (many-requests-fail)",
            ),
            (
                Destination { hot_groups: 6, hot_group_rate: 33.4, ..base() },
                "has 6 hot groups, which OUTBOX_RELAY_FIFO_MODE=strict limits: each gets 33.4 messages a second, and its \
                 messages wait. The log and outbox-relay status name some of them; OUTBOX_RELAY_FIFO_MODE=batched sends up to \
                 ten of a group in a request; more groups help as well. (groups-are-hot)",
            ),
            (
                Destination { hot_groups: 1, hot_group_rate: 300.0, fifo_mode: FifoMode::Batched, ..base() },
                "has 1 hot group, which OUTBOX_RELAY_FIFO_MODE=batched limits: it gets 300 messages a second, and its \
                 messages wait. The log and outbox-relay status name it; only more groups help: a group has one request under \
                 way. (groups-are-hot)",
            ),
            (
                Destination { in_flight_limit: 8, ..base() },
                "sends 8 requests at a time instead of 256, because it was asked for fewer or answers failed. (sqs-throttles)",
            ),
        ];
        for (destination, expected) in table {
            assert_eq!(one(destination), expected);
        }
        let held = one(Destination { lag: 61.0, ready_lag: Some(0.0), pending: 1, ..base() });
        assert!(held.contains("held up") && held.ends_with("(a-group-stands-still)"), "{held}");
    }

    #[test]
    fn a_few_failures_and_a_short_wait_are_no_problem() {
        let good = [
            Destination { failures: 5, ..destination("a") },
            Destination { failures: 2, requests: 2, ..destination("b") },
            Destination { lag: 59.0, pending: 1, ..destination("c") },
        ];
        assert_eq!(texts(&healthy(good.to_vec())), []);
    }

    #[test]
    fn what_is_not_measured_is_no_problem_of_a_message_but_one_of_measuring() {
        let dead = Destination { dead: 2, quarantined: 3, lag: 1000.0, ..destination("tickets") };
        let unmeasured = Measured { measured_ago: None, ..healthy(vec![dead]) };
        let found = of(&unmeasured);
        assert_eq!((found.len(), found[0].section), (1, UNMEASURED), "{found:?}");
        let outage = Some(Ongoing { lasting: Duration::from_secs(90), reason: "connection refused".to_owned() });
        let down = Measured { database: Database { outage, ..unmeasured.database.clone() }, ..unmeasured };
        assert_eq!(
            texts(&down),
            [(
                Severity::Critical,
                "The database cannot be used for 1 min 30 s: connection refused. Messages wait; none is lost."
                    .to_owned()
            )]
        );
    }

    #[test]
    fn the_worst_comes_first_and_their_number_is_bounded() {
        let found = of(&measured(&Texts::all("x")));
        assert!(found.is_sorted_by_key(|problem| problem.severity), "{found:?}");
        assert!(found.len() >= 9, "{found:?}");
        let many = (0..500).map(|n| Destination { dead: 1, ..destination(&format!("d{n}")) }).collect();
        assert_eq!(of(&healthy(many)).len(), MOST);
    }

    #[test]
    fn every_section_is_in_the_runbook() {
        let runbook = super::super::runbook::TEXT;
        for Section { heading, anchor } in SECTIONS {
            assert!(runbook.contains(&format!("\n## {heading}\n")), "no section {heading:?}");
            assert_eq!(super::super::runbook::anchor(heading), anchor);
        }
    }
}
