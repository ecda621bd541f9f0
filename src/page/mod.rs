//! The status page: what this relay is doing, for people. Read-only, and no query per view: everything on it has been
//! counted, measured or heard by the other loops already.
//!
//! Data goes one way: [`Page::measure`] copies the state of the loops (`measured.rs`), `model.rs` and `problems.rs` say
//! it in words, `html.rs` and `json.rs` write it down. Only this file knows the sources and the clock; the rest is pure.
//! `history.rs` remembers a quarter of an hour, and `chart.rs` draws it. [`crate::http`] serves the page and decides
//! nothing about it. What must not be here: a statement, a request, a decision about deliveries, or a secret.

mod chart;
mod history;
mod html;
mod json;
mod measured;
mod model;
mod problems;
mod runbook;
#[cfg(test)]
mod samples;
mod summary;
mod words;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use crate::board::{Board, Heard};
use crate::clock::Time;
use crate::config::{Shown, Tuning};
use crate::health::{Dependency, Health, Heartbeat};
use crate::message::{DestinationKind, FaultKind};
use crate::metrics::{DestinationMetrics, Metrics};
use crate::reading::{Pause, Steering};
use crate::schema::Schema;
use crate::settings::{self, Known};

use history::{History, Point};
use measured::{Database, Destination, Measured, Ongoing};
use summary::Summary;

/// How long a page that was made is shown to everybody who asks: however many ask, making it costs little.
const KEPT_FOR: Duration = Duration::from_secs(1);

/// The style sheet, the script and the icon, which the page loads from the relay.
pub const STYLE: &str = include_str!("status.css");
/// It only asks for the page again and shows what has changed.
pub const SCRIPT: &str = include_str!("status.js");
/// A disc.
pub const ICON: &str = include_str!("icon.svg");

/// Where the runbook is served.
pub const RUNBOOK_PATH: &str = runbook::PATH;

/// One destination and where its state is found.
#[derive(Debug)]
pub struct Watched {
    /// Its name.
    pub name: Arc<str>,
    /// Its queue.
    pub target: String,
    /// Its kind.
    pub kind: DestinationKind,
    /// Its metrics.
    pub metrics: DestinationMetrics,
    /// Its relay.
    pub relay: Arc<Heartbeat>,
    /// Whether its queue answers.
    pub queue: Arc<Dependency>,
}

/// What the relay was started with. No secret may be in it: everybody who reaches the port can read the page.
#[derive(Debug)]
pub struct Given {
    /// The name of the database, if the process has several.
    pub name: Option<Arc<str>>,
    /// The relay's name at PostgreSQL.
    pub relay: String,
    /// When the process started.
    pub started: Time,
    /// The servers and the database, with the schema if it is not the usual one.
    pub database: String,
    /// The schema of the outbox.
    pub schema: Schema,
    /// Every setting, as it was given.
    pub settings: Vec<Shown>,
    /// The connection to PostgreSQL and the environment.
    pub surroundings: Vec<Shown>,
    /// The settings that operators may change, as values.
    pub tuning: Tuning,
}

/// Where the page finds everything.
#[derive(Debug)]
pub struct Sources {
    /// What the relay was started with.
    pub given: Given,
    /// The destinations.
    pub destinations: Vec<Watched>,
    /// Counters and measurements.
    pub metrics: Arc<Metrics>,
    /// Heartbeats.
    pub health: Arc<Health>,
    /// The database.
    pub database: Arc<Dependency>,
    /// What was heard from PostgreSQL.
    pub board: Arc<Board>,
    /// Whether the destinations are those of `outbox.destinations`.
    pub follows_the_table: bool,
}

/// The status page.
#[derive(Debug)]
pub struct Page {
    sources: Sources,
    history: Mutex<History>,
    runbook: Bytes,
    html: Kept<Bytes>,
    json: Kept<Bytes>,
    summary: Kept<Summary>,
}

/// Something that was made, and when.
type Kept<T> = Mutex<Option<(Time, T)>>;

impl Page {
    /// A page whose history begins now.
    pub fn new(sources: Sources) -> Self {
        let (html, json, summary) = (Mutex::default(), Mutex::default(), Mutex::default());
        let runbook = html::runbook(&sources.given.schema.roles(runbook::TEXT)).into();
        Self { sources, history: Mutex::default(), runbook, html, json, summary }
    }

    /// The page, at most a second old.
    pub fn html(&self) -> Bytes {
        self.kept(&self.html, |view| html::page(view).into())
    }

    /// The same as JSON, at most a second old.
    pub fn json(&self) -> Bytes {
        self.kept(&self.json, |view| json::text(view).into())
    }

    /// The runbook as it was when the relay was built, with the name of the schema.
    pub fn runbook(&self) -> Bytes {
        self.runbook.clone()
    }

    /// Fills the history until told to stop.
    pub async fn remember(self: Arc<Self>, heartbeat: Arc<Heartbeat>, stop: CancellationToken) {
        while !stop.is_cancelled() {
            heartbeat.tick();
            let points = self.sources.destinations.iter().map(|watched| self.point(watched)).collect();
            locked(&self.history).add(Time::now(), points);
            tokio::select! {
                () = tokio::time::sleep(history::EVERY) => {}
                () = stop.cancelled() => {}
            }
        }
        heartbeat.finish();
    }

    fn kept<T: Clone>(&self, place: &Kept<T>, make: impl Fn(&model::View) -> T) -> T {
        let now = Time::now();
        let mut kept = locked(place);
        if let Some((made, what)) = &*kept
            && now.since(*made) < KEPT_FOR
        {
            return what.clone();
        }
        let what = make(&model::view(self.measure(now)));
        *kept = Some((now, what.clone()));
        what
    }

    fn point(&self, watched: &Watched) -> Point {
        let metrics = &watched.metrics;
        let is_measured = self.sources.metrics.measured_ago().is_some();
        Point {
            delivered: metrics.delivered.get(),
            requests: metrics.requests.get(),
            failures: failures(metrics),
            lag: is_measured.then(|| metrics.lag.get() as f32),
            pending: is_measured.then(|| u32::try_from(metrics.backlog.get()).unwrap_or(0)),
        }
    }

    /// Copies the state of everything.
    fn measure(&self, now: Time) -> Measured {
        let Sources { given, destinations, metrics, health, database, board, follows_the_table } = &self.sources;
        let steering = board.steering();
        let neighbours = board.neighbours();
        let (idle, in_use) = metrics.connections();
        let decided = steering.as_ref().map(|heard| Arc::clone(&heard.what)).unwrap_or_default();
        let known = Known::of(&decided);
        let (settings, more_settings) =
            settings::in_force(given.settings.clone(), given.tuning, &decided, model::MOST_SETTINGS);
        let each = destinations.iter().enumerate();
        Measured {
            now: SystemTime::now(),
            running_for: now.since(given.started),
            name: given.name.as_ref().map(ToString::to_string),
            relay: given.relay.clone(),
            database: Database {
                place: given.database.clone(),
                schema: given.schema.to_string(),
                server: board.server(),
                has_answered: database.is_up(),
                outage: ongoing(database, now),
                idle,
                in_use,
                max: metrics.connections_max.get(),
            },
            measured_ago: metrics.measured_ago(),
            destinations: each
                .map(|(index, watched)| self.destination(index, watched, (steering.as_ref(), &known), now))
                .collect(),
            relays: neighbours.as_ref().map(|heard| heard.what.relays.clone()),
            replays: neighbours.as_ref().and_then(|heard| heard.what.replays.clone()),
            neighbours_age: neighbours.as_ref().map_or(Duration::ZERO, |heard| now.since(heard.at)),
            hanging: health.hanging(),
            lacks_destinations: *follows_the_table && destinations.is_empty(),
            refused_rows: board.refused(),
            unserved: metrics.measured_ago().map(|_| board.unserved()).unwrap_or_default(),
            horizon: metrics.measured_ago().map(|_| metrics.horizon_ages()).unwrap_or_default(),
            settings,
            more_settings,
            surroundings: given.surroundings.clone(),
        }
    }

    fn destination(
        &self,
        index: usize,
        watched: &Watched,
        (steering, known): (Option<&Heard<Steering>>, &Known<'_>),
        now: Time,
    ) -> Destination {
        let Watched { name, target, kind, metrics, relay, queue } = watched;
        let (tuning, _) = known.adjusted(self.sources.given.tuning, name);
        let died = FaultKind::ALL.map(|kind| (kind.reason(), metrics.dead_lettered(kind).get()));
        Destination {
            name: name.to_string(),
            kind: *kind,
            target: target.clone(),
            outage: ongoing(queue, now),
            activity: relay.activity().map(|(activity, _)| activity),
            stalled: relay.stalled(),
            pause: steering.and_then(|heard| pause(heard, name, now)),
            lag: metrics.lag.get(),
            ready_lag: self.sources.board.ready_lag(name),
            pending: metrics.backlog.get(),
            dead: metrics.dead.get(),
            quarantined: metrics.quarantined.get(),
            delivered: metrics.delivered.get(),
            died: died.to_vec(),
            requests: metrics.requests.get(),
            failures: failures(metrics),
            in_flight: metrics.in_flight.get(),
            in_flight_limit: metrics.in_flight_limit.get(),
            max_in_flight: i64::try_from(tuning.max_in_flight).unwrap_or(i64::MAX),
            lanes_held: metrics.lanes_held.get(),
            hot_groups: metrics.hot_groups.get(),
            hot_group_rate: metrics.hot_group_rate.get(),
            fifo_mode: tuning.fifo_mode,
            past: locked(&self.history).of(index, now),
        }
    }
}

/// The page about all databases of the process, each with its name; its lines are at most a second old.
pub fn overview<'a>(databases: impl IntoIterator<Item = (&'a str, &'a Page)>) -> Bytes {
    let line = |(name, page): (&'a str, &Page)| (name, page.kept(&page.summary, Summary::of));
    html::overview(&databases.into_iter().map(line).collect::<Vec<_>>()).into()
}

/// A pause as it is now: the database told its times when it was asked. One that has ended since is none, also while the
/// database cannot be asked again.
fn pause(heard: &Heard<Steering>, destination: &str, now: Time) -> Option<Pause> {
    let since = now.since(heard.at);
    let pause = heard.what.pause_of(destination)?;
    let left = pause.left.map(|left| left.saturating_sub(since));
    if left.is_some_and(|left| left.is_zero()) {
        return None;
    }
    Some(Pause { age: pause.age.saturating_add(since), left, ..pause })
}

fn ongoing(dependency: &Dependency, now: Time) -> Option<Ongoing> {
    let outage = dependency.outage()?;
    Some(Ongoing { lasting: now.since(outage.since), reason: outage.reason })
}

fn failures(metrics: &DestinationMetrics) -> u64 {
    FaultKind::ALL.iter().map(|kind| metrics.request_failures(*kind).get()).sum()
}

/// A value behind a lock is replaced as a whole, so a panic elsewhere leaves none half written.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_ends_at_its_time_although_nobody_can_ask_the_database() {
        let heard_at = Time::now();
        let left = Some(Duration::from_secs(600));
        let pauses = vec![Pause { left, destination: "tickets".to_owned(), ..samples::pause("ada", "") }];
        let heard = Heard { what: Arc::new(Steering { pauses, settings: Vec::new() }), at: heard_at };
        let after = |seconds| pause(&heard, "tickets", heard_at + Duration::from_secs(seconds));
        assert_eq!(after(599).and_then(|pause| pause.left), Some(Duration::from_secs(1)));
        assert_eq!(after(600), None);
        assert_eq!(after(6000), None);
    }
}
