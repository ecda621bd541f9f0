//! The way to an OpenTelemetry collector: settings, keys, TLS, proxies, and what `check` says.

use anyhow::{Context as _, Result, ensure};

use crate::traces::{enqueue_traced, exporting, until_spans};
use support::collector::{Collector, Manner};
use support::http_proxy::HttpProxy;
use support::relay::{Command, Finished};
use support::test_bed::TestBed;
use support::tls_front::TlsFront;

/// A key that must not be printed anywhere.
const KEY: &str = "the-secret-of-the-collector";

#[tokio::test]
async fn nothing_is_exported_unless_an_endpoint_is_named() -> Result<()> {
    let (bed, collector) = (TestBed::new().await?, Collector::start().await?);
    bed.standard("audit").await?;
    enqueue_traced(&bed, "audit", 1).await?;
    // What an application in the same pod may have set, even if the relay would refuse it.
    let others = bed.relay().env("OTEL_TRACES_EXPORTER", "otlp").env("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc");
    others.env("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", collector.endpoint()).deliver_all().await?;
    for (name, value) in [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")] {
        enqueue_traced(&bed, "audit", 1).await?;
        exporting(&bed, &collector).env(name, value).deliver_all().await?;
    }
    ensure!(collector.seen() == 0);
    Ok(())
}

#[tokio::test]
async fn bad_settings_are_refused_all_at_once_and_without_their_secrets() -> Result<()> {
    let bed = TestBed::new().await?;
    bed.standard("audit").await?;
    let bad = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://user:{KEY}@collector")),
        ("OTEL_EXPORTER_OTLP_HEADERS", format!("api key={KEY}")),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc".to_owned()),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s".to_owned()),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/does/not/exist".to_owned()),
        ("OTEL_RESOURCE_ATTRIBUTES", "production".to_owned()),
        ("OTEL_TRACES_SAMPLER", "jaeger_remote".to_owned()),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0".to_owned()),
    ];
    let relay = bad.iter().fold(bed.relay(), |relay, (name, value)| relay.env(name, value));
    let ended = relay.env("OUTBOX_RELAY_BATCH_SIZE", "0").output(&["run"]).await?;
    ensure!(ended.code == Some(2) && !ended.stderr.contains(KEY), "{ended:?}");
    ensure!(ended.stderr.lines().count() == bad.len() + 1, "{}", ended.stderr);
    for (name, _) in &bad {
        let line = ended.stderr.lines().find(|line| line.starts_with(&format!("outbox-relay: {name}")));
        ensure!(line.is_some_and(|line| line.contains("; ")), "{name} is not in\n{}", ended.stderr);
    }
    Ok(())
}

#[tokio::test]
async fn headers_are_sent_and_never_shown() -> Result<()> {
    let (bed, collector) = (TestBed::new().await?, Collector::start().await?);
    bed.standard("audit").await?;
    let headers = format!("authorization=Bearer%20{KEY},x-scope-orgid=lottery");
    let command = exporting(&bed, &collector).env("OTEL_EXPORTER_OTLP_HEADERS", headers).env("RUST_LOG", "trace");
    let relay = command.start().await?;
    enqueue_traced(&bed, "audit", 1).await?;
    until_spans(&collector, 1).await?;
    let sent = collector.exports()[0].clone();
    ensure!(sent.path == "/v1/traces", "{sent:?}");
    for (name, value) in [
        ("authorization", format!("Bearer {KEY}")),
        ("x-scope-orgid", "lottery".to_owned()),
        ("content-type", "application/x-protobuf".to_owned()),
    ] {
        ensure!(sent.headers.get(name) == Some(&value), "{name}: {sent:?}");
    }
    // A server that repeats it.
    collector.set(Manner::Answers(401, "unknown key: the-secret-of-the-collector", 0));
    enqueue_traced(&bed, "audit", 1).await?;
    let line = relay.wait_for_log("the collector refuses spans").await?;
    ensure!(line.contains("HTTP 401: unknown key: (not shown)"), "{line}");
    let mut shown = vec![relay.get("/").await?.1, relay.get("/metrics").await?.1];
    ensure!(shown[0].contains("OTEL_EXPORTER_OTLP_HEADERS"), "the page says that they are set");
    shown.push(relay.stop().await?);
    for arguments in [&["check"][..], &["check", "--json"], &["config"], &["config", "--json"], &["run", "--help"]] {
        let Finished { stdout, stderr, .. } = command.output(arguments).await?;
        shown.push(stdout + &stderr);
    }
    ensure!(shown.iter().all(|text| !text.contains(KEY)), "a secret is shown");
    ensure!(shown.iter().all(|text| !text.contains("lottery,") || !text.contains("x-scope-orgid")), "{shown:?}");
    Ok(())
}

#[tokio::test]
async fn a_collector_behind_tls_and_a_proxy_is_reached_with_the_certificates_that_are_named() -> Result<()> {
    let (bed, collector) = (TestBed::new().await?, Collector::start().await?);
    bed.standard("audit").await?;
    let front = TlsFront::before(&collector.endpoint(), &["collector.test"]).await?;
    let proxy = HttpProxy::start(None).await?;
    let folder = tempfile::tempdir()?;
    let authority = folder.path().join("authority.pem");
    std::fs::write(&authority, front.authority())?;
    let relay = exporting(&bed, &collector)
        .env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", format!("https://collector.test:{}/own/path?tenant=a", front.port()))
        .env("HTTPS_PROXY", format!("http://127.0.0.1:{}", proxy.port()));
    enqueue_traced(&bed, "audit", 1).await?;
    let untrusted = relay.until_empty().await?;
    untrusted.ensure_success()?;
    ensure!(untrusted.stderr.contains("spans cannot be exported") && collector.seen() == 0, "{}", untrusted.stderr);
    ensure!(!untrusted.stderr.contains("tenant=a"), "a query may be a secret: {}", untrusted.stderr);
    enqueue_traced(&bed, "audit", 1).await?;
    relay.env("OTEL_EXPORTER_OTLP_CERTIFICATE", authority.to_string_lossy()).deliver_all().await?;
    ensure!(collector.exports().iter().map(|export| export.path.as_str()).eq(["/own/path?tenant=a"]));
    ensure!(proxy.asked().iter().any(|line| line.starts_with("CONNECT collector.test:")), "{:?}", proxy.asked());
    Ok(())
}

#[tokio::test]
async fn check_tells_whether_the_collector_takes_spans() -> Result<()> {
    let (bed, collector) = (TestBed::new().await?, Collector::start().await?);
    bed.standard("audit").await?;
    let relay = exporting(&bed, &collector);
    let place = format!("{}/v1/traces", collector.endpoint());
    let says = async |command: &Command| {
        let checked = command.output(&["check"]).await?;
        checked.ensure_success().with_context(|| checked.stdout.clone())?;
        Ok::<String, anyhow::Error>(checked.stdout)
    };
    let text = says(&relay).await?;
    ensure!(text.contains(&format!("✓ collector: takes spans at {place}")), "{text}");
    ensure!(collector.spans().is_empty(), "a check exports nothing");
    for (status, remedy) in
        [(401, "OTEL_EXPORTER_OTLP_HEADERS"), (404, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"), (500, "start the")]
    {
        collector.set(Manner::Answers(status, "no", 0));
        let text = says(&relay).await?;
        ensure!(text.contains(&format!("! collector: does not take spans at {place}: HTTP {status}: no")), "{text}");
        ensure!(text.contains(remedy), "{text}");
    }
    let text = says(&relay.clone().env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317")).await?;
    ensure!(text.contains("! collector: does not take") && text.contains("4317 is the port for gRPC"), "{text}");
    ensure!(!says(&bed.relay()).await?.contains("collector"), "nothing is said without an endpoint");
    Ok(())
}
