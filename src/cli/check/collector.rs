//! The OpenTelemetry part of `outbox-relay check`: whether the collector takes spans. If it does not, messages are delivered all
//! the same, so that is a warning.

use super::{Findings, Verdict};
use crate::config::TracesConfig;
use crate::traces::Collector;

/// Where collectors listen for gRPC, which this relay does not speak.
const GRPC: &str = ":4317/";

/// Sends no span.
pub(super) async fn check(config: Option<&TracesConfig>, findings: &mut Findings) {
    let Some(config) = config else { return };
    let collector = match Collector::new(config) {
        Ok(collector) => collector,
        Err(problem) => return findings.add("collector", Verdict::Warning, problem, ""),
    };
    let place = collector.place();
    match collector.probe().await {
        Ok(()) => findings.good("collector", format!("takes spans at {place}")),
        Err(why) => {
            let says = format!("does not take spans at {place}: {why}");
            findings.add("collector", Verdict::Warning, says, remedy(place, &why));
        }
    }
}

fn remedy(place: &str, why: &str) -> &'static str {
    if place.contains(GRPC) {
        return "4317 is the port for gRPC; use that for http/protobuf, usually 4318; messages are delivered all the same";
    }
    match why.get(..8) {
        Some("HTTP 401" | "HTTP 403") => {
            "correct the key in OTEL_EXPORTER_OTLP_HEADERS; a place that wants signed requests, such as X-Ray's own, is \
             reached through a collector"
        }
        Some("HTTP 404" | "HTTP 405") => {
            "/v1/traces is put behind OTEL_EXPORTER_OTLP_ENDPOINT; if the collector has another path, give the whole URL as \
             OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
        }
        _ => {
            "start the collector, or correct OTEL_EXPORTER_OTLP_ENDPOINT; messages are delivered all the same, and spans are \
             dropped"
        }
    }
}
