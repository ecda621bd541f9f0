//! Every metric, declared once: name, help text, labels, buckets. Those with series for each destination are in
//! `by_destination.rs`, those of the process as a whole in `process.rs`.
//!
//! There are two kinds, which are never mixed: what the process did is counted where it happens; what is waiting is
//! measured in the table by the janitor. Labels are `destination` and a bounded `reason`, never an id. Every series
//! starts at 0, because `increase()` cannot see a counter that appears with a value.
//!
//! A process that serves several databases has a [`Metrics`] for each; then every series of it has the label `database`.

mod by_destination;
mod declare;
mod process;

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus::proto::MetricFamily;
use prometheus::{
    Encoder as _, Gauge, GaugeVec, Histogram, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Registry, TextEncoder,
};

use crate::message::FaultKind;
use by_destination::ByDestination;
use declare::Declare;
pub use process::{LOG_LEVELS, ProcessMetrics, SPAN_STAGES};

/// Content type of [`render`]; Prometheus 3 refuses a scrape without one.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// From fractions of a millisecond, as with a local emulator, to the longest request timeout. The steps from 5 ms on
/// are those of OpenTelemetry's messaging conventions.
const REQUEST_SECONDS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

/// From enqueued to delivered: fine where latency objectives lie, long enough to show an outage.
const LATENCY_SECONDS: [f64; 16] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0];

/// Reading and settling: from a statement of a few milliseconds to the statement timeout.
const STATEMENT_SECONDS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

/// Probes run every few seconds. Older results are not shown, because a number that does not change looks like a true
/// one; the time of the last probe stays.
const MEASURED_FOR: Duration = Duration::from_secs(60);

/// The metrics that a probe measures.
const MEASURED: [&str; 8] = [
    "lag_seconds",
    "backlog_messages",
    "dead_messages",
    "quarantined_messages",
    "scheduled_messages",
    "next_scheduled_timestamp_seconds",
    "horizon_age_seconds",
    "unserved_messages",
];

/// The prefix of every name.
const PREFIX: &str = "outbox_relay";

const ENTRIES: [f64; 10] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0];

/// What can hold the vacuum horizon back, as named in `sql/queries/horizon.sql`.
pub const HORIZON_KINDS: [&str; 4] = ["transaction", "prepared_transaction", "replication_slot", "standby"];

/// The kinds that PostgreSQL shows only to members of `pg_read_all_stats`.
pub const HORIZON_KINDS_OF_OTHERS: [&str; 2] = ["transaction", "standby"];

/// The metrics of one database and their registry.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// 1 when the last statement succeeded, 0 when it did not.
    pub database_up: IntGauge,
    /// Unix time of the last successful backlog probe.
    pub backlog_probe: Gauge,
    horizon_age: GaugeVec,
    paused: IntGaugeVec,
    paused_since: GaugeVec,
    /// Connections to PostgreSQL that this process may open.
    pub connections_max: IntGauge,
    connections: IntGaugeVec,
    /// Messages, pending or scheduled and due, of destinations that no running relay serves.
    pub unserved: IntGauge,
    by_destination: ByDestination,
}

/// The series of one destination.
#[derive(Clone, Debug)]
pub struct DestinationMetrics {
    /// Age of the oldest pending message.
    pub lag: Gauge,
    /// Pending messages.
    pub backlog: IntGauge,
    /// Dead messages in the table.
    pub dead: IntGauge,
    /// Messages in quarantine.
    pub quarantined: IntGauge,
    /// Messages for later.
    pub scheduled: IntGauge,
    /// When the next of them falls due; 0 when there is none.
    pub next_scheduled: Gauge,
    /// 1 while messages are due and not delivered, and no known reason explains it.
    pub stalled: IntGauge,
    /// Messages SQS accepted.
    pub delivered: IntCounter,
    /// Messages set aside.
    pub quarantined_total: IntCounter,
    /// Messages SQS accepted that are not in the outbox any more.
    pub unmatched: IntCounter,
    /// Messages of which another copy was sent, because the first one came too early.
    pub repaired: IntCounter,
    /// Messages that the queue put behind later ones of their groups.
    pub order_breaks: IntCounter,
    /// Entries that may have been accepted although no answer said so.
    pub possible_duplicates: IntCounter,
    /// Requests sent.
    pub requests: IntCounter,
    /// How long they took.
    pub request_duration: Histogram,
    /// How full they were.
    pub request_entries: Histogram,
    /// Enqueued to delivered.
    pub latency: Histogram,
    /// 1 while the queue accepts requests.
    pub up: IntGauge,
    /// Requests that may be in flight; below the configured number after SQS has throttled.
    pub in_flight_limit: IntGauge,
    /// Requests under way.
    pub in_flight: IntGauge,
    /// Lanes held under a claim.
    pub lanes_held: IntGauge,
    /// Groups that the FIFO mode limits.
    pub hot_groups: IntGauge,
    /// Messages a second of each of them.
    pub hot_group_rate: Gauge,
    /// Messages that a rescan found, because they were committed after higher ids were read.
    pub late: IntCounter,
    /// Delivered messages that were deleted after the retention.
    pub pruned: IntCounter,
    /// How long reads took.
    pub read_duration: Histogram,
    /// How long settling took.
    pub settle_duration: Histogram,
    /// Metadata members that could not become attributes.
    pub attributes_left_out: IntCounter,
    /// Entries whose bodies are in a bucket.
    pub claim_checks: IntCounter,
    /// Bytes of these bodies.
    pub claim_check_bytes: IntCounter,
    retries: IntCounterVec,
    dead_lettered: IntCounterVec,
    request_failures: IntCounterVec,
    name: String,
}

impl DestinationMetrics {
    /// Entries that will be sent again, by the kind of fault.
    pub fn retries(&self, kind: FaultKind) -> IntCounter {
        self.retries.with_label_values(&[self.name.as_str(), kind.reason()])
    }

    /// Messages declared dead, by the kind of fault.
    pub fn dead_lettered(&self, kind: FaultKind) -> IntCounter {
        self.dead_lettered.with_label_values(&[self.name.as_str(), kind.reason()])
    }

    /// Messages declared dead so far.
    pub fn all_dead_lettered(&self) -> u64 {
        FaultKind::ALL.iter().map(|kind| self.dead_lettered(*kind).get()).sum()
    }

    /// Requests that failed as a whole, by the kind of fault.
    pub fn request_failures(&self, kind: FaultKind) -> IntCounter {
        self.request_failures.with_label_values(&[self.name.as_str(), kind.reason()])
    }
}

impl Metrics {
    /// Declares everything in a registry of its own, for a database that may have a name.
    ///
    /// # Errors
    ///
    /// When a declaration is wrong, which is an error of this file.
    pub fn new(database: Option<&str>) -> Result<Self, prometheus::Error> {
        let label = database.map(|name| HashMap::from([("database".to_owned(), name.to_owned())]));
        let registry = Registry::new_custom(Some(PREFIX.to_owned()), label)?;
        let new = Declare { registry: &registry };
        let metrics = Self {
            by_destination: ByDestination::declare(&new)?,
            database_up: new
                .gauge("database_up", "1 when PostgreSQL answered the last statement of every destination, else 0.")?,
            backlog_probe: new.seconds(
                "backlog_probe_timestamp_seconds",
                "Unix time of the last probe that measured lag, backlog and dead messages.",
            )?,
            horizon_age: new.gauges_f64(
                "horizon_age_seconds",
                "Age of the oldest holder of the vacuum horizon, by kind; 0 when there is none. transaction and standby are absent where the relay's role is not in pg_read_all_stats.",
                ["kind"],
            )?,
            paused: new.gauges("paused", "1 while an operator has paused the destination, else 0.", ["destination"])?,
            paused_since: new.gauges_f64(
                "paused_since_timestamp_seconds",
                "Unix time since when the destination is paused; absent while it is not.",
                ["destination"],
            )?,
            connections: new.gauges("database_connections", "Connections to PostgreSQL, by state.", ["state"])?,
            connections_max: new.gauge("database_connections_max", "Connections to PostgreSQL that may be open.")?,
            unserved: new.gauge(
                "unserved_messages",
                "Messages, pending or scheduled and due, of destinations that no running relay serves, counted up to 100000 for each.",
            )?,
            registry: registry.clone(),
        };
        metrics.init();
        Ok(metrics)
    }

    /// Starts the series that belong to no destination at 0.
    fn init(&self) {
        HORIZON_KINDS.iter().for_each(|kind| self.horizon_age(kind).set(0.0));
        self.set_connections(0, 0);
    }

    /// Age of the oldest holder of a kind, one of [`HORIZON_KINDS`].
    pub fn horizon_age(&self, kind: &str) -> Gauge {
        self.horizon_age.with_label_values(&[kind])
    }

    /// Nothing is known about that kind, which is not the same as no holder.
    pub fn forget_horizon(&self, kind: &str) {
        // An error means that the series is absent already.
        drop(self.horizon_age.remove_label_values(&[kind]));
    }

    /// Sets the numbers of idle connections and of those in use.
    pub fn set_connections(&self, idle: i64, in_use: i64) {
        self.connections.with_label_values(&["idle"]).set(idle);
        self.connections.with_label_values(&["in_use"]).set(in_use);
    }

    /// Whether a destination is paused, and for how long it has been.
    pub fn set_paused(&self, destination: &str, age: Option<Duration>) {
        self.paused.with_label_values(&[destination]).set(i64::from(age.is_some()));
        match age {
            Some(age) => self.paused_since.with_label_values(&[destination]).set(now() - age.as_secs_f64()),
            // The series does not exist if the destination was not paused before.
            None => drop(self.paused_since.remove_label_values(&[destination])),
        }
    }

    /// The series of a destination, started at 0.
    pub fn destination(&self, name: &str) -> DestinationMetrics {
        let one = [name];
        self.set_paused(name, None);
        for kind in FaultKind::ALL {
            for family in [
                &self.by_destination.counters.retries,
                &self.by_destination.counters.dead_lettered,
                &self.by_destination.counters.request_failures,
            ] {
                family.with_label_values(&[name, kind.reason()]);
            }
        }
        let ByDestination { gauges, counters, histograms } = &self.by_destination;
        DestinationMetrics {
            lag: gauges.lag.with_label_values(&one),
            backlog: gauges.backlog.with_label_values(&one),
            dead: gauges.dead.with_label_values(&one),
            quarantined: gauges.quarantined.with_label_values(&one),
            scheduled: gauges.scheduled.with_label_values(&one),
            next_scheduled: gauges.next_scheduled.with_label_values(&one),
            stalled: gauges.stalled.with_label_values(&one),
            quarantined_total: counters.quarantined_total.with_label_values(&one),
            unmatched: counters.unmatched.with_label_values(&one),
            repaired: counters.repaired.with_label_values(&one),
            order_breaks: counters.order_breaks.with_label_values(&one),
            delivered: counters.delivered.with_label_values(&one),
            possible_duplicates: counters.possible_duplicates.with_label_values(&one),
            requests: counters.requests.with_label_values(&one),
            request_duration: histograms.request_duration.with_label_values(&one),
            request_entries: histograms.request_entries.with_label_values(&one),
            latency: histograms.latency.with_label_values(&one),
            up: gauges.destination_up.with_label_values(&one),
            in_flight_limit: gauges.in_flight_limit.with_label_values(&one),
            in_flight: gauges.in_flight.with_label_values(&one),
            lanes_held: gauges.lanes_held.with_label_values(&one),
            hot_groups: gauges.hot_groups.with_label_values(&one),
            hot_group_rate: gauges.hot_group_rate.with_label_values(&one),
            late: counters.late.with_label_values(&one),
            pruned: counters.pruned.with_label_values(&one),
            read_duration: histograms.read_duration.with_label_values(&one),
            settle_duration: histograms.settle_duration.with_label_values(&one),
            attributes_left_out: counters.attributes_left_out.with_label_values(&one),
            claim_checks: counters.claim_checks.with_label_values(&one),
            claim_check_bytes: counters.claim_check_bytes.with_label_values(&one),
            retries: counters.retries.clone(),
            dead_lettered: counters.dead_lettered.clone(),
            request_failures: counters.request_failures.clone(),
            name: name.to_owned(),
        }
    }

    /// The destination is served no more: its series go away.
    pub fn forget(&self, name: &str) {
        self.by_destination.forget(name);
        // An error means that the series is absent already.
        drop(self.paused.remove_label_values(&[name]));
        drop(self.paused_since.remove_label_values(&[name]));
    }

    /// The age of the oldest holder of each kind that this role may see.
    pub fn horizon_ages(&self) -> Vec<(&'static str, f64)> {
        // Asking for a series by its label would create it.
        let families = prometheus::core::Collector::collect(&self.horizon_age);
        let series = || families.iter().flat_map(|family| family.get_metric());
        let age = |kind: &str| series().find(|one| one.get_label().iter().any(|label| label.value() == kind));
        let known = |kind: &'static str| age(kind).map(|one| (kind, one.get_gauge().get_value()));
        HORIZON_KINDS.into_iter().filter_map(known).collect()
    }

    /// Connections that are idle and in use.
    pub fn connections(&self) -> (i64, i64) {
        let state = |state: &str| self.connections.with_label_values(&[state]).get();
        (state("idle"), state("in_use"))
    }

    /// How long ago a probe has measured everything; `None` if that is too long ago for its results to be shown, or has
    /// not happened yet.
    pub fn measured_ago(&self) -> Option<Duration> {
        let ago = now() - self.backlog_probe.get();
        // A clock that was set back makes a probe of the future, and that is a recent one.
        (ago <= MEASURED_FOR.as_secs_f64()).then(|| Duration::try_from_secs_f64(ago).unwrap_or_default())
    }

    /// Notes that a probe has just measured everything.
    pub fn has_measured(&self) {
        self.backlog_probe.set(now());
    }

    /// What there is to scrape now.
    fn gather(&self) -> Vec<MetricFamily> {
        let mut families = self.registry.gather();
        // This holds before the first probe as well: otherwise a relay that starts would show an empty outbox at first.
        if self.measured_ago().is_none() {
            let is_measured = |name: &str| {
                let name = name.strip_prefix(PREFIX).and_then(|name| name.strip_prefix('_'));
                name.is_some_and(|name| MEASURED.contains(&name))
            };
            families.retain(|family| !is_measured(family.name()));
        }
        // The registry adds the name of the database behind the other labels.
        for metric in families.iter_mut().flat_map(MetricFamily::mut_metric) {
            let mut labels = metric.take_label();
            labels.sort();
            metric.set_label(labels);
        }
        families
    }
}

/// The text that Prometheus scrapes: the series of the process and of these databases.
///
/// # Errors
///
/// When a metric cannot be written, which is an error of this file.
pub fn render<'a>(
    process: &ProcessMetrics,
    databases: impl IntoIterator<Item = &'a Metrics>,
) -> Result<Vec<u8>, prometheus::Error> {
    // The lines of a family stay together, whichever database they are about.
    let mut families: BTreeMap<String, MetricFamily> = BTreeMap::new();
    let of_databases = databases.into_iter().flat_map(Metrics::gather);
    for mut family in process.registry.gather().into_iter().chain(of_databases) {
        match families.get_mut(family.name()) {
            Some(known) => known.mut_metric().extend(family.take_metric()),
            None => drop(families.insert(family.name().to_owned(), family)),
        }
    }
    let mut families: Vec<MetricFamily> = families.into_values().collect();
    // The metrics of the process collector have no prefix: process_* is a reserved family that all exporters share.
    families.extend(prometheus::default_registry().gather());
    let mut text = Vec::with_capacity(16 * 1024);
    TextEncoder::new().encode(&families, &mut text)?;
    Ok(text)
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests;
