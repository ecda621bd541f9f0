//! The relay: it looks for messages of one destination, claims lanes, sends to SQS under the claim, and starts over.
//!
//! One [`Relay`] serves one destination, so a slow or halted queue affects no other. [`core`] makes every decision and
//! does no I/O. This file and [`executor`] carry out its decisions against [`crate::outbox`] and [`crate::publisher`] and
//! return the results. [`report`] updates metrics, logs and probes. Read [`core`] next.

mod control;
mod core;
pub mod dry_run;
mod executor;
mod poller;
mod report;
mod spans;
mod timer;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::clock::Time;
use crate::config::Tuning;
use crate::metrics::DestinationMetrics;
use crate::outbox::{Keep, Outbox, OutboxError};
use crate::publisher::Publisher;
use crate::traces::Tracer;

pub use self::core::{MemoryBudget, MemoryShare, RunSummary, Until};
pub use control::{ControlHandle, ControlPoller};
pub use poller::{Poller, WorkSignal};
pub use report::Reports;
pub use spans::target;
pub use timer::Timer;

use self::core::{Core, GaveUp};
use executor::Executor;
use report::Reporter;

/// The shortest sleep of the loop, in case work that is due cannot start yet.
const SHORTEST_SLEEP: Duration = Duration::from_micros(200);

/// The dependencies of a relay.
#[derive(Debug)]
pub struct Destination {
    /// Its name in the database.
    pub name: Arc<str>,
    /// The tables.
    pub outbox: Outbox,
    /// Where its messages go.
    pub publisher: Publisher,
    /// Its metrics.
    pub metrics: DestinationMetrics,
    /// Makes the spans of its requests.
    pub tracer: Tracer,
    /// The settings that control the flow, as given by the environment.
    pub tuning: Tuning,
    /// What happens to a row at delivery.
    pub keep: Keep,
    /// Its share of the memory budget of all destinations.
    pub memory: MemoryShare,
}

/// Why `--until-empty` gave up.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// The database does not work, and waiting did not help.
    #[error(transparent)]
    Database(#[from] OutboxError),
    /// The queue does not work, and waiting did not help.
    #[error("destination {destination} is halted: {reason}")]
    Halted {
        /// Its name.
        destination: String,
        /// What SQS said.
        reason: String,
    },
    /// An operator has paused it, and waiting did not help.
    #[error("destination {destination} is paused; `outbox-relay status` says by whom")]
    Paused {
        /// Its name.
        destination: String,
    },
}

/// Publishes the messages of one destination.
#[derive(Debug)]
pub struct Relay {
    destination: Arc<Destination>,
    reporter: Reporter,
    signal: WorkSignal,
    control: ControlHandle,
}

impl Relay {
    /// A relay that has not looked at anything yet.
    pub fn new(destination: Destination, reports: Reports, signal: WorkSignal, control: ControlHandle) -> Self {
        let destination = Arc::new(destination);
        let reporter = Reporter::new(Arc::clone(&destination), reports);
        Self { destination, reporter, signal, control }
    }

    /// Publishes until it is told to drain, or until nothing is pending. When the database or the queue fails, the
    /// daemon retries without limit, and `--until-empty` retries for a minute.
    ///
    /// # Errors
    ///
    /// Only with [`Until::Empty`]: the database or the queue stayed unusable.
    pub async fn run(mut self, until: Until, drain: CancellationToken) -> Result<RunSummary, RelayError> {
        let Destination { publisher, tuning, memory, .. } = &*self.destination;
        let rng = fastrand::Rng::new();
        let mut core = Core::new(publisher.accepts().clone(), *tuning, until, memory.clone(), rng, Time::now());
        let mut executor = Executor::new(Arc::clone(&self.destination));
        core.control(self.control.control(), Time::now());
        loop {
            let now = Time::now();
            self.reporter.tick(&core);
            if drain.is_cancelled() {
                core.drain();
            }
            if executor.take_lost_claim() {
                core.claim_lost(now);
            }
            for work in core.due(now) {
                executor.begin(work);
            }
            if !core.needs_claim() {
                executor.drop_claim();
            }
            self.reporter.report(core.reports(), &core);
            if let Some(result) = core.result() {
                self.reporter.finish();
                return result.map_err(|why| self.gave_up(why));
            }
            self.signal.set_idle(core.is_idle());
            let sleep = core.wake_at(now).since(now).max(SHORTEST_SLEEP);
            tokio::select! {
                done = executor.next() => executor.apply(done, &mut core),
                () = tokio::time::sleep(sleep) => {}
                watch = self.signal.changed() => core.watched(watch, Time::now()),
                () = self.control.changed() => self.follow(&mut core),
                () = drain.cancelled(), if !core.is_draining() => {}
            }
            // Apply everything else that is ready, so that many results cost one turn of the loop.
            while let Some(done) = executor.ready() {
                executor.apply(done, &mut core);
            }
        }
    }

    /// Applies what operators have decided.
    fn follow(&mut self, core: &mut Core) {
        let now = Time::now();
        if let Some(tuning) = self.control.tuning() {
            core.adjust(tuning, now);
        }
        core.control(self.control.control(), now);
        if let Some(error) = self.control.unsuitable() {
            core.database_is_unsuitable(error, now);
        }
    }

    fn gave_up(&self, why: GaveUp) -> RelayError {
        let destination = self.destination.name.to_string();
        match why {
            GaveUp::Database(error) => RelayError::Database(error),
            GaveUp::Halted(fault) => RelayError::Halted { destination, reason: fault.to_string() },
            GaveUp::Paused => RelayError::Paused { destination },
        }
    }
}
