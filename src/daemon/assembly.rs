//! Assembly: builds all parts for a set of destinations. It starts nothing; `daemon.rs` runs what is built here.

use std::sync::Arc;

use super::table::{Source, Table};
use crate::board::Board;
use crate::clock::Time;
use crate::config::{ConfiguredDestinations, RelayConfig, Shown as Setting};
use crate::files;
use crate::health::{Dependency, Expectation, Health, Heartbeat};
use crate::http::Shown;
use crate::janitor::{Janitor, Served};
use crate::metrics::{DestinationMetrics, Metrics};
use crate::outbox::{Keep, Outbox};
use crate::page::{Given, Page, Sources, Watched};
use crate::publisher::{self, Misconfigured, Publisher};
use crate::relay::{self, ControlPoller, Destination, MemoryBudget, Poller, Relay, Reports, Timer, Until};
use crate::traces::{Spans, Tracer};

/// Every setting, for people to read, without secrets.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Those of the relay.
    pub relay: Vec<Setting>,
    /// The connection to PostgreSQL and the environment.
    pub surroundings: Vec<Setting>,
}

/// What stays the same for a database while its destinations change.
#[derive(Debug)]
pub(super) struct Setup {
    pub(super) config: RelayConfig,
    pub(super) settings: Settings,
    pub(super) until: Until,
    pub(super) metrics: Arc<Metrics>,
    pub(super) spans: Spans,
    /// For the messages of all databases of the process.
    pub(super) memory: Arc<MemoryBudget>,
    pub(super) started: Time,
}

/// All parts for some destinations, ready to run.
pub(super) struct Assembly {
    pub(super) names: Vec<Arc<str>>,
    pub(super) relays: Vec<Relay>,
    pub(super) poller: Poller,
    pub(super) timer: Timer,
    pub(super) control: ControlPoller,
    pub(super) janitor: Janitor,
    pub(super) shown: Shown,
    /// The heartbeat of the page's memory.
    pub(super) memory: Arc<Heartbeat>,
    /// Says when other destinations are to be served.
    pub(super) source: Source,
    /// Whether the destinations are those to serve, and not none because the table was not read yet.
    pub(super) is_known: bool,
}

/// One connection per destination for its claim. For all statements one more than that, up to eight: a rescan holds one
/// of these for a tenth of a second, and no read should wait for it.
fn connections(destinations: usize) -> usize {
    destinations + (destinations + 1).min(8)
}

/// Builds everything. `table` is what `outbox.destinations` holds; `None` before it was read, or if the environment counts.
///
/// # Errors
///
/// When something cannot be set up.
pub(super) async fn assemble(setup: &Setup, table: Option<ConfiguredDestinations>) -> anyhow::Result<Assembly> {
    let (metrics, board, health) = (Arc::clone(&setup.metrics), Arc::new(Board::default()), Health::default());
    let health = Arc::new(health);
    let follows_the_table = setup.config.follows_the_table();
    let config = table
        .as_ref()
        .map_or_else(|| setup.config.clone(), |table| setup.config.with_destinations(table.served.clone()));
    let (config, publishers, unusable) = connect(config, follows_the_table).await?;
    if table.is_some() {
        // The start could not know them.
        files::raise_limit([&config]);
    }
    let database = health.dependency("database", Expectation::Answered);
    let outbox = Outbox::new(&config.database, connections(config.destinations.len()))?;
    let all: Vec<Arc<str>> = config.destinations.iter().map(|one| Arc::from(one.name.as_str())).collect();
    let interval = config.tuning.poll_interval;
    let poller = Poller::new(outbox.clone(), all.clone(), interval, health.heartbeat("poller"));
    let timer = poller.timer(health.heartbeat("timer"));
    let series: Vec<(Arc<str>, DestinationMetrics)> =
        all.iter().map(|name| (Arc::clone(name), metrics.destination(name))).collect();
    let heartbeat = health.heartbeat("control poller");
    let control =
        ControlPoller::new(outbox.clone(), series.clone(), Arc::clone(&metrics), Arc::clone(&board), heartbeat);
    let parts = Parts { config: &config, outbox: &outbox, setup, health: &health, database: &database };
    let (relays, served, watched) = parts.relays(series, publishers, (&poller, &control)).await;
    let is_known = !follows_the_table || table.is_some();
    let source = if follows_the_table {
        Source::Table(Table {
            outbox: outbox.clone(),
            known: table,
            unusable,
            until: setup.until,
            board: Arc::clone(&board),
            metrics: Arc::clone(&metrics),
            database: database.reporter(),
            heartbeat: health.heartbeat("table of destinations"),
        })
    } else {
        Source::Environment { outbox: outbox.clone(), config: Box::new(config.clone()) }
    };
    let page = Page::new(Sources {
        given: given(setup),
        destinations: watched,
        metrics: Arc::clone(&metrics),
        health: Arc::clone(&health),
        database,
        board: Arc::clone(&board),
        follows_the_table,
    });
    let janitor = janitor(&config, &outbox, served, (&metrics, &board), &health);
    let memory = health.heartbeat("memory of the status page");
    let shown = Shown { metrics, health, page: Arc::new(page) };
    Ok(Assembly { names: all, relays, poller, timer, control, janitor, shown, memory, source, is_known })
}

/// Makes the publishers. A row of the table that contradicts the settings for AWS is left out, so that it stops no other;
/// the names of such rows come last.
async fn connect(
    config: RelayConfig,
    follows_the_table: bool,
) -> Result<(RelayConfig, Vec<Publisher>, Vec<String>), Misconfigured> {
    let made =
        publisher::connect(&config.destinations, config.ca_bundle.as_deref(), config.tuning.request_timeout).await?;
    if !follows_the_table {
        return Ok((config, publisher::all(made)?, Vec::new()));
    }
    let (mut usable, mut publishers, mut unusable) = (Vec::new(), Vec::new(), Vec::new());
    for (destination, made) in config.destinations.iter().zip(made) {
        match made {
            Ok(publisher) => {
                usable.push(destination.clone());
                publishers.push(publisher);
            }
            Err(error) => {
                tracing::warn!(destination = destination.name, "a row of outbox.destinations is left out: {error}");
                unusable.push(destination.name.clone());
            }
        }
    }
    Ok((RelayConfig { destinations: usable, ..config }, publishers, unusable))
}

/// What the relays of all destinations share.
struct Parts<'a> {
    config: &'a RelayConfig,
    outbox: &'a Outbox,
    setup: &'a Setup,
    health: &'a Health,
    database: &'a Arc<Dependency>,
}

impl Parts<'_> {
    /// A relay for each destination, and what the janitor and the page see of it.
    async fn relays(
        &self,
        series: Vec<(Arc<str>, DestinationMetrics)>,
        publishers: Vec<Publisher>,
        (poller, control): (&Poller, &ControlPoller),
    ) -> (Vec<Relay>, Vec<Served>, Vec<Watched>) {
        let Self { config, outbox, setup, health, database } = self;
        let (metrics, spans) = (&setup.metrics, &setup.spans);
        let keep = if config.delivered_retention.is_zero() { Keep::Nothing } else { Keep::Delivered };
        let (mut relays, mut served, mut watched) = (Vec::new(), Vec::new(), Vec::new());
        for (((name, own), publisher), configured) in series.into_iter().zip(publishers).zip(&config.destinations) {
            own.up.set(1);
            own.in_flight_limit.set(config.tuning.max_in_flight as i64);
            let reports = Reports {
                database: database.reporter(),
                database_up: metrics.database_up.clone(),
                queue: health.dependency(format!("queue of {name}"), Expectation::Failed),
                heartbeat: health.heartbeat(format!("relay of {name}")),
            };
            let handle = control.handle(&name, config.tuning);
            served.push(Served {
                name: Arc::clone(&name),
                metrics: own.clone(),
                relay: Arc::clone(&reports.heartbeat),
            });
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
            let (outbox, memory) = ((*outbox).clone(), setup.memory.share());
            let parts =
                Destination { name, outbox, publisher, metrics: own, tracer, tuning: config.tuning, keep, memory };
            relays.push(Relay::new(parts, reports, poller.signal(), handle));
        }
        (relays, served, watched)
    }
}

/// What the page shows of the configuration.
fn given(setup: &Setup) -> Given {
    let Setup { config, settings, started, .. } = setup;
    Given {
        name: config.database.name.clone(),
        relay: config.database.application_name.clone(),
        started: *started,
        database: config.database.place_of_outbox(),
        schema: config.database.schema.clone(),
        settings: settings.relay.clone(),
        surroundings: settings.surroundings.clone(),
        tuning: config.tuning,
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
