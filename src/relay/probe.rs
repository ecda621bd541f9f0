//! The probe: how a halted destination is tried again.
//!
//! While a destination is halted, one request goes out at a time, with growing pauses. The first accepted entry ends that.
//! One log line says that it halted, one that it is back.

use std::sync::Arc;
use std::time::Duration;

use super::Destination;
use crate::health::Dependency;
use crate::message::{Fault, FaultKind};
use crate::retry::Delays;

/// The longest pause while SQS throttles or cannot be reached: that passes by itself, and then every second counts. What
/// somebody has to mend is tried less and less often, up to `OUTBOX_RELAY_RETRY_MAX`.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Whether a destination is halted, and when to try it again.
#[derive(Debug)]
pub struct Probe {
    is_on: bool,
    delays: Delays,
    brief_delays: Delays,
    queue: Arc<Dependency>,
}

impl Probe {
    /// A destination that is taken to work until it fails.
    pub fn new(queue: Arc<Dependency>, first: Duration, longest: Duration) -> Self {
        let brief = longest.min(LONGEST_PAUSE);
        let (delays, brief_delays) = (Delays::new(first, longest), Delays::new(first.min(brief), brief));
        Self { is_on: false, delays, brief_delays, queue }
    }

    /// Other pauses are configured; the next one is a first one.
    pub(super) fn set_delays(&mut self, first: Duration, longest: Duration) {
        let brief = longest.min(LONGEST_PAUSE);
        self.delays = Delays::new(first.min(longest), longest);
        self.brief_delays = Delays::new(first.min(brief), brief);
    }

    /// Whether only one request may be under way.
    pub fn is_on(&self) -> bool {
        self.is_on
    }

    /// The destination failed; returns how long to leave it alone.
    pub(super) fn failed(&mut self, destination: &Destination, fault: &Fault) -> Duration {
        let pause = match fault.kind {
            FaultKind::Throttle | FaultKind::Outage | FaultKind::ServerError | FaultKind::Ambiguous => {
                self.brief_delays.next_delay()
            }
            _ => self.delays.next_delay(),
        };
        self.is_on = true;
        destination.metrics.up.set(0);
        // The same fault is told once, however often the probe meets it.
        let is_news = self.queue.report_down(&fault.code);
        if is_news && fault.kind == FaultKind::Ours {
            tracing::error!(destination = %destination.name, code = %fault.code, reason = %fault.detail, "destination halted by an error of outbox-relay, please report it; its messages wait");
        } else if is_news {
            tracing::warn!(destination = %destination.name, code = %fault.code, reason = %fault.detail, "destination halted; its messages wait, no attempt is charged");
        }
        pause
    }

    /// SQS accepted something.
    pub(super) fn passed(&mut self, destination: &Destination) {
        if self.is_on {
            self.is_on = false;
            self.delays.reset();
            self.brief_delays.reset();
            destination.metrics.up.set(1);
            // Who was not told that it is halted, within a second of the last time, need not be told this either.
            if self.queue.report_up() {
                tracing::info!(destination = %destination.name, "destination is back");
            }
        }
    }
}
