//! What the loops last heard from PostgreSQL, for people to read: what operators have decided, which relays are
//! connected, which replays run. Numbers are in [`crate::metrics`], failures in [`crate::health`].
//!
//! Written by the control poller and the janitor, which ask anyway; read by the status page. Nothing is decided here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::clock::Time;
use crate::reading::{Replay, Steering};

/// The connections to this database, and what is written into the outbox beside the application.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Neighbours {
    /// Relays that are connected, as HOST/PID.
    pub relays: Vec<String>,
    /// Replays that have not ended; `None` where this role may not see them.
    pub replays: Option<Vec<Replay>>,
}

/// An answer, and when it came.
#[derive(Clone, Debug)]
pub struct Heard<T> {
    /// When.
    pub at: Time,
    /// The answer.
    pub what: Arc<T>,
}

/// The last answers.
#[derive(Debug, Default)]
pub struct Board {
    heard: Mutex<Last>,
}

#[derive(Debug, Default)]
struct Last {
    steering: Option<Heard<Steering>>,
    neighbours: Option<Heard<Neighbours>>,
    server: Option<String>,
    ready_lags: HashMap<Arc<str>, f64>,
    refused: Vec<String>,
    unserved: Vec<String>,
}

impl Board {
    fn last(&self) -> MutexGuard<'_, Last> {
        // Every value is replaced as a whole, so a panic elsewhere leaves none half written.
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What operators have decided.
    pub fn set_steering(&self, what: Arc<Steering>, at: Time) {
        self.last().steering = Some(Heard { at, what });
    }

    /// The last answer of that kind.
    pub fn steering(&self) -> Option<Heard<Steering>> {
        self.last().steering.clone()
    }

    /// Who else works on this database.
    pub fn set_neighbours(&self, what: Neighbours, at: Time) {
        self.last().neighbours = Some(Heard { at, what: Arc::new(what) });
    }

    /// The last answer of that kind.
    pub fn neighbours(&self) -> Option<Heard<Neighbours>> {
        self.last().neighbours.clone()
    }

    /// The server to which the last connection was made.
    pub fn set_server(&self, server: Option<String>) {
        self.last().server = server;
    }

    /// That server.
    pub fn server(&self) -> Option<String> {
        self.last().server.clone()
    }

    /// Names of rows of `outbox.destinations` that cannot be used.
    pub fn set_refused(&self, names: Vec<String>) {
        self.last().refused = names;
    }

    /// Those names.
    pub fn refused(&self) -> Vec<String> {
        self.last().refused.clone()
    }

    /// Destinations with messages that no running relay serves.
    pub fn set_unserved(&self, names: Vec<String>) {
        self.last().unserved = names;
    }

    /// Those destinations.
    pub fn unserved(&self) -> Vec<String> {
        self.last().unserved.clone()
    }

    /// Age in seconds of the oldest message of a destination that nothing holds up.
    pub fn set_ready_lag(&self, destination: &Arc<str>, seconds: f64) {
        self.last().ready_lags.insert(Arc::clone(destination), seconds);
    }

    /// That age; `None` before the first measurement.
    pub fn ready_lag(&self, destination: &str) -> Option<f64> {
        self.last().ready_lags.get(destination).copied()
    }
}
