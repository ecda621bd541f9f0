//! Control: the decisions of operators (pauses, and settings that override the environment), for all relays of the
//! process.
//!
//! One task polls once a second for all destinations. When the database does not answer, the last answer stands. The
//! task also checks that the database still shows this role every row: a hidden row looks like a missing one.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::core::Control;
use crate::board::Board;
use crate::clock::Time;
use crate::config::Tuning;
use crate::health::Heartbeat;
use crate::metrics::{DestinationMetrics, Metrics};
use crate::outbox::{Outbox, OutboxError};
use crate::reading::{Pause, Setting, Steering};

/// The poll interval; every relay has applied a change after twice this time.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// The number of answers between two checks that the database still shows everything.
const SUITABLE_EVERY: u32 = 10;

/// The decisions that are known.
#[derive(Clone, Debug, Default)]
struct Decided {
    /// `None` before the first answer.
    steering: Option<Arc<Steering>>,
    /// Why the database must not be used, and how often the check has failed.
    unsuitable: Option<(u64, OutboxError)>,
}

/// Polls until told to stop.
#[derive(Debug)]
pub struct ControlPoller {
    outbox: Outbox,
    destinations: Vec<(Arc<str>, DestinationMetrics)>,
    metrics: Arc<Metrics>,
    board: Arc<Board>,
    decided: watch::Sender<Decided>,
    heartbeat: Arc<Heartbeat>,
}

/// One relay's view of the decisions.
#[derive(Clone, Debug)]
pub struct ControlHandle {
    decided: watch::Receiver<Decided>,
    destination: Arc<str>,
    /// The settings given by the environment.
    baseline: Tuning,
    /// The settings that are in force.
    followed: Vec<Setting>,
    /// The problems found in the settings, so that each is logged once.
    logged: Vec<String>,
    /// The number of the last failed check that was passed on.
    unsuitable: u64,
}

impl ControlPoller {
    /// A poller for these destinations.
    pub fn new(
        outbox: Outbox,
        destinations: Vec<(Arc<str>, DestinationMetrics)>,
        metrics: Arc<Metrics>,
        board: Arc<Board>,
        heartbeat: Arc<Heartbeat>,
    ) -> Self {
        let (decided, _) = watch::channel(Decided::default());
        Self { outbox, destinations, metrics, board, decided, heartbeat }
    }

    /// The view of one relay.
    pub fn handle(&self, destination: &Arc<str>, baseline: Tuning) -> ControlHandle {
        let (decided, destination) = (self.decided.subscribe(), Arc::clone(destination));
        ControlHandle { decided, destination, baseline, followed: Vec::new(), logged: Vec::new(), unsuitable: 0 }
    }

    /// Polls until told to stop.
    pub async fn run(self, stop: CancellationToken) {
        let (mut is_logged, mut rounds) = (false, 0);
        while !stop.is_cancelled() {
            self.heartbeat.tick();
            rounds += 1;
            match self.outbox.steering().await {
                Ok(steering) => {
                    is_logged = false;
                    self.follow(steering);
                    if rounds % SUITABLE_EVERY == 0 {
                        self.see_whether_suitable().await;
                    }
                }
                // For example a missing privilege. When the database cannot be used at all, the relays report it.
                Err(error @ (OutboxError::Statement { .. } | OutboxError::Timeout { .. })) => {
                    if !std::mem::replace(&mut is_logged, true) {
                        tracing::warn!(error = %error, "pauses and settings cannot be read; the last ones stand");
                    }
                    // If this role may not read pauses, nobody can have paused this relay.
                    if error.is_denied() && self.decided.borrow().steering.is_none() {
                        self.follow(Steering::default());
                    }
                }
                Err(error) => tracing::debug!(error = %error, "pauses and settings cannot be read"),
            }
            tokio::select! {
                () = tokio::time::sleep(ASK_EVERY) => {}
                () = stop.cancelled() => {}
            }
        }
        self.heartbeat.finish();
    }

    /// Reports only an unsuitable database; the relays meet every other failure themselves.
    async fn see_whether_suitable(&self) {
        if let Err(error @ OutboxError::Unsuitable { .. }) = self.outbox.check_suitable().await {
            self.decided.send_modify(|decided| {
                let seen = decided.unsuitable.as_ref().map_or(0, |(seen, _)| *seen);
                decided.unsuitable = Some((seen + 1, error));
            });
        }
    }

    fn follow(&self, steering: Steering) {
        let before = self.decided.borrow().steering.clone();
        for (name, _) in &self.destinations {
            let pause = steering.pause_of(name);
            let was_paused = before.as_deref().is_some_and(|before| before.pause_of(name).is_some());
            self.metrics.set_paused(name, pause.as_ref().map(|pause| pause.age));
            match pause {
                Some(Pause { reason, actor, .. }) if !was_paused => {
                    tracing::info!(destination = %name, reason, actor, "paused; its messages wait");
                }
                None if was_paused => tracing::info!(destination = %name, "resumed"),
                _ => {}
            }
        }
        let steering = Arc::new(steering);
        self.board.set_steering(Arc::clone(&steering), Time::now());
        self.decided.send_modify(|decided| decided.steering = Some(steering));
    }
}

impl ControlHandle {
    /// What operators have decided for this destination.
    pub(super) fn control(&self) -> Control {
        match &self.decided.borrow().steering {
            None => Control::Unknown,
            Some(steering) if steering.pause_of(&self.destination).is_some() => Control::Paused,
            Some(_) => Control::Running,
        }
    }

    /// Waits for the next answer.
    pub(super) async fn changed(&mut self) {
        // An error means that the poller is gone, which happens only when the process ends.
        if self.decided.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Why the database must not be used; returned once per failed check.
    pub(super) fn unsuitable(&mut self) -> Option<OutboxError> {
        let decided = self.decided.borrow();
        let (seen, error) = decided.unsuitable.as_ref().filter(|(seen, _)| *seen > self.unsuitable)?;
        self.unsuitable = *seen;
        Some(error.clone())
    }

    /// The settings in force, if they have changed since the last call.
    pub(super) fn tuning(&mut self) -> Option<Tuning> {
        let steering = self.decided.borrow().steering.clone()?;
        let settings: Vec<Setting> = steering.settings_of(&self.destination).cloned().collect();
        if settings == self.followed {
            return None;
        }
        let by_name = settings.iter().map(|setting| (setting.name.as_str(), setting.value.as_str()));
        let (tuning, wrong) = self.baseline.adjusted(by_name);
        for sentence in wrong.iter().filter(|sentence| !self.logged.contains(sentence)) {
            tracing::warn!(destination = %self.destination, "a setting in the database is not followed: {sentence}");
        }
        self.logged = wrong;
        self.followed = settings;
        Some(tuning)
    }
}
