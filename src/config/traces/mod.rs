//! Whether and where spans go: the standard variables of OpenTelemetry (OpenTelemetry specification, "OpenTelemetry Protocol
//! Exporter" and "Environment Variable Specification"). Nothing is exported unless one of them names an endpoint, and then a
//! wrong value is a mistake like any other. A variable for traces alone counts before the one for all signals.
//!
//! `values.rs` has the forms of single values. [`crate::traces`] exports.

mod values;

use std::time::Duration;

use super::network;
use super::problems::Problems;
use super::setting::present;
use values::Given;

/// The path that a collector has for spans (OTLP specification, "OTLP/HTTP Request").
const PATH: &str = "v1/traces";

/// The only protocol.
const PROTOCOL: &str = "http/protobuf";

/// What the collector is told of this process, unless OTEL_RESOURCE_ATTRIBUTES says otherwise.
const SERVICE: &str = "outbox-relay";

/// The memory that each span in the queue may take on average.
const BYTES_OF_SPAN: usize = 2048;

/// The most bytes of spans that are exported at once. Collectors take 20 MiB.
const MOST_BYTES_AT_ONCE: usize = 4 * 1024 * 1024;

/// Where spans go, and how.
#[derive(Clone, Debug)]
pub struct TracesConfig {
    /// Where they are sent by POST.
    pub url: String,
    /// Sent with them.
    pub headers: Vec<Header>,
    /// Certificates to trust instead of the system's, in PEM.
    pub certificates: Option<Vec<u8>>,
    /// How long one request to the collector may take.
    pub request_timeout: Duration,
    /// What the collector is told of this process: `service.name` and others.
    pub resource: Vec<(String, String)>,
    /// Which requests get a span.
    pub sampling: Sampling,
    /// How many spans wait, and for how long.
    pub batching: Batching,
}

/// A header of the requests to the collector.
#[derive(Clone, PartialEq, Eq)]
pub struct Header {
    /// Its name, in lower case.
    pub name: String,
    /// Its value, which is usually a secret and never printed.
    pub value: String,
}

impl std::fmt::Debug for Header {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: (not shown)", self.name)
    }
}

/// Which requests get a span.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Whether the traces of the events decide, if there are any: one that is sampled is enough. A request has no parent, so
    /// this is what the samplers called `parentbased_…` do.
    pub follows_events: bool,
    /// The share of all other requests, from 0 to 1.
    pub ratio: f64,
}

/// How many spans wait, and for how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batching {
    /// How long a span waits for others.
    pub delay: Duration,
    /// How long it is tried to export the same spans.
    pub export_timeout: Duration,
    /// The most spans that wait.
    pub max_queue: usize,
    /// The most spans in one request.
    pub max_batch: usize,
}

impl Batching {
    /// The most bytes of spans that wait.
    pub fn queue_bytes(&self) -> usize {
        self.max_queue * BYTES_OF_SPAN
    }

    /// The most bytes of spans in one request; a single span may be larger.
    pub fn batch_bytes(&self) -> usize {
        self.queue_bytes().min(MOST_BYTES_AT_ONCE)
    }

    /// The most memory that spans take: those that wait, and twice those that are sent, because they are copied once.
    pub fn memory(&self) -> usize {
        self.queue_bytes() + 2 * self.batch_bytes()
    }
}

/// Reads everything from the environment; `None` if no spans are wanted.
pub(super) fn read(problems: &mut Problems) -> Option<TracesConfig> {
    let value = |name: &str| std::env::var(name).ok();
    read_from(&value, problems)
}

fn read_from(value: &dyn Fn(&str) -> Option<String>, problems: &mut Problems) -> Option<TracesConfig> {
    let variables = Variables { value };
    // Without an endpoint the others are somebody else's: applications beside the relay have them, too.
    let endpoint = variables.of_signal("ENDPOINT")?;
    if !variables.are_wanted(problems) {
        return None;
    }
    let url = if endpoint.name.contains("TRACES") { endpoint.url(problems) } else { endpoint.base(PATH, problems) };
    variables.refuse_unsupported(problems);
    let protocol = variables.of_signal("PROTOCOL");
    if let Some(protocol) = protocol.filter(|protocol| protocol.text != PROTOCOL) {
        protocol.refuse("a protocol of this relay", "use http/protobuf, which collectors take at port 4318", problems);
    }
    let headers = variables.of_signal("HEADERS").map(|headers| headers.headers(problems)).unwrap_or_default();
    let certificates = variables.of_signal("CERTIFICATE");
    let certificates = certificates.and_then(|file| network::certificates_in(&file.name, &file.text, problems));
    let timeout = variables.of_signal("TIMEOUT");
    let request_timeout =
        timeout.map_or(10_000, |timeout| timeout.number((1, 60_000), "milliseconds", 10_000, problems));
    Some(TracesConfig {
        // Without one the mistake prevents the start.
        url: url.unwrap_or_default(),
        headers,
        certificates,
        request_timeout: Duration::from_millis(request_timeout),
        resource: variables.resource(problems),
        sampling: variables.sampling(problems),
        batching: variables.batching(problems),
    })
}

/// The variables that are set and not empty.
struct Variables<'a> {
    value: &'a dyn Fn(&str) -> Option<String>,
}

impl Variables<'_> {
    fn get(&self, name: &str) -> Option<Given> {
        let value = (self.value)(name);
        present(value.as_deref()).map(|text| Given { name: name.to_owned(), text: text.to_owned() })
    }

    /// The variable of the exporter for traces, or the one for all signals.
    fn of_signal(&self, what: &str) -> Option<Given> {
        let own = self.get(&format!("OTEL_EXPORTER_OTLP_TRACES_{what}"));
        own.or_else(|| self.get(&format!("OTEL_EXPORTER_OTLP_{what}")))
    }

    /// Whether nobody has turned spans off.
    fn are_wanted(&self, problems: &mut Problems) -> bool {
        let mut is_disabled = false;
        if let Some(disabled) = self.get("OTEL_SDK_DISABLED") {
            is_disabled = disabled.text.eq_ignore_ascii_case("true");
            if !is_disabled && !disabled.text.eq_ignore_ascii_case("false") {
                disabled.refuse("allowed", "use true or false", problems);
            }
        }
        match self.get("OTEL_TRACES_EXPORTER") {
            Some(exporter) if exporter.text == "none" => return false,
            Some(exporter) if exporter.text != "otlp" => {
                exporter.refuse("an exporter of this relay", "use otlp or none", problems);
            }
            _ => {}
        }
        !is_disabled
    }

    /// Who sets these cannot do without, so passing over them would only move the failure.
    fn refuse_unsupported(&self, problems: &mut Problems) {
        for what in ["CLIENT_CERTIFICATE", "CLIENT_KEY"] {
            if let Some(Given { name, .. }) = self.of_signal(what) {
                problems.add(format!(
                    "{name} is set, but this relay shows no certificate of its own; unset it, and send to a collector beside the relay that does"
                ));
            }
        }
    }

    fn sampling(&self, problems: &mut Problems) -> Sampling {
        let default = Sampling { follows_events: true, ratio: 1.0 };
        let Some(sampler) = self.get("OTEL_TRACES_SAMPLER") else { return default };
        let (follows_events, root) = match sampler.text.strip_prefix("parentbased_") {
            Some(root) => (true, root),
            None => (false, sampler.text.as_str()),
        };
        let ratio = match root {
            "always_on" => 1.0,
            "always_off" => 0.0,
            "traceidratio" => self.get("OTEL_TRACES_SAMPLER_ARG").map_or(1.0, |ratio| ratio.ratio(problems)),
            _ => {
                let remedy = "use always_on, always_off or traceidratio, or one of these with parentbased_ before it";
                sampler.refuse("a sampler of this relay", remedy, problems);
                return default;
            }
        };
        Sampling { follows_events, ratio }
    }

    fn batching(&self, problems: &mut Problems) -> Batching {
        let mut number = |name: &str, range, unit, default| {
            self.get(name).map_or(default, |given| given.number(range, unit, default, problems))
        };
        let delay = number("OTEL_BSP_SCHEDULE_DELAY", (1, 60_000), "milliseconds", 5000);
        let export_timeout = number("OTEL_BSP_EXPORT_TIMEOUT", (1, 300_000), "milliseconds", 30_000);
        let max_queue = number("OTEL_BSP_MAX_QUEUE_SIZE", (1, 32_768), "spans", 2048);
        // The default must not be a mistake when somebody has only made the queue small.
        let default_batch = max_queue.min(512);
        let max_batch = number("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", (1, 32_768), "spans", default_batch);
        if max_batch > max_queue {
            problems.add(format!(
                "OTEL_BSP_MAX_EXPORT_BATCH_SIZE={max_batch} is more than OTEL_BSP_MAX_QUEUE_SIZE={max_queue}; make it at most as large"
            ));
        }
        let size = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        Batching {
            delay: Duration::from_millis(delay),
            export_timeout: Duration::from_millis(export_timeout),
            max_queue: size(max_queue),
            max_batch: size(max_batch),
        }
    }

    /// Ours, replaced by those of OTEL_RESOURCE_ATTRIBUTES, and the name by OTEL_SERVICE_NAME.
    fn resource(&self, problems: &mut Problems) -> Vec<(String, String)> {
        let host = gethostname::gethostname().to_string_lossy().into_owned();
        let version = env!("CARGO_PKG_VERSION");
        let mut resource: Vec<(String, String)> = [
            ("service.name", SERVICE.to_owned()),
            ("service.version", version.to_owned()),
            ("service.instance.id", format!("{host}/{}", std::process::id())),
            ("host.name", host),
            // These say which program made the spans (Resource semantic conventions, "Telemetry SDK").
            ("telemetry.sdk.name", SERVICE.to_owned()),
            ("telemetry.sdk.language", "rust".to_owned()),
            ("telemetry.sdk.version", version.to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        let given = self.get("OTEL_RESOURCE_ATTRIBUTES").map(|given| given.pairs(problems)).unwrap_or_default();
        let name = self.get("OTEL_SERVICE_NAME").map(|given| ("service.name".to_owned(), given.text));
        for (name, value) in given.into_iter().chain(name) {
            resource.retain(|(known, _)| *known != name);
            resource.push((name, value));
        }
        resource
    }
}

#[cfg(test)]
mod tests;
