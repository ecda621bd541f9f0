//! What the loops say about themselves, for the probes: that they still tick, and what they can reach.
//!
//! Written by the loops, read by [`crate::http`]. Nothing is decided here.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::reading::Order;

/// A loop that has not ticked for this long hangs. Every wait in a loop is bounded well below it: a request may take
/// `OUTBOX_RELAY_REQUEST_TIMEOUT` (at most 60 s) and a statement 10 s.
pub const HANGING: Duration = Duration::from_secs(120);

/// One loop's sign of life.
#[derive(Debug)]
pub struct Heartbeat {
    name: String,
    started: Instant,
    last_tick_millis: AtomicU64,
    finished: AtomicBool,
    activity: Mutex<Option<(Activity, Order)>>,
    /// For how long messages have been due without being delivered, where nothing explains it.
    stalled: Mutex<Option<Duration>>,
}

/// What a relay is doing, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activity {
    /// It waits for something to come.
    Idle,
    /// The destination is halted.
    Halted,
    /// An operator has paused it.
    Paused,
    /// Others hold all lanes that have something.
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
        /// Whether it gives the claim back as soon as nothing is in flight.
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
                let end = if *is_closing { ", and gives its claim back" } else { "" };
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

    /// What the loop is doing, and what holds up groups of its queue.
    pub fn set_activity(&self, activity: Activity, order: Order) {
        *lock(&self.activity) = Some((activity, order));
    }

    /// What the loop last said of that.
    pub fn activity(&self) -> Option<(Activity, Order)> {
        *lock(&self.activity)
    }

    /// Messages have been due for so long without being delivered, and nothing explains it; or that is not so.
    pub fn set_stalled(&self, stalled: Option<Duration>) {
        *lock(&self.stalled) = stalled;
    }

    /// The loop ended as it should and will not tick again.
    pub fn finish(&self) {
        self.finished.store(true, Ordering::Relaxed);
    }

    fn silent_for(&self) -> Duration {
        let last = Duration::from_millis(self.last_tick_millis.load(Ordering::Relaxed));
        self.started.elapsed().saturating_sub(last)
    }
}

/// Whether a dependency answered when it was last asked, as one of its reporters says. It is down while any of them says
/// so; a success of one tells nothing about the failure of another.
#[derive(Debug)]
pub struct Dependency {
    name: String,
    state: Arc<Mutex<State>>,
    /// Which of [`State::reports`] is this reporter's.
    own: usize,
}

#[derive(Debug, Default)]
struct State {
    /// What each reporter said last.
    reports: Vec<Option<bool>>,
    /// The reasons logged since it went down; none while it is up, or while its failure was never logged.
    logged: Vec<String>,
    logged_at: Option<Instant>,
}

impl State {
    fn is_up(&self) -> Option<bool> {
        let says = |what: bool| self.reports.contains(&Some(what));
        if says(false) { Some(false) } else { says(true).then_some(true) }
    }
}

/// That it is down, and each further reason, is logged once in an outage, and not more often than this.
const LOG_AGAIN: Duration = Duration::from_secs(1);

/// Reasons remembered in an outage.
const REASONS: usize = 100;

impl Dependency {
    /// One more who reports about the same.
    pub fn reporter(&self) -> Arc<Dependency> {
        let mut state = lock(&self.state);
        state.reports.push(None);
        Arc::new(Self { name: self.name.clone(), state: Arc::clone(&self.state), own: state.reports.len() - 1 })
    }

    /// It answered. Returns true once after it had not, for any of the reporters, and that was logged.
    pub fn report_up(&self) -> bool {
        let mut state = lock(&self.state);
        state.reports[self.own] = Some(true);
        if state.is_up() == Some(false) {
            return false;
        }
        let was_logged = !state.logged.is_empty();
        state.logged.clear();
        was_logged
    }

    /// It did not answer. Returns true when that should be logged: at the first failure, and for a reason that is new.
    pub fn report_down(&self, reason: &str) -> bool {
        let mut state = lock(&self.state);
        state.reports[self.own] = Some(false);
        let is_new = state.logged.len() < REASONS && state.logged.iter().all(|logged| logged != reason);
        let is_news = is_new && state.logged_at.is_none_or(|at| at.elapsed() >= LOG_AGAIN);
        if is_news {
            state.logged.push(reason.to_owned());
            state.logged_at = Some(Instant::now());
        }
        is_news
    }

    /// Whether none of the reporters says that it is down. Before the first report nobody knows.
    pub fn is_up(&self) -> bool {
        lock(&self.state).is_up() == Some(true)
    }
}

/// Whether silence about a dependency means that it is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expectation {
    /// Not ready before it answered: the database.
    Answered,
    /// Ready until it failed: a queue to which nothing was sent yet.
    Failed,
}

/// Everything the probes ask about.
#[derive(Debug, Default)]
pub struct Health {
    heartbeats: Mutex<Vec<Arc<Heartbeat>>>,
    dependencies: Mutex<Vec<(Expectation, Arc<Dependency>)>>,
}

impl Health {
    /// A new loop's heartbeat; counts as a beat.
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

    /// A dependency of which nothing is known yet, and its first reporter.
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

    /// The loops that stand still although there is something to do, for how long and with what they do.
    pub fn stalled(&self) -> Vec<String> {
        let named = |heartbeat: &Arc<Heartbeat>| {
            let seconds = (*lock(&heartbeat.stalled))?.as_secs();
            let does = heartbeat.activity().map(|(activity, _)| format!(" ({activity})")).unwrap_or_default();
            Some(format!("{} for {seconds} s{does}", heartbeat.name))
        };
        lock(&self.heartbeats).iter().filter_map(named).collect()
    }

    /// The dependencies that did not answer, with the reasons that were logged; empty when the process is ready.
    pub fn unreachable(&self) -> Vec<String> {
        let is_down = |(until, dependency): &&(Expectation, Arc<Dependency>)| match lock(&dependency.state).is_up() {
            Some(is_up) => !is_up,
            None => *until == Expectation::Answered,
        };
        let named = |(_, dependency): &(Expectation, Arc<Dependency>)| {
            let logged = lock(&dependency.state).logged.join("; ");
            if logged.is_empty() { dependency.name.clone() } else { format!("{} ({logged})", dependency.name) }
        };
        lock(&self.dependencies).iter().filter(is_down).map(named).collect()
    }
}

/// A poisoned lock means that another thread panicked while it pushed to a list, which leaves the list whole.
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
        assert!(!database.report_down("starting up"), "another reason within a second");
        assert!(database.report_up());
        assert!(!database.report_up());
        assert!(!database.report_down("refused"), "again within a second");
        assert_eq!(health.unreachable(), ["database"], "unlogged is not unknown");
        assert!(!database.report_up(), "that it was down again was never logged");
    }

    #[test]
    fn a_dependency_is_down_while_any_of_its_reporters_is() {
        let health = Health::default();
        let one = health.dependency("database", Expectation::Answered);
        let other = one.reporter();
        assert!(!one.report_up() && !other.report_up());
        assert!(one.report_down("refused"));
        assert!(!other.report_up(), "the sibling's success says nothing about the failure");
        assert!(!one.is_up() && !other.is_up());
        assert_eq!(health.unreachable(), ["database (refused)"]);
        assert!(!other.report_down("refused"), "it is known");
        assert!(!one.report_up(), "the sibling is still down");
        assert!(other.report_up());
        assert!(one.is_up() && health.unreachable().is_empty());
    }

    #[test]
    fn what_went_down_within_a_second_after_the_last_line_is_logged_later_or_never() {
        let health = Health::default();
        let database = health.dependency("database", Expectation::Answered);
        assert!(database.report_down("refused") && database.report_up());
        assert!(!database.report_down("refused") && !database.is_up());
        assert!(!database.report_up(), "nobody knew that it was down");
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
