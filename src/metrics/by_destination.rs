//! The metric families that have series for each destination.

use prometheus::{GaugeVec, HistogramVec, IntCounterVec, IntGaugeVec};

use super::declare::Declare;
use super::{ENTRIES, LATENCY_SECONDS, REQUEST_SECONDS, STATEMENT_SECONDS};
use crate::message::FaultKind;

/// All of them.
#[derive(Debug)]
pub(super) struct ByDestination {
    pub(super) gauges: Gauges,
    pub(super) counters: Counters,
    pub(super) histograms: Histograms,
}

impl ByDestination {
    pub(super) fn declare(new: &Declare<'_>) -> Result<Self, prometheus::Error> {
        Ok(Self {
            gauges: Gauges::declare(new)?,
            counters: Counters::declare(new)?,
            histograms: Histograms::declare(new)?,
        })
    }

    /// Removes the series of a destination. An error means that one is absent already.
    pub(super) fn forget(&self, name: &str) {
        let Self { gauges, counters, histograms } = self;
        for family in [
            &gauges.backlog,
            &gauges.dead,
            &gauges.quarantined,
            &gauges.scheduled,
            &gauges.stalled,
            &gauges.destination_up,
            &gauges.in_flight_limit,
            &gauges.in_flight,
            &gauges.lanes_held,
            &gauges.hot_groups,
        ] {
            drop(family.remove_label_values(&[name]));
        }
        for family in [&gauges.lag, &gauges.next_scheduled, &gauges.hot_group_rate] {
            drop(family.remove_label_values(&[name]));
        }
        for family in [
            &counters.delivered,
            &counters.quarantined_total,
            &counters.unmatched,
            &counters.repaired,
            &counters.order_breaks,
            &counters.possible_duplicates,
            &counters.requests,
            &counters.late,
            &counters.pruned,
            &counters.attributes_left_out,
            &counters.claim_checks,
            &counters.claim_check_bytes,
        ] {
            drop(family.remove_label_values(&[name]));
        }
        for family in [
            &histograms.request_duration,
            &histograms.request_entries,
            &histograms.latency,
            &histograms.read_duration,
            &histograms.settle_duration,
        ] {
            drop(family.remove_label_values(&[name]));
        }
        for family in [&counters.retries, &counters.dead_lettered, &counters.request_failures] {
            for kind in FaultKind::ALL {
                drop(family.remove_label_values(&[name, kind.reason()]));
            }
        }
    }
}

/// What is so now.
#[derive(Debug)]
pub(super) struct Gauges {
    pub(super) lag: GaugeVec,
    pub(super) backlog: IntGaugeVec,
    pub(super) dead: IntGaugeVec,
    pub(super) quarantined: IntGaugeVec,
    pub(super) scheduled: IntGaugeVec,
    pub(super) next_scheduled: GaugeVec,
    pub(super) stalled: IntGaugeVec,
    pub(super) destination_up: IntGaugeVec,
    pub(super) in_flight_limit: IntGaugeVec,
    pub(super) in_flight: IntGaugeVec,
    pub(super) lanes_held: IntGaugeVec,
    pub(super) hot_groups: IntGaugeVec,
    pub(super) hot_group_rate: GaugeVec,
}

impl Gauges {
    fn declare(new: &Declare<'_>) -> Result<Self, prometheus::Error> {
        let by_destination = ["destination"];
        Ok(Self {
            lag: new.gauges_f64("lag_seconds", "Age of the oldest pending message, measured in the table.", by_destination)?,
            backlog: new.gauges("backlog_messages", "Pending messages, counted in the table up to 100000.", by_destination)?,
            dead: new.gauges("dead_messages", "Dead messages in the table, counted up to 100000.", by_destination)?,
            quarantined: new.gauges("quarantined_messages", "Messages in quarantine, counted up to 100000.", by_destination)?,
            scheduled: new.gauges(
                "scheduled_messages",
                "Messages for later, which are not pending yet, counted up to 100000.",
                by_destination,
            )?,
            next_scheduled: new.gauges_f64(
                "next_scheduled_timestamp_seconds",
                "Unix time at which the next scheduled message falls due; 0 when there is none.",
                by_destination,
            )?,
            stalled: new.gauges(
                "stalled",
                "1 while messages are due, nothing was delivered for 30 seconds and no known reason explains it, else 0.",
                by_destination,
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
        })
    }
}

/// What happened.
#[derive(Debug)]
pub(super) struct Counters {
    pub(super) delivered: IntCounterVec,
    pub(super) quarantined_total: IntCounterVec,
    pub(super) unmatched: IntCounterVec,
    pub(super) repaired: IntCounterVec,
    pub(super) order_breaks: IntCounterVec,
    pub(super) retries: IntCounterVec,
    pub(super) dead_lettered: IntCounterVec,
    pub(super) possible_duplicates: IntCounterVec,
    pub(super) requests: IntCounterVec,
    pub(super) request_failures: IntCounterVec,
    pub(super) late: IntCounterVec,
    pub(super) pruned: IntCounterVec,
    pub(super) attributes_left_out: IntCounterVec,
    pub(super) claim_checks: IntCounterVec,
    pub(super) claim_check_bytes: IntCounterVec,
}

impl Counters {
    fn declare(new: &Declare<'_>) -> Result<Self, prometheus::Error> {
        let by_destination = ["destination"];
        let by_reason = ["destination", "reason"];
        Ok(Self {
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
            attributes_left_out: new.counters(
                "attributes_left_out_total",
                "Members of events' metadata that SQS cannot take as attributes.",
                &by_destination,
            )?,
            claim_checks: new.counters(
                "claim_checks_total",
                "Entries sent whose bodies are in a bucket, those of failed requests included.",
                &by_destination,
            )?,
            claim_check_bytes: new.counters("claim_check_bytes_total", "Bytes of these bodies.", &by_destination)?,
        })
    }
}

/// How long things took, and how full requests were.
#[derive(Debug)]
pub(super) struct Histograms {
    pub(super) request_duration: HistogramVec,
    pub(super) request_entries: HistogramVec,
    pub(super) latency: HistogramVec,
    pub(super) read_duration: HistogramVec,
    pub(super) settle_duration: HistogramVec,
}

impl Histograms {
    fn declare(new: &Declare<'_>) -> Result<Self, prometheus::Error> {
        Ok(Self {
            request_duration: new.histograms(
                ("request_duration_seconds", "Duration of SendMessageBatch requests, failed ones included."),
                &REQUEST_SECONDS,
            )?,
            request_entries: new.histograms(("request_entries", "Entries in SendMessageBatch requests."), &ENTRIES)?,
            latency: new.histograms(
                ("delivery_latency_seconds", "Time from enqueued in PostgreSQL to accepted by SQS."),
                &LATENCY_SECONDS,
            )?,
            read_duration: new.histograms(
                ("read_duration_seconds", "Duration of reading a batch, failed reads included."),
                &STATEMENT_SECONDS,
            )?,
            settle_duration: new.histograms(
                ("settle_duration_seconds", "Duration of writing outcomes back, failed attempts included."),
                &STATEMENT_SECONDS,
            )?,
        })
    }
}
