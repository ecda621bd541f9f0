//! Spans for an OpenTelemetry collector: what they say, and that delivery does not depend on them.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, ensure};

use support::collector::{Collector, Manner, Span, attribute, span::SpanKind, status::StatusCode};
use support::eventually;
use support::postgres::free_port;
use support::proxy::{Choice, Fault, Rule};
use support::relay::Command;
use support::test_bed::TestBed;

/// A relay that exports to this collector.
pub fn exporting(bed: &TestBed, collector: &Collector) -> Command {
    bed.relay().env("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint()).env("OTEL_BSP_SCHEDULE_DELAY", "50")
}

fn traceparent(number: usize, flags: &str) -> String {
    format!("00-{:032x}-{:016x}-{flags}", 0xa000 + number, 0xb000 + number)
}

/// Writes messages with this metadata in one transaction, each in a group of its own.
async fn enqueue(bed: &TestBed, destination: &str, metadata: &[String]) -> Result<()> {
    let query = "SELECT outbox.enqueue($1, 'TicketPurchased', jsonb_build_object('n', n), 'g' || n, metadata::jsonb)
                 FROM unnest($2::text[]) WITH ORDINALITY AS given (metadata, n) ORDER BY n";
    bed.client.execute(query, &[&destination, &metadata]).await?;
    Ok(())
}

/// The same with a sampled trace for each.
pub async fn enqueue_traced(bed: &TestBed, destination: &str, count: usize) -> Result<()> {
    let metadata = |number| format!("{{\"traceparent\": \"{}\"}}", traceparent(number, "01"));
    enqueue(bed, destination, &(1..=count).map(metadata).collect::<Vec<_>>()).await
}

pub async fn until_spans(collector: &Collector, wanted: usize) -> Result<()> {
    eventually(&format!("{wanted} spans"), || async { Ok(collector.spans().len() >= wanted) }).await?;
    ensure!(collector.spans().len() == wanted, "{} spans instead of {wanted}", collector.spans().len());
    Ok(())
}

#[tokio::test]
async fn each_request_is_one_span_with_links_to_the_traces_of_its_events() -> Result<()> {
    let (bed, collector) = (TestBed::new().await?, Collector::start().await?);
    let proxy = bed.proxy().await?;
    let queue = bed.fifo("tickets").await?;
    let mut metadata: Vec<String> =
        (1..=23).map(|n| format!("{{\"traceparent\": {:?}}}", traceparent(n, "01"))).collect();
    metadata[3] = format!("{{\"traceparent\": {:?}, \"tracestate\": \"vendor=a,other=b\"}}", traceparent(4, "00"));
    metadata[4] = "{}".to_owned();
    metadata[5] = "{\"traceparent\": \"00-nonsense\", \"tracestate\": \"vendor=a\"}".to_owned();
    metadata[6] = "{\"traceparent\": 7}".to_owned();
    enqueue(&bed, "tickets", &metadata).await?;
    let begun = SystemTime::now();
    exporting(&bed, &collector).deliver_all().await?;
    let (spans, requests) = (collector.spans(), proxy.requests());
    ensure!(spans.len() == requests.len() && spans.len() >= 3, "{} spans, {} requests", spans.len(), requests.len());
    let mut entries = proxy.entries_per_request();
    entries.sort_unstable();
    let count =
        |span: &Span| Ok(attribute(&span.attributes, "messaging.batch.message_count").context("none")?.parse()?);
    let mut counts = spans.iter().map(count).collect::<Result<Vec<usize>>>()?;
    counts.sort_unstable();
    ensure!(counts == entries, "{counts:?} entries, sent were {entries:?}");
    let endpoint = proxy.endpoint();
    let (host, port) = endpoint.trim_start_matches("http://").split_once(':').context("no port")?;
    let name = queue.rsplit('/').next().context("no name")?;
    for span in &spans {
        ensure!(span.name == format!("send {name}") && span.kind() == SpanKind::Client, "{span:?}");
        ensure!(span.status.is_none() && span.parent_span_id.is_empty(), "{span:?}");
        ensure!(span.trace_id.len() == 16 && span.span_id.len() == 8 && span.flags == 0x103, "{span:?}");
        for (key, value) in [
            ("messaging.system", "aws_sqs"),
            ("messaging.operation.name", "send"),
            ("messaging.operation.type", "send"),
            ("messaging.destination.name", name),
            ("aws.sqs.queue.url", &queue),
            ("server.address", host),
            ("server.port", port),
            ("outbox_relay.destination", "tickets"),
        ] {
            ensure!(attribute(&span.attributes, key).as_deref() == Some(value), "{key} is not {value}: {span:?}");
        }
        let [start, end] = [span.start_time_unix_nano, span.end_time_unix_nano];
        let time = |nanoseconds| SystemTime::UNIX_EPOCH + Duration::from_nanos(nanoseconds);
        ensure!(begun <= time(start) && start < end && time(end) <= SystemTime::now(), "{span:?}");
    }
    ensure_links(&bed, &spans).await?;
    let resource = &collector.exports()[0].resource;
    ensure!(resource["service.name"] == "outbox-relay" && resource.contains_key("service.instance.id"), "{resource:?}");
    Ok(())
}

/// Each valid context is linked once, with the id that SQS gave the message.
async fn ensure_links(bed: &TestBed, spans: &[Span]) -> Result<()> {
    let links = spans.iter().flat_map(|span| &span.links);
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let mut linked = BTreeMap::new();
    for link in links {
        let context = format!("00-{}-{}-{:02x}", hex(&link.trace_id), hex(&link.span_id), link.flags & 0xff);
        ensure!(link.flags & 0x300 == 0x300, "{link:?}");
        let id = attribute(&link.attributes, "messaging.message.id").context("no message id")?;
        ensure!(linked.insert(context, (id, link.trace_state.clone())).is_none(), "{link:?} is there twice");
    }
    let query = "SELECT metadata ->> 'traceparent', sqs_message_id, coalesce(metadata ->> 'tracestate', '')
                 FROM outbox.messages JOIN outbox.events ON position = event_position
                 WHERE metadata ->> 'traceparent' LIKE '00-0%'";
    let rows = bed.client.query(query, &[]).await?;
    let expected: BTreeMap<String, (String, String)> =
        rows.iter().map(|row| (row.get(0), (row.get(1), row.get(2)))).collect();
    ensure!(expected.len() == 20 && linked == expected, "linked: {linked:?}\nexpected: {expected:?}");
    Ok(())
}

#[tokio::test]
async fn a_failing_entry_makes_an_error_span_that_says_how_many() -> Result<()> {
    let (bed, collector) = (TestBed::new().await?, Collector::start().await?);
    let proxy = bed.proxy().await?;
    bed.fifo("tickets").await?;
    let which = Choice::at([1, 2]);
    proxy.script([Rule::new(Fault::FailEntries { which, code: "InternalError", sender_fault: false }).times(1)]);
    enqueue_traced(&bed, "tickets", 5).await?;
    exporting(&bed, &collector).deliver_all().await?;
    let spans = collector.spans();
    ensure!(spans.len() == proxy.requests_seen() && spans.len() >= 2, "{spans:?}");
    let failed: Vec<_> = spans.iter().filter(|span| span.status.is_some()).collect();
    ensure!(failed.len() == 1, "{spans:?}");
    let status = failed[0].status.clone().unwrap_or_default();
    ensure!(status.code() == StatusCode::Error && status.message.starts_with("2 of 5 entries failed"), "{status:?}");
    ensure!(attribute(&failed[0].attributes, "error.type").as_deref() == Some("InternalError"), "{failed:?}");
    let of_links = |key: &str| failed[0].links.iter().filter(|link| attribute(&link.attributes, key).is_some()).count();
    ensure!((of_links("error.type"), of_links("messaging.message.id")) == (2, 3), "{failed:?}");
    Ok(())
}

#[tokio::test]
async fn an_outage_makes_error_spans_with_its_code() -> Result<()> {
    let (bed, collector) = (TestBed::new().await?, Collector::start().await?);
    let proxy = bed.proxy().await?;
    bed.standard("audit").await?;
    proxy.set(Fault::queue_missing());
    let relay = exporting(&bed, &collector).start().await?;
    enqueue_traced(&bed, "audit", 3).await?;
    until_at_least_one(&collector).await?;
    for span in collector.spans() {
        let status = span.status.clone().unwrap_or_default();
        let code = attribute(&span.attributes, "error.type").context("no error.type")?;
        ensure!(status.code() == StatusCode::Error && status.message.contains("from the fault proxy"), "{span:?}");
        ensure!(code.contains("NonExistentQueue") && status.message.starts_with(&code), "{code}: {status:?}");
    }
    proxy.clear();
    bed.until_nothing_is_pending().await?;
    relay.stop().await?;
    ensure!(collector.spans().last().is_some_and(|span| span.status.is_none()), "{:?}", collector.spans().last());
    Ok(())
}

async fn until_at_least_one(collector: &Collector) -> Result<()> {
    eventually("a span", || async { Ok(!collector.spans().is_empty()) }).await
}

#[tokio::test]
async fn a_collector_that_is_down_delays_no_message_and_is_logged_once() -> Result<()> {
    let bed = TestBed::new().await?;
    let queue = bed.fifo("tickets").await?;
    let port = free_port()?;
    let relay = bed.relay().env("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://127.0.0.1:{port}"));
    let relay = relay.env("OTEL_BSP_SCHEDULE_DELAY", "10").env("OTEL_BSP_MAX_QUEUE_SIZE", "5").start().await?;
    bed.enqueue_many("tickets", 500, 500).await?;
    bed.until_nothing_is_pending().await?;
    bed.ensure_arrived_in_order(&queue, 500).await?;
    let metrics = relay.metrics().await?;
    let dropped = metrics.sum("spans_dropped_total");
    let requests = metrics.get(r#"requests_total{destination="tickets"}"#)?;
    // Five wait, and five are being exported.
    ensure!(dropped >= requests - 10.0 && dropped <= requests, "{dropped} of {requests} spans were dropped");
    relay.wait_for_log("spans cannot be exported").await?;
    let collector = Collector::at(port).await?;
    relay.wait_for_log("spans are exported again").await?;
    until_at_least_one(&collector).await?;
    let log = relay.stop().await?;
    ensure!(log.matches("spans cannot be exported").count() == 1, "{log}");
    Ok(())
}

#[tokio::test]
async fn a_collector_that_hangs_delays_neither_messages_nor_the_end() -> Result<()> {
    let (bed, collector) = (TestBed::new().await?, Collector::start().await?);
    let queue = bed.fifo("tickets").await?;
    collector.set(Manner::Hangs);
    let relay = exporting(&bed, &collector).env("OTEL_EXPORTER_OTLP_TIMEOUT", "60000");
    let relay = relay.env("OTEL_BSP_MAX_QUEUE_SIZE", "3").start().await?;
    bed.enqueue_many("tickets", 500, 500).await?;
    collector.wait_for_requests(1).await?;
    bed.until_nothing_is_pending().await?;
    bed.ensure_arrived_in_order(&queue, 500).await?;
    let stopping = Instant::now();
    let log = relay.stop().await?;
    ensure!(stopping.elapsed() < Duration::from_secs(10), "it took {:?} to end", stopping.elapsed());
    ensure!(log.contains("the last spans could not be exported in time"), "{log}");
    Ok(())
}

#[tokio::test]
async fn the_drain_timeout_bounds_the_last_export_as_well() -> Result<()> {
    let (bed, collector) = (TestBed::new().await?, Collector::start().await?);
    bed.standard("audit").await?;
    collector.set(Manner::Hangs);
    let relay = exporting(&bed, &collector).env("OUTBOX_RELAY_DRAIN_TIMEOUT", "300ms").start().await?;
    enqueue_traced(&bed, "audit", 1).await?;
    collector.wait_for_requests(1).await?;
    let stopping = Instant::now();
    // What was to be delivered is delivered, so that is a success.
    relay.stop().await?;
    ensure!(stopping.elapsed() < Duration::from_millis(1900), "it took {:?} to end", stopping.elapsed());
    Ok(())
}

#[tokio::test]
async fn a_span_waits_for_others_but_not_longer_than_the_delay() -> Result<()> {
    let (bed, collector) = (TestBed::new().await?, Collector::start().await?);
    bed.standard("audit").await?;
    let relay = exporting(&bed, &collector).env("OTEL_BSP_SCHEDULE_DELAY", "700").start().await?;
    for number in 1..=3 {
        enqueue_traced(&bed, "audit", 1).await?;
        bed.until_nothing_is_pending().await?;
        ensure!(number == 3 || collector.spans().len() < 3, "none has waited");
    }
    until_spans(&collector, 3).await?;
    let exports = collector.exports();
    let first = exports.first().context("no export")?;
    let ended = first.spans.first().context("no span")?.end_time_unix_nano;
    let waited = first.at.duration_since(SystemTime::UNIX_EPOCH + Duration::from_nanos(ended))?;
    ensure!((650..5000).contains(&waited.as_millis()), "it waited {waited:?}");
    relay.stop().await?;
    Ok(())
}

#[tokio::test]
async fn a_full_batch_is_exported_at_once() -> Result<()> {
    let (bed, collector) = (TestBed::new().await?, Collector::start().await?);
    bed.standard("audit").await?;
    let relay = exporting(&bed, &collector).env("OTEL_BSP_SCHEDULE_DELAY", "60000");
    let relay = relay.env("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4").env("OUTBOX_RELAY_REQUEST_SIZE", "1").start().await?;
    enqueue_traced(&bed, "audit", 10).await?;
    until_spans(&collector, 8).await?;
    relay.stop().await?;
    ensure!(collector.exports().iter().map(|export| export.spans.len()).eq([4, 4, 2]), "{:?}", collector.exports());
    Ok(())
}

#[tokio::test]
async fn at_the_end_the_last_spans_come() -> Result<()> {
    let (bed, collector) = (TestBed::new().await?, Collector::start().await?);
    bed.standard("audit").await?;
    let command = exporting(&bed, &collector).env("OTEL_BSP_SCHEDULE_DELAY", "60000");
    let relay = command.start().await?;
    enqueue_traced(&bed, "audit", 1).await?;
    bed.until_nothing_is_pending().await?;
    ensure!(collector.spans().is_empty());
    let log = relay.stop().await?;
    ensure!(collector.spans().len() == 1 && !log.contains("spans"), "{log}");
    enqueue_traced(&bed, "audit", 1).await?;
    command.deliver_all().await?;
    ensure!(collector.spans().len() == 2);
    Ok(())
}

#[tokio::test]
async fn spans_that_the_collector_takes_later_are_sent_again_and_refused_ones_are_counted() -> Result<()> {
    let (bed, collector) = (TestBed::new().await?, Collector::start().await?);
    bed.standard("audit").await?;
    collector.set(Manner::Answers(503, "later", 1));
    let relay = exporting(&bed, &collector).start().await?;
    enqueue_traced(&bed, "audit", 1).await?;
    relay.wait_for_log("spans cannot be exported").await?;
    collector.set(Manner::Takes);
    relay.wait_for_metric("spans_exported_total", 1.0).await?;
    ensure!(collector.spans().len() == 1);
    collector.set(Manner::Rejects(1, "too many attributes"));
    enqueue_traced(&bed, "audit", 1).await?;
    relay.wait_for_metric(r#"spans_dropped_total{stage="export"}"#, 1.0).await?;
    collector.set(Manner::Answers(400, "not understood", 0));
    enqueue_traced(&bed, "audit", 1).await?;
    relay.wait_for_metric(r#"spans_dropped_total{stage="export"}"#, 2.0).await?;
    let log = relay.stop().await?;
    ensure!(log.contains("HTTP 503: later") && log.contains("too many attributes"), "{log}");
    ensure!(log.matches("the collector refuses spans").count() == 1, "{log}");
    ensure!(collector.seen() == 4, "refused spans are not sent again");
    Ok(())
}

#[tokio::test]
async fn the_traces_of_the_events_decide_whether_a_request_gets_a_span() -> Result<()> {
    let (bed, collector) = (TestBed::new().await?, Collector::start().await?);
    bed.standard("audit").await?;
    let one = async |flags: &str, relay: Command| {
        enqueue(&bed, "audit", &[format!("{{\"traceparent\": {:?}}}", traceparent(1, flags))]).await?;
        relay.deliver_all().await?;
        Ok::<usize, anyhow::Error>(collector.spans().len())
    };
    let relay = || exporting(&bed, &collector);
    ensure!(one("00", relay()).await? == 0, "an unsampled trace");
    ensure!(one("01", relay()).await? == 1, "a sampled trace");
    ensure!(one("00", relay().env("OTEL_TRACES_SAMPLER", "always_on")).await? == 2, "always_on");
    ensure!(one("01", relay().env("OTEL_TRACES_SAMPLER", "always_off")).await? == 2, "always_off");
    let ratio = relay().env("OTEL_TRACES_SAMPLER", "parentbased_traceidratio").env("OTEL_TRACES_SAMPLER_ARG", "0");
    ensure!(one("01", ratio.clone()).await? == 3, "a sampled trace, whatever the ratio");
    bed.enqueue("audit", "{}", None).await?;
    ratio.deliver_all().await?;
    ensure!(collector.spans().len() == 3, "no trace, and a ratio of 0");
    bed.enqueue("audit", "{}", None).await?;
    relay().deliver_all().await?;
    ensure!(collector.spans().len() == 4, "no trace");
    Ok(())
}

#[tokio::test]
async fn a_large_tracestate_is_left_out_and_the_link_stays() -> Result<()> {
    let (bed, collector) = (TestBed::new().await?, Collector::start().await?);
    bed.standard("audit").await?;
    let states = HashMap::from([(1, "v=".to_owned() + &"x".repeat(510)), (2, "v=".to_owned() + &"x".repeat(511))]);
    let metadata = |number: usize| {
        let parent = traceparent(number, "01");
        format!("{{\"traceparent\": {parent:?}, \"tracestate\": {:?}}}", states[&number])
    };
    enqueue(&bed, "audit", &[metadata(1), metadata(2)]).await?;
    exporting(&bed, &collector).deliver_all().await?;
    let mut lengths: Vec<usize> =
        collector.spans().iter().flat_map(|span| &span.links).map(|link| link.trace_state.len()).collect();
    lengths.sort_unstable();
    ensure!(lengths == [0, 512], "{lengths:?}");
    Ok(())
}
