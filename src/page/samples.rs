//! A state with one destination in each condition, for the tests of this module.

use std::time::{Duration, SystemTime};

use super::history::{Past, Point};
use super::measured::{Database, Destination, Measured, Ongoing};
use crate::config::{FifoMode, Origin, Shown};
use crate::health::Activity;
use crate::message::DestinationKind;
use crate::reading::{Pause, Replay};

/// The texts of others that the page shows.
#[derive(Clone, Debug)]
pub(super) struct Texts {
    pub(super) destination: String,
    pub(super) target: String,
    pub(super) reason: String,
    pub(super) actor: String,
    pub(super) pause: String,
    pub(super) relay: String,
    pub(super) setting: String,
    pub(super) server: String,
}

impl Texts {
    pub(super) fn all(text: &str) -> Self {
        Self::from(vec![text.to_owned(); 8])
    }

    pub(super) fn from(texts: Vec<String>) -> Self {
        // An empty text leaves its place out, which is no fault of the text. A mark at the end would hide another one.
        let mut texts = texts.into_iter().map(|text| format!("t{text}."));
        let mut next = || texts.next().unwrap_or_default();
        Self {
            destination: next(),
            target: next(),
            reason: next(),
            actor: next(),
            pause: next(),
            relay: next(),
            setting: next(),
            server: next(),
        }
    }

    pub(super) fn each(&self) -> [&str; 8] {
        [
            &self.destination,
            &self.target,
            &self.reason,
            &self.actor,
            &self.pause,
            &self.relay,
            &self.setting,
            &self.server,
        ]
    }
}

/// A healthy destination with nothing to do.
pub(super) fn destination(name: &str) -> Destination {
    Destination {
        name: name.to_owned(),
        kind: DestinationKind::Fifo,
        target: format!("https://sqs.eu-west-1.amazonaws.com/111122223333/{name}.fifo"),
        outage: None,
        activity: Some(Activity::Idle),
        stalled: None,
        pause: None,
        lag: 0.0,
        ready_lag: Some(0.0),
        pending: 0,
        dead: 0,
        quarantined: 0,
        delivered: 1100,
        died: vec![("message_permanent", 0), ("message_transient", 0)],
        requests: 100,
        failures: 0,
        in_flight: 0,
        in_flight_limit: 256,
        max_in_flight: 256,
        lanes_held: 0,
        hot_groups: 0,
        hot_group_rate: 0.0,
        fifo_mode: FifoMode::Strict,
        past: Past {
            points: (0..=180)
                .map(|sample| {
                    let point = Point { delivered: 1100, requests: 0, failures: 0, lag: Some(0.0), pending: Some(0) };
                    (Duration::from_secs(sample * 5), point)
                })
                .rev()
                .collect(),
        },
    }
}

/// A healthy relay.
pub(super) fn healthy(destinations: Vec<Destination>) -> Measured {
    Measured {
        now: SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_000_000),
        running_for: Duration::from_secs(7260),
        name: None,
        relay: "outbox-relay host/17".to_owned(),
        database: Database {
            place: "db1:5432,db2:5432/lottery".to_owned(),
            schema: "outbox".to_owned(),
            server: Some("db1:5432".to_owned()),
            has_answered: true,
            outage: None,
            idle: 1,
            in_use: 1,
            max: 3,
        },
        measured_ago: Some(Duration::from_secs(1)),
        destinations,
        relays: Some(vec!["host/17".to_owned()]),
        replays: Some(Vec::new()),
        neighbours_age: Duration::from_secs(4),
        hanging: Vec::new(),
        lacks_destinations: false,
        refused_rows: Vec::new(),
        unserved: Vec::new(),
        horizon: Vec::new(),
        settings: Vec::new(),
        more_settings: 0,
        surroundings: Vec::new(),
    }
}

pub(super) fn pause(actor: &str, reason: &str) -> Pause {
    Pause {
        destination: "any".to_owned(),
        reason: reason.to_owned(),
        actor: actor.to_owned(),
        age: Duration::from_secs(300),
        left: Some(Duration::from_secs(600)),
    }
}

/// One destination in each condition, with these texts wherever a text of others is shown.
pub(super) fn measured(texts: &Texts) -> Measured {
    let ongoing = |reason: &str| Some(Ongoing { lasting: Duration::from_secs(240), reason: reason.to_owned() });
    let halted = Destination {
        outage: ongoing(&texts.reason),
        target: texts.target.clone(),
        pending: 120,
        ..destination(&texts.destination)
    };
    let paused = Destination { pause: Some(pause(&texts.actor, &texts.pause)), ..destination("paused") };
    let stalled =
        Destination { stalled: Some(Duration::from_secs(99)), lag: 99.0, pending: 3, ..destination("stalled") };
    let dead = Destination {
        dead: 100_000,
        quarantined: 1,
        died: vec![("message_permanent", 12)],
        failures: 50,
        in_flight_limit: 3,
        ..destination("dead")
    };
    let shown = |name: &str, value: &str| Shown {
        name: name.to_owned(),
        destination: Some(texts.destination.clone()),
        value: value.to_owned(),
        origin: Origin::Database { actor: texts.actor.clone() },
    };
    let replay = Replay {
        id: 1,
        source: texts.destination.clone(),
        destination: texts.destination.clone(),
        actor: texts.actor.clone(),
        start_position: 1,
        position: 10,
        last_position: 100,
        messages: 9,
        idle: Duration::from_secs(2),
    };
    let whole = healthy(vec![halted, paused, stalled, dead]);
    let database = Database { server: Some(texts.server.clone()), ..whole.database };
    Measured {
        database,
        relays: Some(vec![texts.relay.clone()]),
        replays: Some(vec![replay]),
        hanging: vec![texts.relay.clone()],
        lacks_destinations: false,
        refused_rows: Vec::new(),
        unserved: Vec::new(),
        horizon: vec![("transaction", 4000.0)],
        settings: vec![shown(&texts.setting, &texts.setting), shown("x", &format!("{} (not followed)", texts.setting))],
        surroundings: vec![shown("PGHOST", &texts.setting)],
        ..whole
    }
}
