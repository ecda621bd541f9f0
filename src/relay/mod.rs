//! The relay: looks for messages of one destination, claims lanes, sends to SQS under the claim, and begins again.
//!
//! One [`Relay`] serves one destination, so that a slow or halted queue concerns nobody else. [`core`] decides everything and
//! does nothing; this file and [`session`] do what it says, against [`crate::outbox`] and [`crate::sqs`], and bring back what came
//! of it; [`report`] tells metrics, logs and probes. Read [`core`] next.

mod control;
mod core;
pub mod dry_run;
mod poller;
mod report;
mod session;

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::clock::Time;
use crate::config::Tuning;
use crate::metrics::DestinationMetrics;
use crate::outbox::{Keep, Outbox, OutboxError};
use crate::sqs::Queue;

pub use self::core::{Ended, MemoryBudget, MemoryShare, Until};
pub use control::{ControlHandle, ControlPoller};
pub use poller::{Poller, WorkSignal};
pub use report::Reports;

use self::core::{Core, GaveUp};
use report::Reporter;
use session::Worker;

/// The loop never wakes up sooner than this for something that it could not begin.
const SHORTEST_SLEEP: Duration = Duration::from_micros(200);

/// What a relay works with.
#[derive(Debug)]
pub struct Destination {
    /// Its name in the database.
    pub name: Arc<str>,
    /// The tables.
    pub outbox: Outbox,
    /// The queue.
    pub queue: Queue,
    /// Its series.
    pub metrics: DestinationMetrics,
    /// What steers the flow, as the environment has it.
    pub tuning: Tuning,
    /// What happens to a row at delivery.
    pub keep: Keep,
    /// The memory that it shares with all others.
    pub memory: MemoryShare,
}

/// Why `--until-empty` did not get there.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    /// The database does not work, and waiting did not help.
    #[error(transparent)]
    Database(#[from] OutboxError),
    /// The queue does not work, and waiting did not help.
    #[error("destination {destination} is halted: {reason}")]
    Halted {
        /// Which one.
        destination: String,
        /// What SQS said.
        reason: String,
    },
    /// An operator has paused it, and waiting did not help.
    #[error("destination {destination} is paused; `outbox-relay status` says by whom")]
    Paused {
        /// Which one.
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

    /// Publishes until it is told to drain, or until nothing is pending. A failure of database or queue is waited out,
    /// for ever by the daemon, for a minute by `--until-empty`.
    ///
    /// # Errors
    ///
    /// Only with [`Until::Empty`]: when database or queue stayed unusable.
    pub async fn run(mut self, until: Until, drain: CancellationToken) -> Result<Ended, RelayError> {
        let Destination { queue, tuning, memory, .. } = &*self.destination;
        let dice = fastrand::Rng::new();
        let mut core = Core::new(queue.kind(), *tuning, until, memory.clone(), dice, Time::now());
        let mut worker = Worker::new(Arc::clone(&self.destination));
        core.control(self.control.control(), Time::now());
        loop {
            let now = Time::now();
            self.reporter.tick(&core);
            if drain.is_cancelled() {
                core.drain();
            }
            if worker.has_lost_claim() {
                core.claim_lost(now);
            }
            for work in core.due(now) {
                worker.begin(work);
            }
            if !core.needs_claim() {
                worker.drop_claim();
            }
            self.reporter.report(core.reports(), &core);
            if let Some(outcome) = core.outcome() {
                self.reporter.finish();
                return outcome.map_err(|why| self.gave_up(why));
            }
            self.signal.set_idle(core.is_resting());
            let sleep = core.wake_at(now).since(now).max(SHORTEST_SLEEP);
            tokio::select! {
                done = worker.next() => worker.apply(done, &mut core),
                () = tokio::time::sleep(sleep) => {}
                watch = self.signal.changed() => core.watched(watch, Time::now()),
                () = self.control.changed() => self.follow(&mut core),
                () = drain.cancelled(), if !core.is_draining() => {}
            }
            // What else is ready is taken along, so that a turn of the loop is paid once for many results.
            while let Some(done) = worker.ready() {
                worker.apply(done, &mut core);
            }
        }
    }

    /// Takes over what operators have decided.
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
