//! How many files this process may have open: each connection is one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::RelayConfig;

/// Besides requests: connections to the database, the metrics' listener and who asks it, log, timers.
const OTHERS: u64 = 64;

/// Fewer than may be needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooFew {
    /// What this process may have open.
    pub may_open: u64,
    /// What it may need.
    pub needed: u64,
}

/// Raises the limit as far as this process may, since no part of it counts files in sets of fixed size (select(2), for which
/// the lower limit exists).
pub fn raise_limit(config: &RelayConfig) -> Result<(), TooFew> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: maximum, maximum };
    let limit = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => maximum,
        Err(_) => current,
    };
    let needed = (config.destinations.len() * config.tuning.max_in_flight) as u64 + OTHERS;
    match limit.filter(|limit| *limit < needed) {
        Some(may_open) => Err(TooFew { may_open, needed }),
        None => Ok(()),
    }
}
