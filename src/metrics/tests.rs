//! What is rendered, and when.

use super::*;

fn text(databases: &[&Metrics]) -> String {
    String::from_utf8(render(&ProcessMetrics::new().unwrap(), databases.iter().copied()).unwrap()).unwrap()
}

#[test]
fn every_series_of_a_destination_starts_at_zero() {
    let metrics = Metrics::new(None).unwrap();
    metrics.destination("tickets");
    metrics.has_measured();
    let text = text(&[&metrics]);
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
fn a_destination_that_is_forgotten_leaves_no_series() {
    let metrics = Metrics::new(None).unwrap();
    metrics.destination("tickets");
    metrics.destination("audit");
    metrics.set_paused("tickets", Some(Duration::from_secs(1)));
    metrics.has_measured();
    metrics.forget("tickets");
    let text = text(&[&metrics]);
    assert!(!text.contains("tickets") && text.contains("audit"), "{text}");
}

#[test]
fn measured_values_are_shown_only_while_the_last_probe_is_recent() {
    let metrics = Metrics::new(None).unwrap();
    metrics.destination("tickets").dead.set(5);
    let shows = |name: &str| text(&[&metrics]).contains(&format!("\n# TYPE outbox_relay_{name} "));
    assert!(MEASURED.iter().all(|name| !shows(name)));
    metrics.has_measured();
    assert!(MEASURED.iter().all(|name| shows(name)));
    metrics.backlog_probe.set(now() - 59.0);
    assert!(shows("dead_messages"));
    metrics.backlog_probe.set(now() - 61.0);
    assert!(MEASURED.iter().all(|name| !shows(name)));
    assert!(shows("delivered_messages_total"), "counters stay");
}

#[test]
fn the_series_of_several_databases_are_told_apart_and_families_stay_together() {
    let [orders, billing] = ["orders", "billing"].map(|name| Metrics::new(Some(name)).unwrap());
    for (metrics, delivered) in [(&orders, 3), (&billing, 5)] {
        metrics.destination("audit").delivered.inc_by(delivered);
    }
    orders.has_measured();
    let text = text(&[&orders, &billing]);
    let series = |line: &str| text.lines().filter(|known| known.starts_with(line)).count();
    for (database, delivered) in [("orders", 3), ("billing", 5)] {
        let line = format!(
            "outbox_relay_delivered_messages_total{{database=\"{database}\",destination=\"audit\"}} {delivered}"
        );
        assert_eq!(series(&line), 1, "{text}");
    }
    assert_eq!(series("# TYPE outbox_relay_delivered_messages_total "), 1);
    assert_eq!(series("outbox_relay_lag_seconds{"), 1, "billing was not measured: {text}");
    assert_eq!(series("outbox_relay_build_info{revision"), 1, "it belongs to the process: {text}");
}
