//! Every metric, declared once: name, help text, labels, buckets.
//!
//! Two kinds, and they never mix: what the process did is counted where it happens; what waits is measured in the table by
//! the janitor. Labels are `destination` and a bounded `reason`, never an id. Every series is born at 0, because
//! `increase()` cannot see a counter that appears with a value.

use prometheus::{
    Encoder as _, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

use crate::message::FaultKind;

/// Content type of [`Metrics::render`]; Prometheus 3 refuses a scrape without one.
pub const CONTENT_TYPE: &str = prometheus::TEXT_FORMAT;

/// From a local emulator's fractions of a millisecond to the longest request timeout. The steps from 5 ms on are those of
/// OpenTelemetry's messaging conventions.
const REQUEST_SECONDS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

/// From enqueued to delivered: fine where people promise, long enough to show an outage.
const LATENCY_SECONDS: [f64; 16] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0];

const ENTRIES: [f64; 10] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0];

/// All metrics of the process and their registry.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// 1 when the last statement succeeded, 0 when it did not.
    pub database_up: IntGauge,
    /// Unix time of the last successful backlog probe.
    pub backlog_probe: Gauge,
    lag: GaugeVec,
    backlog: IntGaugeVec,
    dead: IntGaugeVec,
    delivered: IntCounterVec,
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
    /// Messages SQS accepted.
    pub delivered: IntCounter,
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

    /// Messages given up, by the kind of fault.
    pub fn dead_lettered(&self, kind: FaultKind) -> IntCounter {
        self.dead_lettered.with_label_values(&[self.name.as_str(), kind.reason()])
    }

    /// Requests that failed as a whole, by the kind of fault.
    pub fn request_failures(&self, kind: FaultKind) -> IntCounter {
        self.request_failures.with_label_values(&[self.name.as_str(), kind.reason()])
    }
}

impl Metrics {
    /// Declares everything in a registry of its own.
    ///
    /// # Errors
    ///
    /// When a declaration is wrong, which is an error of this file.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new_custom(Some("outbox_relay".to_owned()), None)?;
        let new = Declare { registry: &registry };
        let by_destination = ["destination"];
        let by_reason = ["destination", "reason"];
        let metrics = Self {
            database_up: new.gauge("database_up", "1 when PostgreSQL answered the last statement of every destination, else 0.")?,
            backlog_probe: new.seconds(
                "backlog_probe_timestamp_seconds",
                "Unix time of the last probe that measured lag, backlog and dead messages.",
            )?,
            lag: new.gauges_f64("lag_seconds", "Age of the oldest pending message, measured in the table.", by_destination)?,
            backlog: new.gauges("backlog_messages", "Pending messages, counted in the table up to 100000.", by_destination)?,
            dead: new.gauges("dead_messages", "Dead messages in the table, counted up to 100000.", by_destination)?,
            delivered: new.counters("delivered_messages_total", "Messages that SQS accepted.", &by_destination)?,
            retries: new.counters("retries_total", "Entries that are sent again, by cause.", &by_reason)?,
            dead_lettered: new.counters("dead_lettered_total", "Messages given up, by cause.", &by_reason)?,
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
                "Requests that may be in flight: OUTBOX_RELAY_MAX_IN_FLIGHT, or less after SQS has throttled.",
                by_destination,
            )?,
            attributes_left_out: new.counters(
                "attributes_left_out_total",
                "Members of events' metadata that SQS cannot take as attributes.",
                &by_destination,
            )?,
            registry: registry.clone(),
        };
        metrics.register_process()?;
        Ok(metrics)
    }

    fn register_process(&self) -> Result<(), prometheus::Error> {
        let build = IntGauge::with_opts(
            Opts::new("build_info", "Always 1; the labels tell the build.")
                .const_label("version", env!("CARGO_PKG_VERSION")),
        )?;
        build.set(1);
        self.registry.register(Box::new(build))
    }

    /// The series of a destination, born at 0.
    pub fn destination(&self, name: &str) -> DestinationMetrics {
        let one = [name];
        for kind in FaultKind::ALL {
            for family in [&self.retries, &self.dead_lettered, &self.request_failures] {
                family.with_label_values(&[name, kind.reason()]);
            }
        }
        DestinationMetrics {
            lag: self.lag.with_label_values(&one),
            backlog: self.backlog.with_label_values(&one),
            dead: self.dead.with_label_values(&one),
            delivered: self.delivered.with_label_values(&one),
            possible_duplicates: self.possible_duplicates.with_label_values(&one),
            requests: self.requests.with_label_values(&one),
            request_duration: self.request_duration.with_label_values(&one),
            request_entries: self.request_entries.with_label_values(&one),
            latency: self.latency.with_label_values(&one),
            up: self.destination_up.with_label_values(&one),
            in_flight_limit: self.in_flight_limit.with_label_values(&one),
            attributes_left_out: self.attributes_left_out.with_label_values(&one),
            retries: self.retries.clone(),
            dead_lettered: self.dead_lettered.clone(),
            request_failures: self.request_failures.clone(),
            name: name.to_owned(),
        }
    }

    /// The text that Prometheus scrapes.
    ///
    /// # Errors
    ///
    /// When a metric cannot be written, which is an error of this file.
    pub fn render(&self) -> Result<Vec<u8>, prometheus::Error> {
        let mut families = self.registry.gather();
        // The process collector has no prefix: process_* is a reserved family that every exporter shares.
        families.extend(prometheus::default_registry().gather());
        let mut text = Vec::with_capacity(16 * 1024);
        TextEncoder::new().encode(&families, &mut text)?;
        Ok(text)
    }
}

/// Makes metrics and registers them at once, so that none can be forgotten.
struct Declare<'a> {
    registry: &'a Registry,
}

impl Declare<'_> {
    fn add<M: prometheus::core::Collector + Clone + 'static>(&self, metric: M) -> Result<M, prometheus::Error> {
        self.registry.register(Box::new(metric.clone()))?;
        Ok(metric)
    }

    fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
        self.add(IntGauge::new(name, help)?)
    }

    fn seconds(&self, name: &str, help: &str) -> Result<Gauge, prometheus::Error> {
        self.add(Gauge::new(name, help)?)
    }

    fn gauges(&self, name: &str, help: &str, labels: [&str; 1]) -> Result<IntGaugeVec, prometheus::Error> {
        self.add(IntGaugeVec::new(Opts::new(name, help), &labels)?)
    }

    fn gauges_f64(&self, name: &str, help: &str, labels: [&str; 1]) -> Result<GaugeVec, prometheus::Error> {
        self.add(GaugeVec::new(Opts::new(name, help), &labels)?)
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, prometheus::Error> {
        self.add(IntCounterVec::new(Opts::new(name, help), labels)?)
    }

    fn histograms(&self, (name, help): (&str, &str), buckets: &[f64]) -> Result<HistogramVec, prometheus::Error> {
        self.add(HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets.to_vec()), &["destination"])?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_of_a_destination_is_born_at_zero() {
        let metrics = Metrics::new().unwrap();
        metrics.destination("tickets");
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
}
