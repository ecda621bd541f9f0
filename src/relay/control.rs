//! Control: what operators have decided, for the relays of the process: pauses, and settings that win over the environment.
//!
//! One task asks once a second for all destinations. When the database does not answer, the last answer stands. It also sees
//! to it that the database still shows this role everything: what is hidden looks like what is not there.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::core::Control;
use crate::config::Tuning;
use crate::health::Heartbeat;
use crate::metrics::{DestinationMetrics, Metrics};
use crate::outbox::{Outbox, OutboxError, Pause, Setting, Steering};

/// How often to ask; every relay has followed after twice this time.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// After how many answers to see whether the database still shows everything.
const SUITABLE_EVERY: u32 = 10;

/// What is known of the decisions.
#[derive(Clone, Debug, Default)]
struct Decided {
    /// `None` before the first answer.
    steering: Option<Arc<Steering>>,
    /// Why the database must not be used, and how often that was seen.
    unsuitable: Option<(u64, OutboxError)>,
}

/// Asks until told to stop.
#[derive(Debug)]
pub struct ControlPoller {
    outbox: Outbox,
    destinations: Vec<(Arc<str>, DestinationMetrics)>,
    metrics: Arc<Metrics>,
    decided: watch::Sender<Decided>,
    heartbeat: Arc<Heartbeat>,
}

/// What one relay knows of it.
#[derive(Clone, Debug)]
pub struct ControlHandle {
    decided: watch::Receiver<Decided>,
    destination: Arc<str>,
    /// As the environment has it.
    baseline: Tuning,
    /// The settings that are in force.
    followed: Vec<Setting>,
    /// What was wrong, so that it is logged once.
    logged: Vec<String>,
    /// The latest reason not to use the database that was passed on.
    unsuitable: u64,
}

impl ControlPoller {
    /// For these destinations.
    pub fn new(
        outbox: Outbox,
        destinations: Vec<(Arc<str>, DestinationMetrics)>,
        metrics: Arc<Metrics>,
        heartbeat: Arc<Heartbeat>,
    ) -> Self {
        let (decided, _) = watch::channel(Decided::default());
        Self { outbox, destinations, metrics, decided, heartbeat }
    }

    /// What one relay knows of it.
    pub fn handle(&self, destination: &Arc<str>, baseline: Tuning) -> ControlHandle {
        let (decided, destination) = (self.decided.subscribe(), Arc::clone(destination));
        ControlHandle { decided, destination, baseline, followed: Vec::new(), logged: Vec::new(), unsuitable: 0 }
    }

    /// Asks until told to stop.
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
                // A right that is missing. Where the database cannot be used at all, the relays say so.
                Err(error @ (OutboxError::Statement { .. } | OutboxError::Timeout { .. })) => {
                    if !std::mem::replace(&mut is_logged, true) {
                        tracing::warn!(error = %error, "pauses and settings cannot be read; the last ones stand");
                    }
                    // Without the right to read them nobody can have meant this relay.
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

    /// The relays meet every other failure themselves.
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
        self.decided.send_modify(|decided| decided.steering = Some(Arc::new(steering)));
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

    /// Waits for another answer.
    pub(super) async fn changed(&mut self) {
        // An error means that the poller is gone, which happens only when the process ends.
        if self.decided.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Why the database must not be used, once for each time that this was seen.
    pub(super) fn unsuitable(&mut self) -> Option<OutboxError> {
        let decided = self.decided.borrow();
        let (seen, error) = decided.unsuitable.as_ref().filter(|(seen, _)| *seen > self.unsuitable)?;
        self.unsuitable = *seen;
        Some(error.clone())
    }

    /// The settings in force, if they are others than at the last time.
    pub(super) fn tuning(&mut self) -> Option<Tuning> {
        let steering = self.decided.borrow().steering.clone()?;
        let settings: Vec<Setting> = steering.settings_of(&self.destination).cloned().collect();
        if settings == self.followed {
            return None;
        }
        let by_name = settings.iter().map(|setting| (setting.name.as_str(), setting.value.as_str()));
        let (tuning, wrong) = self.baseline.adjusted(by_name);
        for sentence in wrong.iter().filter(|sentence| !self.logged.contains(sentence)) {
            tracing::warn!(destination = %self.destination, "a setting in outbox.settings is not followed: {sentence}");
        }
        self.logged = wrong;
        self.followed = settings;
        Some(tuning)
    }
}
