//! Which variables of OpenTelemetry count, and what is said of wrong ones.

use super::*;

const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");

/// What is read from these variables, and the mistakes.
fn read(variables: &[(&str, &str)]) -> (Option<TracesConfig>, Vec<String>) {
    let value = |name: &str| {
        let found = variables.iter().rev().find(|(known, _)| *known == name);
        found.map(|(_, value)| (*value).to_owned())
    };
    let mut problems = Problems::default();
    let config = read_from(&value, &mut problems);
    (config, problems.into_error().0)
}

fn good(variables: &[(&str, &str)]) -> TracesConfig {
    let (config, problems) = read(variables);
    assert_eq!(problems, [""; 0], "{variables:?}");
    config.unwrap()
}

#[test]
fn without_an_endpoint_nothing_is_read() {
    for variables in [
        &[][..],
        &[("OTEL_EXPORTER_OTLP_ENDPOINT", " ")],
        &[("OTEL_TRACES_EXPORTER", "otlp")],
        // What an application beside the relay may have set.
        &[
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
            ("OTEL_SDK_DISABLED", "?"),
        ],
    ] {
        let (config, problems) = read(variables);
        assert!(config.is_none() && problems.is_empty(), "{variables:?}: {problems:?}");
    }
}

#[test]
fn an_endpoint_turns_spans_on_and_two_variables_turn_them_off_again() {
    assert_eq!(good(&[ENDPOINT]).url, "http://collector:4318/v1/traces");
    assert!(good(&[ENDPOINT, ("OTEL_SDK_DISABLED", "False"), ("OTEL_TRACES_EXPORTER", "otlp")]).headers.is_empty());
    for off in [("OTEL_SDK_DISABLED", "TRUE"), ("OTEL_TRACES_EXPORTER", "none")] {
        let (config, problems) = read(&[ENDPOINT, off, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]);
        assert!(config.is_none() && problems.is_empty(), "{off:?}: {problems:?}");
    }
}

#[test]
fn the_variable_of_traces_counts_before_the_one_of_all_signals_and_its_url_is_taken_as_it_is() {
    let table = [
        ("http://h", "http://h/v1/traces"),
        ("http://h/", "http://h/v1/traces"),
        ("https://h:443/otlp/", "https://h:443/otlp/v1/traces"),
        ("http://[::1]:4318", "http://[::1]:4318/v1/traces"),
    ];
    for (endpoint, url) in table {
        assert_eq!(good(&[("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)]).url, url);
    }
    let own = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://h/x?tenant=a");
    assert_eq!(good(&[ENDPOINT, own]).url, "https://h/x?tenant=a");
    let headers = [("OTEL_EXPORTER_OTLP_HEADERS", "a=1"), ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "b=2")];
    let config = good(&[ENDPOINT, headers[0], headers[1], ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "250")]);
    assert_eq!(config.headers, [Header { name: "b".to_owned(), value: "2".to_owned() }]);
    assert_eq!(config.request_timeout, Duration::from_millis(250));
}

#[test]
fn headers_are_percent_decoded_and_never_shown() {
    let text = " Authorization=Basic%20aHVudGVyMg==, x-honeycomb-team = hunter2%2C ,,";
    let config = good(&[ENDPOINT, ("OTEL_EXPORTER_OTLP_HEADERS", text)]);
    let pairs: Vec<_> = config.headers.iter().map(|one| (one.name.as_str(), one.value.as_str())).collect();
    assert_eq!(pairs, [("authorization", "Basic aHVudGVyMg=="), ("x-honeycomb-team", "hunter2,")]);
    let shown = format!("{config:?}");
    assert!(!shown.contains("hunter2") && !shown.contains("aHVudGVyMg"), "{shown}");
}

#[test]
fn samplers_say_whether_the_traces_of_the_events_decide() {
    let table = [
        ("always_on", "0.5", (false, 1.0)),
        ("always_off", "", (false, 0.0)),
        ("traceidratio", "", (false, 1.0)),
        ("traceidratio", "0.25", (false, 0.25)),
        ("parentbased_always_on", "", (true, 1.0)),
        ("parentbased_always_off", "nonsense", (true, 0.0)),
        ("parentbased_traceidratio", "0", (true, 0.0)),
        ("", "0.5", (true, 1.0)),
    ];
    for (sampler, argument, (follows_events, ratio)) in table {
        let config = good(&[ENDPOINT, ("OTEL_TRACES_SAMPLER", sampler), ("OTEL_TRACES_SAMPLER_ARG", argument)]);
        assert_eq!(config.sampling, Sampling { follows_events, ratio }, "{sampler} {argument}");
    }
}

#[test]
fn the_resource_names_the_relay_and_may_be_changed() {
    let of = |config: &TracesConfig, wanted: &str| -> Vec<String> {
        let values = config.resource.iter().filter(|(name, _)| name == wanted);
        values.map(|(_, value)| value.clone()).collect()
    };
    let config = good(&[ENDPOINT]);
    assert_eq!(of(&config, "service.name"), ["outbox-relay"]);
    assert!(of(&config, "service.instance.id")[0].ends_with(&format!("/{}", std::process::id())));
    let attributes = ("OTEL_RESOURCE_ATTRIBUTES", "service.name=a, deployment.environment.name=pro%2Cd,empty=");
    let config = good(&[ENDPOINT, attributes]);
    assert_eq!(of(&config, "service.name"), ["a"]);
    assert_eq!(
        (of(&config, "deployment.environment.name"), of(&config, "empty")),
        (vec!["pro,d".into()], vec!["".into()])
    );
    let config = good(&[ENDPOINT, attributes, ("OTEL_SERVICE_NAME", "b")]);
    assert_eq!(of(&config, "service.name"), ["b"]);
}

#[test]
fn the_memory_for_spans_follows_from_the_queue() {
    let batching = good(&[ENDPOINT]).batching;
    assert_eq!((batching.max_queue, batching.max_batch), (2048, 512));
    assert_eq!((batching.queue_bytes() >> 20, batching.batch_bytes() >> 20, batching.memory() >> 20), (4, 4, 12));
    let batching = good(&[ENDPOINT, ("OTEL_BSP_MAX_QUEUE_SIZE", "100")]).batching;
    assert_eq!((batching.max_queue, batching.max_batch), (100, 100));
}

#[test]
fn spans_take_their_memory_from_the_messages() {
    let flags = crate::config::Flags::default()
        .with("database-url", "postgres://app:secret@db:5432/lottery")
        .with("destinations", "audit=https://sqs.eu-west-1.amazonaws.com/1/audit")
        .with("memory", "160MiB");
    let mut config = flags.relay().unwrap();
    config.traces = None;
    let without = config.memory_for_messages(1);
    config.traces = Some(good(&[ENDPOINT]));
    // Six tenths of 12 MiB.
    assert_eq!((without - config.memory_for_messages(1)) >> 20, 7);
}

/// Variables with values that they must refuse.
const REFUSED: [(&str, &[&str]); 14] = [
    (
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        &["collector:4318", "grpc://h:4317", "http://", "http://u:p@h", "http://h/?a=b", "http://h/#a"],
    ),
    ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &["collector", "http://h:0/v1/traces", "http://h /v1"]),
    ("OTEL_SDK_DISABLED", &["yes", "1"]),
    ("OTEL_TRACES_EXPORTER", &["zipkin", "otlp,console"]),
    ("OTEL_EXPORTER_OTLP_PROTOCOL", &["grpc", "http/json", "HTTP/PROTOBUF"]),
    ("OTEL_EXPORTER_OTLP_HEADERS", &["key", "=v", "a b=c", "host=x", "content-type=x", "k=a%0Ab", "k=%FF"]),
    ("OTEL_EXPORTER_OTLP_TIMEOUT", &["0", "10s", "-1", "60001"]),
    ("OTEL_EXPORTER_OTLP_CERTIFICATE", &["/does/not/exist"]),
    ("OTEL_EXPORTER_OTLP_CLIENT_KEY", &["/key.pem"]),
    ("OTEL_RESOURCE_ATTRIBUTES", &["key", "=value", "a=%FF"]),
    ("OTEL_TRACES_SAMPLER", &["always", "jaeger_remote", "parentbased_xray"]),
    ("OTEL_BSP_SCHEDULE_DELAY", &["0", "5s", "60001"]),
    ("OTEL_BSP_MAX_QUEUE_SIZE", &["0", "many", "32769"]),
    ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", &["0", "2049"]),
];

#[test]
fn every_variable_refuses_bad_values_with_a_sentence_that_names_it_and_the_remedy() {
    for (name, values) in REFUSED {
        for value in values {
            let (_, problems) = read(&[ENDPOINT, (name, value)]);
            assert_eq!(problems.len(), 1, "{name}={value}: {problems:?}");
            let problem = &problems[0];
            assert!(problem.starts_with(name) && problem.contains("; ") && !problem.contains('\n'), "{problem}");
        }
    }
    let bad = [ENDPOINT, ("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "1.5")];
    assert!(read(&bad).1[0].starts_with("OTEL_TRACES_SAMPLER_ARG=\"1.5\" is not allowed; use a number from 0 to 1"));
}

#[test]
fn no_mistake_shows_what_may_be_a_key() {
    for (name, value) in [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://user:hunter2@h"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector?key=hunter2"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "collector?key=hunter2"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "hunter2"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "api key=hunter2"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "hunter2 hunter2=x"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=hunter2%0A"),
    ] {
        let problems = read(&[ENDPOINT, (name, value)]).1;
        assert!(problems.len() == 1 && !problems[0].contains("hunter2"), "{value}: {problems:?}");
    }
}
