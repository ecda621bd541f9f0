//! What the page is made from: the state that the loops have left in metrics, health and the board, as plain values.

use std::time::{Duration, SystemTime};

use super::history::Past;
use crate::config::{FifoMode, Shown};
use crate::health::Activity;
use crate::message::DestinationKind;
use crate::reading::{Pause, Replay};

/// Everything that the page shows, at one moment.
#[derive(Clone, Debug)]
pub(super) struct Measured {
    pub(super) now: SystemTime,
    pub(super) running_for: Duration,
    /// The relay's name at PostgreSQL.
    /// The name of the database, if the process has several.
    pub(super) name: Option<String>,
    pub(super) relay: String,
    pub(super) database: Database,
    /// How long ago the table was measured; `None` if its results must not be shown any more.
    pub(super) measured_ago: Option<Duration>,
    pub(super) destinations: Vec<Destination>,
    /// Relays that are connected; `None` before the first answer.
    pub(super) relays: Option<Vec<String>>,
    /// Unfinished replays; `None` if this relay may not see them.
    pub(super) replays: Option<Vec<Replay>>,
    /// How old the answer about relays and replays is.
    pub(super) neighbours_age: Duration,
    /// Loops that do not tick.
    pub(super) hanging: Vec<String>,
    /// Whether it has nothing to serve, because the table of destinations holds nothing.
    pub(super) lacks_destinations: bool,
    /// Names of rows of the table that cannot be used.
    pub(super) refused_rows: Vec<String>,
    /// Destinations with messages that no running relay serves.
    pub(super) unserved: Vec<String>,
    /// Age in seconds of the oldest holder of the vacuum horizon, by kind.
    pub(super) horizon: Vec<(&'static str, f64)>,
    pub(super) settings: Vec<Shown>,
    /// How many more settings there are.
    pub(super) more_settings: usize,
    /// The connection to PostgreSQL and the environment, which cannot change.
    pub(super) surroundings: Vec<Shown>,
}

/// The database.
#[derive(Clone, Debug)]
pub(super) struct Database {
    pub(super) place: String,
    pub(super) schema: String,
    /// The server to which the last connection was made.
    pub(super) server: Option<String>,
    pub(super) has_answered: bool,
    pub(super) outage: Option<Ongoing>,
    pub(super) idle: i64,
    pub(super) in_use: i64,
    pub(super) max: i64,
}

/// An outage that goes on.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Ongoing {
    pub(super) lasting: Duration,
    pub(super) reason: String,
}

/// One destination.
#[derive(Clone, Debug)]
pub(super) struct Destination {
    pub(super) name: String,
    pub(super) kind: DestinationKind,
    pub(super) target: String,
    /// Why its queue is not used.
    pub(super) outage: Option<Ongoing>,
    pub(super) activity: Option<Activity>,
    /// For how long nothing was delivered without a known reason.
    pub(super) stalled: Option<Duration>,
    /// With its age and the time left as they are now.
    pub(super) pause: Option<Pause>,
    pub(super) lag: f64,
    /// Age of the oldest message that nothing holds up.
    pub(super) ready_lag: Option<f64>,
    pub(super) pending: i64,
    pub(super) dead: i64,
    pub(super) quarantined: i64,
    pub(super) delivered: u64,
    /// Messages that died since the start, by reason.
    pub(super) died: Vec<(&'static str, u64)>,
    pub(super) requests: u64,
    pub(super) failures: u64,
    pub(super) in_flight: i64,
    pub(super) in_flight_limit: i64,
    /// The configured limit.
    pub(super) max_in_flight: i64,
    pub(super) lanes_held: i64,
    /// Groups that the FIFO mode limits, the messages a second of each, and the mode.
    pub(super) hot_groups: i64,
    pub(super) hot_group_rate: f64,
    pub(super) fifo_mode: FifoMode,
    pub(super) past: Past,
}
