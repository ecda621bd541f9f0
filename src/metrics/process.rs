//! The series of the process as a whole, which belong to no database.

use prometheus::{IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use super::PREFIX;
use super::declare::Declare;

/// Levels of log lines.
pub const LOG_LEVELS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];

/// Where a span can be dropped: it finds the queue full, or the collector does not take it.
pub const SPAN_STAGES: [&str; 2] = ["queue", "export"];

/// The series of the process and their registry.
#[derive(Debug)]
pub struct ProcessMetrics {
    pub(super) registry: Registry,
    log_lines: IntCounterVec,
    /// Spans that the collector took.
    pub spans_exported: IntCounter,
    spans_dropped: IntCounterVec,
}

impl ProcessMetrics {
    /// Declares everything in a registry of its own.
    ///
    /// # Errors
    ///
    /// When a declaration is wrong, which is an error of this file.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new_custom(Some(PREFIX.to_owned()), None)?;
        let new = Declare { registry: &registry };
        let metrics = Self {
            log_lines: new.counters("log_lines_total", "Lines logged, by level.", &["level"])?,
            spans_exported: new.counter("spans_exported_total", "Spans that the OpenTelemetry collector took.")?,
            spans_dropped: new.counters(
                "spans_dropped_total",
                "Spans that were dropped, by stage: queue if it was full, export if the collector did not take them.",
                &["stage"],
            )?,
            registry: registry.clone(),
        };
        LOG_LEVELS.iter().for_each(|level| metrics.log_lines(level).reset());
        SPAN_STAGES.iter().for_each(|stage| metrics.spans_dropped(stage).reset());
        let build = IntGauge::with_opts(
            Opts::new("build_info", "Always 1; the labels tell the build.")
                .const_label("version", env!("CARGO_PKG_VERSION"))
                .const_label("revision", env!("BUILD_REVISION")),
        )?;
        build.set(1);
        registry.register(Box::new(build))?;
        Ok(metrics)
    }

    /// Lines of a level, one of [`LOG_LEVELS`].
    pub fn log_lines(&self, level: &str) -> IntCounter {
        self.log_lines.with_label_values(&[level])
    }

    /// Spans dropped at a stage, one of [`SPAN_STAGES`].
    pub fn spans_dropped(&self, stage: &str) -> IntCounter {
        self.spans_dropped.with_label_values(&[stage])
    }
}
