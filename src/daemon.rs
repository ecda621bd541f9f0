//! The daemon: builds everything from the configuration, supervises it, and shuts it down in order.
//!
//! Shutdown: the relays take no more messages, finish the requests in flight and record the outcomes; then the janitor
//! and the HTTP server stop. The last spans are exported in between, for two seconds at most. The drain timeout or a second
//! signal cuts this short. Nothing is lost then, but messages in flight are published again.
//!
//! Each database (`database.rs`) is served by itself; a process may have several (`DATABASE_URLS_FILE`), which share the
//! memory, the port and the exporter of spans. When `outbox.destinations` of one changes (`table.rs`), its relays are drained
//! in the same way, everything of it is assembled again (`assembly.rs`), and the HTTP server shows the new parts. Metrics
//! stay.

mod assembly;
mod database;
mod table;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{Instrument as _, Span};

pub use assembly::Settings;
use assembly::{Assembly, Setup, assemble};
pub use database::Outcome;

use crate::clock::Time;
use crate::config::RelayConfig;
use crate::files;
use crate::http;
use crate::metrics::{Metrics, ProcessMetrics};
use crate::relay::{MemoryBudget, RunSummary, Until};
use crate::shutdown::{self, Shutdown, Signals};
use crate::traces::{Exporting, Spans};

/// A database to serve.
#[derive(Debug)]
pub struct Wanted {
    /// Its configuration. What belongs to the process is the same for all databases.
    pub config: RelayConfig,
    /// The same for people to read.
    pub settings: Settings,
}

/// A database that is about to be served.
struct Prepared {
    setup: Setup,
    assembly: Assembly,
    shown: watch::Sender<http::Shown>,
    span: Span,
}

/// Runs until a signal, or until everything is delivered.
///
/// # Errors
///
/// When there is no database, something cannot be set up, or a vital task fails.
pub async fn run(databases: Vec<Wanted>, until: Until, metrics: ProcessMetrics) -> anyhow::Result<Outcome> {
    let shutdown = Shutdown::default();
    // Installed first: before anybody can see the process and stop it.
    let signals = Signals::install().context("signals cannot be received")?;
    let mut signals = tokio::spawn(shutdown::watch(signals, shutdown.clone()));
    let common = databases.first().map(|database| database.config.clone()).context("there is no database")?;
    let metrics = Arc::new(metrics);
    let (spans, exporter) = Spans::new(common.traces.as_ref(), &metrics).map_err(anyhow::Error::msg)?;
    let memory = MemoryBudget::new(common.memory_for_messages(databases.len()));
    let started = Time::now();
    let (mut sites, mut prepared) = (Vec::new(), Vec::new());
    for Wanted { config, settings } in databases {
        let (name, span) = (config.database.name.clone(), span_of(&config));
        let metrics = Arc::new(Metrics::new(name.as_deref())?);
        let (spans, memory) = (spans.clone(), Arc::clone(&memory));
        let setup = Setup { config, settings, until, metrics, spans, memory, started };
        let assembly = assemble(&setup, None).instrument(span.clone()).await?;
        let (shown, current) = watch::channel(assembly.shown.clone());
        sites.push(http::Site { name, current });
        prepared.push(Prepared { setup, assembly, shown, span });
    }
    let listener = TcpListener::bind(common.http_listen)
        .await
        .with_context(|| format!("cannot listen on OUTBOX_RELAY_HTTP_LISTEN={}", common.http_listen))?;
    announce(&prepared, &listener);
    let stop = CancellationToken::new();
    let mut server = tokio::spawn(http::serve(listener, http::Sites::new(sites, metrics), stop.clone()));
    let drained_since = AbortOnDropHandle::new(tokio::spawn(noted(shutdown.drain.clone())));
    let exporting = exporter.start();
    let outcome = tokio::select! {
        outcome = serve(prepared, until, &shutdown) => outcome,
        // None of these ends on its own while databases are served.
        ended = &mut signals => Err(anyhow::anyhow!("signals cannot be received: {ended:?}")),
        ended = &mut server => Err(anyhow::anyhow!("the HTTP server ended: {ended:?}")),
    };
    finish(exporting, &outcome, &shutdown, drained_since, common.drain_timeout).await;
    stop.cancel();
    signals.abort();
    // It stops at once when told; a scraper that holds its connection open must not keep the process alive.
    if !server.is_finished() && tokio::time::timeout(Duration::from_secs(1), &mut server).await.is_err() {
        server.abort();
    }
    outcome
}

/// Names the database in every log line about it, if it has a name. The level is that of errors, so that no filter takes the
/// name away.
fn span_of(config: &RelayConfig) -> Span {
    let name = config.database.name.as_deref();
    name.map_or_else(Span::none, |name| tracing::error_span!("outbox", database = name))
}

/// Serves all databases. When one fails, the others finish what is in flight, or become empty if that is what they run for.
async fn serve(prepared: Vec<Prepared>, until: Until, shutdown: &Shutdown) -> anyhow::Result<Outcome> {
    let serving = prepared.into_iter().map(|Prepared { setup, assembly, shown, span }| {
        async move { database::serve(&setup, assembly, shown, shutdown).await }.instrument(span)
    });
    let mut serving: FuturesUnordered<_> = serving.collect();
    let (mut total, mut is_aborted, mut failure) = (RunSummary::default(), false, None);
    while let Some(ended) = serving.next().await {
        match ended {
            Ok(Outcome::Done(summary)) => total = database::both(total, summary),
            Ok(Outcome::Aborted) => {
                is_aborted = true;
                // It gave up on its own: a part of it has crashed, and another part did not end in time.
                if !shutdown.drain.is_cancelled() {
                    tracing::error!("a database is served no more, so the process ends");
                    shutdown.drain.cancel();
                }
            }
            // The others are emptied all the same.
            Err(error) if until == Until::Empty && !serving.is_empty() => {
                tracing::error!("a database is served no more: {error:#}");
                failure.get_or_insert(error);
            }
            Err(error) => {
                if !serving.is_empty() {
                    tracing::error!("a database is served no more, so the process ends: {error:#}");
                }
                shutdown.drain.cancel();
                failure.get_or_insert(error);
            }
        }
    }
    match failure {
        Some(error) => Err(error),
        None if is_aborted => Ok(Outcome::Aborted),
        None => Ok(Outcome::Done(total)),
    }
}

/// When the process began to drain.
async fn noted(drain: CancellationToken) -> Instant {
    drain.cancelled().await;
    Instant::now()
}

/// Exports the last spans. Once everything is delivered, spans alone must not make the end late.
async fn finish(
    exporting: Exporting,
    outcome: &anyhow::Result<Outcome>,
    shutdown: &Shutdown,
    drained_since: AbortOnDropHandle<Instant>,
    drain_timeout: Duration,
) {
    let cut = async {
        if matches!(outcome, Ok(Outcome::Aborted)) {
            return;
        }
        let left = async {
            let since = drained_since.await.unwrap_or_else(|_| Instant::now());
            tokio::time::sleep(drain_timeout.saturating_sub(since.elapsed())).await;
        };
        tokio::select! {
            () = left => {}
            () = shutdown.abort.cancelled() => {}
        }
    };
    exporting.finish(cut).await;
}

/// Says that everything is ready, and whether too few files may be open.
fn announce(prepared: &[Prepared], listener: &TcpListener) {
    for Prepared { setup: Setup { config, .. }, span, .. } in prepared {
        span.in_scope(|| {
            tracing::info!(
                version = env!("BUILD_VERSION"),
                database = %config.database.place(),
                schema = %config.database.schema,
                destinations = %names(config),
                listen = %listener.local_addr().map_or_else(|error| error.to_string(), |address| address.to_string()),
                "outbox-relay starts"
            );
        });
    }
    files::raise_limit(prepared.iter().map(|one| &one.setup.config));
}

fn names(config: &RelayConfig) -> String {
    if config.follows_the_table() {
        return "outbox.destinations".to_owned();
    }
    let names: Vec<&str> = config.destinations.iter().map(|destination| destination.name.as_str()).collect();
    names.join(",")
}
