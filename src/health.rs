//! What the loops report for the probes: that they still tick, and which dependencies they can reach.
//!
//! Written by the loops, read by [`crate::http`]. Nothing is decided here.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::clock::Time;
use crate::reading::Order;

/// A loop that has not ticked for this long counts as hanging. Every wait in a loop is bounded well below it: a request
/// may take `OUTBOX_RELAY_REQUEST_TIMEOUT` (at most 60 s) and a statement 10 s.
pub const HANGING: Duration = Duration::from_secs(120);

/// The heartbeat of one loop.
#[derive(Debug)]
pub struct Heartbeat {
    name: String,
    started: Instant,
    last_tick_millis: AtomicU64,
    finished: AtomicBool,
    activity: Mutex<Option<(Activity, Order)>>,
    /// For how long messages have been due and not delivered, if nothing explains it.
    stalled: Mutex<Option<Duration>>,
}

/// What a relay is doing, for display.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// It waits for messages.
    Idle,
    /// The destination is halted.
    Halted,
    /// An operator has paused it.
    Paused,
    /// Others hold all lanes that have something to do.
    LanesAreElsewhere,
    /// It asks the database, or waits before it asks again.
    Asking(&'static str),
    /// It holds a claim.
    Delivering {
        /// Lanes held.
        lanes: usize,
        /// Messages in memory.
        known: usize,
        /// Requests in flight.
        in_flight: usize,
        /// Whether it releases the claim as soon as nothing is in flight.
        is_closing: bool,
    },
}

impl std::fmt::Display for Activity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Idle => f.write_str("waits for messages"),
            Self::Halted => f.write_str("is halted"),
            Self::Paused => f.write_str("is paused"),
            Self::LanesAreElsewhere => {
                f.write_str("leaves the work to other relays, which hold all lanes with messages")
            }
            Self::Asking(what) => f.write_str(what),
            Self::Delivering { lanes, known, in_flight, is_closing } => {
                let end = if *is_closing { ", and releases its claim" } else { "" };
                write!(f, "holds {lanes} lanes, {known} messages, {in_flight} requests in flight{end}")
            }
        }
    }
}

impl Heartbeat {
    /// The loop is alive; a step that failed counts as well.
    pub fn tick(&self) {
        let millis = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_tick_millis.store(millis, Ordering::Relaxed);
    }

    /// Notes what the loop is doing, and which kinds of row hold up groups of its queue.
    pub fn set_activity(&self, activity: Activity, order: Order) {
        *lock(&self.activity) = Some((activity, order));
    }

    /// What the loop last reported of that.
    pub fn activity(&self) -> Option<(Activity, Order)> {
        *lock(&self.activity)
    }

    /// Notes for how long messages have been due and not delivered without an explanation; `None` if that is not the
    /// case.
    pub fn set_stalled(&self, stalled: Option<Duration>) {
        *lock(&self.stalled) = stalled;
    }

    /// For how long that has been so.
    pub fn stalled(&self) -> Option<Duration> {
        *lock(&self.stalled)
    }

    /// The loop ended normally and will not tick again.
    pub fn finish(&self) {
        self.finished.store(true, Ordering::Relaxed);
    }

    fn silent_for(&self) -> Duration {
        let last = Duration::from_millis(self.last_tick_millis.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(last)
    }
}

/// Whether a dependency answered when it was last used, according to one of its reporters. It is down while any
/// reporter says so; the success of one reporter says nothing about the failure of another.
#[derive(Debug)]
pub struct Dependency {
    name: String,
    state: Arc<Mutex<State>>,
    /// The index of this reporter in [`State::reports`].
    own: usize,
}

#[derive(Debug, Default)]
struct State {
    /// The last report of each reporter.
    reports: Vec<Option<bool>>,
    /// The reasons logged since it went down, each with its text for readers who need no login; empty while it is up, or
    /// if its failure was never logged.
    logged: Vec<(String, String)>,
    logged_at: Option<Instant>,
    /// Since when it has been down, and the latest reason in full.
    outage: Option<Outage>,
}

/// The time in which a dependency does not answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outage {
    /// Since when.
    pub since: Time,
    /// Why, according to the latest failure.
    pub reason: String,
}

impl State {
    fn is_up(&self) -> Option<bool> {
        let says = |what: bool| self.reports.contains(&Some(what));
        if says(false) { Some(false) } else { says(true).then_some(true) }
    }
}

/// The first failure of an outage and each further reason are logged once, and no two lines within this time.
const LOG_AGAIN: Duration = Duration::from_secs(1);

/// The most reasons remembered in an outage.
const REASONS: usize = 100;

impl Dependency {
    /// Another reporter for the same dependency.
    pub fn reporter(&self) -> Arc<Dependency> {
        let mut state = lock(&self.state);
        state.reports.push(None);
        Arc::new(Self { name: self.name.clone(), state: Arc::clone(&self.state), own: state.reports.len() - 1 })
    }

    /// It answered. Returns true once after an outage that was logged, as soon as no reporter says that it is down.
    pub fn report_up(&self) -> bool {
        let mut state = lock(&self.state);
        state.reports[self.own] = Some(true);
        if state.is_up() == Some(false) {
            return false;
        }
        state.outage = None;
        let was_logged = !state.logged.is_empty();
        state.logged.clear();
        was_logged
    }

    /// It did not answer. Returns true if that should be logged: at the first failure, and for each new reason.
    pub fn report_down(&self, reason: &str) -> bool {
        self.report_down_as(reason, reason)
    }

    /// The same for a reason that not everybody may read: probes and page show another text.
    pub fn report_down_as(&self, reason: &str, shown: &str) -> bool {
        let mut state = lock(&self.state);
        state.reports[self.own] = Some(false);
        let since = state.outage.as_ref().map_or_else(Time::now, |outage| outage.since);
        state.outage = Some(Outage { since, reason: shown.to_owned() });
        let is_new = state.logged.len() < REASONS && state.logged.iter().all(|(logged, _)| logged != reason);
        let is_news = is_new && state.logged_at.is_none_or(|at| at.elapsed() >= LOG_AGAIN);
        if is_news {
            state.logged.push((reason.to_owned(), shown.to_owned()));
            state.logged_at = Some(Instant::now());
        }
        is_news
    }

    /// What the latest failure was in full, for [`Dependency::outage`]; to be called when it has been reported.
    pub fn explain(&self, reason: String) {
        if let Some(outage) = &mut lock(&self.state).outage {
            outage.reason = reason;
        }
    }

    /// The outage that goes on now.
    pub fn outage(&self) -> Option<Outage> {
        lock(&self.state).outage.clone()
    }

    /// Whether it has answered and no reporter says that it is down. False before the first report.
    pub fn is_up(&self) -> bool {
        lock(&self.state).is_up() == Some(true)
    }
}

/// What the absence of reports about a dependency means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expectation {
    /// Not ready until it has answered: the database.
    Answered,
    /// Ready until it fails: a queue to which nothing was sent yet.
    Failed,
}

/// The state that the probes ask for.
#[derive(Debug, Default)]
pub struct Health {
    heartbeats: Mutex<Vec<Arc<Heartbeat>>>,
    dependencies: Mutex<Vec<(Expectation, Arc<Dependency>)>>,
}

impl Health {
    /// The heartbeat of a new loop; creating it counts as a beat.
    pub fn heartbeat(&self, name: impl Into<String>) -> Arc<Heartbeat> {
        let heartbeat = Arc::new(Heartbeat {
            name: name.into(),
            started: Instant::now(),
            last_tick_millis: AtomicU64::new(0),
            finished: AtomicBool::new(false),
            activity: Mutex::new(None),
            stalled: Mutex::new(None),
        });
        lock(&self.heartbeats).push(Arc::clone(&heartbeat));
        heartbeat
    }

    /// A dependency about which nothing is known yet, and its first reporter.
    pub fn dependency(&self, name: impl Into<String>, until: Expectation) -> Arc<Dependency> {
        let state = State { reports: vec![None], ..State::default() };
        let dependency = Arc::new(Dependency { name: name.into(), state: Arc::new(Mutex::new(state)), own: 0 });
        lock(&self.dependencies).push((until, Arc::clone(&dependency)));
        dependency
    }

    /// The loops that hang; empty when the process is alive.
    pub fn hanging(&self) -> Vec<String> {
        let hangs = |heartbeat: &&Arc<Heartbeat>| {
            !heartbeat.finished.load(Ordering::Relaxed) && heartbeat.silent_for() > HANGING
        };
        lock(&self.heartbeats).iter().filter(hangs).map(|heartbeat| heartbeat.name.clone()).collect()
    }

    /// The relays that stand still although messages are due: for how long, and what they are doing.
    pub fn stalled(&self) -> Vec<String> {
        let named = |heartbeat: &Arc<Heartbeat>| {
            let seconds = heartbeat.stalled()?.as_secs();
            let does = heartbeat.activity().map(|(activity, _)| format!(" ({activity})")).unwrap_or_default();
            Some(format!("{} for {seconds} s{does}", heartbeat.name))
        };
        lock(&self.heartbeats).iter().filter_map(named).collect()
    }

    /// The dependencies that did not answer, with the logged reasons; empty when the process is ready.
    pub fn unreachable(&self) -> Vec<String> {
        let is_down = |(until, dependency): &&(Expectation, Arc<Dependency>)| match lock(&dependency.state).is_up() {
            Some(is_up) => !is_up,
            None => *until == Expectation::Answered,
        };
        let named = |(_, dependency): &(Expectation, Arc<Dependency>)| {
            let mut shown: Vec<String> = Vec::new();
            for (_, text) in &lock(&dependency.state).logged {
                if !shown.contains(text) {
                    shown.push(text.clone());
                }
            }
            let logged = shown.join("; ");
            if logged.is_empty() { dependency.name.clone() } else { format!("{} ({logged})", dependency.name) }
        };
        lock(&self.dependencies).iter().filter(is_down).map(named).collect()
    }
}

/// A poisoned lock means that another thread panicked while it pushed to a list, which leaves the list intact.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_database_is_unreachable_until_it_answered_and_a_queue_until_it_failed() {
        let health = Health::default();
        let database = health.dependency("database", Expectation::Answered);
        let queue = health.dependency("queue tickets", Expectation::Failed);
        assert_eq!(health.unreachable(), ["database"]);
        assert!(!database.report_up(), "it had not been down");
        assert!(health.unreachable().is_empty());
        assert!(queue.report_down("no such queue"));
        assert_eq!(health.unreachable(), ["queue tickets (no such queue)"]);
        assert!(queue.report_up());
    }

    #[test]
    fn a_failure_is_logged_once() {
        let health = Health::default();
        let database = health.dependency("database", Expectation::Answered);
        assert!(database.report_down("refused"));
        assert!(!database.report_down("refused"));
        assert!(!database.report_down("starting up"), "a new reason, but within a second");
        assert!(database.report_up());
        assert!(!database.report_up());
        assert!(!database.report_down("refused"), "again within a second");
        assert_eq!(health.unreachable(), ["database"], "it is down even if the reason was not logged");
        assert!(!database.report_up(), "the second outage was never logged");
    }

    #[test]
    fn an_outage_lasts_from_its_first_failure_and_has_the_latest_reason() {
        let queue = Health::default().dependency("queue tickets", Expectation::Failed);
        queue.explain("of nothing".to_owned());
        assert_eq!(queue.outage(), None);
        queue.report_down("AccessDenied");
        let since = queue.outage().unwrap().since;
        queue.report_down("NonExistentQueue");
        assert_eq!(queue.outage(), Some(Outage { since, reason: "NonExistentQueue".to_owned() }));
        queue.explain("NonExistentQueue: no such queue".to_owned());
        assert_eq!(queue.outage(), Some(Outage { since, reason: "NonExistentQueue: no such queue".to_owned() }));
        let other = queue.reporter();
        other.report_up();
        assert!(queue.outage().is_some(), "the success of one says nothing about the failure of the other");
        queue.report_up();
        assert_eq!(queue.outage(), None);
    }

    #[test]
    fn a_reason_that_not_everybody_may_read_is_logged_and_shown_as_another_text() {
        let health = Health::default();
        let database = health.dependency("database", Expectation::Answered);
        assert!(database.report_down_as("the key is secret", "see the log"));
        assert!(!database.report_down_as("the key is secret", "see the log"), "already logged");
        lock(&database.state).logged_at = Instant::now().checked_sub(LOG_AGAIN);
        assert!(database.report_down_as("the other key is secret", "see the log"), "a new reason");
        assert_eq!(health.unreachable(), ["database (see the log)"]);
        assert_eq!(database.outage().map(|outage| outage.reason).as_deref(), Some("see the log"));
    }

    #[test]
    fn a_dependency_is_down_while_any_of_its_reporters_is() {
        let health = Health::default();
        let one = health.dependency("database", Expectation::Answered);
        let other = one.reporter();
        assert!(!one.report_up() && !other.report_up());
        assert!(one.report_down("refused"));
        assert!(!other.report_up(), "the success of one says nothing about the failure of the other");
        assert!(!one.is_up() && !other.is_up());
        assert_eq!(health.unreachable(), ["database (refused)"]);
        assert!(!other.report_down("refused"), "already logged");
        assert!(!one.report_up(), "the other one is still down");
        assert!(other.report_up());
        assert!(one.is_up() && health.unreachable().is_empty());
    }

    #[test]
    fn an_outage_within_a_second_after_the_last_line_is_logged_later_or_never() {
        let health = Health::default();
        let database = health.dependency("database", Expectation::Answered);
        assert!(database.report_down("refused") && database.report_up());
        assert!(!database.report_down("refused") && !database.is_up());
        assert!(!database.report_up(), "the outage was not logged");
        assert!(!database.report_down("refused"));
        lock(&database.state).logged_at = Instant::now().checked_sub(LOG_AGAIN);
        assert!(database.report_down("refused"));
        assert!(!database.report_down("starting up"));
        lock(&database.state).logged_at = Instant::now().checked_sub(LOG_AGAIN);
        assert!(database.report_down("starting up"));
        lock(&database.state).logged_at = Instant::now().checked_sub(LOG_AGAIN);
        assert!(!database.report_down("refused"), "logged before in this outage");
    }

    #[test]
    fn a_fresh_loop_does_not_hang() {
        let health = Health::default();
        health.heartbeat("janitor").tick();
        assert!(health.hanging().is_empty());
    }
}
