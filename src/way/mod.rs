//! A step on the way to a server, as `outbox-relay check` takes it: what was seen, or why the way ends there. The ways
//! themselves are walked where the connections are made: [`crate::outbox`] and [`crate::publisher`].

mod certificate;

pub use certificate::{Noting, Shown, agreed};

use std::time::{Duration, SystemTime};

/// How long a step may take.
pub const LIMIT: Duration = Duration::from_secs(5);

/// The last second that can be written with four digits for the year.
const LAST_SECOND: Duration = Duration::from_secs(253_402_300_799);

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What is looked at, such as `name of sqs.eu-west-1.amazonaws.com`.
    pub what: String,
    /// What was seen, or why the way ends here.
    pub result: Result<String, Trouble>,
}

/// Why a step failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    /// What is wrong.
    pub says: String,
    /// What to do about it.
    pub remedy: String,
}

impl Trouble {
    /// Trouble and its remedy.
    pub fn new(says: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { says: says.into(), remedy: remedy.into() }
    }
}

/// Host and port that a connection goes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// A name or an IP address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// A point in time, as text.
pub fn moment(time: SystemTime) -> String {
    let last = SystemTime::UNIX_EPOCH + LAST_SECOND;
    humantime::format_rfc3339_seconds(time.clamp(SystemTime::UNIX_EPOCH, last)).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_point_in_time_can_be_written() {
        let second = Duration::from_secs(1);
        assert_eq!(moment(SystemTime::UNIX_EPOCH - second), "1970-01-01T00:00:00Z");
        assert_eq!(moment(SystemTime::UNIX_EPOCH + second), "1970-01-01T00:00:01Z");
        assert_eq!(moment(SystemTime::UNIX_EPOCH + LAST_SECOND * 2), "9999-12-31T23:59:59Z");
    }
}
