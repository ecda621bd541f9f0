//! Traces: a span for each request, with links to the traces of its events, for an OpenTelemetry collector.
//!
//! Delivery never waits for this. A relay puts a finished span into a bounded queue, and one task exports what is
//! there ([`Unstarted::start`]); a span that finds no place, or that the collector does not take, is dropped and counted. Which
//! settings there are is in [`crate::config`]; docs/decisions/0006-traces.md says why no SDK of OpenTelemetry is used.
//!
//! `context.rs` reads what events carry, `span.rs` writes spans, `otlp.rs` has their messages, `collector.rs` one request to
//! the collector. It knows neither SQS nor what a relay does: `relay/spans.rs` tells it what was sent.

mod collector;
mod context;
mod exporter;
mod otlp;
mod queue;
mod span;

pub use collector::Collector;
pub use context::TraceContext;
pub use span::{Failure, Link, Request, Target};

use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::config::{Sampling, TracesConfig};
use crate::metrics::ProcessMetrics;
use exporter::Exporter;
use queue::Queue;
use span::Ids;

/// How long the end of the process waits for spans that were not exported yet.
const LAST_EXPORT: Duration = Duration::from_secs(2);

/// The spans of this process, if they are wanted.
#[derive(Clone, Debug, Default)]
pub struct Spans(Option<Arc<Shared>>);

/// What exports them, before it runs.
#[derive(Debug, Default)]
pub struct Unstarted(Option<(Arc<Queue>, Exporter)>);

/// What the tracers of all destinations share.
#[derive(Debug)]
struct Shared {
    queue: Arc<Queue>,
    sampling: Sampling,
    /// Ids are hashes of a counter with keys that std takes from the system's random source, so that no two processes have
    /// the same ones.
    random: RandomState,
    counter: AtomicU64,
}

impl Spans {
    /// Spans for the collector that the settings name, if they name one. It is not contacted.
    ///
    /// # Errors
    ///
    /// When TLS cannot be set up.
    pub fn new(config: Option<&TracesConfig>, metrics: &ProcessMetrics) -> Result<(Self, Unstarted), String> {
        let Some(config) = config else { return Ok(Default::default()) };
        let queue = Arc::new(Queue::new(config.batching, metrics.spans_dropped("queue")));
        let counters = (metrics.spans_exported.clone(), metrics.spans_dropped("export"));
        let exporter = Exporter::new(Collector::new(config)?, Arc::clone(&queue), config.batching, counters);
        let (random, counter) = (RandomState::new(), AtomicU64::new(0));
        let unstarted = Unstarted(Some((Arc::clone(&queue), exporter)));
        let shared = Arc::new(Shared { queue, sampling: config.sampling, random, counter });
        Ok((Self(Some(shared)), unstarted))
    }

    /// Whether spans are wanted.
    pub fn are_wanted(&self) -> bool {
        self.0.is_some()
    }

    /// Makes the spans of a destination.
    pub fn tracer(&self, target: &Target) -> Tracer {
        let of_destination =
            |shared: &Arc<Shared>| OfDestination { shared: Arc::clone(shared), template: span::template(target) };
        Tracer(self.0.as_ref().map(of_destination).map(Arc::new))
    }
}

impl Unstarted {
    /// Starts to export.
    pub fn start(self) -> Exporting {
        Exporting(self.0.map(|(queue, exporter)| {
            let stop = CancellationToken::new();
            let task = AbortOnDropHandle::new(tokio::spawn(exporter.run(stop.clone())));
            let task = AbortOnDropHandle::new(tokio::spawn(async move {
                if let Err(crash) = task.await {
                    tracing::error!(%crash, "spans are no longer exported, please report this; delivery goes on");
                }
            }));
            Running { queue, stop, task }
        }))
    }
}

/// The task that exports. It ends with this value.
#[derive(Debug)]
pub struct Exporting(Option<Running>);

#[derive(Debug)]
struct Running {
    queue: Arc<Queue>,
    stop: CancellationToken,
    task: AbortOnDropHandle<()>,
}

impl Exporting {
    /// Exports what is left, for two seconds or until `cut` completes; drops the rest and says so.
    pub async fn finish(self, cut: impl Future<Output = ()>) {
        let Some(Running { queue, stop, task }) = self.0 else { return };
        stop.cancel();
        tokio::select! {
            // A crash was logged.
            ended = task => ended.unwrap_or_default(),
            () = tokio::time::sleep(LAST_EXPORT) => {}
            () = cut => {}
        }
        let spans = queue.give_up();
        if spans > 0 {
            tracing::warn!(
                spans,
                "the last spans could not be exported in time and are dropped; messages are not concerned"
            );
        }
    }
}

/// Makes the spans of a destination. Cheap to clone; if none are wanted, it does nothing.
#[derive(Clone, Debug, Default)]
pub struct Tracer(Option<Arc<OfDestination>>);

#[derive(Debug)]
struct OfDestination {
    shared: Arc<Shared>,
    template: Vec<u8>,
}

impl Tracer {
    /// Whether spans are wanted.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// A request has ended: queues its span, if it is sampled.
    pub fn record(&self, request: &Request<'_>) {
        let Some(OfDestination { shared, template }) = self.0.as_deref() else { return };
        let ids = shared.ids();
        if is_sampled(shared.sampling, request.links.iter().map(|link| link.context), ids) {
            shared.queue.push(span::write(template, ids, request), Instant::now());
        }
    }
}

impl Shared {
    fn ids(&self) -> Ids {
        let number = self.counter.fetch_add(1, Ordering::Relaxed);
        // Zero would be no valid id.
        let draw = |part: u8| self.random.hash_one((number, part)).max(1).to_be_bytes();
        let (mut trace, halves) = ([0; 16], [draw(0), draw(1)]);
        trace[..8].copy_from_slice(&halves[0]);
        trace[8..].copy_from_slice(&halves[1]);
        Ids { trace, span: draw(2) }
    }
}

/// Whether a request gets a span: its events decide if they are to and can, else the lower seven bytes of its trace id, as those
/// of a random trace id do everywhere (OpenTelemetry specification, "TraceIdRatioBased").
fn is_sampled(sampling: Sampling, mut links: impl Iterator<Item = TraceContext>, ids: Ids) -> bool {
    if sampling.follows_events
        && let Some(first) = links.next()
    {
        return first.is_sampled() || links.any(|context| context.is_sampled());
    }
    const ALL: u64 = 1 << 56;
    let [_, _, _, _, _, _, _, _, _, low @ ..] = ids.trace;
    let drawn = low.iter().fold(0, |drawn, byte| drawn << 8 | u64::from(*byte));
    drawn < (sampling.ratio * ALL as f64) as u64
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn context(flags: u8) -> TraceContext {
        TraceContext { trace_id: [1; 16], span_id: [1; 8], flags }
    }

    fn shared() -> Shared {
        let batching = crate::config::Batching {
            delay: Duration::ZERO,
            export_timeout: Duration::ZERO,
            max_queue: 1,
            max_batch: 1,
        };
        let queue = Queue::new(batching, prometheus::IntCounter::new("dropped", "dropped").unwrap());
        let sampling = Sampling { follows_events: true, ratio: 1.0 };
        Shared { queue: Arc::new(queue), sampling, random: RandomState::new(), counter: AtomicU64::new(0) }
    }

    #[test]
    fn one_sampled_event_is_enough_and_without_traces_the_ratio_decides() {
        let ids = Ids { trace: [0x7f; 16], span: [1; 8] };
        let decide = |follows_events, ratio, links: &[u8]| {
            let links = links.iter().map(|flags| context(*flags));
            is_sampled(Sampling { follows_events, ratio }, links, ids)
        };
        assert!(decide(true, 0.0, &[0, 2, 1]) && !decide(true, 1.0, &[0, 2]));
        assert!(decide(true, 1.0, &[]) && !decide(true, 0.0, &[]));
        assert!(decide(false, 1.0, &[0]) && !decide(false, 0.0, &[1]));
        assert!(decide(false, 0.5, &[]) && !decide(false, 0.49, &[]));
        let last = Ids { trace: [0xff; 16], span: [1; 8] };
        assert!(is_sampled(Sampling { follows_events: false, ratio: 1.0 }, std::iter::empty(), last));
    }

    #[test]
    fn ids_are_all_different_and_spread_evenly() {
        let (one, other) = (shared(), shared());
        let ids: Vec<Ids> = (0..4000).flat_map(|_| [one.ids(), other.ids()]).collect();
        assert_eq!(ids.iter().map(|ids| ids.trace).collect::<HashSet<_>>().len(), 8000);
        assert_eq!(ids.iter().map(|ids| ids.span).collect::<HashSet<_>>().len(), 8000);
        let quarter = Sampling { follows_events: false, ratio: 0.25 };
        let sampled = ids.iter().filter(|ids| is_sampled(quarter, std::iter::empty(), **ids)).count();
        assert!((1700..2300).contains(&sampled), "{sampled} of 8000");
    }
}
