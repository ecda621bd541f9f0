//! The daemon: builds everything from the configuration, watches it, and stops it well.
//!
//! Order of stopping: the relays take no more, finish what is in flight and record it; then the janitor and the HTTP
//! server. The drain timeout or a second signal ends that early; nothing is lost then, but what was in flight is published
//! again.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::RelayConfig;
use crate::health::{Health, Until as ReadyUntil};
use crate::http::{self, Shown};
use crate::janitor::Janitor;
use crate::metrics::{DestinationMetrics, Metrics};
use crate::outbox::{Keep, Outbox};
use crate::relay::{Destination, Ended, Lookout, Relay, RelayError, Reports, Until};
use crate::shutdown::{self, Shutdown};
use crate::sqs;

/// How the daemon ended, for the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It drained, or everything was delivered.
    Done(Ended),
    /// The drain timeout or a second signal came first.
    Aborted,
}

/// Everything that is started, ready to run.
struct Assembly {
    relays: Vec<Relay>,
    lookout: Lookout,
    janitor: Janitor,
    listener: TcpListener,
    shown: Shown,
}

/// Runs until a signal, or until everything is delivered.
///
/// # Errors
///
/// When something cannot be set up, or a vital task fails.
pub async fn run(config: RelayConfig, until: Until) -> anyhow::Result<Outcome> {
    let drain_timeout = config.drain_timeout;
    let shutdown = Shutdown::default();
    let assembly = assemble(&config).await?;
    let mut signals = tokio::spawn(shutdown::watch(shutdown.clone()));
    let stop = CancellationToken::new();
    let mut server = tokio::spawn(http::serve(assembly.listener, assembly.shown, stop.clone()));
    let mut janitor = tokio::spawn(assembly.janitor.run(stop.clone()));
    let mut lookout = tokio::spawn(assembly.lookout.run(stop.clone()));
    let mut relays = JoinSet::new();
    for relay in assembly.relays {
        relays.spawn(relay.run(until, shutdown.drain.clone()));
    }
    let outcome = tokio::select! {
        ended = join_relays(&mut relays) => ended.map(Outcome::Done),
        () = deadline(&shutdown, drain_timeout) => Ok(Outcome::Aborted),
        // None of these ends by itself while the relays run.
        ended = &mut server => Err(anyhow::anyhow!("the HTTP server ended: {ended:?}")),
        ended = &mut lookout => Err(anyhow::anyhow!("the lookout ended: {ended:?}")),
        ended = &mut janitor => Err(anyhow::anyhow!("the janitor ended: {ended:?}")),
        ended = &mut signals => Err(anyhow::anyhow!("signals cannot be received: {ended:?}")),
    };
    stop.cancel();
    relays.shutdown().await;
    signals.abort();
    // These stop at once when told; a scraper that holds its connection open must not keep the process.
    let stopped = async { tokio::join!(&mut server, &mut janitor, &mut lookout) };
    if tokio::time::timeout(Duration::from_secs(1), stopped).await.is_err() {
        server.abort();
        janitor.abort();
        lookout.abort();
    }
    outcome
}

async fn assemble(config: &RelayConfig) -> anyhow::Result<Assembly> {
    let metrics = Arc::new(Metrics::new().context("metrics cannot be declared")?);
    let health = Arc::new(Health::default());
    let database = health.dependency("database", ReadyUntil::Answered);
    // One connection a destination for its claim and one for all statements; with one destination two for those.
    let outbox = Outbox::new(&config.database, (config.destinations.len() + 1).max(3))?;
    let queues = sqs::connect(&config.destinations, config.tuning.request_timeout).await?;
    let all: Vec<Arc<str>> = config.destinations.iter().map(|one| Arc::from(one.name.as_str())).collect();
    let lookout = Lookout::new(outbox.clone(), all.clone(), config.tuning.poll_interval, health.pulse("lookout"));
    let keep = if config.delivered_retention.is_zero() { Keep::Nothing } else { Keep::Delivered };
    let (mut relays, mut series): (Vec<Relay>, Vec<(Arc<str>, DestinationMetrics)>) = (Vec::new(), Vec::new());
    for (name, queue) in all.into_iter().zip(queues) {
        let own = metrics.destination(&name);
        own.up.set(1);
        own.in_flight_limit.set(config.tuning.max_in_flight as i64);
        let reports = Reports {
            database: database.reporter(),
            database_up: metrics.database_up.clone(),
            queue: health.dependency(format!("queue of {name}"), ReadyUntil::Failed),
            pulse: health.pulse(format!("relay of {name}")),
        };
        series.push((Arc::clone(&name), own.clone()));
        let parts = Destination { name, outbox: outbox.clone(), queue, metrics: own, tuning: config.tuning, keep };
        relays.push(Relay::new(parts, reports, lookout.ear()));
    }
    let listener = TcpListener::bind(config.http_listen)
        .await
        .with_context(|| format!("cannot listen on OUTBOX_RELAY_HTTP_LISTEN={}", config.http_listen))?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        database = %config.database.place(),
        destinations = %names(config),
        listen = %listener.local_addr().map_or_else(|error| error.to_string(), |address| address.to_string()),
        "outbox-relay starts"
    );
    let janitor = janitor(config, &outbox, series, &metrics, &health);
    Ok(Assembly { relays, lookout, janitor, listener, shown: Shown { metrics, health } })
}

fn janitor(
    config: &RelayConfig,
    outbox: &Outbox,
    destinations: Vec<(Arc<str>, DestinationMetrics)>,
    metrics: &Arc<Metrics>,
    health: &Health,
) -> Janitor {
    Janitor {
        outbox: outbox.clone(),
        destinations,
        metrics: Arc::clone(metrics),
        retention: config.delivered_retention,
        pulse: health.pulse("janitor"),
    }
}

fn names(config: &RelayConfig) -> String {
    let names: Vec<&str> = config.destinations.iter().map(|destination| destination.name.as_str()).collect();
    names.join(",")
}

async fn join_relays(relays: &mut JoinSet<Result<Ended, RelayError>>) -> anyhow::Result<Ended> {
    let mut total = Ended::default();
    while let Some(joined) = relays.join_next().await {
        let ended = joined.context("a relay crashed")??;
        total.delivered += ended.delivered;
        total.dead += ended.dead;
        total.is_blocked |= ended.is_blocked;
        total.is_cut_short |= ended.is_cut_short;
    }
    Ok(total)
}

/// Comes true when draining took too long, or when the second signal came.
async fn deadline(shutdown: &Shutdown, drain_timeout: Duration) {
    shutdown.drain.cancelled().await;
    tokio::select! {
        () = tokio::time::sleep(drain_timeout) => {
            tracing::warn!(?drain_timeout, "not drained in time; what is in flight may be published again");
        }
        () = shutdown.abort.cancelled() => {}
    }
}
