//! How many files this process may have open: each connection needs one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::RelayConfig;

/// Files needed besides requests: connections to the database, the metrics listener and its clients, log, timers.
const OTHERS: u64 = 64;

/// The process may open fewer files than it may need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooFew {
    /// How many files this process may open.
    pub may_open: u64,
    /// How many it may need.
    pub needed: u64,
}

/// Raises the limit as far as this process may. That is safe: no part of it uses select(2), for which the lower limit
/// exists.
pub fn raise_limit<'a>(databases: impl IntoIterator<Item = &'a RelayConfig>) -> Result<(), TooFew> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: maximum, maximum };
    let limit = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => maximum,
        Err(_) => current,
    };
    let requests = databases.into_iter().map(|config| config.destinations.len() * config.tuning.max_in_flight);
    let needed = requests.sum::<usize>() as u64 + OTHERS;
    match limit.filter(|limit| *limit < needed) {
        Some(may_open) => Err(TooFew { may_open, needed }),
        None => Ok(()),
    }
}
