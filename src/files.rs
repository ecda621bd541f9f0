//! How many files this process may have open: each connection needs one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::RelayConfig;

/// Files needed besides requests: connections to the database, the metrics listener and its clients, log, timers.
const OTHERS: u64 = 64;

/// Raises the limit as far as this process may, and warns if the requests to these destinations may need more. Raising is
/// safe: no part of the process uses select(2), for which the lower limit exists.
pub fn raise_limit<'a>(databases: impl IntoIterator<Item = &'a RelayConfig>) {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: maximum, maximum };
    let limit = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => maximum,
        Err(_) => current,
    };
    let of_one = |config: &RelayConfig| config.destinations.len() * config.tuning.max_in_flight;
    let needed = databases.into_iter().map(of_one).sum::<usize>() as u64 + OTHERS;
    if let Some(may_open) = limit.filter(|limit| *limit < needed) {
        tracing::warn!(
            may_open,
            needed,
            "too few files may be open at a time; raise the limit (ulimit -n, LimitNOFILE), or lower OUTBOX_RELAY_MAX_IN_FLIGHT"
        );
    }
}
