//! The daemon: builds everything from the configuration, supervises it, and shuts it down in order.
//!
//! Shutdown: the relays take no more messages, finish the requests in flight and record the outcomes; then the janitor
//! and the HTTP server stop. The last spans are exported in between, for two seconds at most. The drain timeout or a second signal cuts this short. Nothing is lost then, but messages
//! in flight are published again.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::board::Board;
use crate::config::{RelayConfig, Shown as Setting};
use crate::files::{self, TooFew};
use crate::health::{Expectation, Health, Heartbeat};
use crate::http::{self, Shown};
use crate::janitor::{Janitor, Served};
use crate::metrics::{DestinationMetrics, Metrics};
use crate::outbox::{Keep, Outbox};
use crate::page::{Given, Page, Sources, Watched};
use crate::publisher;
use crate::relay::{
    self, ControlPoller, Destination, MemoryBudget, Poller, Relay, RelayError, Reports, RunSummary, Timer, Until,
};
use crate::shutdown::{self, Shutdown, Signals};
use crate::traces::{Spans, Tracer};

/// How the daemon ended, for the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It drained, or everything was delivered.
    Done(RunSummary),
    /// The drain timeout or a second signal came first.
    Aborted,
}

/// All parts that were started, ready to run.
struct Assembly {
    relays: Vec<Relay>,
    poller: Poller,
    timer: Timer,
    control: ControlPoller,
    janitor: Janitor,
    listener: TcpListener,
    shown: Shown,
    /// The heartbeat of the page's memory.
    memory: Arc<Heartbeat>,
    spans: Spans,
}

/// Every setting, for people to read, without secrets.
#[derive(Debug)]
pub struct Settings {
    /// Those of the relay.
    pub relay: Vec<Setting>,
    /// The connection to PostgreSQL and the environment.
    pub surroundings: Vec<Setting>,
}

/// Runs until a signal, or until everything is delivered.
///
/// # Errors
///
/// When something cannot be set up, or a vital task fails.
pub async fn run(config: RelayConfig, settings: Settings, until: Until, metrics: Metrics) -> anyhow::Result<Outcome> {
    let drain_timeout = config.drain_timeout;
    let shutdown = Shutdown::default();
    // Installed first: before anybody can see the process and stop it.
    let signals = Signals::install().context("signals cannot be received")?;
    let mut signals = tokio::spawn(shutdown::watch(signals, shutdown.clone()));
    let assembly = assemble(&config, settings, metrics).await?;
    let stop = CancellationToken::new();
    let mut vital = Vital::new();
    let page = Arc::clone(&assembly.shown.page).remember(assembly.memory, stop.clone());
    let server = http::serve(assembly.listener, assembly.shown, stop.clone());
    vital.spawn(async move {
        server.await;
        "the HTTP server ended".to_owned()
    });
    vital.spawn(async move {
        page.await;
        "the memory of the status page ended".to_owned()
    });
    let (janitor, poller) = (assembly.janitor.run(stop.clone()), assembly.poller.run(stop.clone()));
    let timer = assembly.timer.run(stop.clone());
    let control = assembly.control.run(stop.clone());
    vital.spawn(async move {
        control.await;
        "the control poller ended".to_owned()
    });
    vital.spawn(async move {
        janitor.await;
        "the janitor ended".to_owned()
    });
    vital.spawn(async move {
        poller.await;
        "the poller ended".to_owned()
    });
    vital.spawn(async move {
        timer.await;
        "the timer ended".to_owned()
    });
    let exporting = assembly.spans.start();
    let mut relays = JoinSet::new();
    for relay in assembly.relays {
        relays.spawn(relay.run(until, shutdown.drain.clone()));
    }
    let mut deadline = std::pin::pin!(deadline(&shutdown, drain_timeout));
    let outcome = tokio::select! {
        ended = join_relays(&mut relays, &shutdown.drain) => ended.map(Outcome::Done),
        () = &mut deadline => Ok(Outcome::Aborted),
        // None of these ends on its own while the relays run.
        problem = first_to_end(&mut vital) => Err(problem),
        ended = &mut signals => Err(anyhow::anyhow!("signals cannot be received: {ended:?}")),
    };
    relays.shutdown().await;
    match outcome {
        Ok(Outcome::Aborted) => {
            if !shutdown.abort.is_cancelled() {
                tracing::warn!(?drain_timeout, "not drained in time; what is in flight may be published again");
            }
            exporting.finish(std::future::ready(())).await;
        }
        // Once everything is delivered, spans alone must not make the end late.
        Ok(Outcome::Done(_)) | Err(_) => exporting.finish(deadline).await,
    }
    stop.cancel();
    signals.abort();
    // These stop at once when told; a scraper that holds its connection open must not keep the process alive.
    let all_ended = async { while vital.join_next().await.is_some() {} };
    tokio::time::timeout(Duration::from_secs(1), all_ended).await.ok();
    vital.shutdown().await;
    outcome
}

/// Tasks that the daemon cannot do without; each returns the message to report when it ends.
type Vital = JoinSet<String>;

async fn first_to_end(vital: &mut Vital) -> anyhow::Error {
    match vital.join_next().await {
        Some(Ok(sentence)) => anyhow::anyhow!(sentence),
        Some(Err(crash)) => anyhow::anyhow!("a part of the daemon crashed: {crash}"),
        None => std::future::pending().await,
    }
}

/// One connection per destination for its claim. For all statements one more than that, up to eight: a rescan holds one
/// of these for a tenth of a second, and no read should wait for it.
fn connections(destinations: usize) -> usize {
    destinations + (destinations + 1).min(8)
}

async fn assemble(config: &RelayConfig, settings: Settings, metrics: Metrics) -> anyhow::Result<Assembly> {
    let (metrics, board, health) = (Arc::new(metrics), Arc::new(Board::default()), Arc::new(Health::default()));
    let database = health.dependency("database", Expectation::Answered);
    let outbox = Outbox::new(&config.database, connections(config.destinations.len()))?;
    let publishers =
        publisher::connect(&config.destinations, config.ca_bundle.as_deref(), config.tuning.request_timeout).await?;
    let all: Vec<Arc<str>> = config.destinations.iter().map(|one| Arc::from(one.name.as_str())).collect();
    let interval = config.tuning.poll_interval;
    let poller = Poller::new(outbox.clone(), all.clone(), interval, health.heartbeat("poller"));
    let timer = poller.timer(health.heartbeat("timer"));
    let keep = if config.delivered_retention.is_zero() { Keep::Nothing } else { Keep::Delivered };
    let series: Vec<(Arc<str>, DestinationMetrics)> =
        all.iter().map(|name| (Arc::clone(name), metrics.destination(name))).collect();
    let heartbeat = health.heartbeat("control poller");
    let control =
        ControlPoller::new(outbox.clone(), series.clone(), Arc::clone(&metrics), Arc::clone(&board), heartbeat);
    let memory = MemoryBudget::new(config.memory_for_messages());
    let spans = Spans::new(config.traces.as_ref(), &metrics).map_err(anyhow::Error::msg)?;
    let (mut relays, mut served, mut watched) = (Vec::new(), Vec::new(), Vec::new());
    for (((name, own), publisher), configured) in series.iter().cloned().zip(publishers).zip(&config.destinations) {
        own.up.set(1);
        own.in_flight_limit.set(config.tuning.max_in_flight as i64);
        let reports = Reports {
            database: database.reporter(),
            database_up: metrics.database_up.clone(),
            queue: health.dependency(format!("queue of {name}"), Expectation::Failed),
            heartbeat: health.heartbeat(format!("relay of {name}")),
        };
        let handle = control.handle(&name, config.tuning);
        served.push(Served { name: Arc::clone(&name), metrics: own.clone(), relay: Arc::clone(&reports.heartbeat) });
        watched.push(Watched {
            name: Arc::clone(&name),
            target: configured.target.as_str().to_owned(),
            kind: configured.kind,
            metrics: own.clone(),
            relay: Arc::clone(&reports.heartbeat),
            queue: Arc::clone(&reports.queue),
        });
        let tracer = if spans.are_wanted() {
            spans.tracer(&relay::target(configured, &publisher).await)
        } else {
            Tracer::default()
        };
        let (outbox, memory) = (outbox.clone(), memory.share());
        let parts = Destination { name, outbox, publisher, metrics: own, tracer, tuning: config.tuning, keep, memory };
        relays.push(Relay::new(parts, reports, poller.signal(), handle));
    }
    let listener = TcpListener::bind(config.http_listen)
        .await
        .with_context(|| format!("cannot listen on OUTBOX_RELAY_HTTP_LISTEN={}", config.http_listen))?;
    announce(config, &listener);
    let page = Page::new(Sources {
        given: given(config, settings),
        destinations: watched,
        metrics: Arc::clone(&metrics),
        health: Arc::clone(&health),
        database,
        board: Arc::clone(&board),
    });
    let janitor = janitor(config, &outbox, served, (&metrics, &board), &health);
    let memory = health.heartbeat("memory of the status page");
    let shown = Shown { metrics, health, page: Arc::new(page) };
    Ok(Assembly { relays, poller, timer, control, janitor, listener, shown, memory, spans })
}

/// What the page shows of the configuration.
fn given(config: &RelayConfig, settings: Settings) -> Given {
    Given {
        relay: config.database.application_name.clone(),
        database: config.database.place_of_outbox(),
        schema: config.database.schema.clone(),
        settings: settings.relay,
        surroundings: settings.surroundings,
        tuning: config.tuning,
    }
}

/// Says that everything is ready, and whether too few files may be open.
fn announce(config: &RelayConfig, listener: &TcpListener) {
    tracing::info!(
        version = env!("BUILD_VERSION"),
        database = %config.database.place(),
        schema = %config.database.schema,
        destinations = %names(config),
        listen = %listener.local_addr().map_or_else(|error| error.to_string(), |address| address.to_string()),
        "outbox-relay starts"
    );
    if let Err(TooFew { may_open, needed }) = files::raise_limit(config) {
        tracing::warn!(
            may_open,
            needed,
            "too few files may be open at a time; raise the limit (ulimit -n, LimitNOFILE), or lower OUTBOX_RELAY_MAX_IN_FLIGHT"
        );
    }
}

fn janitor(
    config: &RelayConfig,
    outbox: &Outbox,
    destinations: Vec<Served>,
    (metrics, board): (&Arc<Metrics>, &Arc<Board>),
    health: &Health,
) -> Janitor {
    Janitor {
        outbox: outbox.clone(),
        destinations,
        metrics: Arc::clone(metrics),
        board: Arc::clone(board),
        retention: config.delivered_retention,
        heartbeat: health.heartbeat("janitor"),
    }
}

fn names(config: &RelayConfig) -> String {
    let names: Vec<&str> = config.destinations.iter().map(|destination| destination.name.as_str()).collect();
    names.join(",")
}

/// Waits for all relays. When one gives up, the others finish their requests in flight, so that those are not published
/// again.
async fn join_relays(
    relays: &mut JoinSet<Result<RunSummary, RelayError>>,
    drain: &CancellationToken,
) -> anyhow::Result<RunSummary> {
    let (mut total, mut failure) = (RunSummary::default(), None);
    while let Some(joined) = relays.join_next().await {
        match joined.context("a relay crashed").and_then(|ended| Ok(ended?)) {
            Ok(ended) => {
                total.delivered += ended.delivered;
                total.dead += ended.dead;
                total.quarantined += ended.quarantined;
                total.is_blocked |= ended.is_blocked;
                total.is_cut_short |= ended.is_cut_short;
            }
            Err(error) => {
                // Logged here as well, because the drain timeout may come before the end that reports it.
                tracing::warn!(error = %error, "the relay of a destination gave up; what is in flight is finished");
                drain.cancel();
                failure.get_or_insert(error);
            }
        }
    }
    failure.map_or(Ok(total), Err)
}

/// Completes when draining took too long, or when the second signal came.
async fn deadline(shutdown: &Shutdown, drain_timeout: Duration) {
    shutdown.drain.cancelled().await;
    tokio::select! {
        () = tokio::time::sleep(drain_timeout) => {}
        () = shutdown.abort.cancelled() => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn when_one_relay_gives_up_the_others_finish_what_is_in_flight() {
        let drain = CancellationToken::new();
        let finished = CancellationToken::new();
        let mut relays = JoinSet::new();
        let halted = RelayError::Halted { destination: "tickets".to_owned(), reason: "no such queue".to_owned() };
        relays.spawn(async { Err(halted) });
        let (told, done) = (drain.clone(), finished.clone());
        relays.spawn(async move {
            told.cancelled().await;
            done.cancel();
            Ok(RunSummary::default())
        });
        let error = join_relays(&mut relays, &drain).await.unwrap_err();
        assert!(error.to_string().contains("no such queue"), "{error}");
        assert!(finished.is_cancelled(), "the other one was not awaited");
    }

    #[tokio::test]
    async fn a_crashed_vital_task_is_reported_and_the_others_can_still_be_awaited() {
        let stop = CancellationToken::new();
        let mut vital = Vital::new();
        vital.spawn(async { std::panic::resume_unwind(Box::new("a bug")) });
        let told = stop.clone();
        vital.spawn(async move {
            told.cancelled().await;
            "told".to_owned()
        });
        assert!(first_to_end(&mut vital).await.to_string().contains("crashed"));
        stop.cancel();
        assert_eq!(vital.join_next().await.unwrap().unwrap(), "told");
        assert!(vital.join_next().await.is_none());
    }
}
