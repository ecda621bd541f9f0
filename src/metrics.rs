//! Every metric, declared once: name, help text, labels, buckets.
//!
//! There are two kinds, which are never mixed: what the process did is counted where it happens; what is waiting is
//! measured in the table by the janitor. Labels are `destination` and a bounded `reason`, never an id. Every series
//! starts at 0, because `increase()` cannot see a counter that appears with a value.

mod declare;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus::{
    Encoder as _, Gauge, GaugeVec, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

use crate::message::FaultKind;
use declare::Declare;

/// Content type of [`Metrics::render`]; Prometheus 3 refuses a scrape without one.
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
const MEASURED: [&str; 5] =
    ["lag_seconds", "backlog_messages", "dead_messages", "quarantined_messages", "horizon_age_seconds"];

/// The prefix of every name.
const PREFIX: &str = "outbox_relay";

const ENTRIES: [f64; 10] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0];

/// Levels of log lines.
pub const LOG_LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];

/// What can hold the vacuum horizon back, as named in `sql/queries/horizon.sql`.
pub const HORIZON_KINDS: [&str; 4] = ["transaction", "prepared_transaction", "replication_slot", "standby"];

/// The kinds that PostgreSQL shows only to members of `pg_read_all_stats`.
pub const HORIZON_KINDS_OF_OTHERS: [&str; 2] = ["transaction", "standby"];

/// All metrics of the process and their registry.
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
    log_lines: IntCounterVec,
    by_destination: ByDestination,
}

/// The metric families with series per destination.
#[derive(Debug)]
struct ByDestination {
    lag: GaugeVec,
    backlog: IntGaugeVec,
    dead: IntGaugeVec,
    quarantined: IntGaugeVec,
    stalled: IntGaugeVec,
    delivered: IntCounterVec,
    quarantined_total: IntCounterVec,
    unmatched: IntCounterVec,
    repaired: IntCounterVec,
    order_breaks: IntCounterVec,
    retries: IntCounterVec,
    dead_lettered: IntCounterVec,
    possible_duplicates: IntCounterVec,
    requests: IntCounterVec,
    request_failures: IntCounterVec,
    request_duration: HistogramVec,
    request_entries: HistogramVec,
    latency: HistogramVec,
    destination_up: IntGaugeVec,
    in_flight_limit: IntGaugeVec,
    in_flight: IntGaugeVec,
    lanes_held: IntGaugeVec,
    hot_groups: IntGaugeVec,
    hot_group_rate: GaugeVec,
    late: IntCounterVec,
    pruned: IntCounterVec,
    read_duration: HistogramVec,
    settle_duration: HistogramVec,
    attributes_left_out: IntCounterVec,
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

impl ByDestination {
    fn declare(new: &Declare<'_>) -> Result<Self, prometheus::Error> {
        let by_destination = ["destination"];
        let by_reason = ["destination", "reason"];
        Ok(Self {
            lag: new.gauges_f64("lag_seconds", "Age of the oldest pending message, measured in the table.", by_destination)?,
            backlog: new.gauges("backlog_messages", "Pending messages, counted in the table up to 100000.", by_destination)?,
            dead: new.gauges("dead_messages", "Dead messages in the table, counted up to 100000.", by_destination)?,
            quarantined: new.gauges("quarantined_messages", "Messages in quarantine, counted up to 100000.", by_destination)?,
            stalled: new.gauges(
                "stalled",
                "1 while messages are due, nothing was delivered for 30 seconds and no known reason explains it, else 0.",
                by_destination,
            )?,
            delivered: new.counters("delivered_messages_total", "Messages that SQS accepted and that are recorded.", &by_destination)?,
            quarantined_total: new.counters("quarantined_messages_total", "Messages put in quarantine.", &by_destination)?,
            unmatched: new.counters(
                "unmatched_messages_total",
                "Messages that SQS accepted and that are not in the outbox any more, because the database has lost their transactions.",
                &by_destination,
            )?,
            repaired: new.counters(
                "repaired_messages_total",
                "Messages of which another copy was sent, because SQS had accepted one before an earlier message of the group.",
                &by_destination,
            )?,
            order_breaks: new.counters(
                "order_breaks_total",
                "Messages whose SequenceNumber is not above that of an earlier message of the group: the queue does not keep order.",
                &by_destination,
            )?,
            retries: new.counters("retries_total", "Entries that are sent again, by cause.", &by_reason)?,
            dead_lettered: new.counters("dead_lettered_total", "Messages declared dead, by cause.", &by_reason)?,
            possible_duplicates: new.counters(
                "possible_duplicates_total",
                "Entries sent again although SQS may have accepted them. A FIFO queue drops the second copy for five minutes.",
                &by_destination,
            )?,
            requests: new.counters("requests_total", "SendMessageBatch requests, failed ones included.", &by_destination)?,
            request_failures: new.counters("request_failures_total", "Requests that failed as a whole, by cause.", &by_reason)?,
            request_duration: new.histograms(
                ("request_duration_seconds", "Duration of SendMessageBatch requests, failed ones included."),
                &REQUEST_SECONDS,
            )?,
            request_entries: new.histograms(("request_entries", "Entries in SendMessageBatch requests."), &ENTRIES)?,
            latency: new.histograms(
                ("delivery_latency_seconds", "Time from enqueued in PostgreSQL to accepted by SQS."),
                &LATENCY_SECONDS,
            )?,
            destination_up: new.gauges("destination_up", "1 while the queue accepts requests, 0 while halted.", by_destination)?,
            in_flight_limit: new.gauges(
                "in_flight_limit",
                "Requests that may be in flight: OUTBOX_RELAY_MAX_IN_FLIGHT, or less after SQS throttled or answered 5xx, or files ran out.",
                by_destination,
            )?,
            in_flight: new.gauges("requests_in_flight", "SendMessageBatch requests under way.", by_destination)?,
            lanes_held: new.gauges("lanes_held", "Lanes that this relay holds under a claim, of 16.", by_destination)?,
            hot_groups: new.gauges(
                "hot_groups",
                "Groups that OUTBOX_RELAY_FIFO_MODE limits: for ten seconds each had a request under way while its next message waited for over a second.",
                by_destination,
            )?,
            hot_group_rate: new.gauges_f64(
                "hot_group_messages_per_second",
                "Messages a second that SQS accepts of each hot group, on average; 0 when there is none.",
                by_destination,
            )?,
            late: new.counters(
                "late_messages_total",
                "Messages that a rescan found, because they were committed after higher ids were read.",
                &by_destination,
            )?,
            pruned: new.counters(
                "pruned_messages_total",
                "Delivered messages that were deleted after OUTBOX_RELAY_DELIVERED_RETENTION.",
                &by_destination,
            )?,
            read_duration: new.histograms(
                ("read_duration_seconds", "Duration of reading a batch, failed reads included."),
                &STATEMENT_SECONDS,
            )?,
            settle_duration: new.histograms(
                ("settle_duration_seconds", "Duration of writing outcomes back, failed attempts included."),
                &STATEMENT_SECONDS,
            )?,
            attributes_left_out: new.counters(
                "attributes_left_out_total",
                "Members of events' metadata that SQS cannot take as attributes.",
                &by_destination,
            )?,
        })
    }
}

impl Metrics {
    /// Declares everything in a registry of its own.
    ///
    /// # Errors
    ///
    /// When a declaration is wrong, which is an error of this file.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new_custom(Some(PREFIX.to_owned()), None)?;
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
            log_lines: new.counters("log_lines_total", "Lines logged, by level.", &["level"])?,
            registry: registry.clone(),
        };
        metrics.register_process()?;
        metrics.init();
        Ok(metrics)
    }

    /// Starts the series that belong to no destination at 0.
    fn init(&self) {
        HORIZON_KINDS.iter().for_each(|kind| self.horizon_age(kind).set(0.0));
        self.set_connections(0, 0);
        LOG_LEVELS.iter().for_each(|level| self.log_lines(level).reset());
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

    /// Lines of a level, one of [`LOG_LEVELS`].
    pub fn log_lines(&self, level: &str) -> IntCounter {
        self.log_lines.with_label_values(&[level])
    }

    fn register_process(&self) -> Result<(), prometheus::Error> {
        let build = IntGauge::with_opts(
            Opts::new("build_info", "Always 1; the labels tell the build.")
                .const_label("version", env!("CARGO_PKG_VERSION"))
                .const_label("revision", env!("BUILD_REVISION")),
        )?;
        build.set(1);
        self.registry.register(Box::new(build))
    }

    /// The series of a destination, started at 0.
    pub fn destination(&self, name: &str) -> DestinationMetrics {
        let one = [name];
        self.set_paused(name, None);
        for kind in FaultKind::ALL {
            for family in [
                &self.by_destination.retries,
                &self.by_destination.dead_lettered,
                &self.by_destination.request_failures,
            ] {
                family.with_label_values(&[name, kind.reason()]);
            }
        }
        DestinationMetrics {
            lag: self.by_destination.lag.with_label_values(&one),
            backlog: self.by_destination.backlog.with_label_values(&one),
            dead: self.by_destination.dead.with_label_values(&one),
            quarantined: self.by_destination.quarantined.with_label_values(&one),
            stalled: self.by_destination.stalled.with_label_values(&one),
            quarantined_total: self.by_destination.quarantined_total.with_label_values(&one),
            unmatched: self.by_destination.unmatched.with_label_values(&one),
            repaired: self.by_destination.repaired.with_label_values(&one),
            order_breaks: self.by_destination.order_breaks.with_label_values(&one),
            delivered: self.by_destination.delivered.with_label_values(&one),
            possible_duplicates: self.by_destination.possible_duplicates.with_label_values(&one),
            requests: self.by_destination.requests.with_label_values(&one),
            request_duration: self.by_destination.request_duration.with_label_values(&one),
            request_entries: self.by_destination.request_entries.with_label_values(&one),
            latency: self.by_destination.latency.with_label_values(&one),
            up: self.by_destination.destination_up.with_label_values(&one),
            in_flight_limit: self.by_destination.in_flight_limit.with_label_values(&one),
            in_flight: self.by_destination.in_flight.with_label_values(&one),
            lanes_held: self.by_destination.lanes_held.with_label_values(&one),
            hot_groups: self.by_destination.hot_groups.with_label_values(&one),
            hot_group_rate: self.by_destination.hot_group_rate.with_label_values(&one),
            late: self.by_destination.late.with_label_values(&one),
            pruned: self.by_destination.pruned.with_label_values(&one),
            read_duration: self.by_destination.read_duration.with_label_values(&one),
            settle_duration: self.by_destination.settle_duration.with_label_values(&one),
            attributes_left_out: self.by_destination.attributes_left_out.with_label_values(&one),
            retries: self.by_destination.retries.clone(),
            dead_lettered: self.by_destination.dead_lettered.clone(),
            request_failures: self.by_destination.request_failures.clone(),
            name: name.to_owned(),
        }
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

    /// The text that Prometheus scrapes.
    ///
    /// # Errors
    ///
    /// When a metric cannot be written, which is an error of this file.
    pub fn render(&self) -> Result<Vec<u8>, prometheus::Error> {
        let mut families = self.registry.gather();
        // This holds before the first probe as well: otherwise a relay that starts would show an empty outbox at first.
        if self.measured_ago().is_none() {
            let is_measured = |name: &str| {
                let name = name.strip_prefix(PREFIX).and_then(|name| name.strip_prefix('_'));
                name.is_some_and(|name| MEASURED.contains(&name))
            };
            families.retain(|family| !is_measured(family.name()));
        }
        // The metrics of the process collector have no prefix: process_* is a reserved family that all exporters share.
        families.extend(prometheus::default_registry().gather());
        let mut text = Vec::with_capacity(16 * 1024);
        TextEncoder::new().encode(&families, &mut text)?;
        Ok(text)
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_of_a_destination_starts_at_zero() {
        let metrics = Metrics::new().unwrap();
        metrics.destination("tickets");
        metrics.has_measured();
        let text = String::from_utf8(metrics.render().unwrap()).unwrap();
        for line in [
            "outbox_relay_delivered_messages_total{destination=\"tickets\"} 0",
            "outbox_relay_retries_total{destination=\"tickets\",reason=\"throttle\"} 0",
            "outbox_relay_dead_lettered_total{destination=\"tickets\",reason=\"message_permanent\"} 0",
            "outbox_relay_request_failures_total{destination=\"tickets\",reason=\"outage\"} 0",
            "outbox_relay_possible_duplicates_total{destination=\"tickets\"} 0",
            "outbox_relay_lag_seconds{destination=\"tickets\"} 0",
            "outbox_relay_delivery_latency_seconds_count{destination=\"tickets\"} 0",
        ] {
            assert!(text.contains(line), "missing: {line}\n{text}");
        }
        assert!(text.contains("process_resident_memory_bytes"));
    }

    #[test]
    fn measured_values_are_shown_only_while_the_last_probe_is_recent() {
        let metrics = Metrics::new().unwrap();
        metrics.destination("tickets").dead.set(5);
        let shows = |name: &str| {
            String::from_utf8(metrics.render().unwrap()).unwrap().contains(&format!("\noutbox_relay_{name}{{"))
        };
        assert!(MEASURED.iter().all(|name| !shows(name)));
        metrics.has_measured();
        assert!(MEASURED.iter().all(|name| shows(name)));
        metrics.backlog_probe.set(now() - 59.0);
        assert!(shows("dead_messages"));
        metrics.backlog_probe.set(now() - 61.0);
        assert!(MEASURED.iter().all(|name| !shows(name)));
        assert!(shows("delivered_messages_total"), "counters stay");
    }
}
