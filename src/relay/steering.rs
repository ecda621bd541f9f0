//! Steering: follows what operators have decided, and tells the relays of the process.
//!
//! One task asks once a second for all destinations. When the database does not answer, the last answer stands.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::Tuning;
use crate::health::Pulse;
use crate::metrics::{DestinationMetrics, Metrics};
use crate::outbox::{Outbox, OutboxError, Pause, Setting, Steering};

/// How often to ask; every relay has followed after twice this time.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// How long a relay that starts waits for the first answer before it says that it is paused.
const FIRST_ANSWER: Duration = Duration::from_secs(2);

/// Asks until told to stop.
#[derive(Debug)]
pub struct Steersman {
    outbox: Outbox,
    destinations: Vec<(Arc<str>, DestinationMetrics)>,
    metrics: Arc<Metrics>,
    decided: watch::Sender<Option<Arc<Steering>>>,
    pulse: Arc<Pulse>,
}

/// What one relay knows of it.
#[derive(Clone, Debug)]
pub struct Helm {
    decided: watch::Receiver<Option<Arc<Steering>>>,
    destination: Arc<str>,
    /// As the environment has it.
    baseline: Tuning,
    /// The settings that are in force.
    followed: Vec<Setting>,
    /// What was wrong, so that it is told once.
    told: Vec<String>,
}

impl Steersman {
    /// For these destinations.
    pub fn new(
        outbox: Outbox,
        destinations: Vec<(Arc<str>, DestinationMetrics)>,
        metrics: Arc<Metrics>,
        pulse: Arc<Pulse>,
    ) -> Self {
        let (decided, _) = watch::channel(None);
        Self { outbox, destinations, metrics, decided, pulse }
    }

    /// A helm for one relay.
    pub fn helm(&self, destination: &Arc<str>, baseline: Tuning) -> Helm {
        let (decided, destination) = (self.decided.subscribe(), Arc::clone(destination));
        Helm { decided, destination, baseline, followed: Vec::new(), told: Vec::new() }
    }

    /// Asks until told to stop.
    pub async fn run(self, stop: CancellationToken) {
        let mut is_told = false;
        while !stop.is_cancelled() {
            self.pulse.tick();
            match self.outbox.steering().await {
                Ok(steering) => {
                    is_told = false;
                    self.follow(steering);
                }
                // A right that is missing. Where the database cannot be used at all, the relays say so.
                Err(error @ (OutboxError::Statement { .. } | OutboxError::Timeout { .. })) => {
                    if !std::mem::replace(&mut is_told, true) {
                        tracing::warn!(error = %error, "pauses and settings cannot be read; the last ones stand");
                    }
                    // Without the right to read them nobody can have meant this relay.
                    if error.is_denied() && self.decided.borrow().is_none() {
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
        self.pulse.finish();
    }

    fn follow(&self, steering: Steering) {
        let before = self.decided.borrow().clone();
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
        self.decided.send_replace(Some(Arc::new(steering)));
    }
}

/// As long as nothing is known, nothing is published: the relay may have started in a pause.
fn is_paused(steering: Option<&Steering>, destination: &str) -> bool {
    steering.is_none_or(|steering| steering.pause_of(destination).is_some())
}

impl Helm {
    /// Waits until something is known, for a relay that starts during a pause; but not for ever.
    pub(super) async fn first_answer(&mut self) {
        drop(tokio::time::timeout(FIRST_ANSWER, self.decided.wait_for(Option::is_some)).await);
    }

    /// Whether this destination is to publish nothing.
    pub(super) fn is_paused(&self) -> bool {
        is_paused(self.decided.borrow().as_deref(), &self.destination)
    }

    /// Waits until this destination may publish.
    pub(super) async fn until_resumed(&mut self) {
        let destination = Arc::clone(&self.destination);
        // An error means that the steersman is gone, which happens only when the process ends.
        drop(self.decided.wait_for(|steering| !is_paused(steering.as_deref(), &destination)).await);
    }

    /// Whether other settings are in force than those that are followed, or a pause has begun.
    pub(super) fn has_news(&self) -> bool {
        let steering = self.decided.borrow().clone();
        let settings = steering.as_deref().map(|steering| steering.settings_of(&self.destination).cloned());
        settings.is_some_and(|settings| !settings.eq(self.followed.iter().cloned())) || self.is_paused()
    }

    /// The settings in force, if they are others than at the last time.
    pub(super) fn tuning(&mut self) -> Option<Tuning> {
        let steering = self.decided.borrow().clone()?;
        let settings: Vec<Setting> = steering.settings_of(&self.destination).cloned().collect();
        if settings == self.followed {
            return None;
        }
        let by_name = settings.iter().map(|setting| (setting.name.as_str(), setting.value.as_str()));
        let (tuning, wrong) = self.baseline.adjusted(by_name);
        for sentence in wrong.iter().filter(|sentence| !self.told.contains(sentence)) {
            tracing::warn!(destination = %self.destination, "a setting in outbox.settings is not followed: {sentence}");
        }
        self.told = wrong;
        self.followed = settings;
        Some(tuning)
    }
}
